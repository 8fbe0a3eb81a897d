// remembered before it is published: the result may come at once
const jobs = flow.get('jobs') ?? {};
const { steps, timeoutSeconds } = msg.definition;
jobs[msg.id] = { id: msg.id, queue: msg.queue, since: Date.now(), steps, timeoutSeconds };
flow.set('jobs', jobs);
const workDir = env.get('WORKERS_DRIVE') ? `${env.get('WORKERS_DRIVE')}/${msg.id}` : msg.id; // relative: below their JOB_ROOT
return { ...msg, topic: `${msg.queue}/pending`, payload: { id: msg.id, workDir } };

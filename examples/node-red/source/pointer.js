// remembered before it is published: the result may come at once
const jobs = flow.get('jobs') ?? {};
jobs[msg.id] = { id: msg.id, queue: msg.queue, status: 'queued', since: Date.now(), steps: msg.definition.steps };
flow.set('jobs', jobs);
return { ...msg, topic: `${msg.queue}/pending`, payload: { id: msg.id, workDir: msg.workDir } };

// ROOT/results/ID. Ours by the id alone: the result of a job from before a restart of Node-RED is ours, too
const [, root, id] = /^(.+)\/results\/(nodered_[a-z0-9_]+)$/.exec(msg.topic) ?? [];
if (!id || !env.get('QUEUES').split(/\s+/).includes(root)) {
    return;
}
let result;
try {
    result = JSON.parse(msg.payload);
} catch (error) {
    return node.warn(`${msg.topic}: ${error.message}`);
}
// Node-RED ends where it copies a message that is nested thousands deep
const isDeeper = (value, most) => typeof value === 'object' && value !== null
    && (most === 0 || Object.values(value).some(inner => isDeeper(inner, most - 1)));
if (result?.id !== id || isDeeper(result, 8)) {
    return;
}
const jobs = flow.get('jobs') ?? {};
const job = jobs[id] ??= { id, since: Date.now(), steps: [] };
if (job.result) {
    return;                                           // QoS 1: the same result may come twice
}
Object.assign(job, { result, progress: undefined, over: Date.now() });
flow.set('jobs', jobs);
return { topic: id, payload: result, directory: `${env.get('DRIVE')}/${id}` };

// ROOT/status/ID
const [, root, id] = /^(.+)\/status\/([^/]+)$/.exec(msg.topic) ?? [];
const jobs = flow.get('jobs') ?? {};
if (!env.get('QUEUES').split(/\s+/).includes(root) || !Object.hasOwn(jobs, id) || jobs[id].result) {
    return;                                           // another controller's, or overtaken by its result
}
// Node-RED ends where it copies a message that is nested thousands deep
const isDeeper = (value, most) => typeof value === 'object' && value !== null
    && (most === 0 || Object.values(value).some(inner => isDeeper(inner, most - 1)));
let document;
try {
    document = JSON.parse(msg.payload);
} catch (error) {
    return;
}
if (document?.id !== id || isDeeper(document, 8)) {
    return;
}
const job = jobs[id];
if (job.progress?.startedAt !== document.startedAt) {
    job.begun = Date.now();                           // by our clock: the worker's may be another one
}
job.progress = document;
const steps = Array.isArray(document.steps) ? document.steps : [];
const at = steps.findIndex(step => step?.status === 'running');
node.status({ fill: 'blue', shape: 'dot', text: at < 0 ? 'running' : `step ${at + 1}/${steps.length} ${steps[at].name ?? ''}` });

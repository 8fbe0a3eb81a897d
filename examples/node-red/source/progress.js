// ROOT/status/ID
const [, root, id] = /^(.+)\/status\/([^/]+)$/.exec(msg.topic) ?? [];
const jobs = flow.get('jobs') ?? {};
if (!env.get('QUEUES').split(/\s+/).includes(root) || !Object.hasOwn(jobs, id) || jobs[id].result) {
    return;                                           // another controller's, or overtaken by its result
}
let document;
try {
    document = JSON.parse(msg.payload);
} catch (error) {
    return;
}
if (document?.id !== id) {
    return;
}
Object.assign(jobs[id], { status: 'running', progress: document });
const steps = Array.isArray(document.steps) ? document.steps : [];
const at = steps.findIndex(step => step?.status === 'running');
node.status({ fill: 'blue', shape: 'dot', text: at < 0 ? 'running' : `step ${at + 1}/${steps.length} ${steps[at].name ?? ''}` });

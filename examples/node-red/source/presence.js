// ROOT/workers/ID; an empty presence is one that somebody has cleared
const [, root] = /^(.+)\/workers\/[^/]+$/.exec(msg.topic) ?? [];
if (!env.get('QUEUES').split(/\s+/).includes(root)) {
    return;
}
const workers = flow.get('workers') ?? {};
let presence;
try {
    presence = JSON.parse(msg.payload);
} catch (error) {
    presence = undefined;
}
if (presence?.worker) {
    workers[msg.topic] = { ...presence, queue: root };
} else {
    delete workers[msg.topic];
}
flow.set('workers', workers);
const count = state => Object.values(workers).filter(worker => worker.state === state).length;
node.status({ fill: 'grey', shape: 'dot', text: `${count('idle')} idle, ${count('busy')} busy` });

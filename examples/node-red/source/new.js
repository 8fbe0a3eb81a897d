// { steps, env?, timeoutSeconds?, maxAttempts?, files?: { name: text }, id?, queue? }  ->  a job with an id and a directory
const reject = (statusCode, error) => [null, { ...msg, statusCode, payload: { error } }];
if (msg.req && !msg.req.is('application/json')) {
    return reject(415, 'send it as Content-Type: application/json'); // a form of a foreign web page cannot
}
let body = msg.payload;
if (Buffer.isBuffer(body)) {
    if (body.length > 5 * 1024 * 1024) {
        return reject(413, 'a job may have 5 MiB, files included');
    }
    try {
        body = JSON.parse(body);
    } catch (error) {
        return reject(400, `this is not JSON: ${error.message}`);
    }
}
if (typeof body !== 'object' || body === null || Array.isArray(body)) {
    return reject(400, 'a job is a JSON object');
}

const { files = {}, id: wanted, queue, ...definition } = body;
const known = ['steps', 'env', 'timeoutSeconds', 'maxAttempts'];
const unknown = Object.keys(definition).find(field => !known.includes(field));
if (unknown !== undefined) {
    return reject(400, `${JSON.stringify(unknown)} is not known here: a job has ${known.join(', ')}, files, id and queue`);
}
if (!Array.isArray(definition.steps)) {
    return reject(400, 'steps must be an array');
}
if (typeof files !== 'object' || files === null || Array.isArray(files)) {
    return reject(400, 'files must be { name: text }');
}
const bad = Object.keys(files).find(name => !/^[\w-][\w.-]{0,199}$/.test(name) || /^job\.(json|log|cancel|status\.json)$/.test(name)
    || typeof files[name] !== 'string');
if (bad !== undefined) {
    return reject(400, `files: ${JSON.stringify(bad)} must be a text, with a name of letters, digits, _ . - that is none of the worker's own`);
}
// the prefix marks the jobs, and the directories, that this flow may delete
if (wanted !== undefined && !(typeof wanted === 'string' && /^nodered_[a-z0-9_]{1,100}$/.test(wanted))) {
    return reject(400, 'id must be nodered_ and up to 100 of a-z, 0-9 and _, or be left out');
}
const queues = env.get('QUEUES').split(/\s+/).filter(Boolean);
if (queue !== undefined && !queues.includes(queue)) {
    return reject(400, `queue must be one of ${queues.join(', ')}`);
}
if (!flow.get('connected')) {
    return reject(503, 'Node-RED has no connection to the broker');
}
const id = wanted ?? `nodered_${Date.now().toString(36)}_${Math.random().toString(36).slice(2, 10)}`;
return [{ ...msg, id, queue: queue ?? queues[0], workDir: `${env.get('DRIVE')}/${id}`, files, definition }, null];

// { steps, env?, timeoutSeconds?, maxAttempts?, files?: { name: text }, id?, queue? }  ->  a job with an id and a directory
const reject = (statusCode, error) => [null, { ...msg, statusCode, payload: { error } }];
let body = msg.payload;
if (Buffer.isBuffer(body) || typeof body === 'string') {
    if (body.length > 5 * 1024 * 1024) {
        return reject(413, 'a job may have 5 MiB, files included');
    }
    try {
        body = JSON.parse(body);
    } catch (error) {
        return reject(400, `this is not JSON: ${error.message}`);
    }
}
const isObject = value => typeof value === 'object' && value !== null && !Array.isArray(value);
if (!isObject(body)) {
    return reject(400, 'a job is a JSON object');
}

const { files, id: wanted, queue, ...definition } = body;
const known = ['steps', 'env', 'timeoutSeconds', 'maxAttempts'];
const unknown = Object.keys(definition).find(field => !known.includes(field));
if (unknown !== undefined) {
    return reject(400, `${JSON.stringify(unknown)} is not known here: a job has ${known.join(', ')}, files, id and queue`);
}
// Each value has its type before anything is passed on: Node-RED ends where it copies a message that is nested thousands deep.
// What the types do not say, the worker says in its result.
const isFlat = value => isObject(value) && Object.values(value).every(inner => typeof inner !== 'object' || inner === null);
const { steps, env: variables, timeoutSeconds, maxAttempts } = definition;
if (!Array.isArray(steps)) {
    return reject(400, 'steps must be an array');
}
const odd = steps.findIndex(step => typeof step !== 'string' && !(isFlat(step) && typeof step.run === 'string'));
if (odd >= 0) {
    return reject(400, `step ${odd + 1} must be a command, or an object with "run": a command`);
}
if (variables != null && !isFlat(variables)) {
    return reject(400, 'env must be { NAME: value }');
}
for (const [name, value] of Object.entries({ timeoutSeconds, maxAttempts })) {
    if (value != null && typeof value !== 'number') {
        return reject(400, `${name} must be a number`);
    }
}
if (files != null && !isObject(files)) {
    return reject(400, 'files must be { name: text }');
}
for (const [name, text] of Object.entries(files ?? {})) {
    const wrong = typeof text !== 'string' ? 'must be a text'
        : /[\/\0-\x1f\x7f]/.test(name) ? 'has a / or a control character in its name'
        : Buffer.byteLength(name) > 255 ? 'has a name of more than 255 bytes'
        : ['', '.', '..'].includes(name) ? 'is no name of a file'
        : /^job\.(json|log|cancel|status\.json)$/.test(name) ? "has the name of a file of the worker's own" : undefined;
    if (wrong) {
        return reject(400, `files: ${JSON.stringify(name)} ${wrong}`);
    }
}
// the prefix marks the jobs, and the directories, that this flow may delete
if (wanted != null && !(typeof wanted === 'string' && /^nodered_[a-z0-9_]{1,100}$/.test(wanted))) {
    return reject(400, 'id must be nodered_ and up to 100 of a-z, 0-9 and _, or be left out');
}
const queues = env.get('QUEUES').split(/\s+/).filter(Boolean);
if (queue != null && !queues.includes(queue)) {
    return reject(400, `queue must be one of ${queues.join(', ')}`);
}
if (!flow.get('connected')) {
    return reject(503, 'Node-RED has no connection to the broker');
}
const id = wanted ?? `nodered_${Date.now().toString(36)}_${Math.random().toString(36).slice(2, 10)}`;
return [{ ...msg, id, queue: queue ?? queues[0], directory: `${env.get('DRIVE')}/${id}`, files: files ?? {}, definition }, null];

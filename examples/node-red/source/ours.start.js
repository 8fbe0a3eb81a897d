// On Start, before the first result is looked at: Node-RED may have been restarted, and the drive knows the jobs from before
const { readdir, open, stat, access } = fs.promises;
const drive = env.get('DRIVE');
const jobs = flow.get('jobs') ?? {};
flow.set('jobs', jobs);
const most = 1024 * 1024;

// Node-RED ends where it copies a message that is nested thousands deep
const isDeeper = (value, most) => typeof value === 'object' && value !== null
    && (most === 0 || Object.values(value).some(inner => isDeeper(inner, most - 1)));
async function read(file) {                           // undefined where there is no such JSON
    let handle;
    try {
        // a job may have put anything there: no link, no pipe, nothing large
        handle = await open(file, fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW | fs.constants.O_NONBLOCK);
        const about = await handle.stat();
        const found = about.isFile() && about.size <= most ? JSON.parse(await handle.readFile('utf8')) : undefined;
        return isDeeper(found, 8) ? undefined : found;
    } catch (error) {
        return undefined;
    } finally {
        await handle?.close();
    }
}
const names = async (directory, pattern) =>
    (await readdir(directory).catch(() => [])).map(name => pattern.exec(name)?.[1]).filter(Boolean);

const dealtWith = await names(`${drive}/.nodered`, /^(nodered_[a-z0-9_]+)\.json$/);
const known = new Set(dealtWith);
const record = id => `${drive}/.nodered/${id}.json`;
const dated = await Promise.all(dealtWith.map(async id => ({ id, time: await stat(record(id)).then(about => about.mtimeMs, () => 0) })));
for (const { id } of dated.sort((a, b) => b.time - a.time).slice(0, Number(env.get('KEEP')))) {
    const job = await read(record(id));
    if (job?.id === id && job.result && Array.isArray(job.steps) && Number.isFinite(job.since)) {
        jobs[id] ??= job;
    }
}
const over = [];
for (const id of (await names(drive, /^(nodered_[a-z0-9_]+)$/)).filter(id => !known.has(id))) {
    const directory = `${drive}/${id}`;
    const document = await read(`${directory}/job.status.json`);
    const isOurs = document?.id === id;
    if (!jobs[id]) {
        const definition = await read(`${directory}/job.json`);
        const since = await stat(`${directory}/job.json`).then(about => about.mtimeMs, () => Date.now());
        const withdrawn = await access(`${directory}/job.cancel`).then(() => true, () => false);
        jobs[id] ??= { id, since, steps: Array.isArray(definition?.steps) ? definition.steps : [], timeoutSeconds: definition?.timeoutSeconds,
            cancelled: withdrawn ? 'job.cancel in its directory' : undefined, withdrawn };
        if (isOurs && document.status === 'running') {
            Object.assign(jobs[id], { progress: document, begun: Date.now() });
        }
    }
    if (isOurs && ['success', 'failed'].includes(document.status) && !jobs[id].result) {
        over.push({ topic: id, payload: document, directory }); // its result came, and was lost with the Node-RED of then
        Object.assign(jobs[id], { result: document, over: Date.now() });
    }
}
flow.set('ready', true);
over.forEach(message => node.send(message));

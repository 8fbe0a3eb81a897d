// On Start, before the first result is looked at: Node-RED may have been restarted, and the drive knows the jobs from before
const { readdir, open, stat, access } = fs.promises;
const drive = env.get('DRIVE');
const jobs = flow.get('jobs') ?? {};
flow.set('jobs', jobs);
const most = 1024 * 1024;

async function read(file) {                           // undefined where there is no such JSON
    let handle;
    try {
        // a job may have put anything there: no link, no pipe, nothing large
        handle = await open(file, fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW | fs.constants.O_NONBLOCK);
        const about = await handle.stat();
        return about.isFile() && about.size <= most ? JSON.parse(await handle.readFile('utf8')) : undefined;
    } catch (error) {
        return undefined;
    } finally {
        await handle?.close();
    }
}
const names = async (directory, pattern) =>
    (await readdir(directory).catch(() => [])).map(name => pattern.exec(name)?.[1]).filter(Boolean);

for (const id of await names(`${drive}/.nodered`, /^(nodered_[a-z0-9_]+)\.json$/)) {
    const job = await read(`${drive}/.nodered/${id}.json`);
    if (job?.id === id && job.result && Array.isArray(job.steps) && Number.isFinite(job.since)) {
        jobs[id] ??= job;
    }
}
const over = [];
for (const id of await names(drive, /^(nodered_[a-z0-9_]+)$/)) {
    const workDir = `${drive}/${id}`;
    const document = await read(`${workDir}/job.status.json`);
    const final = document?.id === id && ['success', 'failed'].includes(document.status);
    if (!jobs[id]) {
        const definition = await read(`${workDir}/job.json`);
        const since = await stat(`${workDir}/job.json`).then(about => about.mtimeMs, () => Date.now());
        const withdrawn = await access(`${workDir}/job.cancel`).then(() => true, () => false);
        const steps = Array.isArray(definition?.steps) ? definition.steps : [];
        jobs[id] ??= { id, status: 'queued', since, steps, cancelled: withdrawn, withdrawn };
        if (document?.id === id && document.status === 'running') {
            Object.assign(jobs[id], { status: 'running', progress: document });
        }
    }
    if (final && !jobs[id].result) {
        over.push({ id, workDir, result: document }); // its result came, and was lost with the Node-RED of then
        Object.assign(jobs[id], { result: document, over: Date.now() });
    }
}
flow.set('ready', true);
over.forEach(message => node.send(message));

// GET /jobs/ID/log: all of it, or a part of it (Range), straight from the drive, however large it is
const { open } = fs.promises;
const answer = (statusCode, error) => ({ ...msg, statusCode, payload: { error } });
const id = msg.req.params.id;
const jobs = flow.get('jobs') ?? {};
if (!/^nodered_[a-z0-9_]+$/.test(id) || !Object.hasOwn(jobs, id)) {
    return answer(404, 'there is no such job');
}

// A job does not say where its log is, and a link that it has left there leads nowhere, be it the file or the directory
async function openLog(directory, name) {
    const { O_RDONLY, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK } = fs.constants;
    const folder = await open(`${env.get('DRIVE')}/${directory}`, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    try {
        // on Linux by the open directory, which nobody can exchange for a link meanwhile
        const within = fs.existsSync('/proc/self/fd') ? `/proc/self/fd/${folder.fd}` : `${env.get('DRIVE')}/${directory}`;
        const file = await open(`${within}/${name}`, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
        const about = await file.stat();
        if (about.isFile()) {
            return { file, size: about.size };
        }
        await file.close();
        throw new Error('not a file');
    } finally {
        await folder.close();
    }
}
const kept = () => openLog('.nodered', `${id}.log`);
// once more: it may be moved there at this moment
const log = await kept().catch(() => openLog(id, 'job.log')).catch(kept).catch(() => undefined);
if (!log) {
    return answer(404, 'this job has no log');
}

const { file, size } = log;
const response = msg.res._res;
const [, first, last] = /^bytes=(\d*)-(\d*)$/.exec(msg.req.headers.range ?? '') ?? [];
let [start, end, status] = [0, size - 1, 200];
if (first) {
    [start, end, status] = [Number(first), last ? Math.min(Number(last), size - 1) : size - 1, 206];
} else if (last) {
    [start, status] = [Math.max(0, size - Number(last)), size ? 206 : 200];
}
response.set({
    'Content-Type': 'text/plain; charset=utf-8',
    'X-Content-Type-Options': 'nosniff',
    'Content-Security-Policy': "default-src 'none'; sandbox",
    'Content-Disposition': `inline; filename="${id}.log"`,
    'Cache-Control': 'no-store',
    'Accept-Ranges': 'bytes',
});
if (status === 206 && start > end) {
    await file.close();
    response.set('Content-Range', `bytes */${size}`).status(416).end();
    return;
}
if (status === 206) {
    response.set('Content-Range', `bytes ${start}-${end}/${size}`);
}
response.set('Content-Length', String(end - start + 1)).status(status);
if (msg.req.method === 'HEAD' || end < start) {
    await file.close();
    response.end();
    return;
}
// a reader that goes away is no error
stream.pipeline(file.createReadStream({ start, end, highWaterMark: 512 * 1024 }), response, () => {});

// GET /jobs/ID/log; /jobs/ID/files: their names; /jobs/ID/file?name=out/film.mp4. Straight from the drive, however large they are
const { open, readdir, lstat } = fs.promises;
const { id, what } = msg.req.params;
const answer = (statusCode, payload) => ({ ...msg, statusCode, payload });

// Opens a path name by name, in which a link that a job has left there leads nowhere, and closes it when `use` is done with it
async function enter(names, use) {
    const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = fs.constants;
    const handles = [];
    try {
        let path = env.get('DRIVE');
        for (const name of names) {
            if (['', '.', '..'].includes(name)) {
                throw new Error('no name of a file');
            }
            const file = await open(`${path}/${name}`, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
            handles.push(file);
            // on Linux by what is open, which nobody can exchange for a link meanwhile
            path = fs.existsSync('/proc/self/fd') ? `/proc/self/fd/${file.fd}` : `${path}/${name}`;
        }
        return await use(path, await handles.at(-1).stat());
    } finally {
        await Promise.all(handles.map(file => file.close()));
    }
}

const own = /^job\.(json|log|cancel|status\.json)(\..*)?$/;
const most = 500;
async function list() {
    const files = [];
    for (const directories = [[]]; directories.length && files.length <= most;) {
        const names = directories.shift();
        await enter([id, ...names], async path => {
            for (const entry of (await readdir(path, { withFileTypes: true })).sort((a, b) => a.name < b.name ? -1 : 1)) {
                if (entry.isDirectory() && directories.length < most) {
                    directories.push([...names, entry.name]);
                } else if (entry.isFile() && (names.length || !own.test(entry.name)) && files.length <= most) {
                    const size = await lstat(`${path}/${entry.name}`).then(about => about.size, () => 0);
                    files.push({ name: [...names, entry.name].join('/'), size });
                }
            }
        }).catch(() => {});
    }
    return { files: files.slice(0, most), more: files.length > most };
}
if (what === 'files') {
    return answer(200, await list());
}

const path = what === 'log' ? ['job.log'] : String(msg.req.query.name ?? '').split('/');
const headers = what === 'log'
    ? { 'Content-Type': 'text/plain; charset=utf-8', 'Content-Disposition': `inline; filename="${id}.log"` }
    : { 'Content-Type': 'application/octet-stream', 'Content-Disposition': `attachment; filename*=UTF-8''${encodeURIComponent(path.at(-1))}` };
const response = msg.res._res;
const send = (path, about) => {
    if (!about.isFile()) {
        throw new Error('not a file');
    }
    const [, end] = /^bytes=-(\d+)$/.exec(msg.req.headers.range ?? '') ?? [];
    if (end > about.size) {                           // all of it; Express takes that for a mistake
        msg.req.headers.range = about.size ? 'bytes=0-' : undefined;
    }
    response.set({ ...headers, 'Content-Security-Policy': "default-src 'none'; sandbox", 'Cache-Control': 'no-store' });
    // with Range and HEAD, as Express does it. A reader that goes away is no error; a part that is not there is one (416)
    return new Promise(done => response.sendFile(path, { dotfiles: 'allow', cacheControl: false, etag: false, lastModified: false }, error => {
        if (error && !response.headersSent) {
            response.set(error.headers ?? {}).status(error.status ?? 500).end();
        }
        done();
    }));
};
const kept = () => enter(['.nodered', `${id}.log`], send);
const fromJob = () => enter([id, ...path], send);
try {
    // the log is moved when its directory is deleted, which may be at this moment
    await (what === 'log' ? fromJob().catch(kept).catch(fromJob) : fromJob());
} catch (error) {
    return answer(404, { error: what === 'log' ? 'this job has no log' : 'this job has no such file' });
}

// Deletes the directories of jobs that are over, as KEEP_DIRECTORIES says: with 0 the one that a message from "result" names, else
// each hour what is old enough. The log goes to DRIVE/.nodered first, and stays there while the page shows the job.
const { lstat, readdir, rename, rm, stat } = fs.promises;
const [drive, kept] = [env.get('DRIVE'), `${env.get('DRIVE')}/.nodered`];
const days = parseFloat(env.get('KEEP_DIRECTORIES'));  // NaN: for ever
if (msg.topic && days !== 0) {
    return;
}
const jobs = flow.get('jobs') ?? {};
const is = async (kind, path) => (await lstat(path).catch(() => undefined))?.[kind]() ?? false;
const least = Math.max(days, 1 / 24) * 86_400_000;    // what hangs in a node of yours has an hour
for (const name of await is('isDirectory', kept) ? await readdir(kept) : []) {
    const [, id] = /^(nodered_[a-z0-9_]+)\.json$/.exec(name) ?? [];
    if (!id) {
        continue;
    }
    const directory = `${drive}/${id}`;
    try {
        let there = await lstat(directory).then(() => true, () => false);
        if (there && (id === msg.topic || Date.now() - (await stat(`${kept}/${name}`)).mtimeMs > least)) {
            if (await is('isDirectory', directory) && await is('isFile', `${directory}/job.log`)) {
                await rename(`${directory}/job.log`, `${kept}/${id}.log`);
            }
            await rm(directory, { recursive: true, force: true, maxRetries: 3 });
            there = false;
        }
        if (!there && !Object.hasOwn(jobs, id)) {
            await rm(`${kept}/${id}.log`, { force: true });
            await rm(`${kept}/${name}`, { force: true });
        }
    } catch (error) {
        // files of another user, as a worker that is root leaves them
        node.error(`the directory of ${id} cannot be deleted: ${error.message}`, msg);
    }
}

// Of a job that is over, DRIVE/.nodered keeps the log and what the page shows; the oldest go
const { mkdir, lstat, readdir, rename, rm, writeFile } = fs.promises;
const kept = `${env.get('DRIVE')}/.nodered`;
const jobs = flow.get('jobs') ?? {};
const job = jobs[msg.id];
const is = async (kind, path) => (await lstat(path).catch(() => undefined))?.[kind]() ?? false;
if (!job) {
    return msg;
}
Object.assign(job, { status: msg.result.status, progress: undefined });
try {
    await mkdir(kept, { recursive: true });
    if (!await is('isDirectory', kept)) {             // a link that a job has left there?
        throw new Error(`${kept} is no directory`);
    }
    if (await is('isDirectory', msg.workDir) && await is('isFile', `${msg.workDir}/job.log`)) {
        await rename(`${msg.workDir}/job.log`, `${kept}/${msg.id}.log`);
    }
    await rm(`${kept}/${msg.id}.json.new`, { force: true });
    await writeFile(`${kept}/${msg.id}.json.new`, JSON.stringify(job), { flag: 'wx' });
    await rename(`${kept}/${msg.id}.json.new`, `${kept}/${msg.id}.json`);

    const over = Object.values(jobs).filter(job => job.result).sort((a, b) => b.over - a.over);
    over.slice(Number(env.get('KEEP'))).forEach(job => delete jobs[job.id]);
    flow.set('jobs', jobs);
    for (const name of await readdir(kept)) {
        const [, id] = /^(nodered_[a-z0-9_]+)\.(log|json|json\.new)$/.exec(name) ?? [];
        if (id && !Object.hasOwn(jobs, id)) {
            await rm(`${kept}/${name}`, { recursive: true, force: true });
        }
    }
} catch (error) {
    node.error(`the log of ${msg.id} is not kept: ${error.message}`, msg);
}
return msg;

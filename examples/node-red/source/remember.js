// DRIVE/.nodered/ID.json is what the page shows of a job that is over, and says that its result was dealt with
const { mkdir, lstat, rename, rm, writeFile } = fs.promises;
const record = `${env.get('DRIVE')}/.nodered/${msg.topic}.json`;
const jobs = flow.get('jobs') ?? {};
try {
    await mkdir(`${env.get('DRIVE')}/.nodered`).catch(() => {});
    if (!(await lstat(`${env.get('DRIVE')}/.nodered`)).isDirectory()) { // a link that a job has left there?
        throw new Error('.nodered is no directory');
    }
    await rm(`${record}.new`, { force: true });
    await writeFile(`${record}.new`, JSON.stringify(jobs[msg.topic]), { flag: 'wx' });
    await rename(`${record}.new`, record);
} catch (error) {
    node.error(`what is known of ${msg.topic} is not kept: ${error.message}`, msg);
}
const over = Object.values(jobs).filter(job => job.result).sort((a, b) => b.over - a.over);
over.slice(Number(env.get('KEEP'))).forEach(job => delete jobs[job.id]);
flow.set('jobs', jobs);
return msg;

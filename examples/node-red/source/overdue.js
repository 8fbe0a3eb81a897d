// First a cancel, so that the worker answers; without an answer the job is lost to us. Its directory stays: the request may still
// be in the queue, and then its result will come, and be dealt with, later. A job that is queued may wait.
const drive = env.get('DRIVE');
flow.set('drive', await fs.promises.stat(drive).then(about => about.isDirectory() ? undefined : `${drive} is no directory`,
    error => `${path.resolve(drive)} cannot be used (${error.code}): set DRIVE, a property of the tab "Job Worker" in the editor of `
        + 'Node-RED, to the directory that is JOB_ROOT of the workers'));
const jobs = Object.values(flow.get('jobs') ?? {}).filter(job => !job.result);
const [TIMEOUT, GRACE] = ['TIMEOUT', 'GRACE'].map(name => Number(env.get(name)));
for (const job of jobs) {
    // a limit of the job's own is the worker's business, unless that does not do it
    const limit = Math.max(TIMEOUT, job.timeoutSeconds > 0 ? job.timeoutSeconds + GRACE : 0);
    const age = job.begun ? (Date.now() - job.begun) / 1000 : 0;
    if (age > limit) {
        job.cancelled ??= `the flow: it ran for more than ${limit} s (TIMEOUT)`;
    }
    if (job.cancelled && !job.withdrawn) {
        // the file is for a job that is still in the queue, the message for one that runs; the file first
        try {
            await fs.promises.writeFile(`${drive}/${job.id}/job.cancel`, '', { flag: 'wx' });
            job.withdrawn = true;
        } catch (error) {
            job.withdrawn = error.code === 'EEXIST';
            job.withdrawn || node.warn(`job ${job.id} cannot be withdrawn: ${error.message}`);
        }
    }
    job.unanswered = age > limit + GRACE;
}
// again and again: a cancel counts only while a worker has the job
const queues = env.get('QUEUES').split(/\s+/).filter(Boolean);
const topics = job => (job.queue ? [job.queue] : queues).map(queue => `${queue}/cancel/${job.id}`);
return [jobs.filter(job => job.cancelled).flatMap(topics).map(topic => ({ topic, payload: '' }))];

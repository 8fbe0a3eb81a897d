// first a cancel, so that the worker answers; without an answer the job is lost to us. Its directory stays:
// the request may still be in the queue, and then its result will come, and be dealt with, later
const jobs = Object.values(flow.get('jobs') ?? {}).filter(job => !job.result);
const [limit, grace] = [env.get('TIMEOUT') * 1000, env.get('GRACE') * 1000];
for (const job of jobs) {
    const age = Date.now() - job.since;
    job.cancelled ||= age > limit;
    if (job.cancelled && !job.withdrawn) {
        // the file is for a job that is still in the queue, the message for one that runs; the file first
        try {
            await fs.promises.writeFile(`${env.get('DRIVE')}/${job.id}/job.cancel`, '', { flag: 'wx' });
            job.withdrawn = true;
        } catch (error) {
            job.withdrawn = error.code === 'EEXIST';
            job.withdrawn || node.warn(`job ${job.id} cannot be withdrawn: ${error.message}`);
        }
    }
    if (job.withdrawn && !job.progress && !job.result) {
        job.status = 'withdrawn';                     // no worker will start it any more
    } else if (age > limit + grace && !job.result) {
        job.status = 'no answer';
    }
}
// again and again: a cancel counts only while a worker has the job
const queues = env.get('QUEUES').split(/\s+/).filter(Boolean);
const topics = job => (job.queue ? [job.queue] : queues).map(queue => `${queue}/cancel/${job.id}`);
return [jobs.filter(job => job.cancelled).flatMap(topics).map(topic => ({ topic, payload: '' }))];

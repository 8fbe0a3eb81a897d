const answer = (statusCode, payload) => msg.res && { ...msg, statusCode, payload };
const jobs = flow.get('jobs') ?? {};
if (!msg.req) {                                       // the button "cancel all"
    Object.values(jobs).filter(job => !job.result).forEach(job => job.cancelled ??= 'the button “cancel all” in Node-RED');
    return [{}, null];
}
const { id } = msg.req.params;
if (!Object.hasOwn(jobs, id)) {
    return [null, answer(404, { error: 'there is no such job' })];
}
const job = jobs[id];
if (job.result) {
    return [null, answer(409, { error: `the job is over: ${job.result.status}` })];
}
try {
    await fs.promises.writeFile(`${env.get('DRIVE')}/${id}/job.cancel`, '', { flag: 'wx' }); // through no link of the job's
} catch (error) {
    if (error.code !== 'EEXIST') {
        return [null, answer(500, { error: `the job cannot be withdrawn: ${error.message}` })];
    }
}
job.cancelled ??= 'a person, on the page or by POST';
job.withdrawn = true;
const done = job.progress ? 'ending' : 'withdrawn';
const message = job.progress ? `${job.progress.worker} is told to end it` : 'it is withdrawn from the queue, and will not run';
return [{}, answer(job.progress ? 202 : 200, { id, done, message })];

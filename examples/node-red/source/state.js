// what the page asks for each second: a line for each worker and each job
if (!flow.get('ready')) {                            // else the page would forget them for a moment
    return { ...msg, statusCode: 503, payload: { error: 'Node-RED is still reading the jobs from before' } };
}
const text = (value, most = 200) => ['string', 'number', 'boolean'].includes(typeof value) ? String(value).slice(0, most) : undefined;
const label = step => text(step?.name) ?? text(step?.run ?? step) ?? '?';

const workers = Object.values(flow.get('workers') ?? {}).map(worker => ({
    worker: text(worker.worker), state: text(worker.state), job: text(worker.job), waitingFor: text(worker.waitingFor),
    since: text(worker.since), version: text(worker.version), queue: text(worker.queue), pool: text(worker.pool?.name),
}));

const jobs = Object.values(flow.get('jobs') ?? {}).sort((a, b) => b.since - a.since).map(job => {
    const document = job.result ?? job.progress ?? {};
    const steps = Array.isArray(document.steps) ? document.steps : [];
    const at = job.result ? -1 : steps.findIndex(step => step?.status === 'running');
    return {
        id: job.id,
        title: text(job.steps.slice(0, 20).map(label).join(' · ')),
        status: job.result ? text(job.result.status) : job.unanswered ? 'no answer' : job.progress ? (job.cancelled ? 'ending' : 'running')
            : job.withdrawn ? 'withdrawn' : 'queued',
        reason: text(document.reason),
        error: text(document.error, 500),
        step: at < 0 ? undefined : { number: at + 1, of: steps.length, label: text(steps[at].name) ?? label(job.steps[at]) },
        submittedAt: new Date(job.since).toISOString(),
        startedAt: text(document.startedAt),
        durationMs: Number.isFinite(document.durationMs) ? document.durationMs : undefined,
        exitCode: Number.isInteger(document.exitCode) ? document.exitCode : undefined,
        worker: text(document.worker),
        attempt: Number.isInteger(document.attempt) ? document.attempt : undefined,
    };
});
msg.payload = {
    connected: flow.get('connected') === true, drive: flow.get('drive'), queues: env.get('QUEUES').split(/\s+/).filter(Boolean), workers, jobs,
};
return msg;

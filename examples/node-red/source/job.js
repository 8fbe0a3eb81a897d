// one job with all its steps, as far as a person can read them
const { id } = msg.req.params;
const job = flow.get('jobs')[id];
const document = job.result ?? job.progress ?? {};
const states = Array.isArray(document.steps) ? document.steps : [];
const text = (value, most) => ['string', 'number', 'boolean'].includes(typeof value) ? String(value).slice(0, most) : undefined;
const steps = Array.from({ length: Math.max(job.steps.length, states.length) }, (_, i) => {
    const [step, state] = [job.steps[i], states[i] ?? {}];
    return {
        name: text(state.name ?? step?.name, 200),
        run: text(step?.run ?? step, 2000),
        status: text(state.status, 20) ?? 'pending',
        exitCode: Number.isInteger(state.exitCode) ? state.exitCode : undefined,
        signal: text(state.signal, 20),
        startedAt: text(state.startedAt, 40),
        durationMs: Number.isFinite(state.durationMs) ? state.durationMs : undefined,
    };
});
msg.payload = {
    id, status: document.status ?? 'queued', steps: steps.slice(0, 500), moreSteps: Math.max(0, steps.length - 500),
    submittedAt: new Date(job.since).toISOString(), cancelledBy: job.cancelled, directory: `${env.get('DRIVE')}/${id}`,
    result: job.result ?? null, progress: job.progress ?? null,
};
return msg;

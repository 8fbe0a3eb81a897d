// The flow of examples/node-red as a controller: from the request to the result, through restarts of everything.
//
//   node tests/node-red/controller.mjs                      the debug build
//   JOB_WORKER=/usr/bin/job-worker node tests/node-red/controller.mjs
//   node tests/node-red/controller.mjs flow.png             draws the flow, too, by headless Chromium
//   node tests/node-red/controller.mjs --available          only gets Node-RED
//
// Prints one line a check; exits with 77, and a word why, where Node-RED cannot be had.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { base, directory, drive, findChromium, gate, job, ok, over, post, root, run, running, scratch, startBroker, startNodeRed, startWorker,
    state, submit, until } from './harness.mjs';

const onlyGet = process.argv[2] === '--available';
const picture = !onlyGet && process.argv[2] && path.resolve(process.argv[2]);

async function draw(file) {
    // --no-sandbox: containers run it as root
    execFileSync(findChromium(), ['--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--force-device-scale-factor=0.67', `--user-data-dir=${scratch}/chromium`,
        '--window-size=1215,1400', '--virtual-time-budget=20000', `--screenshot=${file}`, base + '/'], { stdio: 'pipe', timeout: 120_000 });
}

// The command of README.md as it stands, but for the address.
function documentedCurl() {
    const [, command] = /^\$ (curl [^]*?\}'\n)/m.exec(fs.readFileSync(path.join(root, 'README.md'), 'utf8'));
    return command.replace('http://localhost:1880', base).replace('curl ', 'curl -sS ');
}

async function test() {
    startBroker();
    let red = await startNodeRed();

    // a good job
    const dropped = await post('/jobs', { steps: [] });
    assert.match(dropped.warning, /^no worker has been seen on jobs/);
    fs.rmSync(directory(dropped.id), { recursive: true });
    let worker = startWorker();
    await until('a worker', async () => (await state()).workers.length);
    let id = await submit({ steps: ['cat who.txt', { run: 'echo made > made.txt; ls', name: 'make' }], files: { 'who.txt': 'the wörld\n' } });
    let result = await over(id);
    assert.equal(result.result.status, 'success');
    assert.equal(result.result.exitCode, 0);
    assert.match(result.log, /^Job ID: nodered_[^]*the wörld\n[^]*made\.txt/);
    ok('a good job: result, and the log with what it made of its input');
    assert(!fs.existsSync(directory(id)));
    ok('a good job: its directory is gone');
    assert.equal(await worker.over, 0);

    // a failed one
    worker = startWorker();
    id = await submit({ steps: ['echo to no avail; exit 3'] });
    result = await over(id);
    assert.deepEqual([result.status, result.result.reason, result.result.exitCode], ['failed', 'step', 3]);
    assert.match(result.log, /to no avail/);
    assert(!fs.existsSync(directory(id)));
    ok('a failed job: result with its exit code, log, directory gone');
    await worker.over;

    // one that the worker rejects
    worker = startWorker();
    id = await submit({ steps: [7] });
    result = await over(id);
    assert.deepEqual([result.result.reason, result.log], ['rejected', '{"error":"this job has no log"}\n']);
    ok('a rejected job: the result says so');

    // a cancelled one, on the same worker
    id = await submit({ steps: [gate, 'true'] });
    await running(id);
    ok('a running job: its progress is shown');
    await until('the dashboard to show the worker', async () => (await state()).workers.some(worker => worker.state === 'busy' && worker.job === id));
    ok('a running job: its worker is shown busy with it');
    assert.deepEqual(await post(`/jobs/${id}/cancel`, {}), { status: 202, id, done: 'ending', message: 'node-worker-01 is told to end it' });
    result = await over(id);
    assert.deepEqual([result.result.reason, result.result.exitCode], ['cancelled', 130]);
    assert(!fs.existsSync(directory(id)));
    ok('a cancelled job: result, directory gone');
    assert.deepEqual(await post(`/jobs/${id}/cancel`, {}), { status: 409, error: 'the job is over: failed' });
    ok('a job that is over cannot be cancelled, and the answer says so');
    await worker.over;

    // the worker is killed in mid-job
    worker = startWorker();
    id = await submit({ steps: [gate] });
    await running(id);
    worker.kill('SIGKILL');
    assert.equal(await worker.over, 'SIGKILL');
    await until('the dashboard to show the death', async () => (await state()).workers.every(worker => worker.state === 'offline'));
    ok('a killed worker: shown as offline');
    fs.writeFileSync(path.join(directory(id), 'go'), '');
    worker = startWorker();
    result = await over(id);
    assert.deepEqual([result.status, result.result.attempt], ['success', 2]);
    assert.match(result.log, /attempt 1\n[^]*attempt 2\n/);
    assert(!fs.existsSync(directory(id)));
    ok('a killed worker: the next one brings the job to its result, with the log of both');
    await worker.over;

    // what is no job
    const form = { 'Content-Type': 'application/x-www-form-urlencoded' };
    for (const [status, error, body, headers] of [
        [400, /^this is not JSON: /, '{"steps": ['], [400, /^a job is a JSON object$/, '[]'], [400, /^a job is a JSON object$/, 'null'], [400, /^steps must be/, '{"steps": "x"}'],
        [400, /^"workDir" is not known here/, '{"steps": [], "workDir": "/etc"}'], [400, /^"__proto__" is not known/, '{"steps": [], "__proto__": {}}'],
        [400, /^files: "..\/x" must be/, '{"steps": [], "files": {"../x": ""}}'], [400, /^files: /, '{"steps": [], "files": {"job.json": ""}}'],
        [400, /^files: /, '{"steps": [], "files": {"job.cancel": ""}}'], [400, /^files: /, '{"steps": [], "files": {"x": 1}}'],
        [400, /^id must be nodered_/, '{"steps": [], "id": "mine"}'], [400, /^id must be/, '{"steps": [], "id": "nodered_../x"}'], [400, /^id must be/, '{"steps": [], "id": 7}'],
        [400, /^queue must be one of jobs$/, '{"steps": [], "queue": "other"}'],
        [413, /5 MiB/, `{"steps": ["${'x'.repeat(6 * 1024 * 1024)}"]}`], [415, /application\/json/, 'steps[]=x', form],
    ]) {
        const answer = await post('/jobs', body, headers);
        assert.equal(answer.status, status, body.slice(0, 80));
        assert.match(answer.error, error);
    }
    for (const id of ['nodered_none', '__proto__', '..%2f..%2fetc']) {
        assert.equal((await post(`/jobs/${id}/cancel`, {})).status, 404);
        for (const what of ['status', 'log']) {
            const answer = await fetch(`${base}/jobs/${id}/${what}`);
            assert.deepEqual([answer.status, await answer.json()], [404, { error: 'there is no such job' }]);
        }
    }
    assert.deepEqual(fs.readdirSync(drive), ['.nodered']);
    ok('what is no job is refused with a reason in JSON, and leaves nothing on the drive');

    // an id of the caller's own
    const mine = { id: 'nodered_mine', steps: ['true'] };
    worker = startWorker();
    assert.deepEqual(await post('/jobs', mine), { status: 202, id: mine.id });
    assert.deepEqual(await post('/jobs', mine), { status: 409, error: 'there is a job nodered_mine already' });
    await over(mine.id);
    assert.equal((await post('/jobs', mine)).status, 409);
    await worker.over;
    ok('an id in the request is used, once');

    // the documented curl
    worker = startWorker();
    id = JSON.parse(execFileSync('sh', ['-c', documentedCurl()], { stdio: 'pipe' })).id;
    result = await over(id);
    assert.deepEqual([result.status, result.exitCode], ['success', 0], result.log);
    ok('the curl of the README succeeds');
    await worker.over;

    if (picture) {
        worker = startWorker();
        await until('an idle worker', async () => (await state()).workers.some(worker => worker.state === 'idle'));
        await draw(picture);
        ok(`the flow is drawn: ${picture}`);
        worker.kill('SIGTERM');
        await worker.over;
    }

    // Node-RED dies and comes back, and now it is impatient
    worker = startWorker();
    id = await submit({ steps: [gate] });
    await running(id);
    red.kill('SIGKILL');
    await red.over;
    red = await startNodeRed();
    await until('the job from before', async () => (await job(id))?.status === 'running');
    assert.deepEqual([(await job(id)).title, (await job('nodered_mine')).status], ['gate', 'success']);
    ok('Node-RED is killed: the next one knows the jobs from before, running and over');
    red.kill('SIGKILL');
    await red.over;
    fs.writeFileSync(path.join(directory(id), 'go'), '');
    assert.equal(await worker.over, 0);
    red = await startNodeRed({ TIMEOUT: '1', GRACE: '1' });
    assert.equal((await over(id)).status, 'success');
    assert(!fs.existsSync(directory(id)));
    ok('a result that came while Node-RED was away is dealt with');

    // a result that Node-RED had from the broker when it died
    id = 'nodered_lost';
    red.kill('SIGKILL');
    await red.over;
    fs.mkdirSync(directory(id));
    fs.writeFileSync(path.join(directory(id), 'job.json'), '{"steps": ["true"]}');
    fs.writeFileSync(path.join(directory(id), 'job.log'), 'its log\n');
    fs.writeFileSync(path.join(directory(id), 'job.status.json'), JSON.stringify({ id, status: 'success', exitCode: 0, steps: [] }));
    red = await startNodeRed({ TIMEOUT: '1', GRACE: '1', KEEP: '3' });
    result = await over(id);
    assert.deepEqual([result.status, result.log], ['success', 'its log\n']);
    await until('the oldest to be forgotten', async () => (await state()).jobs.length === 3);
    assert.equal(fs.readdirSync(path.join(drive, '.nodered')).filter(name => name.endsWith('.json')).length, 3);
    ok('a result that Node-RED lost is found on the drive, and no more jobs are kept than KEEP says');

    id = await submit({ steps: ['touch ../ran'] });
    await until('the end of its patience', async () => (await job(id)).status === 'withdrawn');
    assert(fs.existsSync(path.join(directory(id), 'job.cancel')));
    ok('a job that nobody takes: withdrawn after its time, and its directory stays');
    worker = startWorker();
    result = await over(id);
    assert.deepEqual([result.result.reason, result.result.exitCode], ['cancelled', 130]);
    assert(!fs.existsSync(directory(id)) && !fs.existsSync(path.join(drive, 'ran')));
    ok('a job that was withdrawn: answered and not run when a worker comes');
    assert.equal(await worker.over, 0);

    worker = startWorker();
    id = await submit({ steps: [{ run: "trap '' TERM; while [ -e job.json ]; do sleep 0.05; done" }] });
    await running(id);
    await until('the end of its patience', async () => (await job(id)).status === 'no answer');
    assert.equal((await over(id)).result.reason, 'cancelled');
    ok('a job that runs on after its time: no answer, until there is one');
    assert.equal(await worker.over, 0);
}

if (onlyGet) {
    fs.rmSync(scratch, { recursive: true });
} else {
    await run(test);
}

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
import { ask, base, directory, drive, findChromium, gate, isGone, job, ok, over, post, press, publish, root, run, running, scratch, startBroker, startNodeRed,
    startWorker, state, submit, until } from './harness.mjs';

const onlyGet = process.argv[2] === '--available';
const picture = !onlyGet && process.argv[2] && path.resolve(process.argv[2]);

async function draw(file) {
    // --no-sandbox: containers run it as root
    execFileSync(findChromium(), ['--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--force-device-scale-factor=0.67', `--user-data-dir=${scratch}/chromium`,
        '--window-size=1215,1480', '--virtual-time-budget=20000', `--screenshot=${file}`, base + '/'], { stdio: 'pipe', timeout: 120_000 });
}

// The command of README.md as it stands, but for the address.
function documentedCurl() {
    const [, command] = /^\$ (curl [^]*?\}'\n)/m.exec(fs.readFileSync(path.join(root, 'README.md'), 'utf8'));
    return command.replace('http://localhost:1880', base).replace('curl ', 'curl -sS ');
}

const deep = '['.repeat(2000) + ']'.repeat(2000);
const startOver = async (red, ...how) => {
    red.kill('SIGKILL');
    await red.over;
    return startNodeRed(...how);
};

async function jobs() {
    const dropped = await post('/jobs', { steps: [] });
    assert.match(dropped.warning, /^no worker has been seen on jobs/);
    let worker = startWorker();
    await until('a worker', async () => (await state()).workers.length);
    const steps = ['cat "the text.txt"', { run: 'mkdir -p out; echo made > out/made.txt; ls', name: 'make' }];
    const id = await submit({ steps, files: { 'the text.txt': 'the wörld\n' } });
    let result = await over(id);
    assert.deepEqual([result.result.status, result.result.exitCode, result.result.workDir], ['success', 0, id]);
    assert.match(result.log, /^Job ID: nodered_[^]*the wörld\n[^]*out\n/);
    ok('a good job: result, and the log with what it made of its input');
    const files = async () => (await fetch(`${base}/jobs/${id}/files`)).json();
    assert.deepEqual(await files(), { files: [{ name: 'the text.txt', size: 11 }, { name: 'out/made.txt', size: 5 }], more: false });
    const file = await fetch(`${base}/jobs/${id}/file?name=out%2Fmade.txt`);
    assert.deepEqual([await file.text(), file.headers.get('Content-Disposition')], ['made\n', "attachment; filename*=UTF-8''made.txt"]);
    ok('a good job: its directory stays, and its files can be had');
    assert.equal(await worker.over, 0);

    worker = startWorker();
    result = await over(await submit({ steps: ['echo to no avail; exit 3'] }));
    assert.deepEqual([result.status, result.result.reason, result.result.exitCode], ['failed', 'step', 3]);
    assert.match(result.log, /to no avail/);
    ok('a failed job: result with its exit code, log');
    await worker.over;

    worker = startWorker();
    result = await over(await submit({ steps: ['true'], maxAttempts: 0 }));
    assert.deepEqual([result.result.reason, result.log], ['rejected', '{"error":"this job has no log"}\n']);
    ok('a rejected job: the result says so');

    // a cancelled one, on the same worker
    const cancelled = await submit({ steps: [gate, 'true'] });
    await running(cancelled);
    await until('the dashboard to show the worker', async () => (await state()).workers.some(worker => worker.state === 'busy' && worker.job === cancelled));
    ok('a running job: its progress is shown, and its worker is shown busy with it');
    const cancel = () => post(`/jobs/${cancelled}/cancel`, {});
    assert.deepEqual(await cancel(), { status: 202, id: cancelled, done: 'ending', message: 'node-worker-01 is told to end it' });
    result = await over(cancelled);
    assert.deepEqual([result.result.reason, result.result.exitCode, await cancelledBy(cancelled)], ['cancelled', 130, 'a person, on the page or by POST']);
    assert.deepEqual(await cancel(), { status: 409, error: 'the job is over: failed' });
    ok('a cancelled job: result, and who cancelled it; it cannot be cancelled once more');
    await worker.over;

    // the worker is killed in mid-job
    worker = startWorker();
    const killed = await submit({ steps: [gate] });
    await running(killed);
    worker.kill('SIGKILL');
    assert.equal(await worker.over, 'SIGKILL');
    await until('the dashboard to show the death', async () => (await state()).workers.every(worker => worker.state === 'offline'));
    fs.writeFileSync(path.join(directory(killed), 'go'), '');
    worker = startWorker();
    result = await over(killed);
    assert.deepEqual([result.status, result.result.attempt], ['success', 2]);
    assert.match(result.log, /attempt 1\n[^]*attempt 2\n/);
    ok('a killed worker is shown as offline; the next one brings the job to its result, with the log of both');
    await worker.over;
}
const cancelledBy = async id => (await (await fetch(`${base}/jobs/${id}/status`)).json()).cancelledBy;

async function bad(red) {
    const before = fs.readdirSync(drive);
    const form = { 'Content-Type': 'application/x-www-form-urlencoded' };
    for (const [status, error, body, headers] of [
        [400, /^this is not JSON: /, '{"steps": ['], [400, /^a job is a JSON object$/, '[]'], [400, /^a job is a JSON object$/, 'null'], [400, /^steps must be/, '{"steps": "x"}'],
        [400, /^"workDir" is not known here/, '{"steps": [], "workDir": "/etc"}'], [400, /^"__proto__" is not known/, '{"steps": [], "__proto__": {}}'],
        [400, /^steps must be an array/, `{"steps": {"a": ${deep}}}`], [400, /^step 2 must be a command/, `{"steps": ["true", ${deep}]}`],
        [400, /^step 1 must be/, `{"steps": [{"run": "x", "name": ${deep}}]}`], [400, /^step 1 must be/, '{"steps": [7]}'],
        [400, /^env must be/, `{"steps": [], "env": {"A": ${deep}}}`], [400, /^maxAttempts must be a number/, `{"steps": [], "maxAttempts": ${deep}}`],
        [400, /^files: "..\/x" has a \//, '{"steps": [], "files": {"../x": ""}}'], [400, /^files: "a" must be a text$/, `{"steps": [], "files": {"a": ${deep}}}`],
        [400, /^files: "job.json" has the name of a file of the worker's own$/, '{"steps": [], "files": {"job.json": ""}}'],
        [400, /^files: ".." is no name/, '{"steps": [], "files": {"..": ""}}'], [400, /more than 255 bytes/, `{"steps": [], "files": {"${'ö'.repeat(128)}": ""}}`],
        [400, /^id must be nodered_/, '{"steps": [], "id": "mine"}'], [400, /^id must be/, '{"steps": [], "id": "nodered_../x"}'], [400, /^id must be/, `{"steps": [], "id": ${deep}}`],
        [400, /^queue must be one of jobs$/, '{"steps": [], "queue": "other"}'],
        [413, /5 MiB/, `{"steps": ["${'x'.repeat(6 * 1024 * 1024)}"]}`], [415, /application\/json/, 'steps[]=x', form],
    ]) {
        const answer = await post('/jobs', body, headers);
        assert.match(answer.error, error);
        assert.equal(answer.status, status, body.slice(0, 80));
    }
    for (const id of ['nodered_none', '__proto__', '..%2f..%2fetc']) {
        assert.equal((await post(`/jobs/${id}/cancel`, {})).status, 404);
        for (const what of ['status', 'log', 'files', 'file?name=x']) {
            const answer = await fetch(`${base}/jobs/${id}/${what}`);
            assert.deepEqual([answer.status, await answer.json()], [404, { error: 'there is no such job' }]);
        }
    }
    for (const [topic, more] of [['status', ''], ['results', ', "status": "success"']]) {
        publish('-q', '1', '-t', `jobs/${topic}/nodered_deep`, '-m', `{"id": "nodered_deep", "steps": ${deep}${more}}`);
    }
    publish('-t', 'jobs/workers/deep', '-m', `{"worker": "deep", "state": ${deep}}`);
    await until('the last of these', async () => (await state()).workers.some(worker => worker.worker === 'deep'));
    assert.equal(await job('nodered_deep'), undefined);
    assert.deepEqual(fs.readdirSync(drive), before);
    assert.equal(red.exitCode, null);
    ok('what is no job is refused with the reason in JSON, leaves nothing on the drive, and does not end Node-RED, however deep it is');
}

// Of a request with these headers, whether it is answered.
async function askers() {
    const { host } = new URL(base);
    const port = host.split(':')[1];
    const origin = name => ({ origin: `http://${name}` });
    for (const [status, why, headers] of [
        [200, undefined, {}], [200, undefined, { host: `localhost:${port}` }], [200, undefined, { host: '[::1]:1880' }], [200, undefined, { host: '192.168.1.5' }],
        [200, undefined, origin(host)], [200, undefined, { host: 'nas.local:1880', origin: 'https://nas.local:1880', 'sec-fetch-site': 'same-origin' }],
        [403, /add evil.example to HOSTS/, { host: 'evil.example' }], [403, /HOSTS/, { host: 'a b' }], [403, /HOSTS/, { host: 'nas.local.evil.example' }],
        [403, /HOSTS/, { host: '127.0.0.1.evil.example' }], [403, /web page of another address/, origin('evil.example')], [403, /web page/, origin('127.0.0.1:1')],
        [403, /web page/, { origin: 'null' }], [403, /web page/, { origin: '' }], [403, /web page/, { 'sec-fetch-site': 'cross-site' }],
        [403, /web page/, { 'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'no-cors', 'sec-fetch-dest': 'script' }],
    ]) {
        for (const url of ['/jobs', '/jobs/page.js', '/jobs/page.css', '/jobs/state', '/jobs/nodered_mine/status', '/jobs/nodered_mine/log', '/jobs/nodered_mine/files']) {
            const answer = await ask('GET', url, headers);
            assert.equal(answer.status, status, `${url} ${JSON.stringify(headers)}`);
            why && assert.match(JSON.parse(answer.text).error, why);
            assert.equal(answer.headers['access-control-allow-origin'], undefined);
        }
        for (const url of status === 200 ? [] : ['/jobs', '/jobs/nodered_mine/cancel']) {
            assert.equal((await ask('POST', url, { 'content-type': 'application/json', ...headers }, '{"steps": ["touch ../ran"]}')).status, status);
        }
    }
    assert.equal((await ask('GET', '/jobs', { 'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'navigate', 'sec-fetch-dest': 'document' })).status, 200);
    ok('no page of another address is answered, nor one under a name that HOSTS does not have; a link to the page is');
}

async function restarts(red) {
    // Node-RED dies and comes back
    let worker = startWorker();
    let id = await submit({ steps: [gate] });
    await running(id);
    red = await startOver(red);
    await until('the job from before', async () => (await job(id))?.status === 'running');
    assert.deepEqual([(await job(id)).title, (await job('nodered_mine')).status], ['gate', 'success']);
    ok('Node-RED is killed: the next one knows the jobs from before, running and over');
    red.kill('SIGKILL');
    await red.over;
    fs.writeFileSync(path.join(directory(id), 'go'), '');
    assert.equal(await worker.over, 0);
    red = await startNodeRed();
    assert.equal((await over(id)).status, 'success');
    ok('a result that came while Node-RED was away is dealt with');

    // a result that Node-RED had from the broker when it died; what a job has put there to end the next one; and now it is impatient
    for (const [id, steps] of [['nodered_lost', '["true"]'], ['nodered_trap', `["true", ${deep}]`]]) {
        fs.mkdirSync(directory(id));
        fs.writeFileSync(path.join(directory(id), 'job.json'), `{"steps": ${steps}}`);
        fs.writeFileSync(path.join(directory(id), 'job.log'), 'its log\n');
        fs.writeFileSync(path.join(directory(id), 'job.status.json'), `{"id": "${id}", "status": "success", "exitCode": 0, "steps": ${steps}}`);
    }
    red = await startOver(red, { TIMEOUT: '1', GRACE: '1', KEEP: '3' });
    let result = await over('nodered_lost');
    assert.deepEqual([result.status, result.log], ['success', 'its log\n']);
    const isOver = job => ['success', 'failed'].includes(job.status);
    await until('the oldest to be forgotten', async () => (await state()).jobs.filter(isOver).length === 3);
    assert.equal((await job('nodered_trap')).status, 'queued');
    assert(fs.existsSync(directory('nodered_mine')));
    ok('a result that Node-RED lost is found on the drive, and no more jobs are shown than KEEP says');
    fs.rmSync(directory('nodered_trap'), { recursive: true });

    // TIMEOUT
    id = await submit({ steps: [gate] });
    const { submittedAt } = await job(id);
    await until('some time in the queue', () => Date.now() - Date.parse(submittedAt) > 3000);
    assert.equal((await job(id)).status, 'queued');
    worker = startWorker();
    assert.deepEqual([(await over(id)).reason, await cancelledBy(id)], ['cancelled', 'the flow: it ran for more than 1 s (TIMEOUT)']);
    ok('a job may wait, and is cancelled when it has run for TIMEOUT; the page knows who did it');
    assert.equal(await worker.over, 0);
    worker = startWorker();
    id = await submit({ steps: [gate], timeoutSeconds: 600 });
    const { startedAt } = await running(id) && await job(id);
    await until('some time', () => Date.now() - Date.parse(startedAt) > 3000);
    fs.writeFileSync(path.join(directory(id), 'go'), '');
    assert.equal((await over(id)).status, 'success');
    ok('a larger timeoutSeconds of its own counts instead');
    assert.equal(await worker.over, 0);
    worker = startWorker({ JOB_STOP_GRACE: '4' });
    id = await submit({ steps: [{ run: "trap '' TERM; while [ -e job.json ]; do sleep 0.05; done" }] });
    await running(id);
    await until('the end of its patience', async () => (await job(id)).status === 'no answer');
    assert.equal((await over(id)).result.reason, 'cancelled');
    ok('a job that runs on after its time: no answer, until there is one');
    assert.equal(await worker.over, 0);

    id = await submit({ steps: ['touch ../ran'] });
    assert.equal((await post(`/jobs/${id}/cancel`, {})).done, 'withdrawn');
    assert.equal((await job(id)).status, 'withdrawn');
    worker = startWorker();
    assert.deepEqual([(await over(id)).reason, fs.existsSync(path.join(drive, 'ran'))], ['cancelled', false]);
    ok('a job that is withdrawn: shown so, answered and not run when a worker comes');
    await worker.over;
    return red;
}

// What KEEP_DIRECTORIES deletes, and when; nodes of one's own around it.
async function directories(red) {
    red = await startOver(red, { KEEP_DIRECTORIES: '7 days', DRIVE: path.join(drive, 'sub'), WORKERS_DRIVE: 'sub' });
    const there = name => fs.existsSync(path.join(drive, 'sub', name));
    await until('the missing drive to be seen', async () => (await state()).drive);
    assert.match((await state()).drive, /a drive\/sub cannot be used \(ENOENT\): set DRIVE/);
    assert.match((await post('/jobs', { steps: [] })).error, /^the drive does not take the job: .*set DRIVE/);
    assert(!there(''));
    fs.mkdirSync(path.join(drive, 'sub'));
    await until('the drive to be seen', async () => !(await state()).drive);
    ok('a drive that is not there: the flow says so and makes none');
    const worker = startWorker({}, ['supervise']);
    const ids = [await submit({ steps: ['echo old; touch made'] }), await submit({ steps: ['echo young'] })];
    for (const id of ids) {
        await until('its end', () => there(`.nodered/${id}.json`));
    }
    const old = new Date(Date.now() - 7.1 * 86_400_000);
    fs.utimesSync(path.join(drive, 'sub/.nodered', `${ids[0]}.json`), old, old);
    await press('jw_hourly');
    await until('the old one to be deleted', () => !there(ids[0]));
    assert(there(ids[1]));
    assert.match(await (await fetch(`${base}/jobs/${ids[0]}/log`)).text(), /\nold\n/);
    ok('KEEP_DIRECTORIES of days: an old directory is deleted, its log is not; and WORKERS_DRIVE');

    const copy = path.join(scratch, 'copied');
    red = await startOver(red, { KEEP_DIRECTORIES: '0' }, (flow, node) => {
        const own = { z: 'jw_flow', x: 0, y: 0 };
        flow.push({ ...own, id: 'sensor', type: 'inject', props: [{ p: 'payload' }], payloadType: 'json', once: false, wires: [['to_new']],
            payload: JSON.stringify({ id: 'nodered_sensor', steps: ['mkdir out; echo made > out/made'] }) });
        flow.push({ ...own, id: 'to_new', type: 'link out', mode: 'link', links: ['jw_new_in'], wires: [] });
        flow.push({ ...own, id: 'copy', type: 'function', libs: [{ var: 'fs', module: 'fs' }], outputs: 1, wires: [['jw_delete']], func: `
            await new Promise(resolve => setTimeout(resolve, 500));
            await fs.promises.copyFile(msg.directory + '/out/made', ${JSON.stringify(copy)});
            return msg;` });
        node('jw_new_in').links.push('to_new');
        node('jw_over').wires = [['jw_debug', 'copy']];
    });
    await press('sensor');
    await until('the copy', () => fs.existsSync(copy));
    await isGone('nodered_sensor');
    assert.equal(fs.readFileSync(copy, 'utf8'), 'made\n');
    assert.match((await over('nodered_sensor')).log, /job success/);
    assert.deepEqual((await (await fetch(`${base}/jobs/nodered_sensor/files`)).json()).files, []);
    ok('a node of one\'s own starts a job; another has its files before they are deleted at once; the log stays');
    worker.kill('SIGTERM');
    await worker.over;
}

async function test() {
    startBroker();
    const red = await startNodeRed({ HOSTS: 'other.example NAS.local' });
    await jobs();

    // an id of the caller's own
    const mine = { id: 'nodered_mine', steps: ['true'] };
    let worker = startWorker();
    assert.deepEqual(await post('/jobs', mine), { status: 202, id: mine.id });
    assert.deepEqual(await post('/jobs', mine), { status: 409, error: 'there is a job nodered_mine already' });
    await over(mine.id);
    assert.equal((await post('/jobs', mine)).status, 409);
    await worker.over;
    ok('an id in the request is used, once');
    await bad(red);
    await askers();

    worker = startWorker();
    const { id } = JSON.parse(execFileSync('sh', ['-c', documentedCurl()], { stdio: 'pipe' }));
    assert.equal((await over(id)).status, 'success');
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
    await directories(await restarts(red));
}

if (onlyGet) {
    fs.rmSync(scratch, { recursive: true });
} else {
    await run(test);
}

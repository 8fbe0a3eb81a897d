// The flow of examples/node-red in a real, headless Node-RED 4, with Mosquitto and the built worker.
//
//   node tests/node-red.mjs                      the debug build
//   JOB_WORKER=/usr/bin/job-worker node tests/node-red.mjs
//   node tests/node-red.mjs flow.png             draws the flow, too, by headless Chromium
//   node tests/node-red.mjs --available          only gets Node-RED
//
// Node-RED comes from npm once, into a folder of the user's cache (or NODE_RED_CACHE). Prints one line a check; exits with
// 77, and a word why, where Node-RED cannot be had.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.join(path.dirname(fileURLToPath(import.meta.url)), '..');
const binary = path.resolve(process.env.JOB_WORKER ?? path.join(root, 'target/debug/job-worker'));
const onlyGet = process.argv[2] === '--available';
const picture = !onlyGet && process.argv[2] && path.resolve(process.argv[2]);
const scratch = fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), 'job-worker-node-red-')));
const drive = path.join(scratch, 'a drive'); // a space, as network drives like to have
const processes = new Set();
const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(MQTT|JOB|WORKER|NODE_RED)_|^RUST_LOG$/.test(name)));
env.PATH += ':/usr/sbin:/usr/local/sbin';

function start(name, command, args, options = {}) {
    const output = fs.openSync(path.join(scratch, `${name}.log`), 'a');
    const child = spawn(command, args, { env, stdio: ['ignore', output, output], ...options });
    fs.closeSync(output);
    child.over = new Promise(resolve => child.on('close', (code, signal) => resolve(signal ?? code)));
    child.on('error', error => console.error(`${command}: ${error.message}`));
    processes.add(child);
    child.over.then(() => processes.delete(child));
    return child;
}

async function until(what, probe) {
    const deadline = Date.now() + 60_000;
    for (let last; ; ) {
        try {
            const found = await probe();
            if (found) {
                return found;
            }
        } catch (error) {
            last = error;
        }
        assert(Date.now() < deadline, `waited in vain for ${what}${last ? `: ${last.message}` : ''}`);
        await new Promise(resolve => setTimeout(resolve, 30));
    }
}

const ok = what => console.log(`ok     ${what}`);
const freePort = () => new Promise(resolve => {
    const server = net.createServer().listen(0, '127.0.0.1', () => {
        const { port } = server.address();
        server.close(() => resolve(port));
    });
});

function skip(why) {
    console.log(`skipped, no Node-RED: ${why}`);
    fs.rmSync(scratch, { recursive: true });
    process.exit(77);
}

function install() {
    if (Number(process.versions.node.split('.')[0]) < 18) {
        skip(`this is Node.js ${process.versions.node}; it needs 18`);
    }
    const cache = process.env.NODE_RED_CACHE
        ?? path.join(process.env.XDG_CACHE_HOME ?? path.join(os.homedir(), '.cache'), 'job-worker', 'node-red-4');
    const program = path.join(cache, 'node_modules', 'node-red', 'red.js');
    if (!fs.existsSync(program)) {
        fs.mkdirSync(path.dirname(cache), { recursive: true });
        const fresh = fs.mkdtempSync(`${cache}.new-`); // under its name only when it is whole
        try {
            execFileSync('npm', ['install', '--prefix', fresh, '--no-audit', '--no-fund', '--loglevel=error', 'node-red@4'], { stdio: ['ignore', 2, 2] });
        } catch (error) {
            fs.rmSync(fresh, { recursive: true, force: true });
            skip(`npm cannot install it: ${error.message}`);
        }
        fs.rmSync(cache, { recursive: true, force: true });
        fs.renameSync(fresh, cache);
    }
    return program;
}

const nodeRed = install();
if (onlyGet) {
    fs.rmSync(scratch, { recursive: true });
    process.exit(0);
}
const [mqttPort, httpPort] = [await freePort(), await freePort()];

// What a user does in the editor after importing the flow: the broker's address, the drive, the time limits.
function configureFlow(limits) {
    const flow = JSON.parse(fs.readFileSync(path.join(root, 'examples/node-red/flow.json')));
    Object.assign(flow.find(node => node.type === 'mqtt-broker'), { broker: '127.0.0.1', port: String(mqttPort) });
    for (const setting of flow.find(node => node.type === 'tab').env) {
        setting.value = { DRIVE: drive, ...limits }[setting.name] ?? setting.value;
    }
    fs.writeFileSync(path.join(scratch, 'flows.json'), JSON.stringify(flow));
}

async function startNodeRed(limits = {}) {
    configureFlow(limits);
    const child = start('node-red', process.execPath, [nodeRed, '--userDir', scratch, '--settings', path.join(scratch, 'settings.js')]);
    await until('Node-RED to be connected', async () => {
        assert(processes.has(child), 'Node-RED has ended');
        const answer = await fetch(`${base}/jobs`, { method: 'POST', headers: json, body: '{"steps": 1}' });
        return answer.status === 400; // 503 without the broker
    });
    return child;
}

const base = `http://127.0.0.1:${httpPort}`;
const json = { 'Content-Type': 'application/json' };
const post = async (url, body) => {
    const answer = await fetch(base + url, { method: 'POST', headers: json, body: JSON.stringify(body) });
    return { status: answer.status, ...await answer.json() };
};
const state = async () => (await fetch(`${base}/jobs/state`)).json();
const job = async id => (await state()).jobs.find(job => job.id === id);
const submit = async body => {
    const { status, id } = await post('/jobs', body);
    assert.equal(status, 202);
    return id;
};
const over = id => until(`the result of ${id}`, async () => {
    const found = await job(id);
    return found?.result && found;
});
const running = id => until(`${id} to run`, async () => (await job(id)).progress?.steps.some(step => step.status === 'running'));
const directory = id => path.join(drive, id);
const startWorker = () => start('worker', binary, [], { env: { ...env, MQTT_URL: `mqtt://127.0.0.1:${mqttPort}` }, cwd: scratch });
const gate = { run: 'echo "attempt $JOB_ATTEMPT"; while [ -e job.json ] && [ ! -e go ]; do sleep 0.05; done', name: 'gate' };

async function draw(file) {
    const chromium = ['chromium', 'chromium-browser', 'google-chrome'].find(name => {
        try {
            return execFileSync(name, ['--version'], { stdio: 'pipe' });
        } catch {
            return false;
        }
    });
    assert(chromium, 'no Chromium to draw with');
    // --no-sandbox: containers run it as root
    execFileSync(chromium, ['--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', `--user-data-dir=${scratch}/chromium`,
        '--window-size=1180,1150', '--virtual-time-budget=20000', `--screenshot=${file}`, base + '/'], { stdio: 'pipe', timeout: 120_000 });
}

async function test() {
    fs.writeFileSync(path.join(scratch, 'broker.conf'),
        `listener ${mqttPort} 127.0.0.1\nallow_anonymous true\npersistence false\n`);
    start('mosquitto', 'mosquitto', ['-c', path.join(scratch, 'broker.conf')]);
    fs.writeFileSync(path.join(scratch, 'picture.css'), `
        #red-ui-palette, #red-ui-sidebar, #red-ui-sidebar-separator, .red-ui-sidebar-control-right { display: none !important }
        #red-ui-workspace { left: 0 !important; right: 0 !important }
        .red-ui-notification { display: none !important }`);
    fs.writeFileSync(path.join(scratch, 'settings.js'), `module.exports = ${JSON.stringify({
        uiHost: '127.0.0.1', uiPort: httpPort, flowFile: 'flows.json', credentialSecret: false,
        telemetry: { enabled: false, updateNotification: false }, logging: { console: { level: 'info' } },
        editorTheme: { tours: false, palette: { editable: false }, page: { css: path.join(scratch, 'picture.css') } },
    })}`);
    let red = await startNodeRed();

    // a good job
    let worker = startWorker();
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
    assert.deepEqual([result.result.reason, result.log], ['rejected', '']);
    ok('a rejected job: the result says so');

    // a cancelled one, on the same worker
    id = await submit({ steps: [gate, 'true'] });
    await running(id);
    ok('a running job: its progress is shown');
    await until('the dashboard to show the worker', async () => (await state()).workers.some(worker => worker.state === 'busy' && worker.job === id));
    ok('a running job: its worker is shown busy with it');
    assert.equal((await post(`/jobs/${id}/cancel`, {})).status, 202);
    result = await over(id);
    assert.deepEqual([result.result.reason, result.result.exitCode], ['cancelled', 130]);
    assert(!fs.existsSync(directory(id)));
    ok('a cancelled job: result, directory gone');
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
    for (const [body, headers, status] of [['{"steps": "x"}', json, 400], ['{"steps": [], "files": {"../x": ""}}', json, 400],
        ['{"steps": [], "files": {"job.json": ""}}', json, 400], ['{"steps": [], "files": {"job.cancel": ""}}', json, 400], ['steps[]=x', { 'Content-Type': 'application/x-www-form-urlencoded' }, 415]]) {
        assert.equal((await fetch(`${base}/jobs`, { method: 'POST', headers, body })).status, status, body);
    }
    assert.equal((await post('/jobs/nodered_none/cancel', {})).status, 404);
    assert.deepEqual(fs.readdirSync(drive), []);
    assert.match(await (await fetch(`${base}/jobs`)).text(), /<h2>Workers/);
    ok('what is no job is refused, and leaves nothing on the drive');

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
    fs.writeFileSync(path.join(directory(id), 'go'), '');
    assert.equal(await worker.over, 0);
    red = await startNodeRed({ TIMEOUT: '1', GRACE: '1' });
    assert.equal((await over(id)).status, 'success');
    assert(!fs.existsSync(directory(id)));
    ok('a result that came while Node-RED was away is dealt with');

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

let failed = false;
try {
    await test();
    console.log('all is well');
} catch (error) {
    failed = true;
    console.log(`FAILED ${error.stack}`);
    for (const file of fs.readdirSync(scratch).filter(file => file.endsWith('.log'))) {
        console.log(`--- ${file}\n${fs.readFileSync(path.join(scratch, file), 'utf8').slice(-4000)}`);
    }
} finally {
    const ends = [...processes].map(child => (child.kill('SIGKILL'), child.over));
    await Promise.all(ends);
    fs.rmSync(scratch, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
}
process.exit(failed ? 1 : 0);

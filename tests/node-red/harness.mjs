// A real, headless Node-RED 4 with the flow of examples/node-red, a Mosquitto and the built worker.
//
// Node-RED comes from npm once, into a folder of the user's cache (or NODE_RED_CACHE). JOB_WORKER is the program to test,
// else it is the debug build. Exits with 77, and a word why, where Node-RED cannot be had.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = path.join(path.dirname(fileURLToPath(import.meta.url)), '../..');
const binary = path.resolve(process.env.JOB_WORKER ?? path.join(root, 'target/debug/job-worker'));
export const scratch = fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), 'job-worker-node-red-')));
export const drive = path.join(scratch, 'a drive'); // a space, as network drives like to have
fs.mkdirSync(drive);                                  // the flow makes none
const processes = new Set();
const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(MQTT|JOB|WORKER|NODE_RED)_|^RUST_LOG$/.test(name)));
env.PATH += ':/usr/sbin:/usr/local/sbin';

export function start(name, command, args, options = {}) {
    const output = fs.openSync(path.join(scratch, `${name}.log`), 'a');
    const child = spawn(command, args, { env, stdio: ['ignore', output, output], ...options });
    fs.closeSync(output);
    child.over = new Promise(resolve => child.on('close', (code, signal) => resolve(signal ?? code)));
    child.on('error', error => console.error(`${command}: ${error.message}`));
    processes.add(child);
    child.over.then(() => processes.delete(child));
    return child;
}

export async function until(what, probe) {
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

const began = Date.now();
export const ok = what => console.log(`ok ${String(Math.round((Date.now() - began) / 1000)).padStart(3)} s  ${what}`);
// Below those that the kernel takes for outgoing connections, so that it stays free while its server is down.
const freePort = () => new Promise(resolve => {
    const port = 10_000 + Math.floor(20_000 * Math.random());
    const server = net.createServer().on('error', () => resolve(freePort()));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(port)));
});

export function skip(why) {
    console.log(`skipped: ${why}`);
    fs.rmSync(scratch, { recursive: true });
    process.exit(77);
}

// The folder of this npm package, which is installed where it is not in the cache yet.
export function install(name, version) {
    if (Number(process.versions.node.split('.')[0]) < 18) {
        skip(`this is Node.js ${process.versions.node}; Node-RED needs 18`);
    }
    const cache = path.join(process.env.NODE_RED_CACHE ?? path.join(process.env.XDG_CACHE_HOME ?? path.join(os.homedir(), '.cache'), 'job-worker'),
        `${name}-${version}`);
    const folder = path.join(cache, 'node_modules', name);
    if (!fs.existsSync(folder)) {
        fs.mkdirSync(path.dirname(cache), { recursive: true });
        const fresh = fs.mkdtempSync(`${cache}.new-`); // under its name only when it is whole
        try {
            execFileSync('npm', ['install', '--prefix', fresh, '--no-audit', '--no-fund', '--loglevel=error', `${name}@${version}`], { stdio: ['ignore', 2, 2] });
        } catch (error) {
            fs.rmSync(fresh, { recursive: true, force: true });
            skip(`npm cannot install ${name}: ${error.message}`);
        }
        fs.rmSync(cache, { recursive: true, force: true });
        fs.renameSync(fresh, cache);
    }
    return folder;
}

// The path of this machine's Chromium.
export function findChromium() {
    for (const name of ['chromium', 'chromium-browser', 'google-chrome']) {
        try {
            execFileSync(name, ['--version'], { stdio: 'pipe' });
            return execFileSync('sh', ['-c', `command -v ${name}`], { encoding: 'utf8' }).trim();
        } catch {
            // the next name
        }
    }
    return skip('there is no Chromium');
}

export const nodeRed = path.join(install('node-red', 4), 'red.js');
export const [mqttPort, httpPort] = [await freePort(), await freePort()];
export const base = `http://127.0.0.1:${httpPort}`;
const json = { 'Content-Type': 'application/json' };

export function startBroker() {
    fs.writeFileSync(path.join(scratch, 'broker.conf'), `listener ${mqttPort} 127.0.0.1\nallow_anonymous true\npersistence false\n`);
    return start('mosquitto', 'mosquitto', ['-c', path.join(scratch, 'broker.conf')]);
}

// What a user does in the editor after importing the flow: the broker's address, and the properties of the tab.
function configureFlow(properties, change) {
    const flow = JSON.parse(fs.readFileSync(path.join(root, 'examples/node-red/flow.json')));
    change(flow, id => flow.find(node => node.id === id));
    Object.assign(flow.find(node => node.type === 'mqtt-broker'), { broker: '127.0.0.1', port: String(mqttPort) });
    for (const setting of flow.find(node => node.type === 'tab').env) {
        setting.value = { DRIVE: drive, ...properties }[setting.name] ?? setting.value;
    }
    if (properties.QUEUES) {
        flow.filter(node => node.type === 'mqtt in').forEach(node => node.topic = node.topic.replace(/^jobs/, '+'));
    }
    fs.writeFileSync(path.join(scratch, 'flows.json'), JSON.stringify(flow));
}

export async function startNodeRed(properties = {}, change = () => {}) {
    configureFlow(properties, change);
    // hides what is around the flow, for its picture
    fs.writeFileSync(path.join(scratch, 'picture.css'), `
        #red-ui-palette, #red-ui-sidebar, #red-ui-sidebar-separator, .red-ui-sidebar-control-right { display: none !important }
        #red-ui-workspace { left: 0 !important; right: 0 !important }
        .red-ui-workspace-chart-grid { display: none !important }
        .red-ui-notification { display: none !important }`);
    fs.writeFileSync(path.join(scratch, 'settings.js'), `module.exports = ${JSON.stringify({
        uiHost: '127.0.0.1', uiPort: httpPort, flowFile: 'flows.json', credentialSecret: false,
        telemetry: { enabled: false, updateNotification: false }, logging: { console: { level: 'info' } },
        editorTheme: { tours: false, palette: { editable: false }, page: { css: path.join(scratch, 'picture.css') } },
    })}`);
    const child = start('node-red', process.execPath, [nodeRed, '--userDir', scratch, '--settings', path.join(scratch, 'settings.js')]);
    await until('Node-RED to be connected', async () => {
        assert(processes.has(child), 'Node-RED has ended');
        return (await state()).connected;
    });
    return child;
}

export const post = async (url, body, headers = json) => {
    const answer = await fetch(base + url, { method: 'POST', headers, body: typeof body === 'string' ? body : JSON.stringify(body) });
    assert.equal(answer.headers.get('Content-Type'), 'application/json; charset=utf-8');
    return { status: answer.status, ...await answer.json() };
};
export const state = async () => (await fetch(`${base}/jobs/state`)).json();
export const job = async id => (await state()).jobs.find(job => job.id === id);
export const result = async id => (await (await fetch(`${base}/jobs/${id}/status`)).json()).result;
export const log = async id => (await fetch(`${base}/jobs/${id}/log`)).text();
export const submit = async body => {
    const answer = await post('/jobs', body);
    assert.equal(answer.status, 202, JSON.stringify(answer));
    return answer.id;
};
export const ended = id => until(`the result of ${id}`, async () => {
    const found = await job(id);
    return ['success', 'failed'].includes(found?.status) && fs.existsSync(path.join(drive, '.nodered', `${id}.json`)) && found;
});
export const over = async id => ({ ...await ended(id), result: await result(id), log: await log(id) });
export const isGone = id => until(`the directory of ${id} to be deleted`, () => !fs.existsSync(directory(id)));
export const press = button => fetch(`${base}/inject/${button}`, { method: 'POST' }); // as the editor does it
// With any headers, also those that fetch does not let one choose.
export const ask = (method, url, headers, body = '') => new Promise((resolve, reject) => {
    const request = http.request(base + url, { method, headers }, answer => {
        let text = '';
        answer.on('data', chunk => text += chunk).on('end', () => resolve({ status: answer.statusCode, headers: answer.headers, text }));
    });
    request.on('error', reject).end(body);
});
export const running = id => until(`${id} to run`, async () => (await job(id)).step);
export const directory = id => path.join(drive, id);
export const startWorker = (settings = {}, args = []) =>
    start('worker', binary, args, { env: { ...env, MQTT_URL: `mqtt://127.0.0.1:${mqttPort}`, JOB_ROOT: drive, ...settings }, cwd: scratch });
// A step that waits for a file "go" in the job's directory.
export const gate = { run: 'echo "attempt $JOB_ATTEMPT"; while [ -e job.json ] && [ ! -e go ]; do sleep 0.05; done', name: 'gate' };
export const publish = (...args) => execFileSync('mosquitto_pub', ['-h', '127.0.0.1', '-p', String(mqttPort), ...args], { env });

// Runs the test, ends what it has started, and says how it went.
export async function run(test) {
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
}

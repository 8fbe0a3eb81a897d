// The page /jobs of the flow of examples/node-red in a real Chromium, 1,280 and 390 pixels wide.
//
//   node tests/node-red/page.mjs                    checks it
//   node tests/node-red/page.mjs --pictures DIR     also writes DIR/page-desktop.png and DIR/page-phone.png
//   node tests/node-red/page.mjs --available        only gets Node-RED and the driver of the browser
//
// Prints one line a check; exits with 77, and a word why, where Node-RED or Chromium cannot be had.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import { createRequire } from 'node:module';
import path from 'node:path';
import { base, directory, drive, ended, findChromium, gate, install, isGone, job, ok, over, post, press, publish, run, running, scratch, startBroker,
    startNodeRed, startWorker, state, submit, until } from './harness.mjs';

const { chromium } = createRequire(path.join(install('playwright-core', 1), '/'))('playwright-core');
const executablePath = findChromium();
const pictures = process.argv[2] === '--pictures' && path.resolve(process.argv[3]);
if (process.argv[2] === '--available') {
    fs.rmSync(scratch, { recursive: true });
    process.exit(0);
}

const WIDE = { width: 1280, height: 900 };
const NARROW = { width: 390, height: 844 };
let browser;
const complaints = []; // what no page may do

async function open(viewport, options = {}) {
    const context = await browser.newContext({ viewport, timezoneId: 'UTC', ...options });
    const page = await context.newPage();
    page.setDefaultTimeout(30_000);
    page.on('pageerror', error => complaints.push(`error: ${error.message}`));
    page.on('console', message => message.type() === 'error' && !/status of (404|503)|ERR_CONNECTION_REFUSED/.test(message.text()) && complaints.push(message.text()));
    page.on('dialog', dialog => complaints.push(`dialog: ${dialog.message()}`));
    page.on('request', request => request.url().startsWith(base) || request.url().startsWith('data:') || complaints.push(`a request to ${request.url()}`));
    await page.goto(`${base}/jobs`);
    return page;
}
const row = (page, id) => page.locator(`#jobs [data-id="${id}"]`);
const unfold = (page, id) => row(page, id).locator('.open').press('Enter'); // by its keyboard: rows move
const logOf = (page, id) => row(page, id).locator('.log');
const shows = (locator, text) => until(`${locator} to show ${text}`, async () => {
    const found = await locator.innerText();
    assert(text instanceof RegExp ? text.test(found) : found.includes(text), found.slice(-300));
    return true;
});
const hidden = locator => until(`${locator} to be hidden`, async () => !await locator.isVisible());
const go = id => fs.writeFileSync(path.join(directory(id), 'go'), '');

// Whether nothing is wider than the page, and each text has enough contrast (WCAG AA).
async function checkLooks(page, name) {
    const found = await page.evaluate(() => {
        const wrong = [];
        if (document.scrollingElement.scrollWidth > innerWidth) {
            wrong.push(`${document.scrollingElement.scrollWidth} pixels wide`);
        }
        const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
        const rgb = color => {
            canvas.clearRect(0, 0, 1, 1);
            canvas.fillStyle = color;
            canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data];
        };
        const light = color => rgb(color).slice(0, 3).map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
            .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
        const dialog = document.querySelector('dialog[open]');
        for (const node of (dialog ?? document.body).querySelectorAll('*')) {
            const says = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
            if (!says || !node.checkVisibility()) {
                continue;
            }
            let under = node;
            while (under && rgb(getComputedStyle(under).backgroundColor)[3] < 255) {
                under = under.parentElement;
            }
            const [a, b] = [light(getComputedStyle(node).color), light(under ? getComputedStyle(under).backgroundColor : 'white')].sort((a, b) => b - a);
            const contrast = (a + 0.05) / (b + 0.05);
            if (contrast < 4.5) {
                wrong.push(`contrast ${contrast.toFixed(2)} of “${node.textContent.slice(0, 40)}”`);
            }
        }
        for (const control of document.querySelectorAll('button, input, select, textarea')) {
            const label = control.ariaLabel || control.textContent.trim() || control.labels?.[0]?.textContent;
            control.checkVisibility() && !label && wrong.push(`a ${control.tagName} without a name`);
        }
        return wrong;
    });
    assert.deepEqual(found, [], name);
}

async function aFirstWorker(page) {
    await shows(page.locator('#no-worker'), 'No worker has been here yet');
    const worker = startWorker(); // from now on the broker keeps its queue
    await shows(page.locator('#workers'), 'idle');
    worker.kill('SIGTERM');
    await worker.over;
    await shows(page.locator('#offline summary'), '1 offline worker');
    assert.equal(await page.locator('#offline-workers').isVisible(), false);
    ok('a worker that stays away is folded away');
}

async function aFirstJob(page, width) {
    await shows(page.locator('#no-worker'), 'Jobs wait in the queue');
    await shows(page.locator('#no-job'), 'no job yet');
    await page.getByRole('button', { name: 'New job' }).click();
    await page.getByRole('button', { name: 'Submit' }).click(); // steps are required: nothing happens
    await page.getByLabel('Steps').fill('echo "$GREETING from the form"; cat *note.txt; mkdir -p "ö ut"; echo made >"ö ut/100%&.txt"\necho "it waits"; while [ ! -e go ]; do sleep 0.05; done');
    await page.getByLabel('Environment').fill('GREETING');
    await page.getByRole('button', { name: 'Submit' }).click();
    await shows(page.locator('#form-error'), '“GREETING” is not of the form NAME=value');
    await page.getByLabel('Environment').fill('GREETING=hello');
    await page.getByLabel('Time limit').fill('500');
    await page.getByLabel('Files').setInputFiles({ name: 'a note.txt', mimeType: 'text/plain', buffer: Buffer.from('a nöte\n') });
    await checkLooks(page, 'the form');
    await page.getByRole('button', { name: 'Submit' }).click();
    await shows(page.locator('#said'), 'is submitted');
    const { id } = await until('the job', async () => (await state()).jobs.find(job => !['success', 'failed'].includes(job.status)));
    await shows(row(page, id), 'queued');
    await shows(logOf(page, id), 'The log begins when the job does');
    assert.equal(JSON.parse(fs.readFileSync(path.join(directory(id), 'job.json'))).timeoutSeconds, 500);

    const worker = startWorker();
    await shows(row(page, id).locator('tr').first(), /step 2 of 2[^]*running/);
    await shows(logOf(page, id), /hello from the form\na nöte\n[^]*it waits\n/);
    assert.match(await row(page, id).locator('.steps').innerText(), /echo "it waits"; while/);
    await shows(page.locator('#workers'), /node-worker-01[^]*busy/);
    await checkLooks(page, 'a running job');
    ok(`${width}: a job of the form runs, with its files and environment, and its log is shown as it grows`);
    go(id);
    await shows(row(page, id).locator('tr').first(), 'success');
    await shows(logOf(page, id), /job success in [\d.]+s\n$/);
    const cells = await row(page, id).locator('tr').first().locator('td').allInnerTexts();
    assert.match(cells[2], /\d\d:\d\d:\d\d/);
    assert.match(cells[3], /\d\d:\d\d:\d\d/);
    assert.match(cells[4], /\d s$/);
    assert.deepEqual(cells.slice(5, 7).map(text => text.trim()), ['0', 'node-worker-01']);
    ok(`${width}: submitted, started, duration, exit code and worker of a job that is over`);
    await shows(row(page, id).locator('.files'), /a note.txt[^]*8 B[^]*ö ut\/100%&.txt[^]*5 B/);
    const [download] = await Promise.all([page.waitForEvent('download'), row(page, id).getByRole('link', { name: 'ö ut' }).click()]);
    assert.deepEqual([download.suggestedFilename(), fs.readFileSync(await download.path(), 'utf8')], ['100%&.txt', 'made\n']);
    ok(`${width}: what a job has made can be downloaded`);
    assert.equal(await worker.over, 0);
}

async function inPlace(page) {
    const id = await submit({ steps: [{ name: 'count', run: 'seq 1 300; while [ ! -e go ]; do sleep 0.1; [ ! -e more ] || { rm more; echo one more; }; done' }] });
    await running(id);
    await unfold(page, id);
    await shows(logOf(page, id), '\n300\n');
    await shows(row(page, id).locator('.facts'), 'Attempt');
    await shows(row(page, id).locator('.steps'), 'running');
    await shows(row(page, id).locator('.note'), 'step 1 of 1');
    assert(await logOf(page, id).evaluate(node => node.scrollHeight - node.scrollTop - node.clientHeight < 5), 'the end of the log is in view');

    // a word is selected, the log is scrolled up, and the page is scrolled so that the job is in view
    await logOf(page, id).evaluate(node => {
        node.scrollTop = 100;
        const text = [...node.childNodes].find(child => child.textContent.includes('\n123\n'));
        const place = text.textContent.indexOf('\n123\n') + 1;
        getSelection().setBaseAndExtent(text.firstChild ?? text, place, text.firstChild ?? text, place + 3);
        document.querySelector('.job').scrollIntoView();
        scrollBy(0, 40);
    });
    const place = () => page.evaluate(id => ({ selected: String(getSelection()), log: document.querySelector(`[data-id="${id}"] .log`).scrollTop,
        top: Math.round(document.querySelector(`[data-id="${id}"] .log`).getBoundingClientRect().top) }), id);
    const before = await place();
    assert.equal(before.selected, '123');
    const others = [];
    for (let n = 0; n < 5; n += 1) {
        others.push(await submit({ steps: [`echo other ${n}`] })); // new rows above it
    }
    fs.writeFileSync(path.join(directory(id), 'more'), '');
    await shows(logOf(page, id), 'one more\n');
    await row(page, others[4]).waitFor({ state: 'attached' });
    assert.deepEqual(await place(), before);
    ok('scroll positions and the selection stay while rows and lines are added');

    await page.getByRole('searchbox').focus();
    await page.getByRole('searchbox').pressSequentially('count');
    await row(page, others[0]).waitFor({ state: 'detached' });
    await page.getByRole('searchbox').fill('');
    await page.getByRole('button', { name: /^Running/ }).click();
    await row(page, others[0]).waitFor({ state: 'detached' });
    assert(await row(page, id).isVisible());
    await page.getByRole('button', { name: /^All/ }).click();
    await row(page, others[0]).waitFor();
    ok('jobs can be found and filtered');

    await cancels(page, id, others);
}

async function cancels(page, id, others) {
    await page.getByRole('button', { name: `Withdraw job ${others[4]}` }).click();
    await shows(page.locator('#said'), `${others[4]}: it is withdrawn from the queue, and will not run`);
    await shows(row(page, others[4]), 'withdrawn');
    assert(fs.existsSync(path.join(directory(others[4]), 'job.cancel')));
    await page.getByRole('button', { name: /^Cancelled 1/ }).click();
    await row(page, others[3]).waitFor({ state: 'detached' });
    assert(await row(page, others[4]).isVisible());
    await page.getByRole('button', { name: /^All/ }).click();
    await shows(page.locator('#summary'), '4 queued');
    await unfold(page, id);
    ok('a queued job is withdrawn, and the page says so');

    await page.getByRole('button', { name: `Cancel job ${id}` }).click();
    await page.getByRole('button', { name: 'Keep it running' }).click();
    assert.equal((await job(id)).status, 'running');
    await page.getByRole('button', { name: `Cancel job ${id}` }).click();
    await checkLooks(page, 'the question');
    await page.getByRole('button', { name: 'Cancel the job' }).click();
    await shows(page.locator('#said'), new RegExp(`${id} has ended: cancelled`));
    await shows(row(page, id).locator('tr').first(), /cancelled[^]*130/);
    await shows(logOf(page, id), /job failed: cancelled/);
    await shows(row(page, id).locator('.facts'), /Cancelled by\s+a person, on the page/);
    await shows(page.locator('#summary'), '1 failed'); // the one of before
    ok('a running job is cancelled after a question, and the page says when it has ended');
}

async function wholeErrors(page) {
    const worker = startWorker({ JOB_DIR_WAIT: '1' });
    const id = await submit({ steps: [{ name: `${'a long name '.repeat(15)}and its end`, run: 'exit 7' }] });
    await over(id);
    await worker.over;
    await unfold(page, id);
    const note = row(page, id).locator('.note').first();
    await shows(note, 'and its end) ended with exit code 7');
    assert(await note.evaluate(node => node.scrollHeight <= node.clientHeight + 1), 'it is cut off');
    ok('the details have the whole error');
}

// What a page of another address, or one that has made its name lead here, can do.
async function otherSites() {
    const site = http.createServer((request, answer) => answer.setHeader('Content-Type', 'text/html').end('<h1>a page</h1><iframe name="hole"></iframe>'));
    const port = await new Promise(resolve => site.listen(0, '127.0.0.1', () => resolve(site.address().port)));
    const before = (await state()).jobs.length;
    for (const address of [`http://127.0.0.1:${port}`, `http://evil.test:${port}`]) {
        const page = await (await browser.newContext()).newPage();
        await page.goto(address);
        const got = await page.evaluate(async base => {
            const [method, body] = ['POST', '{"steps": ["true"]}'];
            const tries = [[base + '/jobs/state'], [base + '/jobs'], [base + '/jobs/page.js'], [base + '/jobs', { method, body, headers: { 'Content-Type': 'application/json' } }]];
            const got = await Promise.all(tries.map(([url, options]) => fetch(url, options).then(answer => answer.text(), error => error.name)));
            await fetch(base + '/jobs', { method, body, mode: 'no-cors', headers: { 'Content-Type': 'text/plain' } }).catch(() => {});
            const form = Object.assign(document.createElement('form'), { method, action: base + '/jobs', enctype: 'text/plain', target: 'hole' });
            form.append(Object.assign(document.createElement('input'), { name: body.replace(/}$/, ', "x": "'), value: '"}' }));
            document.body.append(form);
            const sent = new Promise(resolve => document.querySelector('iframe').onload = resolve);
            form.submit();
            await sent;
            const script = Object.assign(document.createElement('script'), { src: base + '/jobs/page.js' });
            got.push(await new Promise(resolve => {
                script.onload = () => resolve('loaded');
                script.onerror = () => resolve('not loaded');
                document.body.append(script);
            }));
            return got;
        }, base);
        assert.deepEqual(got, ['TypeError', 'TypeError', 'TypeError', 'TypeError', 'not loaded'], address);
        await page.setContent(`<a href="${base}/jobs">the jobs</a>`);
        await page.getByRole('link').click();
        await shows(page.locator('h1'), 'Job Worker');
        await page.context().close();
    }
    const page = await (await browser.newContext()).newPage();
    await page.goto(`http://evil.test:${new URL(base).port}/jobs`); // its name leads to Node-RED
    await shows(page.locator('body'), /add evil.test to HOSTS/);
    assert.deepEqual(await page.evaluate(() => fetch('jobs', { method: 'POST', body: '{"steps": []}', headers: { 'Content-Type': 'application/json' } })
        .then(answer => answer.status)), 403);
    await page.goto(`http://nas.test:${new URL(base).port}/jobs`);
    await shows(page.locator('#summary'), 'queued');
    assert.equal((await page.evaluate(() => fetch('jobs/nodered_none/cancel', { method: 'POST', body: '{}', headers: { 'Content-Type': 'application/json' } })
        .then(answer => answer.status))), 404);
    await page.context().close();
    assert.equal((await state()).jobs.length, before);
    site.close();
    ok('pages of other addresses read nothing and start nothing, nor does one whose name leads here; a name in HOSTS does');
}

const hostile = `<img src=x onerror="window.stolen=1"><script>window.stolen=1</script>"'&amp;\u202e`;

async function attacks(page) {
    const id = await submit({ steps: [{ name: hostile, run: `cat evil.txt; exit 9` }, hostile], files: { 'evil.txt': `${hostile}\n\x1b[31mred\x1b[0m\n` } });
    await over(id);
    publish('-r', '-t', 'jobs/workers/__proto__', '-m', '{"worker":"__proto__","state":"busy","job":"<svg onload=alert(2)>","waitingFor":"<b>x","since":"<i>"}');
    publish('-t', `jobs/status/nodered_unknown`, '-m', '{"id":"nodered_unknown","steps":1}');
    publish('-t', `jobs/status/__proto__`, '-m', '{"id":"__proto__"}');
    publish('-t', `jobs/results/nodered_other`, '-m', '{"id":"__proto__","status":"success"}');
    publish('-t', `jobs/results/nodered_odd`, '-m', JSON.stringify({ id: 'nodered_odd', status: 'failed', reason: 'constructor', error: { x: 1 }, steps: [null, 1, { status: {} }], exitCode: 'x', workDir: '/etc', logFile: '/etc/passwd', startedAt: [], worker: '<img src=x onerror=alert(1)>' }));
    await row(page, 'nodered_odd').waitFor();
    await unfold(page, 'nodered_odd');
    await unfold(page, id);
    await shows(logOf(page, id), `<script>window.stolen=1</script>`);
    await shows(logOf(page, id), '\nred\n');
    await shows(page.locator('#workers'), 'waits for <b>x');
    publish('-r', '-t', 'jobs/workers/full', '-m', '{"worker":"full","state":"idle","waitingFor":"the drive is full"}');
    await shows(page.locator('#workers'), 'takes no request: the drive is full');
    publish('-r', '-t', 'jobs/workers/full', '-n');
    await shows(row(page, id).locator('.steps'), '<img src=x onerror=');
    assert.deepEqual(await page.evaluate(() => [window.stolen, document.querySelectorAll('main img, main script, main svg, main b b').length]), [undefined, 0]);
    assert.match(await page.locator('#workers').innerText(), /__proto__/);
    assert.doesNotMatch(await page.locator('body').innerText(), /\[object/);
    assert.equal((await state()).jobs.find(job => job.id === 'nodered_odd').exitCode, undefined);
    publish('-r', '-t', 'jobs/workers/__proto__', '-n');
    await shows(page.locator('#workers, #no-worker').first(), /^(?![^]*__proto__)/);
    ok('what a job or a worker says is only ever text, and a presence that is cleared is gone');

    const policy = (await fetch(`${base}/jobs`)).headers.get('Content-Security-Policy');
    assert.match(policy, /default-src 'none'.*script-src 'self'/);
    const kept = await fetch(`${base}/jobs/${id}/log`);
    assert.deepEqual([kept.headers.get('Content-Type'), kept.headers.get('X-Content-Type-Options')], ['text/plain; charset=utf-8', 'nosniff']);
    assert.match(kept.headers.get('Content-Security-Policy'), /sandbox/);
    const state_ = await fetch(`${base}/jobs/state?callback=steal`);
    assert.equal(state_.headers.get('Content-Type'), 'application/json; charset=utf-8');
    assert((await state_.text()).startsWith('{'));
    ok('nothing of it can become a script elsewhere');
}

async function otherFiles() {
    fs.writeFileSync(path.join(scratch, 'secret'), 'the secret');
    fs.mkdirSync(path.join(scratch, 'elsewhere'));
    fs.writeFileSync(path.join(scratch, 'elsewhere', 'job.log'), 'the secret');
    const noLog = async (id, path = 'log') => {
        const answer = await fetch(`${base}/jobs/${id}/${path}`);
        assert.deepEqual([answer.status, await answer.text()], [404, `{"error":"this job has no ${path === 'log' ? 'log' : 'such file'}"}\n`], path);
    };
    const id = await submit({ steps: [gate] });
    await running(id);
    fs.mkdirSync(path.join(directory(id), 'sub'));
    for (const [name, target] of [['link', '../../secret'], ['folder', '../../elsewhere'], ['sub/link', '../../../secret'], ['self', '.']]) {
        fs.symlinkSync(target, path.join(directory(id), name));
    }
    execFileSync('mkfifo', [path.join(directory(id), 'pipe')]);
    for (const name of ['link', 'folder/job.log', 'sub/link', 'sub', 'pipe', '', '..', '../../secret', 'sub/../../../secret', '/etc/passwd', 'self/job.json', 'none', './job.json',
        'job.json/', '\0', `../${id}/job.json`]) {
        await noLog(id, `file?name=${encodeURIComponent(name)}`);
    }
    assert.deepEqual(await (await fetch(`${base}/jobs/${id}/files`)).json(), { files: [], more: false });
    assert.equal((await fetch(`${base}/jobs/${id}/file?name=job.json`)).status, 200);
    // what the job itself could do
    for (const put of [() => fs.symlinkSync('../../secret', path.join(directory(id), 'job.log')), () => fs.mkdirSync(path.join(directory(id), 'job.log'))]) {
        fs.rmSync(path.join(directory(id), 'job.log'), { recursive: true });
        put();
        await noLog(id);
    }
    fs.rmSync(path.join(directory(id), 'job.log'), { recursive: true });
    fs.renameSync(directory(id), path.join(scratch, 'away'));
    fs.symlinkSync('../elsewhere', directory(id));
    await noLog(id);
    publish('-t', `jobs/status/${id}`, '-m', JSON.stringify({ id, status: 'running', steps: [], workDir: scratch, logFile: path.join(scratch, 'secret') }));
    await noLog(id);
    ok('the log of a job is a file in its own directory: no link, no directory, and nothing that a document says leads elsewhere');
    // a result that cannot be told from the worker's
    publish('-q', '1', '-t', `jobs/results/${id}`, '-m', JSON.stringify({ id, status: 'success', exitCode: 0, steps: [], workDir: scratch, logFile: path.join(scratch, 'secret') }));
    await over(id);
    fs.utimesSync(path.join(drive, '.nodered', `${id}.json`), 0, 0);
    await press('jw_hourly');
    await isGone(id);
    await noLog(id);
    assert.deepEqual(fs.readdirSync(path.join(scratch, 'elsewhere')), ['job.log']);

    // job.cancel is not written through a link
    fs.writeFileSync(path.join(scratch, 'settings of somebody'), 'kept');
    const queued = await submit({ steps: ['true'] });
    fs.symlinkSync('../../settings of somebody', path.join(directory(queued), 'job.cancel'));
    assert.equal((await post(`/jobs/${queued}/cancel`, {})).status, 200);
    assert.equal(fs.readFileSync(path.join(scratch, 'settings of somebody'), 'utf8'), 'kept');
    fs.writeFileSync(path.join(scratch, 'away', 'go'), '');
    assert.equal((await over(queued)).reason, 'cancelled');
    ok('and cleaning up and withdrawing follow no link, either');
}

async function largeLog(page, red) {
    const GiB = 1024 ** 3;
    const rss = () => Number(/VmRSS:\s+(\d+) kB/.exec(fs.readFileSync(`/proc/${red.pid}/status`, 'utf8'))[1]) * 1024;
    const id = await submit({ steps: [`truncate -s ${GiB} job.log; echo; echo the last line`] });
    await ended(id);
    const before = rss();
    await unfold(page, id);
    await shows(logOf(page, id), /the last line\n[^]*job success/);
    assert((await logOf(page, id).evaluate(node => node.textContent.length)) < 200_000);
    await shows(row(page, id).locator('.log-bar'), /End of the log[^]*All of it \(1.00 GiB\)/);
    const isOpen = () => fs.readdirSync(`/proc/${red.pid}/fd`).some(fd => {
        try {
            return fs.readlinkSync(`/proc/${red.pid}/fd/${fd}`).endsWith(`${id}/job.log`);
        } catch {
            return false;
        }
    });
    const bytes = await new Promise((resolve, reject) => http.get(`${base}/jobs/${id}/log`, answer => {
        let taken = 0;
        answer.on('error', reject).on('data', chunk => {
            taken += chunk.length;
            if (taken > 64 * 1024 * 1024) {           // this reader has seen enough
                resolve(Number(answer.headers['content-length']));
                answer.off('error', reject).on('error', () => {}).destroy();
            }
        });
    }).on('error', reject));
    const more = rss() - before;
    assert(bytes > GiB && more < 200 * 1024 * 1024, `${bytes} bytes, ${more} more in memory`);
    await until('the log to be closed', async () => !isOpen());
    ok(`a log of 1 GiB: its end is shown, all of it is linked, and Node-RED takes ${Math.max(0, Math.round(more / 1048576))} MiB for that`);

    const part = async range => {
        const { status, headers, ...answer } = await fetch(`${base}/jobs/${id}/log`, { headers: { Range: range } });
        return [status, headers.get('Content-Range')];
    };
    assert.deepEqual(await part('bytes=0-3'), [206, `bytes 0-3/${bytes}`]);
    assert.deepEqual(await part('bytes=-10'), [206, `bytes ${bytes - 10}-${bytes - 1}/${bytes}`]);
    assert.deepEqual(await part('bytes=-9999999999'), [206, `bytes 0-${bytes - 1}/${bytes}`]);
    assert.deepEqual(await part(`bytes=${bytes - 1}-`), [206, `bytes ${bytes - 1}-${bytes - 1}/${bytes}`]);
    assert.deepEqual(await part(`bytes=${bytes}-`), [416, `bytes */${bytes}`]);
    assert.deepEqual(await part('bytes=5-2'), [416, `bytes */${bytes}`]);
    ok('parts of a log can be asked for');
}

async function away(page, broker, red) {
    broker.kill('SIGKILL');
    await broker.over;
    await shows(page.locator('#banner'), 'Node-RED has no connection to the broker');
    assert.deepEqual(await post('/jobs', { steps: [] }), { status: 503, error: 'Node-RED has no connection to the broker' });
    await page.getByRole('button', { name: 'New job' }).click();
    await page.getByLabel('Steps').fill('true');
    await page.getByRole('button', { name: 'Submit' }).click();
    await shows(page.locator('#form-error'), 'Node-RED has no connection to the broker');
    await page.getByRole('button', { name: 'Close' }).click();
    await checkLooks(page, 'the banner');
    broker = startBroker();
    await hidden(page.locator('#banner'));
    ok('a banner says that the broker is away, until it is back');

    const count = await page.locator('#jobs .job').count();
    red.kill('SIGKILL');
    await red.over;
    await shows(page.locator('#banner'), /Node-RED does not answer. This is what was known at \d\d:\d\d:\d\d/);
    assert.equal(await page.locator('#jobs .job').count(), count);
    red = await startNodeRed({ KEEP: '300' });
    await hidden(page.locator('#banner'));
    assert.equal(await page.locator('#jobs .job').count(), count);
    ok('a banner says that Node-RED is away; the jobs stay, and are there when it is back');
    return [broker, red];
}

async function pool(page) {
    const workers = [1, 2, 3].map(n => startWorker({ JOB_POOL: 'builds', JOB_ROOT: drive, WORKER_ID: `build-${n}` }, ['supervise']));
    await until('the members', async () => (await state()).workers.filter(worker => worker.state === 'idle').length === 3);
    const failed = pictures && await everydayJobs();
    const names = ['backup', 'encode', 'render frames'];
    const ids = [];
    for (const name of names) {
        ids.push(await submit({ steps: ['mkdir -p out', { name, run: 'sh ./make.sh' }, 'ls out'], files: { 'make.sh': `seq -f 'frame %g of 400' 1 400; ${gate.run}` } }));
    }
    await Promise.all(ids.map(running));
    const table = page.locator('#workers');
    for (const [n, id] of ids.entries()) {
        const { worker } = await job(id);
        await shows(table.locator('tbody', { hasText: worker }), new RegExp(`${worker}[^]*busy[^]*${names[n]}[^]*pool builds`));
    }
    ok('a pool: each member, and what it runs');
    await table.getByRole('button', { name: /render frames/ }).click();
    await shows(logOf(page, ids[2]), 'frame 400 of 400');
    return [workers, ids, failed];
}

async function ownQueues(page) {
    const workers = ['jobs-1', 'jobs-2'].map(root => startWorker({ MQTT_TOPIC_ROOT: root, WORKER_ID: `worker-of-${root}`, JOB_ROOT: drive }));
    await shows(page.locator('#workers'), /worker-of-jobs-1[^]*idle[^]*jobs-1[^]*worker-of-jobs-2[^]*idle[^]*jobs-2/);
    await page.getByRole('button', { name: 'New job' }).click();
    await page.getByLabel('Steps').fill(gate.run);
    await page.getByLabel('Queue').selectOption('jobs-2');
    await page.getByRole('button', { name: 'Submit' }).click();
    const { id } = await until('the job to run', async () => (await state()).jobs.find(job => job.worker === 'worker-of-jobs-2' && job.status === 'running'));
    await shows(page.locator('#workers tbody', { hasText: 'worker-of-jobs-2' }), 'busy');
    await shows(page.locator('#workers tbody', { hasText: 'worker-of-jobs-1' }), 'idle');
    assert.equal((await post(`/jobs/${id}/cancel`, {})).done, 'ending');
    assert.equal((await over(id)).reason, 'cancelled');
    await workers[1].over;
    workers[0].kill('SIGTERM');
    await workers[0].over;
    ok('workers with queues of their own: each is shown, and the form says whose queue it is');
}

async function manyJobs(page) {
    const aJob = n => submit({ steps: [`echo ${'long'.repeat(n % 7 ? 1 : 60)} ${n}`, ...n % 9 ? [] : ['exit 3']] });
    for (let n = 0; n < 200; n += 10) {
        await Promise.all(Array.from({ length: 10 }, (_, i) => aJob(n + i)));
    }
    await until('all rows', async () => await page.locator('#jobs .job').count() >= 200);
    const time = await page.evaluate(() => {
        const start = performance.now();
        showJobs();
        return performance.now() - start;
    });
    assert(time < 2000, `${time} ms to look at 200 jobs`);
    ok('200 jobs are shown');
}

// A few jobs as people have them, for the pictures: members of the pool run them before those that wait.
async function everydayJobs() {
    const jobs = [
        { steps: ['npm ci', 'npm run build'].map(run => ({ name: run, run: 'true' })) },
        { steps: [{ name: 'convert', run: "seq -f 'page %g' 1 40" }] },
        { steps: [{ name: 'npm ci', run: "echo 'added 312 packages in 4s'" }, { name: 'npm test',
            run: "for n in 1 2 3 4 5 6; do echo \"ok $n - reads a small file\"; done; echo 'not ok 7 - reads a large file'; exit 1" }, { name: 'report', run: "echo 'report.html is written'", always: true }] },
        { steps: [{ name: 'backup', run: 'sleep 3' }], timeoutSeconds: 1 },
    ];
    const ids = [];
    for (const job of jobs) {
        ids.push(await submit(job));
        await over(ids.at(-1));
    }
    return ids[2];
}

async function draw(running, failed) {
    for (const [name, viewport, id, ends, colorScheme] of [['page-desktop', { width: 1280, height: 940 }, running, 'frame 400', 'light'],
        ['page-phone', NARROW, failed, 'job failed', 'dark']]) {
        const page = await open(viewport, { colorScheme });
        await unfold(page, id);
        await shows(logOf(page, id), ends);
        await page.waitForTimeout(1500);              // a duration of more than nothing
        await page.evaluate(([id, drive]) => {
            // the drive of this test has a name of chance
            const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            while (texts.nextNode()) {
                texts.currentNode.data = texts.currentNode.data.replaceAll(drive, '/srv/jobs');
            }
            document.activeElement.blur();
            innerWidth < 500 && document.querySelector(`[data-id="${id}"]`).scrollIntoView();
            const log = document.querySelector(`[data-id="${id}"] .log`);
            log.scrollTop = log.scrollHeight;
        }, [id, drive]);
        await page.screenshot({ path: path.join(pictures, `${name}.png`), animations: 'disabled' });
        await page.context().close();
    }
}

async function test() {
    let broker = startBroker();
    let red = await startNodeRed({ KEEP: '300', KEEP_DIRECTORIES: '1', HOSTS: 'nas.test' });
    browser = await chromium.launch({ executablePath, args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
        '--disable-background-networking', '--host-resolver-rules=MAP *.test 127.0.0.1', '--disable-component-update', '--disable-sync'] });
    const wide = await open(WIDE);
    await aFirstWorker(wide);
    await aFirstJob(wide, 1280);
    await wholeErrors(wide);
    await otherSites();
    const worker = startWorker({}, ['supervise']);
    await inPlace(wide);
    await attacks(wide);
    await otherFiles();
    await largeLog(wide, red);
    worker.kill('SIGTERM');
    assert.equal(await worker.over, 0);
    [broker, red] = await away(wide, broker, red);
    await wide.context().close();

    fs.rmSync(drive, { recursive: true });
    fs.mkdirSync(drive);
    red.kill('SIGKILL');
    await red.over;
    red = await startNodeRed({ KEEP: '300' });
    const first = startWorker();
    await until('a worker', async () => (await state()).workers.some(worker => worker.state === 'idle'));
    first.kill('SIGTERM');
    await first.over;
    const narrow = await open(NARROW, { colorScheme: 'dark', hasTouch: true });
    await aFirstJob(narrow, 390);
    const [members, ids, failed] = await pool(narrow);
    await checkLooks(narrow, 'a pool, dark');
    await narrow.context().close();
    if (pictures) {
        await draw(ids[2], failed);
        ok(`the page is drawn: ${pictures}`);
    }
    ids.forEach(go);
    const page = await open(WIDE, { colorScheme: 'dark' });
    await manyJobs(page);
    await checkLooks(page, '200 jobs, dark');
    await page.setViewportSize(NARROW);
    await checkLooks(page, '200 jobs on a phone, dark');
    await page.emulateMedia({ colorScheme: 'light' });
    await checkLooks(page, '200 jobs on a phone, light');
    for (const member of members) {
        member.kill('SIGTERM');
        await member.over;
    }
    await page.context().close();

    red.kill('SIGKILL');
    await red.over;
    red = await startNodeRed({ QUEUES: 'jobs-1 jobs-2' });
    await ownQueues(await open(WIDE));
    assert.deepEqual(complaints, []);
    ok('no error, no dialog, nothing from elsewhere');
    await browser.close();
}

await run(test);

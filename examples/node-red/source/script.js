'use strict';
// The page of /jobs. It asks for jobs/state each second and changes what has changed, in place: what is selected, scrolled or
// focused stays. What a job says (ids, commands, logs) is only ever put in as text.

const element = id => document.getElementById(id);

// h('td', { className: 'x', 'aria-label': 'y' }, 'text', child): an element with properties, attributes and children
function h(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
        name in made ? made[name] = value : made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
}

function set(node, property, value) {
    if (node[property] !== value) {
        node[property] = value;
    }
}
const setText = (node, text) => set(node, 'textContent', String(text ?? ''));

// Makes the children of `parent` that have a key those of the items, in their order, and moves only what has to be moved.
function keyed(parent, items, key, make, update) {
    const keys = new Set(items.map(key));
    const there = new Map();
    let place = null;                                 // the child behind which the next one belongs
    for (const child of [...parent.children]) {
        if (child.key === undefined) {
            place = child;
        } else if (keys.has(child.key)) {
            there.set(child.key, child);
        } else {
            child.remove();
        }
    }
    for (const item of items) {
        const child = there.get(key(item)) ?? Object.assign(make(item), { key: key(item) });
        update(child, item);
        const next = place ? place.nextElementSibling : parent.firstElementChild;
        if (next !== child) {
            parent.insertBefore(child, next);
        }
        place = child;
    }
}

// ---- words

const statuses = new Map(Object.entries({              // word, look
    queued: ['queued', 'wait'], running: ['running', 'busy'], ending: ['ending', 'busy'], withdrawn: ['withdrawn', 'gone'],
    'no answer': ['no answer', 'bad'], success: ['success', 'good'], failed: ['failed', 'bad'],
    cancelled: ['cancelled', 'gone'], timeout: ['timed out', 'bad'], rejected: ['rejected', 'bad'],
    idle: ['idle', 'good'], busy: ['busy', 'busy'], offline: ['offline', 'gone'], pending: ['pending', 'gone'], skipped: ['skipped', 'gone'],
}));
const statusOf = job => (job.status === 'failed' && statuses.has(job.reason) ? job.reason : job.status);
function showStatus(node, status) {
    const [word, look] = statuses.get(status) ?? [status, 'gone'];
    setText(node, word);
    set(node, 'className', `state ${look}`);
}

let ahead = 0;                                        // of this clock before Node-RED's, in milliseconds
const now = () => Date.now() - ahead;

function duration(ms) {
    if (!(ms >= 0)) {
        return '';
    }
    const seconds = ms / 1000;
    if (seconds < 9.95) {
        return `${seconds.toFixed(1)} s`;
    }
    const whole = Math.round(seconds);
    const [d, hr, m, s] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60, whole % 60];
    return d ? `${d} d ${hr} h` : hr ? `${hr} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`;
}

function showTime(node, iso) {
    const date = new Date(iso ?? NaN);
    if (isNaN(date)) {
        setText(node, '');
        return false;
    }
    const today = date.toDateString() === new Date().toDateString();
    setText(node, today ? date.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit', hour12: false })
        : date.toLocaleString('en-GB', { day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit' }));
    set(node, 'dateTime', date.toISOString());
    set(node, 'title', date.toLocaleString());
    return true;
}

const size = bytes => bytes < 1024 ? `${bytes} B` : bytes < 1048576 ? `${(bytes / 1024).toFixed(0)} KiB`
    : bytes < 1073741824 ? `${(bytes / 1048576).toFixed(1)} MiB` : `${(bytes / 1073741824).toFixed(2)} GiB`;

let silence;
function say(text) {
    clearTimeout(silence);
    element('said').textContent = text;
    silence = setTimeout(() => element('said').textContent = '', 9000);
}

async function post(address, body) {
    const answer = await fetch(address, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) })
        .catch(() => { throw new Error('Node-RED does not answer'); });
    const said = await answer.json().catch(() => ({ error: `Node-RED answers ${answer.status}` }));
    if (said.error) {
        throw new Error(said.error);
    }
    return said;
}

// ---- workers

const cell = (label, content, className = '') => h('td', { 'data-label': label, className, role: 'cell' }, content);
const blank = (node, isBlank) => node.closest('td').classList.toggle('blank', isBlank);

function makeWorker() {
    const parts = { name: h('span', { className: 'mono' }), state: h('span'), job: h('button', { type: 'button', className: 'link' }), waits: h('span', { className: 'note' }),
        queue: h('span'), since: h('time'), version: h('span') };
    parts.job.onclick = () => reveal(parts.job.job);
    const row = h('tr', { role: 'row' }, cell('Worker', parts.name), cell('State', parts.state), cell('Job', parts.job), cell('Queue', parts.queue, 'queue'),
        cell('Since', parts.since), cell('Version', parts.version));
    parts.job.after(parts.waits);
    return Object.assign(h('tbody', { role: 'rowgroup' }, row), { parts });
}

function showWorker({ parts }, worker) {
    const { name, state, job, waits, queue, since, version } = parts;
    setText(name, worker.worker);
    showStatus(state, worker.state);
    const known = jobs.find(job => job.id === worker.job);
    set(job, 'job', worker.job);
    setText(job, worker.state === 'busy' && worker.job ? (known?.title || worker.job) : '');
    set(job, 'disabled', !known);
    set(job, 'hidden', !job.textContent);
    setText(waits, worker.waitingFor ? `${worker.state === 'idle' ? 'takes no request:' : 'waits for'} ${worker.waitingFor}` : '');
    blank(job, !job.textContent && !waits.textContent);
    setText(queue, worker.pool ? `pool ${worker.pool}` : worker.queue);
    blank(since, !showTime(since, worker.since));
    setText(version, worker.version);
}

// A worker is offline between two jobs, too: only one that stays away is folded away.
const offlineFrom = new Map();
function isAway(worker) {
    const key = workerKey(worker);
    if (worker.state !== 'offline') {
        offlineFrom.delete(key);
        return false;
    }
    if (!offlineFrom.has(key)) {
        offlineFrom.set(key, firstLook ? -Infinity : performance.now());
    }
    return performance.now() - offlineFrom.get(key) > 5000;
}
const workerKey = worker => `${worker.queue}/${worker.worker}`;

function showWorkers(workers) {
    const sorted = workers.slice().sort((a, b) => `${a.pool ?? ''} ${workerKey(a)}`.localeCompare(`${b.pool ?? ''} ${workerKey(b)}`, undefined, { numeric: true }));
    const away = sorted.filter(isAway);
    const here = sorted.filter(worker => !away.includes(worker));
    keyed(element('workers'), here, workerKey, makeWorker, showWorker);
    keyed(element('offline-workers'), away, workerKey, makeWorker, showWorker);
    set(element('workers'), 'hidden', here.length === 0);
    set(element('no-worker'), 'hidden', here.length > 0);
    setText(element('no-worker'), away.length ? 'No worker is here. Jobs wait in the queue until one comes.'
        : 'No worker has been here yet. Start one before you submit: a broker keeps no queue for a worker that it does not know.');
    set(element('offline'), 'hidden', away.length === 0);
    setText(element('offline').querySelector('summary'), `${away.length} offline worker${away.length === 1 ? '' : 's'}`);
    document.body.classList.toggle('one-queue', new Set(workers.map(worker => worker.pool ?? worker.queue)).size <= 1 && !workers.some(worker => worker.pool));
}

// ---- jobs

let jobs = [];
let firstLook = true;
let filter = 'all';
const filters = {
    all: ['All', () => true],
    running: ['Running', job => ['running', 'ending', 'no answer'].includes(job.status)],
    queued: ['Queued', job => job.status === 'queued'],
    failed: ['Failed', job => job.status === 'failed' && job.reason !== 'cancelled'],
    cancelled: ['Cancelled', job => job.status === 'withdrawn' || job.reason === 'cancelled'],
    success: ['Success', job => job.status === 'success'],
};
const isOver = job => ['success', 'failed'].includes(job.status);

function makeJob(job) {
    const details = `details-${job.id}`;
    const parts = {
        open: h('button', { type: 'button', className: 'open', 'aria-expanded': 'false', 'aria-controls': details }),
        title: h('span', { className: 'title' }), note: h('span', { className: 'note' }), status: h('span'), submitted: h('time'), started: h('time'),
        took: h('span'), exit: h('span'), worker: h('span', { className: 'mono' }), cancel: h('button', { type: 'button' }),
    };
    parts.open.append(h('span', {}, parts.title, h('span', { className: 'id' }, job.id), parts.note));
    const row = h('tr', { role: 'row' }, h('td', { role: 'cell' }, parts.open), h('td', { role: 'cell' }, parts.status), cell('Submitted', parts.submitted),
        cell('Started', parts.started), cell('Duration', parts.took, 'number'), cell('Exit code', parts.exit, 'number'), cell('Worker', parts.worker),
        h('td', { role: 'cell' }, parts.cancel));
    const body = Object.assign(h('tbody', { className: 'job', role: 'rowgroup' }, row), { parts, details });
    body.dataset.id = job.id;
    parts.open.onclick = () => toggle(body);
    parts.cancel.onclick = () => cancel(body.job);
    return body;
}

function showJob(body, job) {
    const { parts } = body;
    const before = body.job;
    body.job = job;
    setText(parts.title, job.title || '(no steps)');
    setText(parts.note, job.error ?? (job.step && job.status !== 'success' ? `step ${job.step.number} of ${job.step.of}: ${job.step.label}` : ''));
    set(parts.note, 'className', job.error && job.reason !== 'cancelled' ? 'note error' : 'note');
    showStatus(parts.status, statusOf(job));
    showTime(parts.submitted, job.submittedAt);
    blank(parts.started, !showTime(parts.started, job.startedAt));
    showDuration(body);
    setText(parts.exit, job.exitCode);
    blank(parts.exit, job.exitCode === undefined);
    setText(parts.worker, job.worker);
    blank(parts.worker, !job.worker);
    const verb = job.status === 'running' ? 'Cancel' : 'Withdraw';
    setText(parts.cancel, verb);
    set(parts.cancel, 'ariaLabel', `${verb} job ${job.id}`);
    set(parts.cancel, 'hidden', !['queued', 'running', 'no answer'].includes(job.status));
    blank(parts.cancel, parts.cancel.hidden);
    if (body.log && JSON.stringify(before) !== JSON.stringify(job)) {
        refresh(body);
    }
}

function showDuration(body) {
    const { job, parts } = body;
    const running = ['running', 'ending'].includes(job.status);
    const ms = isOver(job) ? job.durationMs : running && job.startedAt ? Math.max(0, now() - Date.parse(job.startedAt)) : undefined;
    setText(parts.took, running && ms < 10_000 ? `${Math.floor(ms / 1000)} s` : duration(ms));
    blank(parts.took, ms === undefined);
}

function showJobs() {
    const wanted = element('find').value.trim().toLowerCase();
    const found = jobs.filter(job => !wanted || `${job.id} ${job.title} ${job.error ?? ''} ${job.worker ?? ''}`.toLowerCase().includes(wanted));
    keyed(element('filters'), Object.entries(filters), ([name]) => name, ([name]) => h('button', { type: 'button', onclick: () => {
        filter = name;
        showJobs();
    } }), (button, [name, [word, test]]) => {
        setText(button, `${word} ${found.filter(test).length}`);
        set(button, 'ariaPressed', String(filter === name));
    });
    const shown = found.filter(filters[filter][1]);
    keyed(element('jobs'), shown, job => job.id, makeJob, showJob);
    set(element('jobs'), 'hidden', shown.length === 0);
    set(element('no-job'), 'hidden', shown.length > 0);
    setText(element('no-job'), jobs.length ? 'No job is like that.' : 'There is no job yet. Submit one with “New job”.');
}

// What a person who cannot see the table should hear of.
function tellChanges(before) {
    const old = new Map(before.map(job => [job.id, job]));
    const ended = jobs.filter(job => isOver(job) && old.has(job.id) && !isOver(old.get(job.id)));
    const cancelled = ended.filter(job => asked.delete(job.id));
    if (cancelled.length) {
        say(cancelled.map(job => `${job.id} has ended: ${statuses.get(statusOf(job))[0]}`).join('. '));
    }
    const others = ended.filter(job => !cancelled.includes(job));
    if (others.length) {
        setText(element('changes'), others.length > 3 ? `${others.length} jobs have ended, ${others.filter(filters.failed[1]).length} of them failed`
            : others.map(job => `${job.title}: ${statuses.get(statusOf(job))[0]}`).join('. '));
    }
}

// ---- one job: its steps and its log

function reveal(id) {
    if (!jobs.some(job => job.id === id)) {
        return;
    }
    filter = 'all';
    element('find').value = '';
    showJobs();
    const body = [...element('jobs').tBodies].find(body => body.key === id);
    body.log ?? toggle(body);
    body.scrollIntoView({ block: 'nearest' });
    body.parts.open.focus({ preventScroll: true });
}

function toggle(body) {
    const { parts } = body;
    if (body.log) {
        body.log = undefined;
        body.lastElementChild.remove();
    } else {
        const log = body.log = { at: undefined, decoder: undefined, middle: false, busy: false };
        log.facts = h('dl', { className: 'facts' });
        log.steps = h('ol', { className: 'steps' });
        log.link = h('a', { href: `jobs/${body.key}/log`, target: '_blank', rel: 'noopener' }, 'All of it');
        log.text = h('pre', { className: 'log', tabIndex: 0, role: 'region', ariaLabel: `Log of ${body.key}` });
        log.heading = h('h3', {}, 'Log');
        log.filesHeading = h('h3', { hidden: true });
        log.files = h('ul', { className: 'files' });
        body.append(h('tr', { className: 'details', id: body.details, role: 'row' }, h('td', { colSpan: 8, role: 'cell' }, log.facts,
            h('h3', {}, 'Steps'), log.steps, log.filesHeading, log.files, h('div', { className: 'log-bar' }, log.heading, log.link), log.text)));
        refresh(body);
    }
    body.classList.toggle('opened', body.log !== undefined);
    parts.open.setAttribute('aria-expanded', String(body.log !== undefined));
}

async function refresh(body) {
    const { log } = body;
    readLog(body);
    readFiles(body);
    const answer = await fetch(`jobs/${body.key}/status`).catch(() => undefined);
    if (!answer?.ok || body.log !== log) {
        return;
    }
    const { steps, moreSteps, result, progress, cancelledBy, directory } = await answer.json();
    const said = result ?? progress ?? {};
    const facts = Object.entries({ Error: said.error === body.job.error ? undefined : said.error, Warning: said.warning, Reason: said.reason, 'Cancelled by': cancelledBy,
        Attempt: said.attempt, Host: said.host, Directory: directory }).filter(([, value]) => ['string', 'number'].includes(typeof value));
    keyed(log.facts, facts, ([name]) => name, ([name]) => h('div', {}, h('dt', {}, name), h('dd')), (row, [, value]) => setText(row.lastElementChild, value));
    if (moreSteps) {
        steps.push({ run: `and ${moreSteps} more`, status: '' });
    }
    keyed(log.steps, steps.map((step, i) => ({ ...step, place: i + 1 })), step => step.place, () => h('li', {}, h('span', { className: 'place' }),
        h('span', { className: 'what' }), h('span'), h('span', { className: 'took' })), (row, step) => {
        const [place, what, state, took] = row.children;
        setText(place, step.place);
        if (row.shown !== `${step.name}\n${step.run}`) {
            row.shown = `${step.name}\n${step.run}`;
            what.replaceChildren(...step.name ? [h('b', {}, step.name)] : [], ...step.run && step.run !== step.name ? [h('code', {}, step.run)] : []);
        }
        showStatus(state, step.status === 'pending' && isOver(body.job) ? 'skipped' : step.status);
        if (step.status === 'failed') {
            setText(state, step.signal ?? (step.exitCode === undefined ? 'failed' : `exit code ${step.exitCode}`));
        }
        setText(took, duration(step.durationMs));
    });
}

// What the steps have left in the directory: looked at when the job is unfolded, when it begins and when it ends.
async function readFiles(body) {
    const { log, job } = body;
    if (log.filesOf === job.status) {
        return;
    }
    log.filesOf = job.status;
    const answer = await fetch(`jobs/${body.key}/files`).catch(() => undefined);
    const { files = [], more } = answer?.ok ? await answer.json() : {};
    setText(log.filesHeading, more ? `The first ${files.length} files` : 'Files');
    set(log.filesHeading, 'hidden', files.length === 0);
    keyed(log.files, files, file => file.name, ({ name }) => h('li', {},
        h('a', { href: `jobs/${body.key}/file?name=${encodeURIComponent(name)}`, download: '' }, name), h('span', { className: 'note' })),
    (row, file) => setText(row.lastElementChild, size(file.size)));
}

const END = 128 * 1024;                               // bytes of a log that are shown at first
const MOST = 1024 * 1024;                             // characters of a log that are held here

async function readLog(body) {
    const { log } = body;
    if (log.busy) {
        log.again = true;
        return;
    }
    log.busy = true;
    try {
        do {
            log.again = false;
            while (await readPart(body, log));
        } while (log.again);
    } catch (error) {
        // Node-RED is away: the banner says so, and the next look begins where this one was
    }
    log.busy = false;
}

// true if there is more
async function readPart(body, log) {
    // one byte that is here already: there is always something to answer with
    const from = log.at ? `${log.at - 1}-${log.at + END - 1}` : `-${END}`;
    const answer = await fetch(`jobs/${body.key}/log`, { headers: { Range: `bytes=${from}` } });
    if (body.log !== log) {
        return false;
    }
    const [, start, , total] = (/^bytes (?:(\d+)-(\d+)|\*)\/(\d+)$/.exec(answer.headers.get('Content-Range') ?? '') ?? []).map(Number);
    set(log.link, 'hidden', answer.status === 404);
    if (answer.status === 404) {
        log.at || setText(log.text, isOver(body.job) ? 'This job has no log.' : 'The log begins when the job does.');
        return false;
    }
    setText(log.link, `All of it${total >= 0 ? ` (${size(total)})` : ''}`);
    set(log.link, 'download', total > 20 * 1048576 ? `${body.key}.log` : '');
    if (answer.status === 416) {                      // it was begun anew
        log.at = undefined;
        return true;
    }
    if (answer.status !== 206) {
        if (!log.at) {
            setText(log.text, '');
        }
        return false;
    }
    const bytes = new Uint8Array(await answer.arrayBuffer());
    const first = !log.at;
    if (first) {
        log.text.textContent = '';
        log.decoder = new TextDecoder();
        log.middle = false;
        setText(log.heading, start > 0 ? 'End of the log' : 'Log');
    }
    // the first line that is whole
    const skip = !first ? 1 : start > 0 ? bytes.indexOf(10) + 1 : 0;
    log.at = start + bytes.length;
    appendLog(log, log.decoder.decode(bytes.subarray(skip), { stream: true }));
    return log.at < total;
}

function appendLog(log, text) {
    const atEnd = log.text.scrollHeight - log.text.scrollTop - log.text.clientHeight < 30;
    const parts = [];
    let [kind, run] = [undefined, ''];
    const flush = () => run && parts.push(kind === 'own' ? h('span', { className: 'own' }, run) : run);
    // colours are for terminals; each line of the worker's own begins with "==> "
    for (const line of text.replace(/\x1b\[[0-9;?]*[A-Za-z]/g, '').split(/(?<=\n)/)) {
        const is = !log.middle && line.startsWith('==> ') ? 'own' : 'plain';
        if (is !== kind) {
            flush();
            [kind, run] = [is, ''];
        }
        run += line;
        log.middle = !line.endsWith('\n');
    }
    flush();
    log.text.append(...parts);
    // the beginning goes, unless somebody reads there
    for (let held = atEnd && log.text.textContent.length; held > MOST; setText(log.heading, 'End of the log')) {
        held -= log.text.firstChild.textContent.length;
        log.text.firstChild.remove();
    }
    if (atEnd) {
        log.text.scrollTop = log.text.scrollHeight;
    }
}

// ---- cancel and submit

const asked = new Set();                              // jobs that were cancelled here, and have not ended yet

async function cancel(job) {
    if (job.status === 'running' && await sure(job) !== 'cancel') {
        return;
    }
    try {
        const { message } = await post(`jobs/${encodeURIComponent(job.id)}/cancel`, {});
        asked.add(job.id);
        say(`${job.id}: ${message}`);
    } catch (error) {
        say(`${job.id} was not cancelled: ${error.message}`);
    }
    look();
}

function sure(job) {
    const dialog = element('sure');
    setText(element('sure-job'), job.title);
    dialog.returnValue = 'keep';
    dialog.showModal();
    return new Promise(resolve => dialog.addEventListener('close', () => resolve(dialog.returnValue), { once: true }));
}

async function submit() {
    const lines = id => element(id).value.split('\n').filter(line => line.trim());
    const variables = lines('env').map(line => /^\s*([^=]+?)\s*=(.*)$/.exec(line) ?? [line]);
    const wrong = variables.find(([, name]) => !name);
    if (wrong) {
        throw new Error(`“${wrong[0]}” is not of the form NAME=value`);
    }
    const files = {};
    for (const file of element('files').files) {
        try {
            files[file.name] = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(await file.arrayBuffer());
        } catch (error) {
            throw new Error(`${file.name} is not a text`);
        }
    }
    const job = { steps: lines('steps'), files };
    if (!job.steps.length) {
        throw new Error('A job needs a step');
    }
    if (variables.length) {
        job.env = Object.fromEntries(variables.map(([, name, value]) => [name, value]));
    }
    if (element('limit').value) {
        job.timeoutSeconds = Number(element('limit').value);
    }
    if (!element('queue-field').hidden) {
        job.queue = element('queue').value;
    }
    return post('jobs', job);
}

element('new').onclick = () => {
    setText(element('form-error'), '');
    element('form').showModal();
    element('steps').focus();
};
element('form-close').onclick = () => element('form').close();
element('form').querySelector('form').onsubmit = async event => {
    event.preventDefault();
    element('submit').disabled = true;
    setText(element('form-error'), '');
    try {
        const { id, warning } = await submit();
        element('form').close();
        element('files').value = '';
        say(`${id} is submitted${warning ? `, but ${warning}` : ''}`);
        await look();
        reveal(id);
    } catch (error) {
        setText(element('form-error'), `${error.message}.`);
    }
    element('submit').disabled = false;
};
element('find').oninput = showJobs;

// ---- looking, each second

let shownState, lastLook, timer;

async function look() {
    clearTimeout(timer);
    const banner = element('banner');
    const answer = await fetch('jobs/state', { cache: 'no-cache', signal: AbortSignal.timeout(8000) }).catch(() => undefined);
    const text = answer?.ok ? await answer.text().catch(() => undefined) : undefined;
    if (text === undefined) {
        setText(banner, `Node-RED does not answer. ${lastLook ? `This is what was known at ${lastLook.toLocaleTimeString([], { hour12: false })}.` : ''} Trying again.`);
    } else {
        const behind = Date.now() - (Date.parse(answer.headers.get('Date')) || Date.now());
        ahead = Math.abs(behind) < 2000 ? 0 : behind;
        lastLook = new Date();
        const state = JSON.parse(text);
        setText(banner, state.drive ? `The drive is not there: ${state.drive}.` : state.connected ? '' : 'Node-RED has no connection to the broker. Jobs run on, and what they have to say arrives when it is back. No job can be submitted meanwhile.');
        try {
            show(state, text !== shownState);
        } catch (error) {
            console.error(error);                     // the next look may be better
        }
        shownState = text;
    }
    set(banner, 'hidden', !banner.textContent);
    clearTimeout(timer);
    timer = setTimeout(look, document.hidden ? 15_000 : 1000);
}

function show(state, isNew) {
    const before = jobs;
    jobs = state.jobs;
    if (isNew) {
        showJobs();
        firstLook || tellChanges(before);
        const count = name => jobs.filter(filters[name][1]).length;
        setText(element('summary'), [`${count('running')} running`, `${count('queued')} queued`, `${count('failed')} failed`].join(' · '));
        set(document, 'title', count('running') ? `(${count('running')}) Jobs` : 'Jobs');
        set(element('queue-field'), 'hidden', state.queues.length < 2);
        keyed(element('queue'), state.queues, queue => queue, queue => h('option', {}, queue), () => {});
    }
    showWorkers(state.workers);
    firstLook = false;
    for (const body of element('jobs').tBodies) {
        if (['running', 'ending', 'no answer'].includes(body.job.status)) {
            showDuration(body);
            body.log && readLog(body);
        }
    }
}

document.addEventListener('visibilitychange', () => document.hidden || look());
look();

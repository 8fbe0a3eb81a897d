// Each request comes through here. Who gets a 202 from POST /jobs runs commands, so no foreign web page may ask, and Node-RED's
// editor tells browsers that any may. A page says where it is from (Origin, Sec-Fetch-Site). One that has made its own name lead
// to this machine (DNS rebinding) is told by that name (Host). Programs that are no browsers send what they like, and may ask.
const { headers, method, params: { id, what } } = msg.req;
const response = msg.res._res;
response.removeHeader('Access-Control-Allow-Origin');
response.set({                                        // nothing that a job says can become a script, here or elsewhere
    'Content-Security-Policy': "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
        + "base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    'X-Content-Type-Options': 'nosniff',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Referrer-Policy': 'no-referrer',
    'Cache-Control': 'no-cache',
});
const outputs = ['page', 'page.css', 'page.js', 'state', 'status', 'files', 'new', 'cancel', 'answer'];
const to = (output, message = msg) => outputs.map(name => name === output ? message : null);
const refuse = (statusCode, error) => to('answer', { ...msg, statusCode, payload: { error } });

let name = '';
try {
    name = new URL(`http://${headers.host}`).hostname;
} catch (error) {
    // no name that anybody may have
}
const isAddress = /^(\[.*\]|[\d.]+)$/.test(name);     // which no foreign page can have as its own
const hosts = (env.get('HOSTS') ?? '').toLowerCase().split(/[\s,]+/).filter(Boolean);
if (!isAddress && name !== 'localhost' && !hosts.includes(name)) {
    return refuse(403, `the address says "${name}", which is not known here: if that is this machine, add ${name || 'its name'} to HOSTS, `
        + 'a property of the tab "Job Worker" in the editor of Node-RED, and deploy');
}
const isLink = method === 'GET' && !id && headers['sec-fetch-mode'] === 'navigate' && headers['sec-fetch-dest'] === 'document';
const isForeign = headers['sec-fetch-site'] === 'cross-site' && !isLink;
if (isForeign || (headers.origin !== undefined && headers.origin.replace(/^https?:\/\//, '') !== headers.host)) {
    return refuse(403, 'a web page of another address may not ask here (a proxy in front of Node-RED must pass the header Host on as it is)');
}
if (method === 'POST' && !msg.req.is('application/json')) {
    return refuse(415, 'send it as Content-Type: application/json');
}
if (method === 'POST') {
    return to(id ? 'cancel' : 'new');
}
if (!what) {
    return !id ? to('page') : outputs.slice(1, 4).includes(id) ? to(id) : refuse(404, 'there is no such page');
}
if (!Object.hasOwn(flow.get('jobs') ?? {}, id)) {
    return refuse(404, 'there is no such job');
}
return what === 'status' ? to('status') : ['log', 'files', 'file'].includes(what) ? to('files') : refuse(404, 'there is no such page');

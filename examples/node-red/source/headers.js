// the page uses nothing from elsewhere, and nothing that a job says can become a script
const types = { css: 'text/css', js: 'text/javascript' };
const { pathname } = new URL(msg.req.originalUrl, 'http://node-red');
if (pathname.endsWith('/')) {                         // the page's own addresses are relative
    return { ...msg, statusCode: 302, payload: '', headers: { Location: '../jobs' } };
}
msg.headers = {
    'Content-Type': `${types[pathname.split('.').pop()] ?? 'text/html'}; charset=utf-8`,
    'Content-Security-Policy': "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
        + "base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cache-Control': 'no-cache',
};
return msg;

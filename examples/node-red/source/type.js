const types = { css: 'text/css', js: 'text/javascript' };
const { pathname } = new URL(msg.req.originalUrl, 'http://node-red');
if (pathname.endsWith('/')) {                         // the page's own addresses are relative
    return { ...msg, statusCode: 302, payload: '', headers: { Location: '../jobs' } };
}
return { ...msg, headers: { 'Content-Type': `${types[pathname.split('.').pop()] ?? 'text/html'}; charset=utf-8` } };

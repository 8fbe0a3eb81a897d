const wrong = msg.payload.error ?? msg.payload.warning;
if (wrong && msg.req?.method !== 'GET') {
    node.warn(wrong);
}
if (!msg.res) {
    return;                                           // a button was pressed
}
// a string: of an object Node-RED makes JSONP, which pages of other sites could read
msg.payload = `${JSON.stringify(msg.payload)}\n`;
msg.headers = { 'Content-Type': 'application/json; charset=utf-8', 'X-Content-Type-Options': 'nosniff', 'Cache-Control': 'no-cache' };
return msg;

const wrong = msg.payload.error ?? msg.payload.warning;
if (wrong && msg.req?.method !== 'GET') {
    node.warn(wrong);
}
if (!msg.res) {
    return;                                           // a button was pressed, or a flow asked
}
// a string: of an object Node-RED makes JSONP, which pages of other sites could read
return { ...msg, payload: `${JSON.stringify(msg.payload)}\n`, headers: { 'Content-Type': 'application/json; charset=utf-8' } };

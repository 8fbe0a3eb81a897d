// a broker keeps requests for a worker that has been connected before, and drops them where there was none
const seen = Object.values(flow.get('workers') ?? {}).some(worker => worker.queue === msg.queue);
const warning = seen ? undefined : `no worker has been seen on ${msg.queue}: without one the broker drops the request`;
return { ...msg, statusCode: 202, payload: { id: msg.id, warning } };

// to the nodes of your own: topic: the job's id, payload: its result, log: its end, directory: where its files are
const good = msg.payload.status === 'success';
node.status({ fill: good ? 'green' : 'red', shape: 'dot', text: `${msg.payload.status}, exit code ${msg.payload.exitCode}` });
return msg;

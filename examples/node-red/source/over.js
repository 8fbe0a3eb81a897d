const good = msg.result.status === 'success';
node.status({ fill: good ? 'green' : 'red', shape: 'dot', text: `${msg.result.status}, exit code ${msg.result.exitCode}` });
return { topic: msg.id, payload: msg.result, log: msg.log };

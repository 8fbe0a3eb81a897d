// without a connection, "mqtt out" drops what it gets, in silence
flow.set('connected', msg.status.fill === 'green');

// The one-shot worker as one would write it on mqtt.js: wait for a request, run its steps, publish the result, acknowledge
// the request, exit. It has a persistent session and QoS 1, and nothing else of the contract: no lock, no attempts, no sweep,
// no cancel.

import { spawn } from 'node:child_process';
import { closeSync, openSync, renameSync, writeFileSync } from 'node:fs';
import mqtt from 'mqtt';

const root = process.env.MQTT_TOPIC_ROOT;
const client = mqtt.connect(process.env.MQTT_URL, {
  clientId: process.env.WORKER_ID,
  protocolVersion: 5,
  clean: false,
  properties: { sessionExpiryInterval: 0xffffffff, receiveMaximum: 1 },
});
client.on('connect', () => client.subscribe(`${root}/pending`, { qos: 1 }));

// mqtt.js sends the PUBACK of a request when `acknowledge` is called, and hears of nothing else before that: it cannot wait for
// the broker to have the result first, only send it first
client.handleMessage = async (packet, acknowledge) => {
  const { id, workDir, steps } = JSON.parse(packet.payload);
  const log = openSync(`${workDir}/job.log`, 'w');
  let exitCode = 0;
  for (const step of steps) {
    exitCode = await run(step, workDir, log);
    if (exitCode !== 0) break;
  }
  closeSync(log);
  const status = exitCode === 0 ? 'success' : 'failed';
  const document = JSON.stringify({ id, status, logFile: `${workDir}/job.log`, exitCode });
  writeFileSync(`${workDir}/.job.status.json.tmp`, document);
  renameSync(`${workDir}/.job.status.json.tmp`, `${workDir}/job.status.json`);
  const published = client.publishAsync(`${root}/results/${id}`, document, { qos: 1 });
  acknowledge();
  await published;
  client.end();
};

function run(step, cwd, log) {
  return new Promise((resolve) => {
    spawn('/bin/sh', ['-c', step], { cwd, stdio: ['ignore', log, log] }).on('exit', (code) => resolve(code ?? 1));
  });
}

// The code of flow.json, as files that can be read, edited and compared: source/NAME.* is the code of the node "jw_NAME",
// and source/NAME.start.js what its tab "On Start" has.
//
//   node flow.mjs pack                     source/ -> flow.json
//   node flow.mjs unpack                   flow.json -> source/
//   node flow.mjs unpack exported.json     an export of Node-RED's editor -> flow.json and source/
//
// Which nodes there are, and how they are wired, is in flow.json alone.
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const here = path.dirname(fileURLToPath(import.meta.url));
const flowFile = path.join(here, 'flow.json');
const [command, exported] = process.argv.slice(2);

// The fields of a node that are code, each with its file.
function sources(node) {
    const file = ending => path.join(here, 'source', `${node.id.replace(/^jw_/, '')}.${ending}`);
    if (node.type === 'template') {
        return { template: file({ html: 'html', css: 'css' }[node.format] ?? 'js') };
    }
    return node.type === 'function' ? { func: file('js'), initialize: file('start.js') } : {};
}

if (!['pack', 'unpack'].includes(command)) {
    console.error('usage: node flow.mjs pack | unpack [exported.json]');
    process.exit(64);
}
const flow = JSON.parse(fs.readFileSync(command === 'unpack' && exported || flowFile, 'utf8'));
for (const node of flow) {
    for (const [field, file] of Object.entries(sources(node))) {
        if (command === 'pack') {
            node[field] = fs.existsSync(file) ? fs.readFileSync(file, 'utf8').replace(/\n$/, '') : '';
        } else if (node[field]) {
            fs.writeFileSync(file, `${node[field]}\n`);
        } else {
            fs.rmSync(file, { force: true });
        }
    }
}
fs.writeFileSync(flowFile, `${JSON.stringify(flow, null, 2)}\n`);

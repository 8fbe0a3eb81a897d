// the inputs first, job.json last. A directory that is there already belongs to another job
const reject = (statusCode, error) => [null, { ...msg, statusCode, payload: { error } }];
const { mkdir, writeFile, rm, access } = fs.promises;
const drive = env.get('DRIVE');
let made = false;
try {
    await mkdir(`${drive}/.nodered`).catch(error => { // the drive itself is never made: it would be another one than the workers'
        if (error.code !== 'EEXIST') {
            throw error;
        }
    });
    if (await access(`${drive}/.nodered/${msg.id}.json`).then(() => true, () => false)) {
        return reject(409, `there is a job ${msg.id} already`);
    }
    await mkdir(msg.directory);
    made = true;
    for (const [name, text] of Object.entries(msg.files)) {
        await writeFile(`${msg.directory}/${name}`, text, { flag: 'wx' });
    }
    await writeFile(`${msg.directory}/job.json`, JSON.stringify(msg.definition, null, 2), { flag: 'wx' });
} catch (error) {
    if (made) {
        await rm(msg.directory, { recursive: true, force: true }).catch(() => {});
    } else if (error.code === 'EEXIST') {
        return reject(409, `there is a job ${msg.id} already`);
    }
    return reject(500, `the drive does not take the job: ${flow.get('drive') ?? error.message}`);
}
return [msg, null];

// its end, for the flow that follows: a log may be larger than the memory of Node-RED
const most = 64 * 1024;
msg.log = '';                                         // a job that was rejected has none
let file;
try {
    if (!(await fs.promises.lstat(msg.directory)).isDirectory()) {
        throw new Error('its directory is a link');
    }
    file = await fs.promises.open(`${msg.directory}/job.log`, fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW | fs.constants.O_NONBLOCK);
    const about = await file.stat();
    if (about.isFile()) {
        const start = Math.max(0, about.size - most);
        const { buffer, bytesRead } = await file.read(Buffer.alloc(about.size - start), 0, about.size - start, start);
        msg.log = buffer.toString('utf8', 0, bytesRead);
    }
} catch (error) {
    if (error.code !== 'ENOENT') {
        node.warn(`the log of ${msg.topic} cannot be read: ${error.message}`);
    }
} finally {
    await file?.close();
}
return msg;

try {
    await fs.promises.rm(msg.workDir, { recursive: true, force: true, maxRetries: 3 });
} catch (error) {
    // files of another user, as a worker that is root leaves them
    node.error(`the directory of ${msg.id} cannot be deleted: ${error.message}`, msg);
}
return msg;

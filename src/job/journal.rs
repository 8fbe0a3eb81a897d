//! `job.status.json`: what the next worker will know of this job, whenever we die (docs/reference.md,
//! "Status document" and "Attempts and stops").

use super::WorkDir;
use crate::config::Durability;
use crate::contract::{EarlierRun, JobId};
use std::io;

const NAME: &str = "job.status.json";

/// Larger than any document of ours: a step has a few hundred bytes in it, and comes out of a `job.json` of 1 MiB.
const MAX_BYTES: u64 = 64 << 20;

/// An earlier run of the job `id` in this directory, and its document.
pub fn read(dir: &WorkDir, id: &JobId) -> Option<(EarlierRun, Vec<u8>)> {
    let document = match dir.read(NAME, MAX_BYTES) {
        Ok(document) => document?,
        Err(error) => {
            log::warn!(
                "{}/{NAME} cannot be read: {error}; taken for a job that was begun and died",
                dir.path().display()
            );
            Vec::new()
        }
    };
    Some((EarlierRun::read(&document, id)?, document))
}

/// Writes a document as it will be published, before that.
///
/// # Errors
/// What the system said.
pub fn write(dir: &WorkDir, document: &[u8], durability: Durability) -> io::Result<()> {
    dir.replace(NAME, document, durability)
}

/// Whether there is one.
pub fn is_there(dir: &WorkDir) -> bool {
    dir.contains(NAME)
}

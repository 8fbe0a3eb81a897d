//! `job.status.json`: what the next worker will know of this job, whenever we die (docs/reference.md,
//! "Status document" and "Attempts and stops").

use super::directory::is_ours;
use super::{OpenError, WorkDir};
use crate::config::Durability;
use crate::contract::{EarlierRun, JobId};
use std::io;

const NAME: &str = "job.status.json";

/// Larger than any document of ours: a step has a few hundred bytes in it, and comes out of a `job.json` of 1 MiB.
const MAX_BYTES: u64 = 64 << 20;

/// An earlier run of the job `id` in this directory, and its document.
///
/// # Errors
/// What is wrong with this machine or its drive. A journal that cannot be read for another reason counts as an attempt that died.
pub fn read(dir: &WorkDir, id: &JobId) -> Result<Option<(EarlierRun, Vec<u8>)>, OpenError> {
    let document = match dir.read(NAME, MAX_BYTES) {
        Ok(None) => return Ok(None),
        Ok(Some(document)) => document,
        Err(error) if is_ours(&error) => {
            return Err(OpenError::of(
                format!("{}/{NAME}", dir.path().display()),
                error,
            ));
        }
        Err(error) => {
            log::warn!(
                "{}/{NAME} cannot be read: {error}; taken for a job that was begun and died",
                dir.path().display()
            );
            Vec::new()
        }
    };
    Ok(EarlierRun::read(&document, id).map(|run| (run, document)))
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

//! `job.status.json`: what the next worker will know of this job, whenever we die (docs/reference.md,
//! "Status document" and "Attempts and stops").

use super::directory::is_ours;
use super::save::Job;
use super::{OpenError, WorkDir};
use crate::contract::{EarlierRun, JobId};
use std::io;
use std::sync::Once;
use std::time::{Duration, Instant};

const NAME: &str = "job.status.json";

/// Larger than any document of ours: a step has a few hundred bytes in it, and comes out of a `job.json` of 1 MiB.
const MAX_BYTES: u64 = 64 << 20;

/// Pause between two writes of a journal that changes all the time. What is told of a job is what the journal says, so
/// this is the pause between two announcements, too.
const PAUSE: Duration = Duration::from_millis(100);

/// How many times longer than a write took the drive is left alone behind it.
const RESTS_FOR: u32 = 10;

/// An earlier run of the job `id` in this directory, and its document.
///
/// # Errors
/// What is wrong with this machine or its drive. A journal that cannot be read for another reason counts as an attempt that died.
pub fn read(dir: &WorkDir, id: &JobId) -> Result<Option<(EarlierRun, Vec<u8>)>, OpenError> {
    let document = match dir.read(NAME, MAX_BYTES) {
        Ok(None) => return Ok(None),
        Ok(Some(document)) => document,
        Err(error) if is_ours(&error) => {
            let place = format!("{}/{NAME}", dir.path().display());
            return Err(OpenError::of(place, error));
        }
        Err(error) => {
            let path = dir.path().display();
            static WARN: Once = Once::new(); // a job that waits looks again and again
            WARN.call_once(|| {
                log::warn!(
                    "{path}/{NAME} cannot be read: {error}; taken for a job that was begun and died"
                );
            });
            Vec::new()
        }
    };
    Ok(EarlierRun::read(&document, id).map(|run| (run, document)))
}

/// Writes a document as it will be published, before that.
///
/// # Errors
/// A sentence, with what the drive said.
pub fn write(dir: &WorkDir, document: &[u8]) -> io::Result<()> {
    let replaced = dir.replace(NAME, document);
    replaced.map_err(|error| io::Error::new(error.kind(), unwritten(dir, &error)))
}

fn unwritten(dir: &WorkDir, error: &io::Error) -> String {
    format!("{}/{NAME} cannot be written: {error}", dir.path().display())
}

/// Writes a journal that must be found by its name after a power cut.
///
/// # Errors
/// A sentence, with what the drive said.
pub fn store(dir: &WorkDir, document: &[u8]) -> io::Result<()> {
    write(dir, document)?;
    sync_name(dir)
}

/// Makes sure that a stored journal is found by its name after a power cut: who wrote it may have died before that.
///
/// # Errors
/// A sentence, with what the drive said. It has no kind of its own: the journal is there.
pub fn sync_name(dir: &WorkDir) -> io::Result<()> {
    dir.sync()
        .map_err(|error| io::Error::other(unwritten(dir, &error)))
}

/// When the journal of a job that runs gets the job's document.
pub struct Journal {
    /// When the job was started.
    pub started: Instant,
    /// No write is due before.
    rests_until: Instant,
    /// When to call [`Self::write_if_due`], where the document has changed since the last time.
    pub due: Option<Instant>,
    /// The document as the journal has it, until it is told.
    pub change: Option<Vec<u8>>,
}

impl Journal {
    /// Writes the first journal of this attempt.
    ///
    /// # Errors
    /// A sentence, with what the drive said.
    pub fn begin(job: &Job) -> io::Result<Self> {
        let document = job.document.to_json();
        store(&job.dir, &document)?;
        let now = Instant::now();
        Ok(Self {
            change: Some(document),
            started: now,
            rests_until: now + PAUSE,
            due: None,
        })
    }

    /// The document has changed: the journal says so at once, or with what changes in the next moments. A journal that a step
    /// has removed is there again before the next step starts, since it counts the attempts.
    pub fn note_change(&mut self, job: &Job) {
        let now = Instant::now();
        self.due = Some(match job.dir.contains(NAME) {
            true => self.rests_until.max(now),
            false => now,
        });
        self.write_if_due(job, now);
    }

    /// Writes the journal that was put off, if its time has come.
    pub fn write_if_due(&mut self, job: &Job, now: Instant) {
        if self.due.is_none_or(|at| at > now) {
            return;
        }
        self.due = None;
        let document = job.document.to_json();
        match write(&job.dir, &document) {
            Ok(()) => self.change = Some(document),
            Err(error) => log::warn!("{error}; going on, since the job runs already"),
        }
        // steps wait meanwhile: a slow drive is asked less often
        self.rests_until = Instant::now() + PAUSE.max(RESTS_FOR * now.elapsed());
    }
}

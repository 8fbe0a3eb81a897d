//! What of a job is on the disk, and when. A result never promises what a power cut takes.
//!
//! 1. Before the first step: the journal, so that a host that goes down in the job counts as an attempt.
//! 2. While the job runs: each journal that takes the place of another one, before it does.
//! 3. At the end, in this order: everything that the steps wrote on the file system of `job.log`, the log itself, the
//!    final journal. Then log and directory are closed, and only then the result may be published.
//! 4. When the worker is asked to stop: a journal that says so, at once and without waiting for the disk. It is for the next
//!    worker, should this one have to leave before the drive has the rest.
//!
//! The worker waits for the first two. The last sync may be slow, and the worker must hear signals and keep its connection
//! meanwhile: so it has a thread of its own, unless there is nothing to wait for. From a stop on, the main thread asks nothing of the
//! drive, since a frozen one would never let it leave.

use super::log::JobLog;
use super::prepared::PreparedJob;
use super::{Outcome, WorkDir, journal};
use crate::config::Durability;
use crate::contract::{Document, JobState, Reason, took};
use std::os::fd::IntoRawFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What of a job is being made final, or is so: no stop is noted there any more.
#[derive(Default)]
pub struct Final {
    log: bool,
    journal: bool,
}

/// Shared with the thread that notes a stop.
pub type Begun = Arc<Mutex<Final>>;

/// Tells the main thread, from another one, that there is something for [`super::Run::drive_done`].
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// A job of which the drive takes log and journal.
pub struct Saving {
    done: Arc<Done>,
    /// What notes a stop, unless one is noted.
    note: Option<(WorkDir, Document, Begun)>,
    /// The worker stops, and waits for the drive until then.
    pub leave_at: Option<Instant>,
}

/// The outcome, once the drive has the rest. No channel: the code of one more would be a hundredth of the program.
#[derive(Default)]
struct Done(Mutex<Option<Outcome>>, Condvar);

impl Done {
    fn put(&self, outcome: Outcome) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.1.notify_one();
    }

    fn take(&self, patience: Duration) -> Option<Outcome> {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .1
            .wait_timeout_while(slot, patience, |slot| slot.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.take()
    }
}

impl Saving {
    /// Begins to make log and journal final. `wake` is called when that is done, where it may take a while. A worker that stops
    /// leaves at `leave_at`.
    pub fn begin(job: PreparedJob, leave_at: Option<Instant>, wake: &Wake) -> Self {
        let note = match leave_at {
            Some(_) => None,
            None => job.dir.try_clone().ok(),
        };
        let note = note.map(|dir| (dir, job.document.clone(), job.begun.clone()));
        let done = Arc::<Done>::default();
        if job.durability == Durability::Cache && leave_at.is_none() {
            done.put(finish(job));
        } else {
            let given = Arc::new(Mutex::new(Some(job)));
            let (done, wake) = (done.clone(), wake.clone());
            let save = move || {
                let given = given.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(job) = given {
                    done.put(finish(job));
                    wake();
                }
            };
            let threads = std::thread::Builder::new().name("drive".to_owned());
            if threads.spawn(save.clone()).is_err() {
                save();
            }
        }
        Self {
            done,
            note,
            leave_at,
        }
    }

    /// The worker stops: it waits for the drive until `leave_at`.
    pub fn stop(&mut self, leave_at: Instant) {
        self.leave_at.get_or_insert(leave_at);
        if let Some((dir, document, begun)) = self.note.take() {
            note_stop(dir, None, document, begun);
        }
    }

    /// How the job ended, once the drive has it; waits no longer than this.
    pub fn outcome(&self, patience: Duration) -> Option<Outcome> {
        self.done.take(patience)
    }
}

/// Notes in the journal that a stop has interrupted the job, and the stop in the log. A thread of its own does so.
pub fn note_stop(dir: WorkDir, log: Option<JobLog>, mut document: Document, begun: Begun) {
    let note = move || {
        let begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
        if !begun.journal {
            interrupt(&mut document);
            if let Err(error) = journal::write(&dir, &document.to_json(), Durability::Cache) {
                log::warn!("{error}");
            }
        }
        if let Some(mut log) = log.filter(|_| !begun.log) {
            log.line(format_args!(
                "the worker is asked to stop; asking the job to stop"
            ));
        }
    };
    let threads = std::thread::Builder::new().name("stop".to_owned());
    if let Err(error) = threads.spawn(note) {
        log::warn!("the stop cannot be noted before the end: {error}");
    }
}

/// A stop of the worker has interrupted the job.
pub fn interrupt(document: &mut Document) {
    (document.status, document.exit_code) = (JobState::Interrupted, None);
    (document.reason, document.error) = (None, None);
    (document.finished_at, document.duration_ms) = (None, None);
    document.stops = document.stops.saturating_add(1);
}

/// Makes log and journal of a job complete, in the order in which nothing is promised too early.
fn finish(job: PreparedJob) -> Outcome {
    let (dir, mut log, mut document) = (job.dir, job.log, job.document);
    let durability = job.durability;
    if job.is_lost.is_some_and(|is_lost| is_lost()) {
        return Outcome::Lost;
    }
    job.begun.lock().unwrap_or_else(PoisonError::into_inner).log = true;
    log.release();
    if let Err(error) = log.restore_if_removed(&dir) {
        log::warn!("{error}; the result is published all the same");
    }
    if !dir.is_in_place() && !dir.is_removed() {
        let path = dir.path().display();
        let moved =
            format!("the job has moved its directory: log and journal are no longer at {path}");
        warn(&mut document, &mut log, &moved);
    }
    log.verdict(&verdict(&document));
    let is_final = document.status != JobState::Interrupted;
    if is_final
        && durability == Durability::Disk
        && let Err(error) = log.sync_file_system()
    {
        // these may be the files of others on the same drive
        let lost = format!("the drive may not have all that the steps wrote: {error}");
        warn(&mut document, &mut log, &lost);
    }
    if let Err(error) = log.complete(durability) {
        fail(&mut document, &mut log, &error, durability);
    }
    let mut begun = job.begun.lock().unwrap_or_else(PoisonError::into_inner);
    begun.journal = true;
    if log.is_taken() {
        log::warn!("the journal is another worker's by now");
    } else if let Err(error) = journal::store(&dir, &document, durability) {
        let error = error.to_string();
        match dir.is_removed() {
            // a step may remove the directory of its own job: then its journal is not missed
            true => document.warn(&error),
            false => fail(&mut document, &mut log, &error, durability),
        }
        // the drive may have had a bad moment only; the first error is the one to tell
        let _ = journal::store(&dir, &document, durability);
    }
    if job.is_by_hand {
        // the terminal has not shown all of it yet
        let _ = log.handle().map(IntoRawFd::into_raw_fd); // never closed
    }
    match is_final {
        true => Outcome::Final(Box::new(document)),
        false => Outcome::Unfinished,
    }
}

/// Tells in result and log what does not make the job fail.
fn warn(document: &mut Document, log: &mut JobLog, sentence: &str) {
    document.warn(sentence);
    log.retract_verdict();
    log.line(format_args!("warning: {sentence}"));
    log.verdict(&verdict(document));
}

/// A job that seemed to succeed fails where the drive does not keep what it is given.
fn fail(document: &mut Document, log: &mut JobLog, error: &str, durability: Durability) {
    log::warn!("{error}");
    if document.status == JobState::Success {
        document.status = JobState::Failed;
        document.exit_code = Some(1);
        document.reason = Some(Reason::Internal);
        document.error = Some(error.to_owned());
        log.verdict(&verdict(document));
    } else {
        warn(document, log, error);
    }
    let _ = log.complete(durability); // it is told already that the drive takes no more
}

/// The last line of the log.
fn verdict(document: &Document) -> String {
    match (document.status, &document.error) {
        (JobState::Interrupted, _) => {
            "stopped before the end; the job will be run again".to_owned()
        }
        (_, Some(error)) => format!("job failed: {error}"),
        (_, None) => {
            let took = took(document.duration_ms.unwrap_or_default());
            format!("job success in {took}s")
        }
    }
}

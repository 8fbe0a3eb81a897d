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
use super::{Claimed, Outcome, WorkDir, journal};
use crate::config::Durability;
use crate::contract::{
    Attempt, Document, JobState, Plan, Reason, StepState, StepStatus, now, took,
};
use std::io;
use std::os::fd::IntoRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pause between two looks at the drive of a worker that is leaving.
const DRIVE_LOOK: Duration = Duration::from_millis(5);

/// Tells the main thread, from another one, that there is something for [`super::Run::wake`].
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// What a thread does.
type Work = Box<dyn FnOnce() + Send>;

/// A job that has its directory and its lock, which is that of `log`.
pub struct Job {
    pub dir: WorkDir,
    pub log: JobLog,
    /// What its request says, and who runs it; then how far it is, and at the end how it ended.
    pub document: Document,
    /// The final journal is being written, or is there: no stop is noted any more.
    pub is_final: Arc<Mutex<bool>>,
    /// Of a pool, what its request is on the drive: it gets the final document.
    pub claim: Option<Arc<dyn Claimed>>,
    /// It was started by hand: a terminal shows the log.
    pub is_by_hand: bool,
}

/// A job of which the drive takes log and journal.
pub struct Saving {
    /// There once the drive has the rest. No channel: the code of one more would be a hundredth of the program.
    outcome: Arc<Mutex<Option<Outcome>>>,
    /// What notes a stop, unless one is noted.
    note: Option<Work>,
    /// The worker stops, and waits for the drive until then.
    pub leave_at: Option<Instant>,
}

impl Saving {
    /// Begins to make log and journal final. `wake` is called when that is done, where it may take a while. A worker that stops
    /// leaves at `leave_at`.
    pub fn begin(job: Job, leave_at: Option<Instant>, wake: &Wake) -> Self {
        let mut saving = Self {
            outcome: Arc::default(),
            note: None,
            leave_at,
        };
        if job.dir.durability == Durability::Cache && leave_at.is_none() {
            saving.outcome = Arc::new(Mutex::new(Some(job.finish())));
            return saving;
        }
        if leave_at.is_none() {
            saving.note = Some(job.note_of_stop());
        }
        let given = Arc::new(Mutex::new(Some(job)));
        let (outcome, wake) = (saving.outcome.clone(), wake.clone());
        let save = move || {
            let job = lock(&given).take();
            let ended = job.map(Job::finish);
            *lock(&outcome) = ended;
            wake();
        };
        if !on_a_thread("drive", Box::new(save.clone())) {
            save();
        }
        saving
    }

    /// The worker stops: it waits for the drive until `leave_at`.
    pub fn stop(&mut self, leave_at: Instant) {
        self.leave_at.get_or_insert(leave_at);
        if let Some(note) = self.note.take() {
            on_a_thread("stop", note);
        }
    }

    /// How the job ended, once the drive has it; waits no longer than this.
    pub fn outcome(&self, patience: Duration) -> Option<Outcome> {
        let until = Instant::now() + patience;
        loop {
            let outcome = lock(&self.outcome).take();
            if outcome.is_some() || Instant::now() >= until {
                return outcome;
            }
            std::thread::sleep(DRIVE_LOOK);
        }
    }
}

/// Does something on a thread of its own; tells whether there is one.
fn on_a_thread(name: &str, work: Work) -> bool {
    let threads = std::thread::Builder::new().name(name.to_owned());
    let begun = threads.spawn(work);
    begun
        .inspect_err(|error| log::warn!("no thread {name}: {error}"))
        .is_ok()
}

/// A stop of the worker has interrupted the job.
pub fn interrupt(document: &mut Document) {
    (document.status, document.exit_code) = (JobState::Interrupted, None);
    (document.reason, document.error) = (None, None);
    (document.finished_at, document.duration_ms) = (None, None);
    document.stops = document.stops.saturating_add(1);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Job {
    /// Begins a fresh log, or goes on in the old one, and says which attempt this is, of whom, and what it follows. In the document
    /// the first step runs.
    ///
    /// # Errors
    /// A sentence, where the log cannot be written.
    pub fn begin(&mut self, plan: &Plan, attempt: Attempt) -> io::Result<()> {
        let (log, document) = (&mut self.log, &mut self.document);
        let goes_on = attempt.follows.is_some();
        log.begin(&document.id, &self.dir, goes_on)?;
        let (again, before) = match attempt.follows {
            None => ("", ""),
            Some(JobState::Interrupted) => (" again", "; the worker was asked to stop in mid-run"),
            Some(_) => ("", "; the worker died in the attempt before"),
        };
        log.line(&format!(
            "attempt {} of {}{again}, {} on {}, job-worker {}{before}",
            attempt.number,
            plan.max_attempts,
            document.worker,
            document.host,
            env!("CARGO_PKG_VERSION"),
        ));
        for warning in &plan.warnings {
            log.line(&format!("warning: {warning}"));
            document.warn(warning);
        }
        let now = Some(now());
        document.log_file = Some(log.path.clone());
        (document.attempt, document.stops) = (Some(attempt.number), attempt.stops);
        document.started_at = now.clone();
        let steps = plan.steps.iter().map(|step| StepStatus {
            name: step.name.clone(),
            ..StepStatus::default()
        });
        document.steps = steps.collect();
        if let Some(first) = document.steps.first_mut() {
            (first.status, first.started_at) = (StepState::Running, now);
        }
        Ok(())
    }

    /// Notes a stop at once, on a thread of its own: the drive may not answer before this worker has to leave.
    pub fn note_stop(&self) {
        on_a_thread("stop", self.note_of_stop());
    }

    fn note_of_stop(&self) -> Work {
        let (dir, is_final) = (self.dir.unsynced(), self.is_final.clone());
        let mut document = self.document.clone();
        Box::new(move || {
            let is_final = lock(&is_final);
            if *is_final {
                return;
            }
            interrupt(&mut document);
            if let Err(error) = journal::write(&dir, &document.to_json()) {
                log::warn!("the stop is not noted before the end: {error}");
            }
        })
    }

    /// Makes log and journal complete, in the order in which nothing is promised too early.
    pub fn finish(mut self) -> Outcome {
        if self.claim.as_ref().is_some_and(|claim| claim.is_lost()) {
            return Outcome::Lost;
        }
        self.log.release();
        if let Err(error) = self.log.restore_if_removed(&self.dir) {
            log::warn!("{error}; the result is published all the same");
        }
        if !self.dir.is_in_place() && !self.dir.is_removed() {
            let path = self.dir.path().display();
            let moved = format!(
                "the directory is no longer at {path}, nor are log and journal: the job has moved it, or the drive is gone"
            );
            self.warn(&moved);
        }
        self.log.verdict(&verdict(&self.document));
        let is_over = self.document.status != JobState::Interrupted;
        // what has not run has written nothing
        let has_run = is_over && self.document.started_at.is_some();
        if has_run
            && self.dir.durability == Durability::Disk
            && let Err(error) = self.log.sync_file_system()
        {
            // these may be the files of others on the same drive
            self.warn(&format!(
                "the drive may not have all that the steps wrote: {error}"
            ));
        }
        if let Err(error) = self.log.complete(&self.dir) {
            self.fail(&error);
        }
        let is_final = self.is_final.clone();
        let mut is_final = lock(&is_final);
        *is_final = true;
        if self.log.is_taken {
            log::warn!("the journal is another worker's by now");
        } else if let Err(error) = self.store() {
            let error = error.to_string();
            match self.dir.is_removed() {
                // a step may remove the directory of its own job: then its journal is not missed
                true => self.document.warn(&error),
                false => self.fail(&error),
            }
            // the drive may have had a bad moment only; the first error is the one to tell
            let _ = self.store();
        }
        if self.is_by_hand {
            // the terminal has not shown all of it yet
            let _ = self.log.handle().map(IntoRawFd::into_raw_fd); // never closed
        }
        if let Some(claim) = self.claim.filter(|_| is_over) {
            claim.keep(&self.document.to_json());
        }
        match is_over {
            true => Outcome::Final(Box::new(self.document)),
            false => Outcome::Unfinished,
        }
    }

    fn store(&self) -> io::Result<()> {
        journal::store(&self.dir, &self.document.to_json())
    }

    /// Tells in result and log what does not make the job fail.
    fn warn(&mut self, sentence: &str) {
        self.document.warn(sentence);
        self.log.retract_verdict();
        self.log.line(&format!("warning: {sentence}"));
        self.log.verdict(&verdict(&self.document));
    }

    /// A job that seemed to succeed fails where the drive does not keep what it is given.
    fn fail(&mut self, error: &str) {
        log::warn!("{error}");
        let document = &mut self.document;
        if document.status == JobState::Success {
            document.status = JobState::Failed;
            document.exit_code = Some(1);
            document.reason = Some(Reason::Internal);
            document.error = Some(error.to_owned());
            self.log.verdict(&verdict(document));
        } else {
            self.warn(error);
        }
        let _ = self.log.complete(&self.dir); // it is told already that the drive takes no more
    }
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

//! The record of a running job: the status document, and its journal on the drive, which is written anew as the document
//! changes.

use super::claimed::ClaimedJob;
use super::drive::{Done, Drive, Write};
use super::{drive, journal};
use crate::config::Durability;
use crate::contract::{Document, JobState, StepState, Timestamp, millis};
use std::io;
use std::time::{Duration, Instant};

/// Pause between two writes of a journal that changes all the time. What is told of a job is what the journal says, so
/// this is the pause between two announcements, too.
const JOURNAL_PAUSE: Duration = Duration::from_millis(100);

/// The document of a job, and the drive that takes it.
pub struct Record {
    pub document: Document,
    drive: Drive,
    durability: Durability,
    started: Instant,
    /// The drive has a journal to write.
    writing: bool,
    /// When the journal may be written again, where the document has changed since the last time.
    due: Option<Instant>,
    written: Instant,
    /// What the journal says since the last call of [`Self::take_change`].
    change: Option<Vec<u8>>,
}

impl Record {
    /// Begins a record, and has the drive take its first journal: [`Self::next_done`] tells when it has.
    pub fn begin(document: Document, mut drive: Drive, durability: Durability) -> Self {
        drive.give(Write::First(document.to_json()));
        let now = Instant::now();
        Self {
            document,
            drive,
            durability,
            started: now,
            writing: false,
            due: None,
            written: now,
            change: None,
        }
    }

    /// When the job was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The next thing that the drive has done.
    pub fn next_done(&mut self) -> Option<Done> {
        self.drive.take()
    }

    /// Waits for the drive, and no longer than this.
    pub fn wait(&mut self, patience: Duration) {
        self.drive.wait(patience);
    }

    /// The drive has written a journal.
    pub fn journal_written(&mut self, document: Vec<u8>) {
        (self.change, self.writing) = (Some(document), false);
    }

    /// The drive has not written a journal in mid-run.
    pub fn journal_failed(&mut self, error: &str) {
        self.writing = false;
        log::warn!("{error}; going on, since the job runs already");
    }

    /// The document as the journal has it, if that has changed since the last call.
    pub fn take_change(&mut self) -> Option<Vec<u8>> {
        self.change.take()
    }

    /// When to call [`Self::write_if_due`].
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The document has changed: at once, or with what changes in the next moments, the journal says so.
    pub fn note_change(&mut self, job: &ClaimedJob, now: Instant) {
        let due = self.written + JOURNAL_PAUSE;
        if !self.writing && !journal::is_there(&job.dir) {
            self.restore(job); // it counts the attempts
        } else if due <= now {
            self.write(job, now);
        } else {
            self.due = Some(due);
        }
    }

    /// Writes the journal that was put off, if its time has come.
    pub fn write_if_due(&mut self, job: &ClaimedJob, now: Instant) {
        if self.due.is_some_and(|at| at <= now) {
            self.write(job, now);
        }
    }

    fn write(&mut self, job: &ClaimedJob, now: Instant) {
        if self.writing {
            self.due = Some(now + JOURNAL_PAUSE);
            return;
        }
        (self.due, self.written) = (None, now);
        if !job.log.is_taken() {
            self.writing = true;
            self.drive.give(Write::Update(self.document.to_json()));
        }
    }

    /// A step has removed the journal: it is there again before the next one starts.
    fn restore(&mut self, job: &ClaimedJob) {
        if job.log.is_taken() {
            return;
        }
        let document = self.document.to_json();
        match journal::write(&job.dir, &document, self.durability) {
            Ok(()) => self.change = Some(document),
            Err(error) => log::warn!("job.status.json cannot be written anew: {error}"),
        }
        (self.due, self.written) = (None, Instant::now());
    }

    /// The job is over: what was not run yet will not be.
    pub fn make_final(&mut self, status: JobState, exit_code: i32) {
        for step in &mut self.document.steps {
            if step.status == StepState::Pending {
                step.status = StepState::Skipped;
            }
        }
        (self.document.status, self.document.exit_code) = (status, Some(exit_code));
        self.document.finished_at = Some(Timestamp::now());
        self.document.duration_ms = Some(millis(self.started.elapsed()));
    }

    /// Gives log and document to the drive, for the last time.
    ///
    /// # Errors
    /// What the system said, where there are no more handles.
    pub fn finish(&mut self, job: &ClaimedJob) -> io::Result<()> {
        (self.due, self.change) = (None, None);
        let (log, document) = (job.log.try_clone()?, self.document.clone());
        self.drive.give(Write::Final(Box::new((log, document))));
        Ok(())
    }

    /// Writes the document at once, after [`Self::finish`].
    ///
    /// # Errors
    /// A sentence, with what the drive said.
    pub fn store(&self, job: &ClaimedJob) -> Result<(), String> {
        match job.log.is_taken() {
            true => Ok(()),
            false => drive::store(&job.dir, &self.document.to_json(), self.durability),
        }
    }
}

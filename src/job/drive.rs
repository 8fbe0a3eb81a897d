//! What of a job must be on the disk, and when. A result never promises what a power cut takes.
//!
//! 1. Before the first step: the journal, so that a host that goes down in the job counts as an attempt.
//! 2. While the job runs: each journal that takes the place of another one, before it does.
//! 3. At the end, in this order: everything that the steps wrote on the file system of `job.log`, the log itself, the
//!    final journal. Then log and directory are closed, and only then the result may be published.
//!
//! The drive may be slow, or hang for ever, and a worker must hear signals and keep its connection all the same. So a
//! thread of its own waits for the drive. Without `JOB_SYNC`, and in memory, there is nothing to wait for and no thread.

use super::claimed::ClaimedJob;
use super::log::JobLog;
use super::{IsLost, WorkDir, journal};
use crate::config::Durability;
use crate::contract::{Document, JobState, Reason};
use crate::inbox::Waker;
use std::fs::File;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

/// What the drive is to do.
pub enum Write {
    /// Write the first journal of this attempt.
    First(Vec<u8>),
    /// Write a journal in mid-run.
    Update(Vec<u8>),
    /// Make log and final journal complete, and close the log.
    Final(Box<(JobLog, Document)>),
}

/// What the drive has done.
pub enum Done {
    /// The journal says this now, or why it does not.
    Written(Result<Vec<u8>, String>),
    /// The document as it is to be published.
    Finished(Box<Document>),
    /// Somebody else has the request by now: nothing was written.
    Lost,
}

/// Takes what one job writes, one after the other.
pub struct Drive {
    mode: Mode,
    done: Receiver<Done>,
    peeked: Option<Done>,
}

enum Mode {
    Inline(Option<OpenFiles>, Sender<Done>),
    Thread(Sender<Write>),
}

/// Handles opened before the first step: `syncfs` reports only errors that are newer than its handle.
struct OpenFiles {
    dir: WorkDir,
    log: File,
    is_lost: Option<IsLost>,
}

impl Drive {
    /// `waker` wakes the inbox when a write is done, unless [`Self::give`] has done it itself.
    ///
    /// # Errors
    /// A sentence, where there are no more handles, or no thread.
    pub fn open(job: &ClaimedJob, durability: Durability, waker: &Waker) -> Result<Self, String> {
        Self::try_open(job, durability, waker)
            .map_err(|error| format!("nobody can wait for the drive: {error}"))
    }

    fn try_open(job: &ClaimedJob, durability: Durability, waker: &Waker) -> io::Result<Self> {
        let (dir, log) = (job.dir.try_clone()?, job.log.handle()?);
        let in_memory = dir.is_in_memory();
        let is_lost = job.is_lost.clone();
        let mut files = Some(OpenFiles { dir, log, is_lost });
        let (sender, done) = mpsc::channel();
        if durability == Durability::Cache || in_memory {
            let mode = Mode::Inline(files, sender);
            return Ok(Self {
                mode,
                done,
                peeked: None,
            });
        }
        let (writes, given) = mpsc::channel();
        let waker = waker.clone();
        std::thread::Builder::new()
            .name("drive".to_owned())
            .spawn(move || {
                for write in given {
                    let report = perform(&mut files, write, Durability::Disk);
                    report.map(|report| sender.send(report));
                    waker.wake();
                }
            })?;
        let mode = Mode::Thread(writes);
        Ok(Self {
            mode,
            done,
            peeked: None,
        })
    }

    /// Gives it something to write. What is done already is for the next [`Self::take`].
    pub fn give(&mut self, write: Write) {
        match &mut self.mode {
            // a thread that is gone has finished the job: nobody gives it anything then
            Mode::Thread(writes) => drop(writes.send(write)),
            Mode::Inline(files, done) => {
                let report = perform(files, write, Durability::Cache);
                report.map(|report| done.send(report));
            }
        }
    }

    /// Waits until something is done, and no longer than this; it is for the next [`Self::take`].
    pub fn wait(&mut self, patience: Duration) {
        self.peeked = self
            .peeked
            .take()
            .or_else(|| self.done.recv_timeout(patience).ok());
    }

    /// The next thing that is done.
    pub fn take(&mut self) -> Option<Done> {
        self.peeked.take().or_else(|| self.done.try_recv().ok())
    }
}

/// Nothing is done once the job is finished: what was open of it is closed.
fn perform(open: &mut Option<OpenFiles>, write: Write, durability: Durability) -> Option<Done> {
    let files = open.as_ref()?;
    let dir = &files.dir;
    Some(match write {
        Write::First(document) => {
            Done::Written(store(dir, &document, durability).map(|()| document))
        }
        Write::Update(document) => {
            let written = journal::write(dir, &document, durability);
            let written = written.map_err(|error| unwritten(dir, &error));
            Done::Written(written.map(|()| document))
        }
        Write::Final(last) => {
            let (mut log, document) = *last;
            let finished = finish(files, &mut log, document, durability);
            drop(log);
            *open = None;
            finished.map_or(Done::Lost, |document| Done::Finished(Box::new(document)))
        }
    })
}

/// Makes log and journal of a job complete, in the order in which nothing is promised too early; `None` where somebody else
/// has the request by now.
fn finish(
    files: &OpenFiles,
    log: &mut JobLog,
    mut document: Document,
    durability: Durability,
) -> Option<Document> {
    let OpenFiles { dir, is_lost, .. } = files;
    if is_lost.as_ref().is_some_and(|is_lost| is_lost()) {
        return None;
    }
    let is_final = document.status != JobState::Interrupted;
    log.line(format_args!("{}", last_line(&document)));
    if is_final && durability == Durability::Disk {
        // these may be the files of others on the same drive
        if let Err(error) = sync_file_system(&files.log) {
            let warning = format!("the drive may not have all that the steps wrote: {error}");
            log.line(format_args!("warning: {warning}"));
            log.line(format_args!("{}", last_line(&document)));
            document.warn(&warning);
        }
    }
    if let Err(error) = log.complete(durability) {
        fail(&mut document, log, error, durability);
    }
    if log.is_taken() {
        log::warn!("the journal is another worker's by now");
    } else if let Err(error) = store(dir, &document.to_json(), durability) {
        // a step may remove the directory of its own job: then nobody misses the journal
        if dir.is_removed() {
            document.warn(&error);
        } else {
            fail(&mut document, log, error, durability);
            // the drive may have had a bad moment only; the first error is the one to tell
            let _ = store(dir, &document.to_json(), durability);
        }
    }
    Some(document)
}

/// A job that seemed to succeed fails where the drive does not keep what it is given.
fn fail(document: &mut Document, log: &mut JobLog, error: String, durability: Durability) {
    log::warn!("{error}");
    if document.status == JobState::Success {
        document.status = JobState::Failed;
        document.exit_code = Some(1);
        document.reason = Some(Reason::Internal);
        document.error = Some(error);
        log.line(format_args!("{}", last_line(document)));
        let _ = log.complete(durability); // it is told already that the drive takes no more
    }
}

fn last_line(document: &Document) -> String {
    match (document.status, &document.error) {
        (JobState::Interrupted, _) => {
            "stopped before the end; the job will be run again".to_owned()
        }
        (_, Some(error)) => format!("job failed: {error}"),
        (_, None) => {
            let seconds = document.duration_ms.unwrap_or_default() as f64 / 1000.0;
            format!("job success in {seconds:.1}s")
        }
    }
}

/// Writes a journal that must be found by its name after a power cut.
///
/// # Errors
/// A sentence, with what the drive said.
pub fn store(dir: &WorkDir, document: &[u8], durability: Durability) -> Result<(), String> {
    let stored = journal::write(dir, document, durability).and_then(|()| match durability {
        Durability::Disk => dir.sync(),
        Durability::Cache => Ok(()),
    });
    stored.map_err(|error| unwritten(dir, &error))
}

/// Makes sure that a stored journal is found by its name after a power cut: whoever wrote it may have died before that.
pub fn sync_directory(dir: &WorkDir, durability: Durability) {
    if durability == Durability::Disk
        && let Err(error) = dir.sync()
    {
        log::warn!(
            "{}: {error}; the result is published all the same",
            dir.path().display()
        );
    }
}

fn sync_file_system(of: &File) -> io::Result<()> {
    Ok(rustix::fs::syncfs(of)?)
}

fn unwritten(dir: &WorkDir, error: &io::Error) -> String {
    let path = dir.path().display();
    format!("{path}/job.status.json cannot be written: {error}")
}

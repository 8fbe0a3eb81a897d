//! What of a job must be on the disk, and when. A result never promises what a power cut takes.
//!
//! 1. Before the first step: the journal, so that a host that goes down in the job counts as an attempt.
//! 2. While the job runs: each journal that takes the place of another one, before it does.
//! 3. At the end, in this order: everything that the steps wrote on the file system of `job.log`, the log itself, the
//!    final journal. Then log and directory are closed, and only then the result may be published.
//!
//! The drive may be slow, or hang for ever, and a worker must hear signals and keep its connection all the same. So a
//! thread of its own waits for the drive. Without `JOB_SYNC`, and in memory, there is nothing to wait for and no thread.

use super::log::JobLog;
use super::{WorkDir, journal};
use crate::config::Durability;
use crate::contract::{Document, JobState, Reason};
use crate::inbox::Bell;
use std::fs::File;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

/// What the drive is to do.
pub enum Order {
    /// Write the first journal of this attempt.
    Begin(Vec<u8>),
    /// Write a journal in mid-run.
    Update(Vec<u8>),
    /// Make log and final journal complete, and close the log.
    Finish(Box<(JobLog, Document)>),
}

/// What the drive has done.
pub enum Done {
    /// The journal says this now, or why it does not.
    Written(Result<Vec<u8>, String>),
    /// The document as it is to be published.
    Finished(Box<Document>),
}

/// Takes the orders of one job, one after the other.
pub struct Drive {
    hands: Hands,
    done: Receiver<Done>,
    early: Option<Done>,
}

enum Hands {
    Own(Option<Place>, Sender<Done>),
    Thread(Sender<Order>),
}

/// What is open of the job since before its first step: the kernel tells a handle of the errors that came after it.
struct Place {
    dir: WorkDir,
    log: File,
}

impl Drive {
    /// `bell` rings when an order is done, unless [`Self::give`] has done it itself.
    ///
    /// # Errors
    /// A sentence, where there are no more handles, or no thread.
    pub fn open(
        dir: &WorkDir,
        log: &JobLog,
        durability: Durability,
        bell: &Bell,
    ) -> Result<Self, String> {
        Self::try_open(dir, log, durability, bell)
            .map_err(|error| format!("nobody can wait for the drive: {error}"))
    }

    fn try_open(
        dir: &WorkDir,
        log: &JobLog,
        durability: Durability,
        bell: &Bell,
    ) -> io::Result<Self> {
        let (dir, log) = (dir.try_clone()?, log.handle()?);
        let in_memory = dir.is_in_memory();
        let mut place = Some(Place { dir, log });
        let (sender, done) = mpsc::channel();
        if durability == Durability::Cache || in_memory {
            let hands = Hands::Own(place, sender);
            return Ok(Self {
                hands,
                done,
                early: None,
            });
        }
        let (orders, given) = mpsc::channel();
        let bell = bell.clone();
        std::thread::Builder::new()
            .name("drive".to_owned())
            .spawn(move || {
                for order in given {
                    let report = perform(&mut place, order, Durability::Disk);
                    report.map(|report| sender.send(report));
                    bell.ring();
                }
            })?;
        let hands = Hands::Thread(orders);
        Ok(Self {
            hands,
            done,
            early: None,
        })
    }

    /// Gives an order. What is done already is for the next [`Self::take`].
    pub fn give(&mut self, order: Order) {
        match &mut self.hands {
            // a thread that is gone has finished the job: nobody gives it anything then
            Hands::Thread(orders) => drop(orders.send(order)),
            Hands::Own(place, done) => {
                let report = perform(place, order, Durability::Cache);
                report.map(|report| done.send(report));
            }
        }
    }

    /// Waits until something is done, and no longer than this; it is for the next [`Self::take`].
    pub fn wait(&mut self, patience: Duration) {
        self.early = self
            .early
            .take()
            .or_else(|| self.done.recv_timeout(patience).ok());
    }

    /// The next thing that is done.
    pub fn take(&mut self) -> Option<Done> {
        self.early.take().or_else(|| self.done.try_recv().ok())
    }
}

/// Nothing is done once the job is finished: what was open of it is closed.
fn perform(open: &mut Option<Place>, order: Order, durability: Durability) -> Option<Done> {
    let place = open.as_ref()?;
    let dir = &place.dir;
    Some(match order {
        Order::Begin(document) => {
            Done::Written(store(dir, &document, durability).map(|()| document))
        }
        Order::Update(document) => {
            let written = journal::write(dir, &document, durability);
            let written = written.map_err(|error| unwritten(dir, &error));
            Done::Written(written.map(|()| document))
        }
        Order::Finish(files) => {
            let (mut log, document) = *files;
            let finished = finish(dir, &place.log, &mut log, document, durability);
            drop(log);
            *open = None;
            Done::Finished(Box::new(finished))
        }
    })
}

/// Makes log and journal of a job complete, in the order in which nothing is promised too early.
fn finish(
    dir: &WorkDir,
    opened_before: &File,
    log: &mut JobLog,
    mut document: Document,
    durability: Durability,
) -> Document {
    let is_final = document.status != JobState::Interrupted;
    log.line(format_args!("{}", last_line(&document)));
    if is_final && durability == Durability::Disk {
        // these may be the files of others on the same drive
        if let Err(error) = sync_file_system(opened_before) {
            let warning = format!("the drive may not have all that the steps wrote: {error}");
            log.line(format_args!("warning: {warning}"));
            log.line(format_args!("{}", last_line(&document)));
            document.warning = Some(warning);
        }
    }
    if let Err(error) = log.complete(durability) {
        fail(&mut document, log, error, durability);
    }
    if log.is_taken() {
        log::warn!("the journal is another worker's by now");
        return document;
    }
    if let Err(error) = store(dir, &document.to_json(), durability) {
        // a step may remove the directory of its own job: then nobody misses the journal
        if dir.is_removed() {
            document.warning = Some(error);
        } else {
            fail(&mut document, log, error, durability);
            // the drive may have had a bad moment only; the first error is the one to tell
            let _ = store(dir, &document.to_json(), durability);
        }
    }
    document
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
pub fn settle(dir: &WorkDir, durability: Durability) {
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

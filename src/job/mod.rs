//! A job on the shared drive: its directory, its log, its journal, claiming it, and running its steps. Nothing here knows
//! of MQTT.

mod claim;
mod claimed;
mod directory;
mod drive;
mod environment;
mod execution;
mod fence;
mod interruption;
mod journal;
mod log;
mod place;
mod record;
mod run;
mod step;

use crate::contract::Document;

pub use claim::CANCEL_FILE;
pub use directory::{OpenError, Then, WorkDir};
pub use interruption::Interruption;
pub use place::is_busy;
pub use run::{News, Run};

/// How a run ends.
#[derive(Debug)]
pub enum Outcome {
    /// With a result.
    Final(Box<Document>),
    /// With the result that is stored in the directory: the request had it before.
    Stored(Vec<u8>),
    /// Before its end: the job is to be run again.
    Unfinished,
    /// Something else has the lock on its `job.log`: the job is to be run later.
    Busy,
    /// Somebody else has its request by now, and publishes the result.
    Lost,
}

/// A record of a request that counts more than the journal, which is for the controller then.
pub trait RequestRecord: Send + Sync {
    /// Whether nobody else has the request.
    fn is_ours(&self) -> bool;
    /// Keeps the final document, before anybody else can have the job.
    fn keep(&self, document: &Document) -> Kept;
}

/// What became of a document in a [`RequestRecord`].
#[derive(Debug, PartialEq)]
pub enum Kept {
    /// It is kept.
    Yes,
    /// Somebody else has the request by now.
    Lost,
    /// A sentence, with what the drive said.
    Failed(String),
}

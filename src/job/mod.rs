//! A job on the shared drive: its directory, its log, its journal, claiming it, and running its steps. Nothing here knows
//! of MQTT.

mod claim;
mod directory;
mod drive;
mod environment;
mod execution;
mod interruption;
#[expect(clippy::module_inception)]
mod job;
mod journal;
mod log;
mod record;
mod run;
mod step;

use crate::contract::Document;

pub use claim::CANCEL_FILE;
pub use directory::{OpenError, WorkDir};
pub use interruption::Interruption;
pub use run::{News, Run};

/// How a run ends.
#[derive(Debug)]
pub enum Outcome {
    /// With a result.
    Final(Box<Document>),
    /// With the result that is stored in the directory: the request had it before.
    Stored(Vec<u8>),
    /// Before its end: the job is to be run again.
    Interrupted,
}

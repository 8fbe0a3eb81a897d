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
use std::sync::Arc;

pub use claim::CANCEL_FILE;
pub use directory::{OpenError, Then, WorkDir};
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
    Unfinished,
    /// Somebody else has its request by now, and publishes the result.
    Lost,
}

/// Whether another worker has the request by now: asked before log and journal are made final.
pub type IsLost = Arc<dyn Fn() -> bool + Send + Sync>;

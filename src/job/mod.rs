//! A job on the shared drive: its directory, its log, its journal, preparing it, and running its steps. Nothing here knows
//! of MQTT.

mod directory;
mod fence;
mod journal;
mod log;
mod prepare;
mod run;
mod running;
mod save;
mod step;

use crate::contract::Document;

pub use directory::{OpenError, WorkDir, are_the_same, missing_root};
pub use prepare::{CANCEL_FILE, apart, definition};
pub use run::Run;
pub use save::Wake;
pub use step::Interruption;

/// How a run ends.
#[derive(Debug)]
pub enum Outcome {
    /// With a result.
    Final(Box<Document>),
    /// With the result that is stored in the directory: the request had it before.
    Stored(Vec<u8>),
    /// Before its end: the job is to be run again.
    Unfinished,
    /// Another worker has its request by now, and publishes the result.
    Lost,
}

/// What a request is on the drive of a pool.
pub trait Claimed: Send + Sync {
    /// Whether another worker has it by now: asked before log and journal are made final.
    fn is_lost(&self) -> bool;

    /// Takes the final document: from now on it is published from there, whatever becomes of the directory.
    fn keep(&self, document: &[u8]);
}

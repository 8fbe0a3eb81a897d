//! A job on the shared drive: its directory, its log, its journal, claiming it, and running its steps. Nothing here knows
//! of MQTT.

mod claim;
mod directory;
mod drive;
mod end;
mod environment;
mod execution;
mod journal;
mod log;

pub use claim::{Claim, Claimed};
pub use directory::{OpenError, WorkDir};
pub use end::End;
pub use execution::{Execution, Outcome};

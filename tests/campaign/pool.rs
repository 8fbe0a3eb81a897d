//! The campaign over a pool: six members of one queue, whom faults also meet when a packet of their choice goes by.

use super::support::site::names;
use super::support::wait;
use super::wire::{KINDS, Trap};
use super::{Random, campaigns};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const NAME: &str = "the-pool";

/// Without any result for so long the broker has lost what is no claim yet. If it has not, that runs twice, and that has a cause.
pub const PATIENCE: Duration = Duration::from_secs(4);

/// Without any result for so long the pool has lost what is outstanding: no member pauses for longer.
pub const LONG_PATIENCE: Duration = Duration::from_secs(20);

campaigns!(crate::Crowd::Pool, by_default "auto", in_mqtt_3_1_1 "4");

/// The directory of the pool.
pub fn directory(drive: &Path) -> PathBuf {
    drive.join(".job-worker").join(NAME)
}

/// A fault that waits for a packet.
pub fn trap(random: &mut Random) -> Trap {
    Trap {
        kind: KINDS[random.below(KINDS.len() as u64) as usize],
        passes: random.percent(50),
        kills: random.percent(60),
    }
}

/// Waits until nothing is in progress, and nothing was put aside.
pub fn await_no_claims(drive: &Path) {
    let pool = directory(drive);
    let left = || {
        let mut names = names(&pool);
        names.retain(|name| name.contains('-') && !name.starts_with("d-"));
        names
    };
    wait::until("no claim to be left", || left().is_empty());
}

//! The campaign over a pool: six members of one queue, whom faults also meet when a packet of their choice goes by.

use super::wire::{KINDS, Trap};
use super::{Random, campaigns};
use std::time::Duration;

/// Without any result for so long the broker has lost what is no claim yet. If it has not, that runs twice, and that has a cause.
pub const PATIENCE: Duration = Duration::from_secs(4);

/// Without any result for so long the pool has lost what is outstanding: no member pauses for longer.
pub const LONG_PATIENCE: Duration = Duration::from_secs(20);

campaigns!(crate::Crowd::Pool, by_default "auto", in_mqtt_3_1_1 "4");

/// A fault that waits for a packet.
pub fn trap(random: &mut Random) -> Trap {
    Trap {
        kind: KINDS[random.below(KINDS.len() as u64) as usize],
        passes: random.percent(50),
        kills: random.percent(60),
    }
}

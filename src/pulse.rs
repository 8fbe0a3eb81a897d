//! Whether the main thread still takes turns. One that is stuck in a drive that hangs hears nothing, and the threads of its
//! connections would tell the broker for ever that it is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long a turn may take. The longest one syncs a few small files.
const LONGEST_TURN: Duration = Duration::from_secs(10);

/// Whether a thread that takes turns is stuck in one.
#[derive(Clone, Debug)]
pub struct Pulse {
    origin: Instant,
    /// When the present turn began, in milliseconds since `origin` and from 1; 0 between two turns.
    turn: Arc<AtomicU64>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            turn: Arc::default(),
        }
    }
}

impl Pulse {
    /// A turn begins.
    pub fn begin_turn(&self) {
        self.turn.store(self.now().max(1), Relaxed);
    }

    /// It is over.
    pub fn end_turn(&self) {
        self.turn.store(0, Relaxed);
    }

    /// Whether the present turn takes too long.
    pub fn is_stuck(&self) -> bool {
        match self.turn.load(Relaxed) {
            0 => false,
            began => u128::from(self.now().saturating_sub(began)) >= LONGEST_TURN.as_millis(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_turn_that_takes_long_is_stuck() {
        let ago = |time| Instant::now().checked_sub(time).unwrap();
        let pulse = Pulse {
            origin: ago(LONGEST_TURN * 2),
            turn: Arc::default(),
        };
        assert!(!pulse.is_stuck(), "it waits");
        pulse.begin_turn();
        assert!(!pulse.is_stuck());
        pulse.turn.store(1, Relaxed);
        assert!(pulse.is_stuck());
        pulse.end_turn();
        assert!(!pulse.is_stuck());
    }
}

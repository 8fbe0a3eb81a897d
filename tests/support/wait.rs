//! Waiting for a condition with a deadline; the tests never sleep and hope.

use super::broker::slowness;
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; a test that passes never comes near it.
pub const DEADLINE: Duration = Duration::from_secs(30);

const POLL: Duration = Duration::from_millis(5);

/// Polls until `probe` yields a value. Panics after [`DEADLINE`], or later on a busy machine, naming what was waited for.
#[track_caller]
pub fn until_some<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        let waited = start.elapsed();
        assert!(
            waited < DEADLINE || waited < DEADLINE.mul_f64(slowness()),
            "waited {waited:?} in vain for {what}"
        );
        std::thread::sleep(POLL);
    }
}

/// Polls until `condition` holds. Panics as [`until_some`] does.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    until_some(what, || condition().then_some(()));
}

/// Asserts that `condition` holds for all of `duration`: the only way to see that something does not happen.
#[track_caller]
pub fn throughout(duration: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        assert!(condition(), "no longer true: {what}");
        std::thread::sleep(POLL);
    }
}

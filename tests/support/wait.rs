//! Waiting for a condition with a deadline; the tests never sleep and hope.

use std::time::{Duration, Instant};

/// Long enough for a loaded machine; a test that passes never comes near it.
pub const DEADLINE: Duration = Duration::from_secs(30);

const POLL: Duration = Duration::from_millis(5);

/// A machine that is too busy to look so often within [`DEADLINE`] is given more time: what it waits for is as slow.
const LOOKS: u32 = 2000;

/// Polls until `probe` yields a value. Panics after [`DEADLINE`], naming what was waited for.
#[track_caller]
pub fn until_some<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    for look in 0.. {
        if let Some(value) = probe() {
            return value;
        }
        let waited = start.elapsed();
        assert!(
            waited < DEADLINE || look < LOOKS,
            "waited {waited:?} in vain for {what}"
        );
        std::thread::sleep(POLL);
    }
    unreachable!("it panics before")
}

/// Polls until `condition` holds. Panics after [`DEADLINE`].
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

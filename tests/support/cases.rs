//! Many cases of one test, side by side.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

/// How many of them run at once where each mostly waits.
pub const AT_ONCE: usize = 4;

/// Tries all cases, some at once, and names those that fail.
#[track_caller]
pub fn try_all<T: Debug + Sync>(at_once: usize, cases: &[T], holds: impl Fn(&T) + Sync) {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..at_once.min(cases.len()) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Relaxed)) {
                    if catch_unwind(AssertUnwindSafe(|| holds(case))).is_err() {
                        failed.lock().unwrap().push(case);
                    }
                }
            });
        }
    });
    let (failed, all) = (failed.into_inner().unwrap(), cases.len());
    let count = failed.len();
    assert!(count == 0, "{count} of {all} cases failed: {failed:#?}");
}

//! A process and all that it has started, which dies as one: the processes of a host that loses power.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use super::processes::{children, tasks};
use super::wait;

pub struct ProcessTree(BTreeSet<u32>);

impl ProcessTree {
    /// Stops the clock of `root` and of its descendants. When this returns, none of them runs any code of its own.
    pub fn freeze(root: u32) -> Self {
        let mut tree = Self(BTreeSet::new());
        wait::until("the processes to stop", || {
            !tree.stop_new(root) && tree.0.iter().all(|pid| is_quiet(*pid))
        });
        tree
    }

    /// Stops `pid` before its children, so that it starts no others, and tells whether there was anything to stop.
    fn stop_new(&mut self, pid: u32) -> bool {
        let mut new = self.0.insert(pid);
        if new {
            signal(pid, Signal::STOP);
        }
        for child in children(pid) {
            new |= self.stop_new(child);
        }
        new
    }

    /// Kills all of them and waits until they have left their files. Children go first: the kernel lets a stopped process group go
    /// on whose last parent outside of it ends.
    pub fn kill9(self) {
        for pid in self.0.iter().rev() {
            signal(*pid, Signal::KILL);
        }
        wait::until("the processes to die", || {
            self.0
                .iter()
                .all(|pid| matches!(states(*pid)[..], [] | ['Z']))
        });
    }
}

fn signal(pid: u32, signal: Signal) {
    // one that has just ended needs none
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let _ = kill_process(pid.expect("a process"), signal);
}

/// Stopped, dead, or in the kernel, where it stops before it comes back.
fn is_quiet(pid: u32) -> bool {
    states(pid).iter().all(|state| "TtDZX".contains(*state))
}

/// The state of each thread.
fn states(pid: u32) -> Vec<char> {
    let stats = tasks(pid).into_iter().map(|task| task.join("stat"));
    stats.filter_map(|stat| state(&stat)).collect()
}

fn state(stat: &Path) -> Option<char> {
    let line = fs::read_to_string(stat).ok()?;
    line.rsplit_once(") ")?.1.chars().next()
}

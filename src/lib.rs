//! Job Worker: a one-shot job execution engine. MQTT carries the signals, a shared drive the data and the logs.
//!
//! # Theory of operation
//!
//! A process lives for one job ([`worker`]). Its main thread waits at one [`inbox`], and everything comes through it: what
//! the broker says ([`mqtt`], a thread that drives one connection after the other), what the kernel says (signals,
//! SIGCHLD among them), and that the drive has done what it was given ([`job`], a thread where that can take long). Without
//! a deadline the main thread sleeps until something comes. `docs/architecture.md` has the picture.
//!
//! 1. *Wait.* The broker hands out one request at a time and keeps it until it is acknowledged.
//! 2. *Prepare* ([`job`]). Open the directory, read and check the definition, get the lock on `job.log`, and let the journal
//!    (`job.status.json`) decide: a first run, a further attempt, or a stored result.
//! 3. *Run* ([`job`], [`process`]). Steps one by one in process groups of their own; their stdout and stderr are the log
//!    file itself. At the end every descendant is killed and reaped, and only then the journal is made final.
//! 4. *Report* ([`queue`]). Publish the result, wait until the broker has it, only then acknowledge the request, leave.
//!    Dying at any moment before means that the broker redelivers the request, and that the next worker reads the journal.
//!
//! What may be relied on is parsed and written in [`contract`]; the environment is read in [`config`]; [`supervise`] keeps
//! fresh processes coming; [`cli`] turns arguments into one of these.
//!
//! This library is no public API: it is what `job-worker` and its tests share, and it changes with them.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
// A panic would end the job, too. Return an error, or report a defect as `Exit::Defect`.
#![cfg_attr(
    not(test),
    warn(clippy::expect_used, clippy::panic, clippy::unwrap_used)
)]

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::OnceLock;

mod backoff;
mod check;
pub mod cli;
pub mod config;
pub mod contract;
pub mod inbox;
pub mod job;
mod logging;
mod messages;
pub mod mqtt;
pub mod pool;
pub mod process;
pub mod queue;
mod run;
pub mod supervise;
pub mod worker;

/// How this program ends (docs/reference.md, "Exit status").
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exit {
    /// The job is reported, whatever its result.
    Done,
    /// We were asked to stop.
    Stopped,
    /// The command line cannot be understood.
    Usage,
    /// The configuration cannot be used.
    Config,
    /// The broker denies us what we need.
    Denied,
    /// Another client took over our client id.
    TakenOver,
    /// An error of this program, or of a system that lacks what it needs.
    Defect,
    /// The exit code of a job (`job-worker run`), or of a worker (`job-worker supervise`).
    Of(u8),
}

impl Exit {
    /// The exit status of the process, after `sysexits.h`.
    pub fn status(self) -> u8 {
        match self {
            Self::Done | Self::Stopped => 0,
            Self::Usage => 64,
            Self::Defect => 70,
            Self::TakenOver => 75,
            Self::Denied => 77,
            Self::Config => 78,
            Self::Of(code) => code,
        }
    }

    /// The system lacks what every worker needs: threads, descriptors, signal handlers.
    fn defect(error: &io::Error) -> Self {
        log::error!("no thread, descriptor or signal handler for us: {error}");
        Self::Defect
    }
}

/// A random number: std seeds each of these with what the system calls random.
fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// The name of this host, as `uname -n` says it. It is read once: all that a process says is of the same name.
fn host_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let system = rustix::system::uname();
        system.nodename().to_string_lossy().into_owned()
    })
}

//! A pool of the test's: who serves its queue, and what lies in its directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::site::{Hub, Site, WORKER, names};
use super::wait;

pub const NAME: &str = "the-pool";

/// Whose jobs a test is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Queue {
    /// Those of a worker that has a queue of its own.
    Own,
    Pool,
}

impl Queue {
    /// The session that is the queue.
    pub fn session(self) -> &'static str {
        match self {
            Self::Own => WORKER,
            Self::Pool => NAME,
        }
    }

    /// Makes a worker serve it.
    pub fn serve(self, command: &mut Command, drive: &Path) {
        if self == Self::Pool {
            let environment = command.env("JOB_POOL", NAME).env("WORKER_ID", WORKER);
            environment.env("JOB_ROOT", drive);
        }
    }
}

/// The directory of the pool.
pub fn directory(drive: &Path) -> PathBuf {
    drive.join(".job-worker").join(NAME)
}

/// The names of what is in progress there, or was put aside.
pub fn claims(drive: &Path) -> Vec<String> {
    let pool = directory(drive);
    let mut names = match pool.is_dir() {
        true => names(&pool),
        false => Vec::new(),
    };
    names.retain(|name| name.contains('-') && !name.starts_with("d-"));
    names
}

pub fn await_no_claims(drive: &Path) {
    wait::until("no claim to be left", || claims(drive).is_empty());
}

impl<B: Hub> Site<B> {
    pub fn pool(&self) -> PathBuf {
        directory(self.drive.path())
    }

    pub fn claims(&self) -> Vec<String> {
        claims(self.drive.path())
    }
}

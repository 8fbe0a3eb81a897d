//! `JOB_POOL`.

use super::{JobConfig, NAME, Reader};
use crate::contract::check_name;
use std::ffi::OsString;
use std::path::PathBuf;

/// Where the pools of a drive are, below `JOB_ROOT`.
pub const POOLS: &str = ".job-worker";

/// A pool: any number of workers that serve one queue.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// MQTT client id of the session that is the queue.
    pub name: String,
    /// `JOB_ROOT`, which holds the pool's directory.
    pub root: PathBuf,
}

impl<F: Fn(&str) -> Option<OsString>> Reader<F> {
    pub(super) fn pool(&mut self, job: &JobConfig) -> Option<PoolConfig> {
        let expected = format!("{NAME}, and neither . nor ..");
        let name = self.value("JOB_POOL", &expected, |name| {
            let is_one = check_name(name).is_ok() && !matches!(name, "." | "..");
            is_one.then(|| name.to_owned())
        })?;
        // an unusable JOB_ROOT has its own error
        if job.root.is_none() && self.is_unset("JOB_ROOT") {
            self.errors.push(
                "JOB_POOL is set without JOB_ROOT: set it to the directory that all members share"
                    .to_owned(),
            );
        }
        // the kernel's own name of the directory, as that of a workDir is
        let root = job.root.as_ref()?.canonicalize();
        root.map(|root| PoolConfig { name, root })
            .map_err(|error| {
                self.errors
                    .push(format!("JOB_ROOT cannot be resolved: {error}"))
            })
            .ok()
    }
}

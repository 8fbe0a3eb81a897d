//! The environment of the steps (docs/reference.md, "Steps and their environment").

use super::prepared::PreparedJob;
use crate::config::is_own_variable;
use std::ffi::OsString;

/// What every step of `job` gets: the worker's own environment without its configuration, the job's, and ours on top.
pub fn of(job: &PreparedJob) -> Vec<(OsString, OsString)> {
    let is_own = |name: &OsString| name.to_str().is_some_and(is_own_variable);
    let inherited = std::env::vars_os().filter(|(name, _)| !is_own(name));
    let own = job.plan.env.iter();
    let own = own.map(|(name, value)| (&**name, value.into()));
    let ours: [(&str, OsString); 6] = [
        ("JOB_ID", job.document.id.as_str().into()),
        ("JOB_WORK_DIR", job.dir.path().into()),
        ("JOB_LOG", job.log.path().into()),
        ("JOB_STEPS", job.plan.steps.len().to_string().into()),
        ("JOB_ATTEMPT", job.attempt.number.to_string().into()),
        ("WORKER_ID", (&job.document.worker).into()),
    ];
    let set = own.chain(ours).map(|(name, value)| (name.into(), value));
    inherited.chain(set).collect()
}

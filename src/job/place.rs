//! Where a request is to run.

use super::{OpenError, WorkDir};
use crate::config::JobConfig;
use crate::contract::Request;
use std::path::Path;

/// Opens the workDir of a request, which may not be anywhere.
///
/// # Errors
/// See [`WorkDir::open`]; also where it lies around the directory of a pool, or in it.
pub fn open_dir(request: &Request, config: &JobConfig) -> Result<WorkDir, OpenError> {
    let work_dir = &request.work_dir;
    let base = config.root.as_deref().unwrap_or(Path::new(""));
    let path = std::path::absolute(base.join(work_dir))
        .map_err(|error| OpenError::Unusable(format!("workDir {work_dir:?}: {error}")))?;
    let dir = WorkDir::open(path, config.root.as_deref())?;
    let Some(reserved) = &config.reserved else {
        return Ok(dir);
    };
    let real = dir.real_path().map_err(|error| {
        OpenError::Unusable(format!(
            "workDir {work_dir:?} cannot be told from others: {error}"
        ))
    })?;
    match real.starts_with(reserved) || reserved.starts_with(&real) {
        true => Err(OpenError::Unusable(format!(
            "workDir {} contains the directory of the pool, {}, or lies in it",
            dir.path().display(),
            reserved.display()
        ))),
        false => Ok(dir),
    }
}

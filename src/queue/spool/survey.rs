//! A look at the place of a pool that changes nothing there: `job-worker check` (docs/reference.md, "Commands").

use super::LOCK;
use super::description::{Description, NAME as DESCRIPTION};
use super::place::{may, may_use};
use crate::config::{POOLS, PayloadSteps, PoolConfig};
use crate::job::{OpenError, WorkDir};
use rustix::fs::{Access, OFlags};
use std::fs::TryLockError;
use std::io;
use std::path::Path;

/// What is at the place of a pool, and whether a member with this configuration can work there: a line for each thing that is as it
/// should be.
///
/// # Errors
/// The same, and what is not.
pub fn survey(
    config: &PoolConfig,
    topic_root: &str,
    payload_steps: PayloadSteps,
) -> Result<Vec<String>, (Vec<String>, String)> {
    let mut good = Vec::new();
    match look(config, topic_root, payload_steps, &mut good) {
        Ok(()) => Ok(good),
        Err(error) => Err((good, error)),
    }
}

fn look(
    config: &PoolConfig,
    topic_root: &str,
    payload_steps: PayloadSteps,
    good: &mut Vec<String>,
) -> Result<(), String> {
    let path = config.root.join(POOLS).join(&config.name);
    let shown = path.display();
    let dir = match WorkDir::open(path.clone(), Some(&config.root)) {
        Ok(dir) => dir,
        Err(OpenError::Missing { .. }) if is_missing(&path) => {
            let above = path.ancestors().find(|above| !is_missing(above));
            let above = above.unwrap_or(&config.root);
            may(above, Access::WRITE_OK | Access::EXEC_OK)?;
            good.push(format!("{shown} does not exist: the first member makes it"));
            return Ok(());
        }
        Err(error) => return Err(error.to_string()),
    };
    may_use(&path)?;
    good.push(format!("{shown} is there, and we may write to it"));
    let told = |name: &str, error: io::Error| format!("{shown}/{name}: {error}");
    let description = dir
        .read(DESCRIPTION, 64 << 10)
        .map_err(|error| told(DESCRIPTION, error))?;
    let Some(description) = description else {
        good.push("there is no pool.json yet: the first member writes it".to_owned());
        return Ok(());
    };
    let description: Description =
        serde_json::from_slice(&description).map_err(|error| told(DESCRIPTION, error.into()))?;
    Description::new(&path, topic_root, payload_steps)
        .agrees_with(&description)
        .map_err(|difference| format!("{shown}/{DESCRIPTION}: {difference}"))?;
    good.push("pool.json says of the pool what our configuration says".to_owned());
    if dir.contains(LOCK) {
        dir.open_file(LOCK, OFlags::RDWR)
            .map_err(|error| told(LOCK, error))?;
    }
    try_locks(&dir).map_err(|error| told(DESCRIPTION, error))?;
    good.push("the drive has locks".to_owned());
    let names = dir.names().map_err(|error| told("", error))?;
    let count = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).count();
    good.push(format!(
        "requests in progress: {}; claims that could not be read: {}",
        count("c-"),
        count("bad-")
    ));
    Ok(())
}

/// Whether a lock keeps another one out. That of the head is left alone: a member may want it now.
fn try_locks(dir: &WorkDir) -> io::Result<()> {
    let open = || dir.open_file(DESCRIPTION, OFlags::RDWR);
    let (one, other) = (open()?, open()?);
    match one.try_lock() {
        Ok(()) => {}
        // another check
        Err(TryLockError::WouldBlock) => return Ok(()),
        Err(TryLockError::Error(error)) => {
            let error = format!("it cannot be locked, and a pool needs locks: {error}");
            return Err(io::Error::other(error));
        }
    }
    match other.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(()),
        _ => Err(io::Error::other(
            "it was locked twice at once: the drive's locks do nothing",
        )),
    }
}

fn is_missing(path: &Path) -> bool {
    path.symlink_metadata()
        .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

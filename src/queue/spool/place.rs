//! The directory of a pool: whoever is first makes and describes it, all others agree.

use super::Spool;
use super::description::{Description, NAME as DESCRIPTION};
use crate::config::Durability;
use crate::job::{OpenError, WorkDir};
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long another member may take to describe the pool.
const CREATION_PATIENCE: Duration = Duration::from_secs(10);
const CREATION_PAUSE: Duration = Duration::from_millis(20);

impl Spool {
    /// Describes the pool, or agrees with the description that is there.
    pub(super) fn agree(&mut self) -> Result<(), String> {
        let place = self.dir.path().join(DESCRIPTION);
        let theirs = self
            .describe()
            .map_err(|error| format!("{}: {error}", place.display()))?;
        self.description
            .agrees_with(&theirs)
            .map_err(|difference| format!("{}: {difference}", place.display()))?;
        self.description = theirs;
        Ok(())
    }

    /// Whether somebody has removed the directory. A drive that is not mounted any more is another matter.
    pub fn is_removed(&self) -> bool {
        self.dir.is_removed()
    }

    /// Makes the directory anew that somebody has removed, as that of the same pool. Where another member was first, its
    /// description counts.
    ///
    /// # Errors
    /// A sentence.
    pub fn restore(&mut self) -> Result<(), String> {
        log::warn!(
            "somebody has removed {}, which is made anew: what was in progress and had no worker is lost",
            self.dir.path().display()
        );
        self.free_head();
        self.dir = open_dir(self.dir.path(), &self.root)?;
        self.agree()
    }

    /// Takes over what another member has described, after somebody had removed the directory.
    ///
    /// # Errors
    /// A sentence.
    pub fn refresh(&mut self) -> Result<(), String> {
        if self.is_removed() {
            return self.restore();
        }
        match self.dir.read(DESCRIPTION, 64 << 10) {
            Ok(Some(_)) => self.agree(),
            Ok(None) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The description that is there, or ours if there is none.
    fn describe(&mut self) -> io::Result<Description> {
        let give_up = Instant::now() + CREATION_PATIENCE;
        loop {
            if let Some(there) = self.dir.read(DESCRIPTION, 64 << 10)? {
                return Ok(serde_json::from_slice(&there)?);
            }
            // whoever describes the pool has the head's lock
            if self.try_lock()? {
                let described = match self.dir.read(DESCRIPTION, 64 << 10)? {
                    Some(there) => Ok(serde_json::from_slice(&there)?),
                    None => self.write_description(),
                };
                self.lock = None;
                return described;
            }
            if Instant::now() > give_up {
                return Err(io::Error::other("does not exist, and head.lock is held"));
            }
            std::thread::sleep(CREATION_PAUSE);
        }
    }

    fn write_description(&self) -> io::Result<Description> {
        let text = serde_json::to_vec(&self.description)?;
        self.dir.replace(DESCRIPTION, &text, self.durability)?;
        self.sync()?;
        if self.durability == Durability::Disk {
            // the directory itself is new, and the one that all pools are in may be
            for above in self.dir.path().ancestors().skip(1).take(2) {
                File::open(above)?.sync_all()?;
            }
        }
        Ok(serde_json::from_slice(&text)?)
    }
}

/// Opens the directory of a pool, or makes it.
///
/// # Errors
/// A sentence.
pub fn open_dir(path: &Path, root: &Path) -> Result<WorkDir, String> {
    std::fs::create_dir_all(path).map_err(|error| {
        format!(
            "the pool's directory {} cannot be made: {error}",
            path.display()
        )
    })?;
    WorkDir::open(path.to_owned(), Some(root)).map_err(|error| match error {
        OpenError::Missing { what, why } => format!("the pool's directory: {what} {why}"),
        OpenError::Unusable(error) => format!("the pool's directory: {error}"),
    })
}

//! Claims that nobody has: their workers died, or gave them back.

use super::Spool;
use super::claim::{Claim, Unreadable};
use super::name::directory_of;
use super::place::at;
use crate::contract::Request;
use rustix::fs::OFlags;
use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io;
use std::path::PathBuf;

/// A claim that nobody has.
#[derive(Debug)]
pub enum Orphan {
    /// It is ours now.
    Claim(Box<Claim>),
    /// It cannot be read, and is out of the way by now.
    Damaged {
        /// Where it was.
        path: PathBuf,
        /// What is wrong with it.
        error: String,
    },
}

impl Spool {
    /// Takes the first claim that nobody has, and that waits for no earlier one of its directory. `is_busy` tells whether something has the lock on the `job.log` of a request.
    ///
    /// # Errors
    /// What the system said.
    pub fn take_orphan(
        &mut self,
        is_busy: impl Fn(&Request) -> bool,
    ) -> io::Result<Option<Orphan>> {
        let mut busy = BTreeSet::new();
        for name in self.names("c-")? {
            let directory = directory_of(&name).map(str::to_owned);
            if directory.as_ref().is_some_and(|it| busy.contains(it)) {
                continue;
            }
            let free = self.lock_claim(&name).map_err(Unreadable::from);
            let claim = free.and_then(|file| match file {
                None => Ok(None),
                Some(file) => self.take_over(&name, file, &is_busy),
            });
            match claim {
                Ok(Some(claim)) => return Ok(Some(Orphan::Claim(Box::new(claim)))),
                Ok(None) if self.dir.lacks(&name) => {} // done meanwhile
                Ok(None) => busy.extend(directory),
                // none of these may keep the others waiting
                Err(Unreadable::Io(error)) => {
                    if self.left_alone.insert(name.clone()) {
                        let error = at(&self.dir, &name)(error);
                        log::error!("a claim cannot be taken over: {error}");
                    }
                }
                Err(Unreadable::Version(version)) => {
                    if self.left_alone.insert(name.clone()) {
                        log::warn!(
                            "the claim {} is of version {version}, and is left to a worker that knows it",
                            self.dir.path().join(&name).display()
                        );
                    }
                }
                Err(Unreadable::Damaged(error)) => {
                    let path = self.dir.path().join(&name);
                    match self.dir.rename(&name, &name.replacen("c-", "bad-", 1)) {
                        Ok(()) => return Ok(Some(Orphan::Damaged { path, error })),
                        Err(kept) if self.left_alone.insert(name) => log::error!(
                            "{}: it is no claim ({error}), and cannot be put aside: {kept}",
                            path.display()
                        ),
                        Err(_) => {}
                    }
                }
            }
        }
        Ok(None)
    }

    /// The file of a claim, locked, if nobody has that lock.
    fn lock_claim(&self, name: &str) -> io::Result<Option<File>> {
        let file = match self.dir.open_file(name, OFlags::RDWR | OFlags::APPEND) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None), // done meanwhile
            file => file?,
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(None),
            locked => locked?,
        }
        Ok(self.dir.leads_to(name, &file).then_some(file))
    }

    fn take_over(
        &self,
        name: &str,
        file: File,
        is_busy: impl Fn(&Request) -> bool,
    ) -> Result<Option<Claim>, Unreadable> {
        let mut claim = Claim::read(&self.dir, file, name.to_owned(), self.durability)?;
        if claim.history.is_published {
            let _ = claim.remove(); // that it cannot be removed was told by whoever published it
            return Ok(None);
        }
        if claim.history.waits_for_lock && is_busy(&claim.history.request) {
            return Ok(None);
        }
        claim.take_over(&self.worker)?;
        Ok(Some(claim))
    }
}

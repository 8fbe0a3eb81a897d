//! The directory of a pool: whoever is first makes and describes it, all others agree.

use super::description::{Description, NAME as DESCRIPTION};
use super::{LOCK, Spool, taken};
use crate::config::Durability;
use crate::job::{OpenError, WorkDir};
use rustix::fs::Access;
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
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
        let theirs = self.describe().map_err(|error| error.to_string())?;
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
        match self.described() {
            Ok(Some(_)) => self.agree(),
            Ok(None) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The description that is there, or ours if there is none.
    fn describe(&mut self) -> io::Result<Description> {
        let give_up = Instant::now() + CREATION_PATIENCE;
        loop {
            if let Some(there) = self.described()? {
                return Ok(there);
            }
            // whoever describes the pool has the head's lock
            if self.try_lock()? {
                let described = match self.described()? {
                    Some(there) => Ok(there),
                    None => self.write_description(),
                };
                self.lock = None;
                return described;
            }
            if Instant::now() > give_up {
                let error = io::Error::other("does not exist, and head.lock is held");
                return Err(at(&self.dir, DESCRIPTION)(error));
            }
            std::thread::sleep(CREATION_PAUSE);
        }
    }

    /// What `pool.json` says, if it is there.
    fn described(&self) -> io::Result<Option<Description>> {
        let text = self.dir.read(DESCRIPTION, 64 << 10);
        let description = text.and_then(|text| match text {
            Some(text) => Ok(Some(serde_json::from_slice(&text)?)),
            None => Ok(None),
        });
        description.map_err(at(&self.dir, DESCRIPTION))
    }

    fn write_description(&self) -> io::Result<Description> {
        let text = serde_json::to_vec(&self.description)?;
        self.dir
            .replace(DESCRIPTION, &text, self.durability)
            .map_err(at(&self.dir, DESCRIPTION))?;
        self.sync()?;
        if self.durability == Durability::Disk {
            // the directory itself is new, and the one that all pools are in may be
            for above in self.dir.path().ancestors().skip(1).take(2) {
                File::open(above)
                    .and_then(|directory| directory.sync_all())
                    .map_err(|error| {
                        io::Error::new(error.kind(), format!("{}: {error}", above.display()))
                    })?;
            }
        }
        Ok(serde_json::from_slice(&text)?)
    }
}

/// Says which file of the pool's directory an error is about, or the directory itself where `name` is empty.
pub fn at(dir: &WorkDir, name: &str) -> impl FnOnce(io::Error) -> io::Error {
    let path = match name {
        "" => dir.path().to_owned(),
        name => dir.path().join(name),
    };
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Whether this user may do in the directory of a pool what a member does there. A drive that fails for another reason may go on
/// later.
///
/// # Errors
/// See [`may`].
pub fn may_use(path: &Path) -> Result<(), String> {
    const READ_AND_WRITE: Access = Access::READ_OK.union(Access::WRITE_OK);
    may(path, READ_AND_WRITE.union(Access::EXEC_OK))?;
    may(&path.join(DESCRIPTION), Access::READ_OK)?;
    may(&path.join(LOCK), READ_AND_WRITE)?;
    may(&path.join(taken::NAME), READ_AND_WRITE)
}

/// Whether this user may have this access to what is there.
///
/// # Errors
/// A sentence that names the place, the user, and what a pool needs.
pub fn may(place: &Path, access: Access) -> Result<(), String> {
    let what = match access.contains(Access::WRITE_OK) {
        true => "written",
        false => "read",
    };
    match rustix::fs::access(place, access) {
        Err(error @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) => Err(format!(
            "{} cannot be {what} by {}: {}: each member must be able to read and write what any other has made",
            place.display(),
            user(),
            io::Error::from(error)
        )),
        _ => Ok(()),
    }
}

fn user() -> String {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    format!("this user (uid {user}, gid {group})")
}

/// Opens the directory of a pool, or makes it.
///
/// # Errors
/// A sentence.
pub fn open_dir(path: &Path, root: &Path) -> Result<WorkDir, String> {
    std::fs::create_dir_all(path).map_err(|error| {
        format!(
            "the pool's directory {} cannot be made by {}: {error}",
            path.display(),
            user()
        )
    })?;
    WorkDir::open(path.to_owned(), Some(root)).map_err(|error| match error {
        OpenError::Missing { what, why, .. } => format!("the pool's directory: {what} {why}"),
        OpenError::Unusable(error) => format!("the pool's directory: {error}"),
    })
}

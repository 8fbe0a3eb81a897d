//! The pool's directory, `JOB_ROOT/.job-worker/NAME`.

use super::claim::Name;
use super::lock::{agree, agreement, no_locks};
use super::{Event, mark_newest, unusable};
use crate::config::{Config, Durability, POOLS, PoolConfig};
use crate::job::{WorkDir, are_the_same};
use crate::random;
use rustix::fs::{Access, OFlags, Timestamps, fstat, futimens, stat, statfs};
use rustix::process::{getegid, geteuid};
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The member that has its lock may connect with the pool's session.
pub const LOCK: &str = "head.lock";

/// File systems on which another host may have a lock: a lock that blocks is woken late there, or never. NFS, CIFS, SMB 2, FUSE,
/// Ceph, 9p.
const NETWORK: [u64; 6] = [
    0x6969,
    0xff53_4d42,
    0xfe53_4d42,
    0x6573_5546,
    0x00c3_6400,
    0x0102_1997,
];

/// The pool's directory as it was reached by its path.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its absolute path.
    pub path: PathBuf,
    /// Every file is reached relative to this handle.
    pub dir: WorkDir,
    /// Which directory `JOB_ROOT` leads to: another one where a drive is mounted, or no longer.
    pub root: Root,
}

/// A directory, by its device and its number.
pub type Root = (u64, u64);

fn root_at(path: &Path) -> io::Result<Root> {
    let root = fs::metadata(path)?;
    Ok((root.dev(), root.ino()))
}

/// The path of a pool's directory.
pub fn path(pool: &PoolConfig) -> PathBuf {
    pool.root.join(POOLS).join(&pool.name)
}

impl Place {
    /// Opens the directory by its path. Makes it where it does not exist; where `JOB_ROOT` is `known`, as one that is in use.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(
        pool: &PoolConfig,
        durability: Durability,
        known: Option<Root>,
    ) -> io::Result<Self> {
        let path = path(pool);
        let root = root_at(&pool.root)?;
        make(&path, durability, known == Some(root))?;
        let dir = WorkDir::open(path.clone(), Some(&pool.root), durability);
        let dir = dir.map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self { path, dir, root })
    }

    /// What a member would find: a line for a person, who only looks.
    ///
    /// # Errors
    /// A sentence that says why a member could not work there.
    pub fn survey(config: &Config, pool: &PoolConfig) -> Result<String, String> {
        let path = path(pool);
        let shown = path.display();
        let told = |error: io::Error| end(&path, &error);
        let survey = || {
            let there = path.ancestors().find(|path| path.exists()).unwrap_or(&path);
            let may = rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK);
            may.map_err(|error| told(error.into()))?;
            if there != path {
                return Ok(format!("{shown} does not exist: the first member makes it"));
            }
            let place = Self::open(pool, Durability::Cache, None).map_err(told)?;
            let (names, _) = place.list().map_err(told)?;
            let claims = names.iter().filter(|name| name.taken.is_some()).count();
            let held = match place.dir.contains(LOCK) {
                false => "no member was there yet",
                true => {
                    let lock = place.open_lock().map_err(told)?;
                    agree(&place, &lock, &agreement(config))?;
                    match lock.try_lock() {
                        Ok(()) => "no member waits for a request now",
                        Err(TryLockError::WouldBlock) => "a member waits for a request",
                        Err(TryLockError::Error(error)) => {
                            return Err(no_locks(&place, &error));
                        }
                    }
                }
            };
            Ok(format!(
                "{shown} is there; {held}; requests in progress: {claims}"
            ))
        };
        survey().map_err(|end| match end {
            Event::Ended(_, error) | Event::Trouble(error) => error,
            _ => format!("{shown} cannot be used"),
        })
    }

    /// The name of the pool.
    pub fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Whether this user may do in the directory what a member does there.
    ///
    /// # Errors
    /// That it may not.
    pub(super) fn may_be_used(&self) -> Result<(), Event> {
        let all = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
        let may = rustix::fs::access(&self.path, all);
        may.map_err(|error| end(&self.path, &error.into()))
    }

    /// Makes the directory one that is in use, where it does not exist any more or is new, unless `JOB_ROOT` is another by now.
    ///
    /// # Errors
    /// What the system said.
    pub fn make(&self) -> io::Result<()> {
        let root = self.path.ancestors().nth(2).unwrap_or(&self.path); // JOB_ROOT/.job-worker/NAME
        while root_at(root)? == self.root {
            make(&self.path, self.dir.durability, true)?;
            // by the path: the handle that we have is that of the removed one
            let marked = self.list().and_then(|(names, _)| match names.is_empty() {
                true => File::create(self.path.join(Name::mark(&[]).to_string()))
                    .and_then(|_| keep(&self.path, self.dir.durability)),
                false => Ok(()),
            });
            match marked {
                // the member that had made it took it for another drive's
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                marked => return marked,
            }
        }
        Ok(())
    }

    /// What is in the directory that the path leads to now: the claims and what is done, in the order of taking, and what does not count.
    ///
    /// # Errors
    /// What the system said, or that there is a claim of an earlier version.
    pub fn list(&self) -> io::Result<(Vec<Name>, Vec<String>)> {
        let (mut names, mut uncounted) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.path)? {
            let Ok(name) = entry?.file_name().into_string() else {
                continue;
            };
            match Name::parse(&name) {
                Some(name) => names.push(name),
                None if name.starts_with("n-") => uncounted.push(name),
                None if is_of_version_0_2(&name) => {
                    let error = format!(
                        "{} is a request that version 0.2 has taken: let members of version 0.2 run until no c-* is left there, \
                         and then start this version",
                        self.path.join(name).display()
                    );
                    return Err(io::Error::new(io::ErrorKind::Unsupported, error));
                }
                None => {}
            }
        }
        names.sort_unstable();
        Ok((names, uncounted))
    }

    /// Opens `head.lock`.
    ///
    /// # Errors
    /// What the system said.
    pub fn open_lock(&self) -> io::Result<File> {
        self.dir.open_file(LOCK, OFlags::RDWR | OFlags::CREATE)
    }

    /// The same. A directory without a lock was made by hand: it is marked before it has one, so that no member takes it for a new one.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn open_or_make_lock(&self) -> io::Result<File> {
        if !self.dir.contains(LOCK) && self.list()?.0.is_empty() {
            mark_newest(self, &[])?;
        }
        self.open_lock()
    }

    /// Whether the path still leads to this lock: the directory may be removed, or a drive mounted over it.
    pub fn is_in_place(&self, lock: &File) -> bool {
        are_the_same(stat(self.path.join(LOCK)), fstat(lock))
    }

    /// Whether another host may have its locks.
    pub fn is_on_network(&self) -> bool {
        statfs(&self.path).is_ok_and(|system| NETWORK.contains(&(system.f_type as u64)))
    }

    /// When a head that the broker had let in has touched its lock last. The line in it is written before.
    pub fn touched(&self) -> Option<SystemTime> {
        let lock = fs::metadata(self.path.join(LOCK)).ok()?;
        lock.modified().ok().filter(|_| lock.len() > 0)
    }

    /// Removes a new directory, which is no other member's at any moment, unless one has just marked it as in use.
    pub fn remove_new(&self) {
        let away = self.path.with_file_name(uncounted());
        let removed = fs::rename(&self.path, &away)
            .and_then(|()| self.dir.remove(LOCK))
            .and_then(|()| match fs::remove_dir(away) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => self.make(),
                removed => removed,
            });
        if let Err(error) = removed {
            log::warn!("{}: {error}", self.path.display());
        }
    }
}

/// Says that the queue stands, and that its head lives.
pub fn touch(lock: &File) {
    let now = rustix::fs::Timespec {
        tv_sec: 0,
        tv_nsec: rustix::fs::UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    if let Err(error) = futimens(lock, &times) {
        log::debug!("{LOCK}: {error}");
    }
}

/// Makes the directory with its lock where it is not there. Nothing else is in there, and nothing in its lock, until the first head
/// knows that the queue is this drive's; unless the pool is in use. No member makes `JOB_ROOT` itself: it may be the place of a drive
/// that is not mounted yet.
fn make(path: &Path, durability: Durability, is_in_use: bool) -> io::Result<()> {
    if path.try_exists()? {
        return Ok(());
    }
    let pools = path.parent().unwrap_or(path);
    match fs::create_dir(pools) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let new = pools.join(uncounted());
    fs::create_dir(&new)?;
    let mark = is_in_use.then(|| Name::mark(&[]).to_string());
    let mut files = mark.into_iter().chain([LOCK.to_owned()]);
    let made = files
        .try_for_each(|name| File::create(new.join(name)).map(drop))
        .and_then(|()| fs::rename(&new, path));
    match made {
        Ok(()) => keep(path, durability),
        Err(error) => {
            let _ = fs::remove_dir_all(&new); // it counts for nothing
            match error.kind() {
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => Ok(()),
                _ => Err(error),
            }
        }
    }
}

/// Has the directory on the disk, and those above it.
fn keep(path: &Path, durability: Durability) -> io::Result<()> {
    let mut above = path.ancestors().take(3);
    match durability {
        Durability::Disk => above.try_for_each(|above| File::open(above)?.sync_all()),
        Durability::Cache => Ok(()),
    }
}

/// The name of a directory that does not count.
fn uncounted() -> String {
    format!(".new-{:016x}", random())
}

/// Whether a name is that of a claim of version 0.2: `c-KEY-DIRECTORY`.
fn is_of_version_0_2(name: &str) -> bool {
    let parts: Vec<&str> = name.split('-').collect();
    let is_hash = |text: &&str| text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    matches!(&*parts, ["c", hashes @ ..] if hashes.len() == 2 && hashes.iter().all(is_hash))
}

/// What is to be done about an error of the pool's directory: one that this user will never get past ends the member.
pub fn end(path: &Path, error: &io::Error) -> Event {
    let at = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            let (user, group) = (geteuid().as_raw(), getegid().as_raw());
            unusable(format!(
                "{at} cannot be written by this user (uid {user}, gid {group}): {error}: each member must be able to read and write \
                 what any other has made"
            ))
        }
        io::ErrorKind::Unsupported => unusable(error.to_string()),
        _ => Event::Trouble(format!("{at}: {error}")),
    }
}

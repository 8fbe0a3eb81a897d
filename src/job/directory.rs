//! The workDir, opened once: every file of the job is reached through this handle, so that no process can swap the directory
//! between the check and the use. `JOB_ROOT` is the fence that it must lie inside.

use super::fence;
use crate::config::{Durability, JobConfig};
use crate::contract::{MAX_PATH_BYTES, Reason};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, Stat, fstat, fstatfs, openat, renameat, stat, statat, unlinkat,
};
use rustix::io::Errno;
use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open workDir.
#[derive(Clone, Debug)]
pub struct WorkDir {
    handle: Arc<OwnedFd>,
    path: PathBuf,
    fenced: bool,
    /// What is promised of what is written here. Nothing in memory outlives a power cut, so there is no disk to wait for.
    pub durability: Durability,
}

/// Why a directory or a file in it cannot be used.
#[derive(Debug)]
pub enum OpenError {
    /// It is not there, not whole, or not readable: on a network drive that may be a matter of seconds.
    Missing {
        /// What is not usable yet.
        what: String,
        /// Why it is not.
        why: String,
        /// Why the job fails where it stays so; `None`: no request could be run, so it is waited for as long as it takes.
        reason: Option<Reason>,
    },
    /// A sentence that says why it never will be.
    Unusable(String),
}

impl OpenError {
    /// What the system said of `what`.
    pub fn of(what: String, error: io::Error) -> Self {
        let said = format!("cannot be opened: {}", explained(&error));
        let (why, reason) = match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => ("does not exist".to_owned(), Reason::Rejected),
            // files on a network drive come before their permissions
            Some(Errno::ACCESS) => (said, Reason::Rejected),
            Some(Errno::NOTDIR) => return Self::Unusable(format!("{what} is not a directory")),
            _ if is_ours(&error) => (said, Reason::Internal),
            _ => return Self::Unusable(format!("{what} {said}")),
        };
        let reason = Some(reason);
        Self::Missing { what, why, reason }
    }

    /// The drive of `dir` is full: no job could be run there.
    pub fn no_room(dir: &WorkDir, error: &io::Error) -> Self {
        Self::Missing {
            what: format!("room on the drive of {}", dir.path().display()),
            why: format!("is missing: {error}"),
            reason: None,
        }
    }
}

/// Whether an error is of this machine or its drive, and not of what a request says.
pub fn is_ours(error: &io::Error) -> bool {
    const OF_REQUESTS: [Errno; 7] = [
        Errno::NOENT,
        Errno::ACCESS,
        Errno::PERM,
        Errno::NOTDIR,
        Errno::LOOP,
        Errno::NAMETOOLONG,
        Errno::INVAL,
    ];
    Errno::from_io_error(error).is_some_and(|error| !OF_REQUESTS.contains(&error))
}

/// Whether the drive is full, or the worker's share of it.
pub fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

impl Display for OpenError {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Self::Missing { what, why, .. } => write!(f, "{what} {why}"),
            Self::Unusable(error) => f.write_str(error),
        }
    }
}

/// What the system said; where it is about rights, with the user whose rights those are, and what helps.
pub fn explained(error: &io::Error) -> String {
    let user = rustix::process::geteuid().as_raw();
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "{error}: this worker runs as user {user}; give that user the rights, or run the worker as the owner"
        ),
        _ => error.to_string(),
    }
}

/// Why `JOB_ROOT` cannot be entered; nothing where it can be, or is not set.
pub fn missing_root(config: &JobConfig) -> Option<String> {
    let root = config.root.as_deref()?;
    let error = root.join(".").metadata().err()?; // which takes the right to enter it
    Some(OpenError::of(format!("JOB_ROOT={root:?}"), error).to_string())
}

impl WorkDir {
    /// Opens `path`, an absolute path, which must lie inside `fence` where there is one, after all symlinks.
    ///
    /// Nothing outside of `fence` is looked at: an error, or none, would tell the publisher what there is. So a path that does not
    /// begin with it (`..` folded), or leaves it on its way, lies outside, whatever it leads to.
    ///
    /// # Errors
    /// [`OpenError::Missing`] where there is nothing at the path that we may enter, else a sentence that says why it is unusable.
    pub fn open(
        path: PathBuf,
        fence: Option<&Path>,
        durability: Durability,
    ) -> Result<Self, OpenError> {
        let unopened =
            |error: Errno| OpenError::of(format!("workDir {}", path.display()), error.into());
        let path: PathBuf = path.components().collect(); // without a / at its end
        let opened = |path, handle| {
            Ok(Self {
                durability: match durability {
                    Durability::Disk if !is_in_memory(&handle) => Durability::Disk,
                    _ => Durability::Cache,
                },
                handle: Arc::new(handle),
                path,
                fenced: fence.is_some(),
            })
        };
        let Some(root) = fence else {
            let handle = open_directory(&path).map_err(unopened)?;
            return opened(path, handle);
        };
        if path.as_os_str().len() > MAX_PATH_BYTES {
            return Err(unopened(Errno::NAMETOOLONG));
        }
        let no_root = |error: io::Error| OpenError::Missing {
            what: format!("JOB_ROOT {}", root.display()),
            why: format!("cannot be opened: {}", explained(&error)),
            reason: None,
        };
        let start = open_directory(root).map_err(|error| no_root(error.into()))?;
        let real = std::fs::read_link(path_of(&start)).map_err(no_root)?;
        match fence::open(root, real, start, &path) {
            Ok((path, handle)) => opened(path, handle),
            Err(Some(error)) => Err(unopened(error)),
            Err(None) => Err(OpenError::Unusable(format!(
                "workDir {} lies outside of JOB_ROOT {}",
                path.display(),
                root.display()
            ))),
        }
    }

    /// The absolute path as the controller knows it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads to the open directory wherever its name leads by now: for changing into it.
    pub fn current_dir(&self) -> PathBuf {
        path_of(&self.handle)
    }

    /// Whether the path still leads to this directory.
    pub fn is_in_place(&self) -> bool {
        are_the_same(fstat(&self.handle), stat(&self.path))
    }

    /// Whether a name in the directory leads to this open file.
    pub fn leads_to(&self, name: &str, file: &File) -> bool {
        let follow = match self.fenced {
            true => AtFlags::SYMLINK_NOFOLLOW,
            false => AtFlags::empty(),
        };
        are_the_same(fstat(file), statat(&self.handle, name, follow))
    }

    /// The same open directory once more, for what waits for no disk.
    pub fn unsynced(&self) -> Self {
        Self {
            durability: Durability::Cache,
            ..self.clone()
        }
    }

    /// Puts a file in the directory on the disk, where that is promised.
    ///
    /// # Errors
    /// What the system said.
    pub fn sync_file(&self, file: &File) -> io::Result<()> {
        match self.durability {
            Durability::Disk => file.sync_all(),
            Durability::Cache => Ok(()),
        }
    }

    /// Puts the names in the directory on the disk, where that is promised.
    ///
    /// # Errors
    /// What the system said.
    pub fn sync(&self) -> io::Result<()> {
        if self.durability == Durability::Cache {
            return Ok(());
        }
        // the handle that we have only names the directory
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(&self.handle, ".", flags, Mode::empty())?;
        match File::from(opened).sync_all() {
            // some network drives have nothing like it
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(()),
            synced => synced,
        }
    }

    /// Whether the directory itself is removed.
    pub fn is_removed(&self) -> bool {
        fstat(&self.handle).is_ok_and(|meta| meta.st_nlink == 0)
    }

    /// Whether the directory has something of this name.
    pub fn contains(&self, name: &str) -> bool {
        statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Removes a name from the directory, if it is none of another directory.
    ///
    /// # Errors
    /// What the system said.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.handle, name, AtFlags::empty())?)
    }

    /// Gives a file another name, in the place of whatever had that.
    ///
    /// # Errors
    /// What the system said.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.handle, from, &self.handle, to)?)
    }

    /// Whether this user may make files in the directory.
    ///
    /// # Errors
    /// A sentence that names the user, and what helps.
    pub fn may_write(&self) -> Result<(), String> {
        let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        rustix::fs::accessat(&self.handle, ".", access, AtFlags::EACCESS).map_err(|error| {
            let path = self.path.display();
            format!("{path} cannot be written: {}", explained(&error.into()))
        })
    }

    /// Where the directory really is, after all symlinks.
    ///
    /// # Errors
    /// What the system said.
    pub fn real_path(&self) -> io::Result<PathBuf> {
        std::fs::read_link(path_of(&self.handle))
    }

    /// Opens a regular file in the directory.
    ///
    /// Behind a fence, symlinks are not followed. Anything but a regular file is refused: a FIFO would stop us for ever.
    ///
    /// # Errors
    /// What the system said; `InvalidData` where it is no regular file.
    pub fn open_file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let follow = if self.fenced {
            OFlags::NOFOLLOW
        } else {
            OFlags::empty()
        };
        const NO_FILE: &str = "it is not a regular file";
        let no_file = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        let flags = flags | follow | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match openat(&self.handle, name, flags, Mode::from_raw_mode(0o666)) {
            Ok(file) => File::from(file),
            Err(Errno::LOOP) if self.fenced => {
                return no_file("it is a symlink, which JOB_ROOT forbids");
            }
            Err(Errno::NXIO | Errno::ISDIR) => return no_file(NO_FILE),
            Err(error) => return Err(error.into()),
        };
        if !file.metadata()?.is_file() {
            return no_file(NO_FILE);
        }
        Ok(file)
    }

    /// The content of a file; `None` where there is none.
    ///
    /// # Errors
    /// What the system said, or that there are more than `limit` bytes.
    pub fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match self.open_file(name, OFlags::RDONLY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut content = Vec::new();
        file.take(limit + 1).read_to_end(&mut content)?;
        match content.len() as u64 > limit {
            true => Err(io::Error::other(format!("it has more than {limit} bytes"))),
            false => Ok(Some(content)),
        }
    }

    /// Replaces a file as one step: a reader sees the old content or the new one, never a part.
    ///
    /// # Errors
    /// What the system said; the old content is still there then.
    pub fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let temporary = format!(".{name}.tmp");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let create = || self.open_file(&temporary, flags);
        let mut file = create().or_else(|error| match error.kind() {
            // left by a worker that was killed at this very point
            io::ErrorKind::AlreadyExists => {
                self.remove(&temporary).map_err(|error| {
                    io::Error::new(error.kind(), format!("{temporary} is in the way: {error}"))
                })?;
                create()
            }
            _ => Err(error),
        })?;
        let written = io::Write::write_all(&mut file, content);
        // not every file system puts the content on the disk before the name that leads to it
        let synced = written.and_then(|()| self.sync_file(&file));
        let closed = synced.and_then(|()| close(file));
        let replaced = closed.and_then(|()| self.rename(&temporary, name));
        if replaced.is_err() {
            let _ = self.remove(&temporary); // the first error is the one to tell
        }
        replaced
    }
}

/// Closes a file. A network drive may tell only now that it is full.
///
/// # Errors
/// What the system said.
pub fn close(file: File) -> io::Result<()> {
    Ok(nix::unistd::close(file)?)
}

/// Opens a directory that this user may enter.
fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path.join("."), flags, Mode::empty())
}

fn is_in_memory(directory: &OwnedFd) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    fstatfs(directory).is_ok_and(|file_system| file_system.f_type as u64 == TMPFS_MAGIC)
}

fn path_of(directory: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", directory.as_raw_fd()).into()
}

/// Whether both are of one file.
pub fn are_the_same(one: Result<Stat, Errno>, other: Result<Stat, Errno>) -> bool {
    matches!((one, other), (Ok(one), Ok(other)) if (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

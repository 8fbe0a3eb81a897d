//! The file that the supervisor was started from, and whether another one has taken its place.

use std::fs::metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What was started, and what was last seen under its name.
pub struct Program {
    path: PathBuf,
    seen: Option<Identity>,
}

/// Device, inode, size and time of the last change: a file that was still being written is another one when it is whole.
type Identity = (u64, u64, u64, i64, i64);

impl Program {
    /// The program of this process. To be called at start, while it still has its name; `None` where that cannot be told.
    pub fn of_this_process() -> Option<Self> {
        let path = std::env::current_exe().ok()?;
        let seen = identity(&path);
        Some(Self { path, seen })
    }

    /// The path, if another file has it than at the last look. While there is none, the old program goes on.
    pub fn replaced(&mut self) -> Option<&Path> {
        let now = identity(&self.path)?;
        let before = self.seen.replace(now);
        (before != Some(now)).then_some(self.path.as_path())
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let file = metadata(path).ok()?;
    Some((
        file.dev(),
        file.ino(),
        file.len(),
        file.mtime(),
        file.mtime_nsec(),
    ))
}

//! Small file systems of a test's own; only root may mount them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A file system in memory on a directory, until it is dropped.
pub struct Mount(PathBuf);

impl Mount {
    pub fn on(dir: &Path, options: &str) -> Self {
        let is_mounted = mount(&["-t", "tmpfs", "-o", options, "none"], dir);
        assert!(is_mounted, "only root may mount");
        Self(dir.to_owned())
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let room = fs::File::create(self.0.join("filler")).expect("a file");
        while std::io::Write::write(&mut &room, &[0; 4096]).is_ok_and(|bytes| bytes > 0) {}
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

pub fn mount(arguments: &[&str], dir: &Path) -> bool {
    let mut mount = Command::new("mount");
    mount.args(arguments).arg(dir).stderr(Stdio::null());
    mount.status().is_ok_and(|status| status.success())
}

/// A file system on which every write waits, until this is dropped.
pub struct Frozen(PathBuf);

impl Frozen {
    pub fn at(path: &Path) -> Self {
        fsfreeze("--freeze", path);
        Self(path.to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        fsfreeze("--unfreeze", &self.0);
    }
}

fn fsfreeze(what: &str, path: &Path) {
    let status = Command::new("fsfreeze").arg(what).arg(path).status();
    assert!(status.expect("fsfreeze").success());
}

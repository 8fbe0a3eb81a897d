//! A directory of our own: in memory where there is room for it, so that no disk is measured.

use std::fs;
use std::path::{Path, PathBuf};

const ROOM: u64 = 4 << 30;

pub struct Scratch(PathBuf);

impl Scratch {
    pub fn in_memory() -> Self {
        let shm = Path::new("/dev/shm");
        let room = rustix::fs::statvfs(shm).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
        Self::beneath(if room >= ROOM {
            shm.to_owned()
        } else {
            std::env::temp_dir()
        })
    }

    pub fn on_disk() -> Self {
        Self::beneath(std::env::temp_dir())
    }

    fn beneath(base: PathBuf) -> Self {
        let path = base.join(format!("job-worker-bench-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory for the benchmark");
        Self(path)
    }

    /// Where it is, and on what kind of file system, for the report.
    pub fn describe(&self) -> String {
        let base = self.0.parent().unwrap_or(&self.0);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mount = |line: &str| {
            let mut fields = line.split(' ').skip(1).map(str::to_owned);
            Some((fields.next()?, fields.next()?))
        };
        let holder = mounts
            .lines()
            .filter_map(mount)
            .filter(|(place, _)| base.starts_with(place));
        let kind = holder
            .max_by_key(|(place, _)| place.len())
            .map_or("?".to_owned(), |(_, kind)| kind);
        format!("{} ({kind})", base.display())
    }

    /// An empty directory of this name.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a directory");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

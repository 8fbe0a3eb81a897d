//! A drive whose power can be cut: a file system in an image that lies on another file system in an image.
//!
//! The lower file system plays the disk. The loop device above writes into its page cache, as a host writes into the cache of
//! a disk, and a flush from above is an fsync of the image. A cut shuts the lower file system down without writing anything
//! back. From that moment on nothing more is kept, and whatever nobody has flushed is gone, all at once. This holds for
//! every file system above, and it also takes what was written to the disk without a flush.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::wait::DEADLINE;

/// A kind of file system that jobs may lie on.
#[derive(Clone, Copy)]
pub struct FileSystem {
    pub name: &'static str,
    mkfs: &'static [&'static str],
    /// The smallest size at which mkfs is content.
    mebibytes: u64,
}

pub const FILE_SYSTEMS: [FileSystem; 4] = [
    FileSystem::new("ext4", &["mkfs.ext4", "-F"], 96),
    FileSystem::new("xfs", &["mkfs.xfs", "-f"], 320),
    FileSystem::new("btrfs", &["mkfs.btrfs", "-f"], 192),
    FileSystem::new("f2fs", &["mkfs.f2fs", "-f"], 128),
];

impl FileSystem {
    const fn new(name: &'static str, mkfs: &'static [&'static str], mebibytes: u64) -> Self {
        Self {
            name,
            mkfs,
            mebibytes,
        }
    }
}

/// What a disk does with its cache before it loses power.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DiskCache {
    /// Keeps only what was flushed.
    Lost,
    /// Keeps all that it was sent.
    WrittenOut,
}

pub struct CutDrive(PathBuf);

impl CutDrive {
    /// Makes the drive and mounts it. `name` tells it from other drives of this process.
    ///
    /// # Errors
    /// A phrase that says what is missing here.
    pub fn start(kind: FileSystem, name: &str) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root may mount".to_owned());
        }
        let memory = Path::new("/dev/shm");
        let base = match memory.is_dir() {
            true => memory.to_owned(),
            false => std::env::temp_dir(),
        };
        clear_remains(&base);
        let unique = format!("{PREFIX}{}-{name}", std::process::id());
        let drive = Self(base.join(unique));
        let told = |error: std::io::Error| error.to_string();
        for dir in [drive.lower(), drive.path()] {
            fs::create_dir_all(dir).map_err(told)?;
        }
        let disk = fs::File::create(drive.disk()).map_err(told)?;
        disk.set_len((kind.mebibytes + 64) << 20).map_err(told)?;
        mkfs(&["mkfs.ext4", "-F"], &drive.disk())?;
        mount(&drive.disk(), &drive.lower())?;
        // with every block in its place, so that a later fsync of the image writes its data and moves nothing
        let mut image = fs::File::create(drive.image()).map_err(told)?;
        for _ in 0..kind.mebibytes {
            image.write_all(&[0; 1 << 20]).map_err(told)?;
        }
        image.sync_all().map_err(told)?;
        mkfs(kind.mkfs, &drive.image())?;
        mount(&drive.image(), &drive.path())
            .map_err(|error| format!("the kernel does not mount it: {error}"))?;
        drive.sync();
        Ok(drive)
    }

    /// The same; none, with a word for who collects these, where it is not to be had.
    pub fn start_or_leave_out(kind: FileSystem, name: &str) -> Option<Self> {
        let drive = Self::start(kind, name);
        drive
            .inspect_err(|why| println!("\nleft out: a drive of {}: {why}", kind.name))
            .ok()
    }

    /// Where the jobs are.
    pub fn path(&self) -> PathBuf {
        self.0.join("drive")
    }

    fn lower(&self) -> PathBuf {
        self.0.join("lower")
    }

    fn disk(&self) -> PathBuf {
        self.0.join("disk")
    }

    fn image(&self) -> PathBuf {
        self.lower().join("image")
    }

    /// Puts everything on the disk, as a careful controller does before it publishes.
    pub fn sync(&self) {
        syncfs(&self.path());
    }

    /// Somebody else syncs a file of their own. A file system may put more than that on the disk, such as a rename without
    /// the data of other files that were written before it.
    pub fn sync_by_somebody_else(&self) {
        let mut file = fs::File::create(self.path().join("somebody-else")).expect("a file");
        file.write_all(b"something").expect("room for it");
        file.sync_all().expect("the drive has power");
    }

    /// Takes the power away. Whoever still works on the drive sees errors from now on.
    pub fn cut(&self, cache: DiskCache) {
        let lower = fs::File::open(self.lower()).expect("the lower file system");
        if cache == DiskCache::WrittenOut {
            syncfs(&self.lower());
        }
        const FS_IOC_SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587d;
        const NO_LOG_FLUSH: u32 = 2;
        #[allow(unsafe_code, reason = "nothing safe cuts the power")]
        // SAFETY: this request reads one u32 through the pointer, which is what `Setter` passes.
        let shut_down = unsafe {
            let request = rustix::ioctl::Setter::<FS_IOC_SHUTDOWN, u32>::new(NO_LOG_FLUSH);
            rustix::ioctl::ioctl(&lower, request)
        };
        shut_down.expect("ext4 can be shut down");
    }

    /// Lets the kernel find an error of the file system (ext4), upon which it is read-only.
    pub fn turn_read_only(&self) {
        let path = self.path();
        let options = ["-o", "remount,errors=remount-ro"];
        run(Command::new("mount").args(options).arg(&path)).expect("it can be remounted");
        let mounts = fs::read_to_string("/proc/self/mounts").expect("it is mounted");
        let here = format!(" {} ", path.display());
        let device = mounts.lines().find(|line| line.contains(&here));
        let device = device.and_then(|line| line.strip_prefix("/dev/")?.split(' ').next());
        let device = device.expect("a device");
        let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
        fs::write(trigger, "an error for a test").expect("ext4 can be told of an error");
    }

    /// Gives the power back and mounts the drive as it is now.
    ///
    /// # Errors
    /// What `mount` said.
    pub fn restore(&self) -> Result<(), String> {
        unmount(&self.path())?;
        unmount(&self.lower())?;
        mount(&self.disk(), &self.lower())?;
        mount(&self.image(), &self.path())
    }
}

impl Drop for CutDrive {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Begins the names of the directories of all drives; the process that made it follows.
const PREFIX: &str = "job-worker-power-";

/// Removes the drives of processes that were killed: they hold memory and loop devices for ever.
fn clear_remains(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path());
        }
    }
}

fn remove(dir: &Path) {
    for mounted in ["drive", "lower"].map(|name| dir.join(name)) {
        if unmount(&mounted).is_err() {
            let _ = run(Command::new("umount").arg("-l").arg(mounted));
        }
    }
    let _ = fs::remove_dir_all(dir);
}

fn syncfs(dir: &Path) {
    let dir = fs::File::open(dir).expect("a directory");
    rustix::fs::syncfs(&dir).expect("the file system can be synced");
}

fn mkfs(mkfs: &[&str], image: &Path) -> Result<(), String> {
    run(Command::new(mkfs[0]).arg("-q").args(&mkfs[1..]).arg(image))
}

fn mount(image: &Path, dir: &Path) -> Result<(), String> {
    let mut mount = Command::new("mount");
    run(mount.args(["-o", "loop"]).arg(image).arg(dir))
}

/// Nothing to do where nothing is mounted. A process that was killed may still be leaving.
fn unmount(dir: &Path) -> Result<(), String> {
    let end = Instant::now() + DEADLINE;
    loop {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let here = format!(" {} ", dir.display());
        if !mounts.lines().any(|line| line.contains(&here)) {
            return Ok(());
        }
        match run(Command::new("umount").arg(dir)) {
            Ok(()) => {}
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{name}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{name}: {}",
            said.lines().next().unwrap_or_default()
        )),
    }
}

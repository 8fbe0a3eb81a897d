//! What the figures are measured on, and where.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One sentence: processor, cores, kernel, versions.
pub fn description() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("?", |(_, it)| it);
    let virtual_machine = match cpu.contains(" hypervisor") {
        true => ", virtual machine",
        false => "",
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let (broker, compiler) = (
        first_line("mosquitto_pub", "--version"),
        first_line("rustc", "--version"),
    );
    let broker = broker.split(' ').nth(2).unwrap_or("?");
    let kernel = kernel.trim();
    format!(
        "{model}, {cores} cores{virtual_machine}, Linux {kernel}, Mosquitto {broker}, {compiler}"
    )
}

/// How loaded the machine is with other work: runnable threads over the last minute.
pub fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or_default().to_owned()
}

pub fn first_line(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    let output = output.map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&output);
    text.lines().next().unwrap_or_default().to_owned()
}

/// A directory of our own.
pub struct Scratch(PathBuf);

impl Scratch {
    /// In memory where there is room for it, so that no disk is measured.
    pub fn in_memory() -> Self {
        const ROOM: u64 = 4 << 30;
        let shm = Path::new("/dev/shm");
        let room = rustix::fs::statvfs(shm).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
        match room >= ROOM {
            true => Self::beneath(shm.to_owned()),
            false => Self::on_disk(),
        }
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
        let mut holders: Vec<(&str, &str)> = mounts
            .lines()
            .filter_map(|line| line.split_once(' ')?.1.split_once(' '))
            .filter(|(place, _)| base.starts_with(place))
            .collect();
        holders.sort_by_key(|(place, _)| place.len());
        let kind = holders.last().and_then(|(_, rest)| rest.split(' ').next());
        format!("{} ({})", base.display(), kind.unwrap_or("?"))
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

//! Processes seen from outside: those of a site, those of its jobs, zombies, and PID 1 of a namespace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::site::{Hub, Site};
use super::wait;
use super::worker::{Worker, binary};

/// A variable that a worker passes on to its steps.
const MARK: &str = "TEST_SITE";

/// The processes that carry the mark of a drive; the end of this is theirs.
pub struct Marked(PathBuf);

impl Marked {
    pub fn new(drive: &Path) -> Self {
        Self(drive.to_owned())
    }

    /// The mark as it is in the environment.
    pub fn label(&self) -> String {
        format!("{MARK}={}", self.0.display())
    }

    pub fn mark(&self, command: &mut Command) {
        command.env(MARK, &self.0);
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        // what is killed may have forked before
        while let left @ [_, ..] = &*marked(&self.label(), &[]) {
            for pid in left {
                let _ = kill_process(Pid::from_raw(*pid).expect("not 0"), Signal::KILL); // it may have ended by itself
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What lives of the jobs of a site; a worker is not among it.
pub fn survivors(label: &str) -> Vec<i32> {
    // only the steps of a job have this variable, never a worker
    marked(label, b"JOB_ATTEMPT=")
}

/// Living processes with the label in their environment, and with a variable that starts so.
pub fn marked(label: &str, start: &[u8]) -> Vec<i32> {
    let is_marked = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default(); // empty for a zombie
        let mut variables = environment.split(|byte| *byte == 0);
        variables
            .clone()
            .any(|variable| variable == label.as_bytes())
            && variables.any(|variable| variable.starts_with(start))
    };
    let own = std::process::id() as i32;
    pids().filter(|pid| *pid != own && is_marked(pid)).collect()
}

/// How many children of a process have ended and are not reaped.
pub fn zombies_of(parent: u32) -> usize {
    let is_one = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        Some(fields.next()? == "Z" && fields.next()?.parse() == Ok(parent))
    };
    pids().filter(|pid| is_one(*pid) == Some(true)).count()
}

/// The binary as PID 1 of a namespace, once it waits for a job.
pub fn pid_1<B: Hub>(site: &Site<B>, arguments: &[&str]) -> Worker {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    site.equip(command.arg(binary()).args(arguments));
    site.idle(command)
}

/// The process that `unshare` waits for: PID 1 in there.
pub fn child_of(process: &Worker) -> Pid {
    wait::until_some("the child of unshare", || {
        Pid::from_raw(*children(process.pid()).first()? as i32)
    })
}

/// The children that any thread of a process has started, or was given when their parent died.
pub fn children(pid: u32) -> Vec<u32> {
    let lists = tasks(pid).into_iter();
    let lists = lists.filter_map(|task| fs::read_to_string(task.join("children")).ok());
    let lists: Vec<String> = lists.collect();
    let pids = lists.iter().flat_map(|list| list.split_whitespace());
    pids.filter_map(|pid| pid.parse().ok()).collect()
}

/// The directories of the threads of a process.
pub fn tasks(pid: u32) -> Vec<PathBuf> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    tasks.map(|task| task.path()).collect()
}

fn pids<T: std::str::FromStr>() -> impl Iterator<Item = T> {
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The most memory that a process has ever had, in KiB.
pub fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("a peak");
    peak.trim().trim_end_matches(" kB").parse().expect("KiB")
}

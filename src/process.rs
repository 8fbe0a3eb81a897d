//! Processes of a job: starting a step in a group of its own, reaping, signalling and sweeping all descendants
//! (contract sections 4 and 7).

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a sweep insists before it leaves what it cannot kill (another user's process, one stuck in the kernel).
const SWEEP_PATIENCE: Duration = Duration::from_secs(10);

/// Pause between two passes of a sweep that found nobody new; it doubles from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_micros(100);
const LAST_PAUSE: Duration = Duration::from_millis(50);

/// How a process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    /// As a shell counts: the code itself, or 128+n for signal n.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }

    /// The name of the signal that ended the process.
    pub fn signal_name(self) -> Option<String> {
        match self {
            Self::Code(_) => None,
            Self::Signal(n) => Some(
                signal_hook::low_level::signal_name(n).map_or(format!("SIG{n}"), str::to_owned),
            ),
        }
    }
}

/// Children that we had before we started any: whoever started us by `exec` had them, a log writer or a companion. They
/// are no part of a job, and neither are their descendants.
static FOREIGN: Mutex<Vec<i32>> = Mutex::new(Vec::new());

fn foreign() -> MutexGuard<'static, Vec<i32>> {
    FOREIGN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets daemonised descendants become our children when their parents die, so that [`sweep`] finds them. To be called
/// before any process is started.
pub fn adopt_orphans() {
    if !matches!(reap(), Reaped::NoneLeft) {
        *foreign() = descendants()
            .iter()
            .filter(|process| process.is_child)
            .map(|process| process.pid)
            .collect();
    }
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        log::warn!(
            "cannot become a subreaper: {error}; daemonised processes of a job may outlive it"
        );
    }
}

/// Starts `shell -c run` in a process group of its own, with `log` as stdout and stderr and nothing on stdin.
///
/// # Errors
/// What the kernel said, when the shell could not be started.
pub fn spawn<'a>(
    shell: &str,
    run: &str,
    dir: &Path,
    env: impl IntoIterator<Item = (&'a OsStr, &'a OsStr)>,
    log: File,
) -> io::Result<Pid> {
    let errors = log.try_clone()?;
    let mut command = Command::new(shell);
    command
        .arg("-c")
        .arg(run)
        .current_dir(dir)
        .env_clear()
        .envs(env);
    command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0);
    // the handle is let go: reaping is ours alone, see `reap`
    Ok(Pid::from_child(&command.spawn()?))
}

/// What [`reap`] found.
#[derive(Debug)]
pub enum Reaped {
    /// This child has ended.
    Child(Pid, Exit),
    /// All children are still running.
    NoneEnded,
    /// There is no child at all, or none of ours.
    NoneLeft,
}

/// Takes the status of one child that has ended, if there is one.
///
/// This is the only place of the program that waits for children, and only one thread calls it: whoever waits for "any
/// child" elsewhere takes away the status that a step ended with.
pub fn reap() -> Reaped {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                let exit = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Exit::Code(code),
                    (_, Some(signal)) => Exit::Signal(signal),
                    _ => continue, // stopped or continued: not an end
                };
                foreign().retain(|foreign| *foreign != pid.as_raw_pid()); // the number may come again
                return Reaped::Child(pid, exit);
            }
            Ok(None) if !foreign().is_empty() && descendants().is_empty() => {
                return Reaped::NoneLeft;
            }
            Ok(None) => return Reaped::NoneEnded,
            Err(Errno::INTR) => {}
            Err(_) => return Reaped::NoneLeft, // ECHILD
        }
    }
}

/// Sends a signal to every process of the job: to the group of its step, and to all descendants outside of that group.
pub fn signal_all(group: Pid, signal: Signal) {
    // the group first and at once: its members cannot escape by forking while we look
    let _ = kill_process_group(group, signal); // ESRCH: the group is empty already
    for process in descendants()
        .iter()
        .filter(|process| process.group != group.as_raw_pid())
    {
        process.signal(signal);
    }
}

/// Kills and reaps until no descendant is left, and tells how many processes had to be killed. `ended` hears how each child
/// ended.
///
/// Where nothing is left over, this is one system call.
pub fn sweep(mut ended: impl FnMut(Pid, Exit)) -> usize {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut killed = std::collections::HashSet::new();
    loop {
        loop {
            match reap() {
                Reaped::Child(pid, exit) => ended(pid, exit),
                Reaped::NoneEnded => break,
                Reaped::NoneLeft => return killed.len(),
            }
        }
        if started.elapsed() > SWEEP_PATIENCE {
            log::warn!("some processes of the job cannot be killed; going on without them");
            return killed.len();
        }
        let mut kill = |processes: Vec<Process>| {
            processes
                .iter()
                .filter(|process| process.signal(Signal::KILL) && killed.insert(process.pid))
                .count()
        };
        // the children of whoever is killed become ours, in as many passes as it takes; those of whom we may not kill do not
        if kill(children()) > 0 || kill(descendants()) > 0 {
            pause = FIRST_PAUSE; // who forks and exits all the time is only caught by looking at once
            continue;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Our own children but the foreign ones. The kernel's list of them is there at once, while a look at all processes takes
/// longer than a fork.
fn children() -> Vec<Process> {
    let me = rustix::process::getpid().as_raw_pid();
    let Ok(list) = std::fs::read_to_string(format!("/proc/self/task/{me}/children")) else {
        return descendants(); // a kernel without CONFIG_PROC_CHILDREN
    };
    let foreign = foreign();
    let pids = list
        .split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .filter(|pid| !foreign.contains(pid));
    pids.filter_map(Process::look).collect()
}

struct Process {
    pid: i32,
    group: i32,
    alive: bool,
    is_child: bool,
}

impl Process {
    /// What /proc says of a child of ours; nothing where it has ended meanwhile.
    fn look(pid: i32) -> Option<Self> {
        let (_, group, alive) = parse_stat(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)?;
        Some(Self {
            pid,
            group,
            alive,
            is_child: true,
        })
    }

    /// Whether it was there to take the signal. A zombie takes it without any effect, so it is not asked.
    fn signal(&self, signal: Signal) -> bool {
        self.alive && Pid::from_raw(self.pid).is_some_and(|pid| kill_process(pid, signal).is_ok())
    }
}

/// All descendants of this process but the foreign ones, by one look through /proc.
fn descendants() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    let me = rustix::process::getpid().as_raw_pid();
    for entry in entries.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let Ok(stat) = std::fs::read(entry.path().join("stat")) else {
            continue;
        }; // ended meanwhile
        if let Some((parent, group, alive)) = parse_stat(&stat) {
            children.entry(parent).or_default().push(Process {
                pid,
                group,
                alive,
                is_child: parent == me,
            });
        }
    }
    for pid in &*foreign() {
        children
            .entry(me)
            .or_default()
            .retain(|child| child.pid != *pid);
    }
    let mut found = Vec::new();
    let mut parents = vec![me];
    while let Some(parent) = parents.pop() {
        let of_parent = children.remove(&parent).unwrap_or_default();
        parents.extend(of_parent.iter().map(|child| child.pid));
        found.extend(of_parent);
    }
    found
}

/// Parent, group, and whether it is alive, of a line of /proc/PID/stat. The name before them may hold anything but ends
/// at the last parenthesis.
fn parse_stat(stat: &[u8]) -> Option<(i32, i32, bool)> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let alive = !matches!(fields.next()?, "Z" | "X");
    Some((
        fields.next()?.parse().ok()?,
        fields.next()?.parse().ok()?,
        alive,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_count_as_in_a_shell() {
        assert_eq!(Exit::Code(7).code(), 7);
        assert_eq!(
            (
                Exit::Signal(9).code(),
                Exit::Signal(9).signal_name().as_deref()
            ),
            (137, Some("SIGKILL"))
        );
        assert_eq!(
            (
                Exit::Signal(15).code(),
                Exit::Signal(15).signal_name().as_deref()
            ),
            (143, Some("SIGTERM"))
        );
        assert_eq!(Exit::Signal(40).signal_name().as_deref(), Some("SIG40"));
        assert_eq!(Exit::Code(0).signal_name(), None);
    }

    #[test]
    fn a_hostile_process_name_does_not_confuse_the_parents() {
        assert_eq!(
            parse_stat(b"12 (a b) Z 1 2) S 34 56 78 0"),
            Some((34, 56, true))
        );
        assert_eq!(parse_stat(b"12 (x) Z 34 56 78"), Some((34, 56, false)));
        assert_eq!(parse_stat(b"12 (x"), None);
        assert_eq!(parse_stat(b""), None);
    }
}

//! Processes of a job: starting a step in a group of its own, reaping, signalling and sweeping all descendants
//! (contract sections 4 and 7).

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
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
            Self::Signal(n) => Some(signal_hook::low_level::signal_name(n).map_or(format!("SIG{n}"), str::to_owned)),
        }
    }
}

/// Lets daemonised descendants become our children when their parents die, so that [`sweep`] finds them.
pub fn adopt_orphans() {
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        log::warn!("cannot become a subreaper: {error}; daemonised processes of a job may outlive it");
    }
}

/// Starts `shell -c run` in a process group of its own, with `log` as stdout and stderr and nothing on stdin.
///
/// # Errors
/// What the kernel said, when the shell could not be started.
pub fn spawn(
    shell: &str,
    run: &str,
    dir: &Path,
    env: impl IntoIterator<Item = (OsString, OsString)>,
    log: File,
) -> io::Result<Pid> {
    let errors = log.try_clone()?;
    let mut command = Command::new(shell);
    command.arg("-c").arg(run).current_dir(dir).env_clear().envs(env);
    command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
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
    /// There is no child at all.
    NoneLeft,
}

/// Takes the status of one child that has ended, if there is one.
///
/// This is the only place of the program that waits for children, and only one thread calls it: whoever waits for "any
/// child" elsewhere takes away the status that a step ended with.
pub fn reap() -> Reaped {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => return Reaped::Child(pid, Exit::Code(code)),
                (_, Some(signal)) => return Reaped::Child(pid, Exit::Signal(signal)),
                _ => {} // stopped or continued: not an end
            },
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
    for process in descendants().into_iter().filter(|process| process.group != group.as_raw_pid()) {
        let _ = kill_process(process.pid, signal); // ESRCH: it has just ended
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
        // the children of whoever is killed become ours, so direct children are enough, in as many passes as it takes
        let news =
            children().into_iter().filter(|child| kill_process(*child, Signal::KILL).is_ok() && killed.insert(*child));
        if news.count() > 0 {
            pause = FIRST_PAUSE; // who forks and exits all the time is only caught by looking at once
            continue;
        }
        if started.elapsed() > SWEEP_PATIENCE {
            log::warn!("some processes of the job cannot be killed; going on without them");
            return killed.len();
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Our own children. The kernel's list of them is there at once, while a look at all processes takes longer than a fork.
fn children() -> Vec<Pid> {
    let own = rustix::process::getpid().as_raw_pid();
    match std::fs::read_to_string(format!("/proc/self/task/{own}/children")) {
        Ok(list) => list.split_ascii_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect(),
        Err(_) => descendants().into_iter().map(|process| process.pid).collect(), // a kernel without CONFIG_PROC_CHILDREN
    }
}

struct Process {
    pid: Pid,
    group: i32,
}

/// All living descendants of this process, by one look through /proc.
fn descendants() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut children: HashMap<i32, Vec<(i32, i32, bool)>> = HashMap::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = std::fs::read(entry.path().join("stat")) else { continue }; // ended meanwhile
        if let Some((parent, group, alive)) = parse_stat(&stat) {
            children.entry(parent).or_default().push((pid, group, alive));
        }
    }
    let mut found = Vec::new();
    let mut parents = vec![rustix::process::getpid().as_raw_pid()];
    while let Some(parent) = parents.pop() {
        for (pid, group, alive) in children.remove(&parent).unwrap_or_default() {
            parents.push(pid);
            found.extend(Pid::from_raw(pid).filter(|_| alive).map(|pid| Process { pid, group }));
        }
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
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?, alive))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_count_as_in_a_shell() {
        assert_eq!(Exit::Code(7).code(), 7);
        assert_eq!((Exit::Signal(9).code(), Exit::Signal(9).signal_name().as_deref()), (137, Some("SIGKILL")));
        assert_eq!((Exit::Signal(15).code(), Exit::Signal(15).signal_name().as_deref()), (143, Some("SIGTERM")));
        assert_eq!(Exit::Signal(40).signal_name().as_deref(), Some("SIG40"));
        assert_eq!(Exit::Code(0).signal_name(), None);
    }

    #[test]
    fn a_hostile_process_name_does_not_confuse_the_parents() {
        assert_eq!(parse_stat(b"12 (a b) Z 1 2) S 34 56 78 0"), Some((34, 56, true)));
        assert_eq!(parse_stat(b"12 (x) Z 34 56 78"), Some((34, 56, false)));
        assert_eq!(parse_stat(b"12 (x"), None);
        assert_eq!(parse_stat(b""), None);
    }
}

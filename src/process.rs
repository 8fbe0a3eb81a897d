//! Processes of a job: starting a step in a group of its own, reaping, signalling and sweeping all descendants
//! (docs/reference.md, "Steps and their environment" and "Stopping").

use nix::sys::signal::{SigSet, Signal::SIGTTOU};
use nix::unistd::getpgid;
use process_wrap::std::{CommandWrap, ProcessSession};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, kill_process, kill_process_group, test_kill_process,
};
use signal_hook::consts::{SIGCHLD, SIGKILL};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

/// How long a sweep insists before it leaves what it cannot kill (another user's process, one stuck in the kernel).
const SWEEP_LIMIT: Duration = Duration::from_secs(10);

/// How long [`terminate`] scans /proc for processes outside of the group. One that is not found in time gets only the KILL.
/// With thousands of processes that fork and exit all the time, one scan takes seconds.
const SCAN_LIMIT: Duration = Duration::from_secs(1);

/// How many children are reaped before anything else is looked at. More of them end meanwhile, if a job forks and exits all
/// the time.
const REAPED_AT_ONCE: usize = 64;

/// Pause between two passes of a sweep in which no process ended; it doubles from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_micros(100);
const LAST_PAUSE: Duration = Duration::from_millis(50);

/// As a shell counts: the code that a child exited with, or 128+n for signal n.
pub fn code(exit: ExitStatus) -> i32 {
    let by_signal = || 128 + exit.signal().unwrap_or_default();
    exit.code().unwrap_or_else(by_signal)
}

/// The name of the signal that ended a child.
pub fn signal_name(exit: ExitStatus) -> Option<String> {
    let number = exit.signal()?;
    let name = signal_hook::low_level::signal_name(number);
    Some(name.map_or(format!("SIG{number}"), str::to_owned))
}

/// Children that we had before a job: the program that became us by `exec` had them, a log writer or a companion, or they are
/// orphans that we were given. They are no part of a job, and neither are their descendants.
static FOREIGN: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

fn foreign() -> MutexGuard<'static, Vec<Pid>> {
    FOREIGN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets daemonised descendants become our children when their parents die, so that [`sweep`] finds them. To be called
/// before any process is started.
pub fn adopt_orphans() {
    spare_children();
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        log::warn!(
            "cannot become a subreaper: {error}; daemonised processes of a job may outlive it"
        );
    }
}

/// The children that are there now are no part of what is started next. To be called while nothing of a job runs.
pub fn spare_children() {
    if reap().is_ok() {
        let others = children();
        foreign().extend(others);
    }
}

/// Starts `shell -c run` in a process group of its own, with `log` as stdout and stderr and nothing on stdin. It inherits our
/// environment; `env` sets variables in it, or removes them (`None`), and the last entry of a name counts. Where this process has a
/// controlling terminal, the group has a session of its own, so that no step asks a question there. For that std has to fork,
/// which takes several times as long.
///
/// # Errors
/// What the kernel said, when the shell could not be started.
pub fn spawn<'a>(
    shell: &str,
    run: &str,
    dir: &Path,
    env: impl IntoIterator<Item = (&'a str, Option<&'a OsStr>)>,
    log: File,
) -> io::Result<Pid> {
    let errors = log.try_clone()?;
    let mut command = Command::new(shell);
    command.arg("-c").arg(run).current_dir(dir);
    for (name, value) in env {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    let has_no_terminal = File::open("/dev/tty")
        .is_err_and(|error| Errno::from_io_error(&error) == Some(Errno::NXIO));
    // a step inherits the mask of this thread, which writes nothing to a terminal in between
    let masked = SigSet::from(SIGTTOU);
    masked.thread_unblock()?;
    // the handles are let go: reaping is ours alone, see `reap`
    let pid = match has_no_terminal {
        true => command.process_group(0).spawn().map(|child| child.id()),
        false => {
            let mut command = CommandWrap::from(command);
            command.wrap(ProcessSession).spawn().map(|child| child.id())
        }
    };
    masked.thread_block()?;
    Pid::from_raw(pid?.cast_signed()).ok_or_else(|| io::Error::other("the process has no number"))
}

/// Takes the status of those children that have ended, and tells `ended` how. Returns whether a child of ours is left.
///
/// Processes that fork and exit all the time would keep us here for ever. So it takes a limited number at once, and sends
/// this process a SIGCHLD for the rest: the loop that waits for that signal looks at its deadlines in between.
pub fn reap_some(mut ended: impl FnMut(Pid, ExitStatus)) -> bool {
    for _ in 0..REAPED_AT_ONCE {
        match reap() {
            Ok(Some((pid, exit))) => ended(pid, exit),
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
    if let Err(error) = signal_hook::low_level::raise(SIGCHLD) {
        log::warn!("no SIGCHLD: {error}; what has ended waits for the next child to end");
    }
    true
}

/// Takes the status of one child that has ended; `None` where all are still running.
///
/// This is the only place of the program that waits for children, and only one thread calls it: a wait for "any
/// child" elsewhere takes away the status that a step ended with.
///
/// # Errors
/// ECHILD: there is no child at all, or none but the foreign ones.
fn reap() -> rustix::io::Result<Option<(Pid, ExitStatus)>> {
    match rustix::process::wait(WaitOptions::NOHANG)? {
        Some((pid, status)) => {
            foreign().retain(|foreign| *foreign != pid); // the number may come again
            Ok(Some((pid, ExitStatus::from_raw(status.as_raw()))))
        }
        None if !foreign().is_empty() && children().is_empty() => Err(Errno::CHILD),
        None => Ok(None),
    }
}

/// Asks every process of the job to end: the group of its step, and all descendants outside of that group that are found before
/// the `grace` is over.
pub fn terminate(group: Pid, grace: Duration) {
    let signals = [Signal::TERM, Signal::CONT]; // a stopped process takes no TERM
    // the group first and at once: its members cannot escape by forking while we look
    for signal in signals {
        let _ = kill_process_group(group, signal); // ESRCH: the group is empty already
    }
    let mut others = descendants(SCAN_LIMIT.min(grace));
    others.retain(|(_, of_group)| *of_group != group.as_raw_pid());
    for (pid, _) in others {
        for signal in signals {
            let _ = kill_process(pid, signal); // it has ended meanwhile, or is not ours to signal
        }
    }
}

/// Kills and reaps until no descendant is left. Returns how many processes it has killed, and how many it could not kill.
///
/// A `group` is killed first: where it forks all the time, this process gets too little of the processors to look for its members.
/// With it comes how its leader has ended, which is noted there.
///
/// Where nothing is left over, this is one system call.
pub fn sweep(mut group: Option<(Pid, &mut Option<ExitStatus>)>) -> (usize, usize) {
    let started = Instant::now();
    if let Some((group, end)) = &group
        // without its leader the number is another process's by now, or still that of the group
        && (end.is_none() || test_kill_process(*group) == Err(Errno::SRCH))
    {
        let _ = kill_process_group(*group, Signal::KILL); // ESRCH: the group is empty already
    }
    let mut killing = group.is_some();
    let mut killed = 0;
    let mut idle_passes = 0;
    // A scan of thousands takes longer than a fork, while the first scans catch almost all.
    let mut at_most = REAPED_AT_ONCE;
    let mut last_scan = Duration::ZERO;
    loop {
        let reaping = Instant::now();
        let mut reaped = 0;
        // At least as long as the last scan took: otherwise zombies pile up, and each scan takes longer.
        while reaped < REAPED_AT_ONCE || reaping.elapsed() < last_scan {
            match reap() {
                Ok(Some((pid, exit))) => {
                    killed += usize::from(killing && exit.signal() == Some(SIGKILL));
                    if let Some((_, end)) = group.as_mut().filter(|(leader, _)| *leader == pid) {
                        **end = Some(exit);
                    }
                }
                Ok(None) => break,
                Err(_) => return (killed, 0),
            }
            reaped += 1;
        }
        if started.elapsed() > SWEEP_LIMIT {
            let left = descendants(SWEEP_LIMIT).len().max(1); // a child is left, also where it is not found
            log::warn!("processes of the job that cannot be killed: {left}; going on without them");
            return (killed, left);
        }
        let scanning = Instant::now();
        // the children of a killed process become ours, in as many passes as it takes
        kill_children(at_most);
        at_most = at_most.saturating_mul(2);
        killing = true;
        last_scan = scanning.elapsed();
        if reaped > 0 {
            idle_passes = 0; // a process that forks and exits all the time is only caught by scanning at once
            continue;
        }
        idle_passes += 1;
        if idle_passes > 3 {
            // the children of a process that we may not kill do not become ours
            for (pid, _) in descendants(SWEEP_LIMIT) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep((FIRST_PAUSE * (1 << idle_passes.min(16))).min(LAST_PAUSE));
    }
}

/// Kills `at_most` of the newest children, and the groups that they are in.
///
/// No member of a group escapes from a signal to it by forking, while the child that we know of may be gone before we have
/// killed it.
fn kill_children(at_most: usize) {
    let children = children();
    let is_ours = |group: Pid| {
        // a process that enters the container of a PID 1 leads a group, and its orphans become our children: the group of a leader
        // who lives and is no child of ours is left alone
        children.contains(&group) || test_kill_process(group) == Err(Errno::SRCH)
    };
    let own = nix::unistd::getpgrp();
    let mut groups = HashMap::new();
    // Newest first: in a chain of forks only the newest child is still alive
    for child in children.iter().rev().take(at_most) {
        // not rustix's, which takes a group for a number above 0: a group with a leader outside of our PID namespace has none
        let Ok(group) = getpgid(Some(nix::unistd::Pid::from_raw(child.as_raw_pid()))) else {
            continue; // we alone reap: it cannot be gone
        };
        let all_killed = *groups.entry(group).or_insert_with(|| {
            let known =
                Pid::from_raw(group.as_raw()).filter(|known| group != own && is_ours(*known));
            known.is_some_and(|known| kill_process_group(known, Signal::KILL).is_ok())
        });
        if !all_killed {
            let _ = kill_process(*child, Signal::KILL); // EPERM: the sweep gives up on it after a while
        }
    }
}

/// Our own children but the foreign ones, in the order of their coming. The kernel's list of them is there at once, while
/// a look at all processes takes longer than a fork.
fn children() -> Vec<Pid> {
    let me = rustix::process::getpid().as_raw_pid();
    let foreign = foreign().clone();
    match std::fs::read_to_string(format!("/proc/self/task/{me}/children")) {
        Ok(list) => list
            .split_ascii_whitespace()
            .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
            .filter(|pid| !foreign.contains(pid))
            .collect(),
        // a kernel without CONFIG_PROC_CHILDREN
        Err(_) => {
            let children = processes(SWEEP_LIMIT).remove(&me).unwrap_or_default();
            children.into_iter().map(|(pid, _)| pid).collect()
        }
    }
}

/// All descendants of this process but the foreign ones, each with its group, or those that `patience` suffices for.
fn descendants(patience: Duration) -> Vec<(Pid, i32)> {
    let mut processes = processes(patience);
    let mut found = Vec::new();
    let mut parents = vec![rustix::process::getpid().as_raw_pid()];
    while let Some(parent) = parents.pop() {
        let children = processes.remove(&parent).unwrap_or_default();
        parents.extend(children.iter().map(|(pid, _)| pid.as_raw_pid()));
        found.extend(children);
    }
    found
}

/// All processes but the foreign ones by their parents, each with its group, by one look through /proc; or those that `patience`
/// suffices for.
fn processes(patience: Duration) -> HashMap<i32, Vec<(Pid, i32)>> {
    let started = Instant::now();
    let mut processes: HashMap<i32, Vec<(Pid, i32)>> = HashMap::new();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return processes;
    };
    let me = rustix::process::getpid().as_raw_pid();
    let is_ours = |own: PathBuf| own.as_os_str() == me.to_string().as_str();
    if !std::fs::read_link("/proc/self").is_ok_and(is_ours) {
        static WARN: Once = Once::new();
        WARN.call_once(|| {
            log::warn!(
                "/proc is that of another PID namespace: daemonised processes of a job may outlive it"
            );
        });
        return processes; // its numbers are those of other processes
    }
    let foreign = foreign().clone();
    for entry in entries.flatten() {
        if started.elapsed() > patience {
            break;
        }
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| Pid::from_raw(name.parse().ok()?))
            .filter(|pid| !foreign.contains(pid))
        else {
            continue;
        };
        let stat = std::fs::read(entry.path().join("stat")).unwrap_or_default(); // ended meanwhile
        if let Some((parent, group)) = parse_stat(&stat) {
            processes.entry(parent).or_default().push((pid, group));
        }
    }
    processes
}

/// Parent and group, of a line of /proc/PID/stat. The name before them may hold anything but ends at the last parenthesis.
fn parse_stat(stat: &[u8]) -> Option<(i32, i32)> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace().skip(1); // its state
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_count_as_in_a_shell() {
        for (status, number, name) in [
            (7 << 8, 7, None),
            (0, 0, None),
            (9, 137, Some("SIGKILL")),
            (15, 143, Some("SIGTERM")),
            (40, 168, Some("SIG40")),
            (0x80 | 11, 139, Some("SIGSEGV")), // with a core
        ] {
            let exit = ExitStatus::from_raw(status);
            assert_eq!((code(exit), signal_name(exit).as_deref()), (number, name));
        }
    }

    #[test]
    fn a_hostile_process_name_does_not_confuse_the_parents() {
        assert_eq!(parse_stat(b"12 (a b) Z 1 2) S 34 56 78 0"), Some((34, 56)));
        assert_eq!(parse_stat(b"12 (x) Z 34 56 78"), Some((34, 56)));
        assert_eq!(parse_stat(b"12 (x"), None);
        assert_eq!(parse_stat(b""), None);
    }
}

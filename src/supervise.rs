//! `job-worker supervise`: a process that keeps one fresh worker alive (docs/reference.md, "Commands"). It restarts
//! at once after a job, which no restart policy of Docker does, and it is the proper PID 1 that a worker cannot be
//! for itself: it kills and reaps what a worker that was killed has left behind. Between two workers it becomes the
//! program that an upgrade has put in its place.

use crate::Exit;
use crate::backoff::Backoff;
use crate::config::Config;
use crate::inbox::{Event, Inbox, Outbox};
use crate::process;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::execv;
use rustix::process::{Pid, Signal, kill_process};
use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf, absolute};
use std::process::Command;
use std::time::{Duration, Instant};

/// Pause after a worker that ended with an error; it doubles from the first to the last, and a success resets it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// How long to look for a stop that has come already.
const DRAIN: Duration = Duration::from_millis(1);

/// The argument that makes a worker tell us of a stop by [`STOPPED`]. Not for users, to whom a stop is a success.
pub const SUPERVISED: &str = "--supervised";

/// Status of a supervised worker that was asked to stop: the same as of one that SIGTERM ended before it had a handler.
pub const STOPPED: u8 = 143;

/// Keeps a worker alive until a signal asks us to stop, and ends with the last worker's status.
pub fn run(config: Config, outbox: Outbox<Infallible>, mut inbox: Inbox<Infallible>) -> Exit {
    drop(outbox); // no thread of ours has anything to say
    if let Err(error) = inbox.hear_signals() {
        return Exit::defect(&error);
    }
    process::adopt_orphans();
    let mut program = Program::of_this_process();
    let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
    loop {
        let status = match start_worker(&config).map(|worker| watch(worker, &mut inbox)) {
            Ok(ControlFlow::Break(status)) => return Exit::Of(status),
            Ok(ControlFlow::Continue(status)) => status,
            Err(error) => {
                log::error!("the worker cannot be started: {error}");
                Exit::Defect.status()
            }
        };
        if status == 0 {
            backoff.reset();
        } else {
            let pause = backoff.next_pause();
            match status {
                // a step of its job does this, which would have a fresh worker at once, again and again
                STOPPED => log::warn!(
                    "the worker was stopped, and not by us; starting another in {pause:?}"
                ),
                status => log::warn!(
                    "the worker ended with status {status}; starting another in {pause:?}"
                ),
            }
            if stop_asked_within(pause, &mut inbox) {
                return Exit::Of(if status == STOPPED { 0 } else { status });
            }
        }
        if let Some(path) = program.as_mut().and_then(Program::replaced)
            && become_program(path, &mut inbox).is_break()
        {
            return Exit::Done;
        }
    }
}

fn start_worker(config: &Config) -> io::Result<Pid> {
    process::spare_children();
    // in a group of its own: what a terminal or a service manager sends to ours is passed on, and not heard twice
    let mut command = Command::new("/proc/self/exe");
    command.arg0("job-worker").arg(SUPERVISED).process_group(0);
    if config.pool.is_some() {
        command.env("WORKER_ID", &config.worker_id); // which is ours as long as we live
    }
    // the handle is let go: reaping is done in `process` alone
    Ok(Pid::from_child(&command.spawn()?))
}

/// Waits for the end of a worker, and leaves nothing of it running. Continues with its status, or breaks with it where a signal
/// has asked us to stop.
fn watch(worker: Pid, inbox: &mut Inbox<Infallible>) -> ControlFlow<u8, u8> {
    let mut stopped = false;
    let mut ended = None;
    while ended.is_none() {
        match inbox.next(None) {
            Some(Event::Stop(_)) => {
                stopped = true;
                for signal in [Signal::TERM, Signal::CONT] {
                    let _ = kill_process(worker, signal); // ESRCH: it has just ended, which is the next event
                }
            }
            Some(Event::ChildEnded) => {
                process::reap_some(|pid, exit| {
                    if pid == worker {
                        ended = Some(exit);
                    }
                });
            }
            None => {}
        }
    }
    // one that has ended by itself has left nothing, and what is there now was never its own
    let defect = Exit::Defect.status();
    let own = ended.and_then(|exit| exit.code());
    if own.is_none_or(|code| code == i32::from(defect)) {
        process::sweep(None);
    }
    let status = ended.and_then(|exit| u8::try_from(process::code(exit)).ok());
    match (stopped, status.unwrap_or(defect)) {
        (true, STOPPED) => ControlFlow::Break(0),
        (true, status) => ControlFlow::Break(status),
        (false, status) => ControlFlow::Continue(status),
    }
}

/// Becomes the program at `path`, under the same pid and with the same arguments. Breaks where a signal has asked us to stop, and
/// continues where that program cannot be executed.
fn become_program(path: &Path, inbox: &mut Inbox<Infallible>) -> ControlFlow<()> {
    // A signal that comes from here on waits for the handlers of the new program; there is no other thread.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    if stop_asked_within(DRAIN, inbox) {
        return ControlFlow::Break(());
    }
    let shown = path.display();
    log::info!("{shown} was replaced: executing the new program");
    let text = |text: &OsStr| CString::new(text.as_bytes()).unwrap_or_default();
    let arguments: Vec<_> = std::env::args_os()
        .map(|argument| text(&argument))
        .collect();
    // not by std, which has the C library give a text to the shell
    let Err(error) = execv(&text(path.as_os_str()), &arguments);
    log::warn!("{shown} cannot be executed: {error}; going on as the old program");
    if let Err(error) = mask.and_then(|mask| mask.thread_set_mask()) {
        log::warn!("cannot unblock signals: {error}");
    }
    ControlFlow::Continue(())
}

fn stop_asked_within(pause: Duration, inbox: &mut Inbox<Infallible>) -> bool {
    let until = Instant::now() + pause;
    loop {
        match inbox.next(Some(until)) {
            Some(Event::Stop(_)) => return true,
            Some(Event::ChildEnded) => {
                process::reap_some(|_, _| {}); // an orphan that PID 1 was given
            }
            None => return false,
        }
    }
}

/// The path that this program was started by, and the file that was last seen there.
struct Program {
    path: PathBuf,
    seen: Option<Identity>,
}

/// Device, inode and time of the last change: a file that was still being written or had no rights yet is another one when it is
/// whole.
type Identity = (u64, u64, i64, i64);

impl Program {
    /// `None` where it cannot be told. The path is the one of the call, where that leads to this program: it may be a symlink that will
    /// lead to another version.
    fn of_this_process() -> Option<Self> {
        let running = std::env::current_exe().ok()?;
        let seen = identity(&running);
        let name = PathBuf::from(std::env::args_os().next()?);
        let in_path = std::env::var_os("PATH").unwrap_or_default();
        let in_path = std::env::split_paths(&in_path).map(|dir| dir.join(&name));
        let mut called = absolute(&name).into_iter().chain(in_path);
        let path = called.find(|path| identity(path) == seen);
        Some(Self {
            path: path.unwrap_or(running),
            seen,
        })
    }

    /// The path, if it leads to another file than at the last look. While there is none, the old program goes on.
    fn replaced(&mut self) -> Option<&Path> {
        let now = identity(&self.path)?;
        let before = self.seen.replace(now);
        (before != Some(now)).then_some(self.path.as_path())
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let file = path.metadata().ok()?;
    Some((file.dev(), file.ino(), file.ctime(), file.ctime_nsec()))
}

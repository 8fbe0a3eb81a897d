//! `job-worker supervise`: a process that keeps one fresh worker alive (docs/reference.md, "Commands"). It restarts
//! at once after a job, which no restart policy of Docker does, and it is the proper PID 1 that a worker cannot be
//! for itself: it kills and reaps what a worker that was killed has left behind. Between two workers it becomes the
//! program that an upgrade has put in its place.

mod program;

use crate::Exit;
use crate::backoff::Backoff;
use crate::inbox::{self, Event, Inbox};
use crate::process::{self, Ended};
use nix::sys::signal::SigSet;
use program::Program;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::convert::Infallible;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Pause after a worker that ended with an error; it doubles from the first to the last, and a success resets it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// How long to look for a stop that has already been told.
const DRAIN: Duration = Duration::from_millis(1);

/// The argument that makes a worker tell us of a stop by [`STOPPED`]. Not for users, to whom a stop is a success.
pub const SUPERVISED: &str = "--supervised";

/// Status of a supervised worker that was asked to stop: the same as of one that SIGTERM ended before it had a handler.
pub const STOPPED: u8 = 143;

/// Keeps a worker alive until somebody asks us to stop, and ends with the last worker's status.
pub fn run() -> Exit {
    let Some((_, inbox)) = inbox::open() else {
        return Exit::Defect;
    };
    process::adopt_orphans();
    let mut program = Program::of_this_process();
    let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
    loop {
        let status = match start_worker() {
            Ok(worker) => match watch(worker, &inbox) {
                Watched::Stopped(status) => return Exit::Of(status),
                Watched::Ended(status) => status,
            },
            Err(error) => {
                log::error!("the worker cannot be started: {error}");
                Exit::Defect.status()
            }
        };
        if let Some(new) = program.as_mut().and_then(Program::replaced)
            && let Renewal::StopAsked = renew(new, &inbox)
        {
            return Exit::Done;
        }
        if status == 0 {
            backoff.reset();
            continue;
        }
        let pause = backoff.next_pause();
        match status {
            // a step of its job does this, which would have a fresh worker at once, again and again
            STOPPED => {
                log::warn!("the worker was stopped, and not by us; starting another in {pause:?}")
            }
            status => {
                log::warn!("the worker ended with status {status}; starting another in {pause:?}")
            }
        }
        if stop_asked_within(pause, &inbox) {
            return if status == STOPPED {
                Exit::Done
            } else {
                Exit::Of(status)
            };
        }
    }
}

fn start_worker() -> io::Result<Pid> {
    start(Command::new("/proc/self/exe").arg(SUPERVISED))
}

fn start(command: &mut Command) -> io::Result<Pid> {
    // in a group of its own: at a terminal, Ctrl-C would reach it twice, and a second signal means "at once".
    // The handle is let go: reaping is done in `process` alone
    Ok(Pid::from_child(&command.process_group(0).spawn()?))
}

/// How it ended to become another program, where it has not become it.
enum Renewal {
    /// That one does not run, and we stay what we are.
    Failed,
    /// Somebody asked us to stop meanwhile.
    StopAsked,
}

/// Becomes the program at `path`, under the same pid and with the same arguments, if that one runs at all: it may be half
/// written, or for another processor.
fn renew(path: &Path, inbox: &Inbox<Infallible>) -> Renewal {
    let mut trial = Command::new(path);
    trial.arg("--version").stdout(Stdio::null());
    let error = match start(&mut trial).map(|trial| watch(trial, inbox)) {
        Ok(Watched::Stopped(_)) => return Renewal::StopAsked,
        Ok(Watched::Ended(0)) => {
            // A signal that comes from here on waits for the handlers of the new program; there is no other thread.
            if let Err(error) = SigSet::all().thread_block() {
                log::warn!("cannot block signals: {error}");
            }
            if stop_asked_within(DRAIN, inbox) {
                return Renewal::StopAsked;
            }
            log::info!(
                "{} was replaced: going on as the new program",
                path.display()
            );
            let mut arguments = std::env::args_os();
            let name = arguments.next().unwrap_or_default();
            let error = Command::new(path).arg0(name).args(arguments).exec();
            if let Err(error) = SigSet::all().thread_unblock() {
                log::warn!("cannot unblock signals: {error}");
            }
            error.to_string()
        }
        Ok(Watched::Ended(status)) => format!("its --version ends with status {status}"),
        Err(error) => error.to_string(),
    };
    log::warn!(
        "{} was replaced, and the new program does not run: {error}; going on with the old one",
        path.display()
    );
    Renewal::Failed
}

enum Watched {
    /// By itself, with this status.
    Ended(u8),
    /// After we had passed on a signal.
    Stopped(u8),
}

/// Waits for the end of a worker, and leaves nothing of it running.
fn watch(worker: Pid, inbox: &Inbox<Infallible>) -> Watched {
    let mut stopped = false;
    let ended = loop {
        match inbox.next(None) {
            Some(Event::Stop(signal)) => {
                stopped = true;
                let signal = if signal == SIGINT {
                    Signal::INT
                } else {
                    Signal::TERM
                };
                let _ = kill_process(worker, signal); // ESRCH: it has just ended, which is the next event
            }
            Some(Event::ChildEnded) => {
                let mut ended = None;
                process::reap_some(|pid, exit| {
                    if pid == worker {
                        ended = Some(exit);
                    }
                });
                if let Some(ended) = ended {
                    break ended;
                }
            }
            None | Some(Event::Woken) => {}
        }
    };
    process::sweep(|_, _| {});
    let status = match ended {
        // our signal came before it had handlers, so it had not begun anything
        Ended::Signal(SIGTERM | SIGINT) if stopped => Exit::Done.status(),
        Ended::Code(code) if stopped && code == i32::from(STOPPED) => Exit::Done.status(),
        ended => u8::try_from(ended.code()).unwrap_or(Exit::Defect.status()),
    };
    if stopped {
        Watched::Stopped(status)
    } else {
        Watched::Ended(status)
    }
}

fn stop_asked_within(pause: Duration, inbox: &Inbox<Infallible>) -> bool {
    let until = Instant::now() + pause;
    loop {
        match inbox.next(Some(until)) {
            Some(Event::Stop(_)) => return true,
            Some(Event::ChildEnded) => {
                process::reap_some(|_, _| {}); // an orphan that PID 1 was given
            }
            Some(Event::Woken) => {} // nobody here has a waker
            None => return false,
        }
    }
}

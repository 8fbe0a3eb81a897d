//! `job-worker run DIR`: the same job, the same files, without a broker (docs/reference.md, "Commands").

use crate::config::JobConfig;
use crate::contract::{JobId, Reason, Request, RequestOrigin};
use crate::inbox::{Event, Inbox, Outbox};
use crate::job::{Interruption, Outcome, Run};
use crate::{Exit, process};
use rustix::fs::OFlags;
use rustix::io::Errno;
use signal_hook::consts::SIGINT;
use signal_hook::low_level::signal_name;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Pause between two looks at the log, for the terminal.
const LOG_LOOK: Duration = Duration::from_millis(50);

/// The same at the end, when there is only the rest of the log to wait for.
const END_LOOK: Duration = Duration::from_millis(2);

/// Runs the job in `dir`; its log also goes to stdout.
pub fn run(
    config: &JobConfig,
    worker: &str,
    dir: &OsStr,
    id: Option<&str>,
    (outbox, mut inbox): (Outbox<()>, Inbox<()>),
) -> Exit {
    if let Err(error) = inbox.hear_signals() {
        return Exit::defect(&error);
    }
    process::adopt_orphans();
    let request = match request(dir, id) {
        Ok(request) => request,
        Err(error) => {
            log::error!("{error}");
            return Exit::Usage;
        }
    };
    let (code, error) = match execute(config, worker, request, outbox, &mut inbox) {
        Outcome::Final(document) => (document.exit_code.unwrap_or(1), document.error),
        // no request has it, so a second signal has come before the drive had the result
        _ => {
            let error = "killed before the drive had the result";
            (Reason::Cancelled.exit_code(1), Some(error.to_owned()))
        }
    };
    if let Some(error) = error {
        log::error!("{error}");
    }
    Exit::Of(u8::try_from(code).unwrap_or(1))
}

/// The request that a controller would have published.
fn request(dir: &OsStr, id: Option<&str>) -> Result<Request, String> {
    let told = |error| format!("{}: {error}", dir.display());
    let path = Path::new(dir).canonicalize().map_err(told)?;
    if !path.is_dir() {
        return Err(format!("{} is not a directory", dir.display()));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let id = JobId::from_text(id.unwrap_or(&name))
        .map_err(|error| format!("the id of the job {error}; give one with --id"))?;
    let work_dir = std::path::absolute(dir).map_err(told)?;
    let work_dir = work_dir
        .into_os_string()
        .into_string()
        .map_err(|dir| format!("{} is not valid UTF-8", dir.display()))?;
    Ok(Request {
        id,
        work_dir,
        key: None,
        definition: Default::default(),
    })
}

fn execute(
    config: &JobConfig,
    worker: &str,
    request: Request,
    outbox: Outbox<()>,
    inbox: &mut Inbox<()>,
) -> Outcome {
    let log = Path::new(&request.work_dir).join("job.log");
    let mut run = Run::new(
        request,
        RequestOrigin::ByHand,
        config,
        worker,
        Arc::new(move || outbox.send(())),
        None,
    );
    let mut terminal = None;
    let mut asked_before = false;
    let outcome = loop {
        // asked first: a job without steps may be over already
        if let Some(from) = run.log_start() {
            // on a thread of its own: a reader that does not read must hold up neither a timeout nor a signal
            let log = log.clone();
            let (running, over) = mpsc::channel();
            let threads = std::thread::Builder::new().name("log".into());
            terminal = match threads.spawn(move || show(&log, from, &over)) {
                Ok(shown) => Some((running, shown)),
                Err(error) => {
                    log::warn!("no thread to show job.log: {error}");
                    None
                }
            };
        }
        if let Some(outcome) = run.outcome() {
            break outcome;
        }
        match inbox.next(run.next_wake()) {
            Some(Event::ChildEnded) => run.child_ended(),
            Some(Event::Stop(_)) if std::mem::replace(&mut asked_before, true) => {
                run.stop_at_once()
            }
            Some(Event::Stop(signal)) => {
                run.interrupt(Interruption::Cancelled(sender_of(signal)), Instant::now())
            }
            Some(Event::Sent(())) | None => run.wake(Instant::now()),
        }
    };
    if let Some((running, shown)) = terminal {
        drop(running);
        // a reader may be slow; a person who does not want the rest interrupts us once more
        let mut is_wanted = true;
        while is_wanted && !shown.is_finished() {
            let event = inbox.next(Some(Instant::now() + END_LOOK));
            is_wanted = !matches!(event, Some(Event::Stop(_)));
        }
    }
    outcome
}

/// Who has sent a signal, as people at a terminal know it.
fn sender_of(signal: i32) -> &'static str {
    match signal {
        SIGINT => "^C",
        signal => signal_name(signal).unwrap_or("a signal"),
    }
}

/// The log, if it is a file just now: a step may have put a FIFO or a link to somewhere else in its place.
fn open_log(path: &Path) -> Option<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let log = File::options()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .ok()?;
    log.metadata()
        .is_ok_and(|meta| meta.is_file())
        .then_some(log)
}

/// Shows on the terminal what the log gets, until the job is over.
fn show(path: &Path, from: u64, over: &Receiver<()>) {
    let mut log = None;
    let mut shown = from;
    let mut buffer = [0; 16 * 1024];
    loop {
        let is_over = over.recv_timeout(LOG_LOOK) != Err(RecvTimeoutError::Timeout);
        // where a step has removed it, it is written anew: with all that was in it
        log = open_log(path).or(log);
        while let Some(file) = &log
            && let Ok(bytes @ 1..) = file.read_at(&mut buffer, shown)
        {
            match rustix::io::write(std::io::stdout(), &buffer[..bytes]) {
                Ok(written) => shown += written as u64,
                Err(Errno::INTR) => {}
                // another program that has it, too, wants it so
                Err(Errno::AGAIN) => std::thread::sleep(LOG_LOOK),
                Err(_) => return, // the reader is gone; the job goes on, and its log is in the file
            }
        }
        if is_over {
            return;
        }
    }
}

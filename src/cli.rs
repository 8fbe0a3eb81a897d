//! Arguments → command → exit status (docs/reference.md, "Commands").

use crate::config::{Config, JobConfig, TABLE, unknown_variables};
use crate::contract::single_line;
use crate::inbox::{self, Event, Inbox, Outbox};
use crate::job::missing_root;
use crate::{Exit, check, logging, process, run, supervise, worker};
use log::Level;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::time::{Duration, Instant};

const HELP: &str = "\
One-shot job execution engine: MQTT for signals, a shared drive for data and logs.

Usage:
  job-worker                        wait for one job, run it, report it, exit
  job-worker supervise              keep one fresh worker process alive
  job-worker run DIR [--id ID]      run the job in DIR now, without a broker
  job-worker check [DIR] [--connect]  validate the configuration, and the job in DIR;
                                    with --connect also try the broker, leaving no trace there
  job-worker --help | --version     --help also works behind each command

Exit status: 0 the job has its result, or the worker was stopped; 64 usage; 70 a defect;
  75 another client took over WORKER_ID; 77 the broker denies what the worker needs; 78 configuration
  `run`: that of the first step that failed, 128 + n for signal n, 124 timeout, 130 cancelled,
  1 no step ran, 64 DIR cannot be used

Environment variables configure the worker. All are optional, and the value behind the = is the default:
";

/// With the target triple: the first question about a binary that was copied to a board.
const VERSION: &str = concat!(
    "job-worker ",
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("TARGET_TRIPLE"),
    ")\n"
);

/// How often a worker looks for a `JOB_ROOT` that is missing.
const DRIVE_LOOK: Duration = Duration::from_secs(1);

/// What the arguments ask for.
#[derive(Debug, Default, PartialEq)]
struct Call {
    command: String,
    dir: Option<OsString>,
    id: Option<String>,
    connect: bool,
    help: bool,
}

/// Runs the program with these arguments.
pub fn main(arguments: impl Iterator<Item = OsString>) -> Exit {
    match Call::parse(arguments) {
        Ok(call) => call.run(),
        Err(error) => {
            let line = format!("job-worker: {error}; job-worker --help says what there is");
            write(io::stderr(), &format!("{}\n", single_line(&line)));
            Exit::Usage
        }
    }
}

impl Call {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let Some(first) = arguments.next() else {
            return Ok(Self::default());
        };
        let unknown_option = |option| Err(format!("unknown option {option:?}"));
        let command = first.to_str().unwrap_or_default();
        let takes: &[&str] = match command {
            "run" => &["DIR", "--id"],
            "check" => &["DIR", "--connect"],
            "supervise" | supervise::SUPERVISED => &[],
            "--help" | "-h" | "help" | "--version" | "-V" => &[],
            option if option.starts_with('-') => return unknown_option(first),
            _ => return Err(format!("unknown command {first:?}")),
        };
        let mut call = Self {
            command: command.to_owned(),
            help: matches!(command, "--help" | "-h" | "help"),
            ..Self::default()
        };
        while let Some(argument) = arguments.next() {
            let text = argument.to_str().unwrap_or_default();
            match text.split_once('=').unwrap_or((text, "")) {
                _ if text == "--help" || text == "-h" => call.help = true,
                _ if text == "--connect" && takes.contains(&text) => call.connect = true,
                ("--id", value) if takes.contains(&"--id") => {
                    let value = match text.contains('=') {
                        true => Some(value.to_owned()),
                        false => arguments.next().and_then(|value| value.into_string().ok()),
                    };
                    call.id = Some(value.ok_or("--id needs the id of the job")?);
                }
                _ if argument.as_encoded_bytes().starts_with(b"-") => {
                    return unknown_option(argument);
                }
                _ if takes.contains(&"DIR") && call.dir.is_none() && !argument.is_empty() => {
                    call.dir = Some(argument);
                }
                _ => return Err(format!("unexpected argument {argument:?}")),
            }
        }
        match call.command == "run" && call.dir.is_none() && !call.help {
            true => Err("run needs the directory of the job".to_owned()),
            false => Ok(call),
        }
    }

    fn run(self) -> Exit {
        let dir = self.dir.as_deref();
        match self.command.as_str() {
            _ if self.help => say(&format!("{HELP}{}", shown_table())),
            "--version" | "-V" => say(VERSION),
            "check" => show(dir, self.connect),
            "run" => match (begin(false, true), JobConfig::by_hand()) {
                (Err(error), _) => Exit::defect(&error),
                (_, Err(errors)) => unusable(errors),
                (Ok(ends), Ok((config, worker))) => {
                    let dir = dir.unwrap_or_default();
                    run::run(&config, &worker, dir, self.id.as_deref(), ends)
                }
            },
            "supervise" => on_drive(false, supervise::run),
            supervise::SUPERVISED => {
                // for `ps`, `top` and `ss`: the kernel takes the name from /proc/self/exe
                let _ = nix::sys::prctl::set_name(c"job-worker");
                match on_drive(true, worker::run) {
                    Exit::Stopped => Exit::Of(supervise::STOPPED),
                    exit => exit,
                }
            }
            _ => on_drive(false, worker::run),
        }
    }
}

/// The variables of the help, without one that is gone.
fn shown_table() -> String {
    let shown = TABLE
        .iter()
        .filter(|(.., expected)| !expected.contains("is gone"));
    let line = |(name, default, expected): &(&str, &str, &str)| {
        format!("  {:<31} {expected}\n", format!("{name}={default}"))
    };
    shown.map(line).collect()
}

fn say(text: &str) -> Exit {
    write(io::stdout(), text);
    Exit::Done
}

/// What is good goes to stdout, and what is wrong to stderr.
fn show(dir: Option<&OsStr>, connect: bool) -> Exit {
    let mut exit = Exit::Done;
    check::check(dir, connect, &mut |level, line| {
        let line = single_line(&line);
        match level {
            Level::Warn => write(io::stderr(), &format!("warning: {line}\n")),
            Level::Error => {
                write(io::stderr(), &format!("{line}\n"));
                exit = Exit::Config;
            }
            _ => write(io::stdout(), &format!("{line}\n")),
        }
    });
    exit
}

/// Into a closed pipe, too, which `println!` and `eprintln!` would answer with a panic: a reader who has gone wants no more.
fn write(mut to: impl Write, text: &str) {
    let _ = to.write_all(text.as_bytes());
}

/// Begins what every command that runs something needs, with the inbox: a signal is kept, and SIGTTOU does not stop us, before the log
/// has a line. A panic on any thread ends the process: a worker whose connection thread is gone would wait for ever.
fn begin<T>(shows_time: bool, warns: bool) -> io::Result<(Outbox<T>, Inbox<T>)> {
    let ends = inbox::open();
    logging::start(shows_time);
    std::panic::set_hook(Box::new(|panic| {
        log::error!("defect: {panic}");
        std::process::exit(Exit::Defect.status().into());
    }));
    if warns && let Some(warning) = unknown_variables(std::env::vars_os()) {
        log::warn!("{warning}");
    }
    ends
}

fn unusable(errors: Vec<String>) -> Exit {
    for error in errors {
        log::error!("{error}");
    }
    Exit::Config
}

/// Reads the configuration and begins, once `JOB_ROOT` is there: a drive may be mounted later than a service starts. A supervised
/// worker has its name from the supervisor.
fn on_drive<T>(
    is_supervised: bool,
    work: impl FnOnce(Config, Outbox<T>, Inbox<T>) -> Exit,
) -> Exit {
    let (outbox, mut inbox) = match begin(true, !is_supervised) {
        Ok(ends) => ends,
        Err(error) => return Exit::defect(&error),
    };
    let mut is_told = false;
    loop {
        let mut config = match Config::from_env() {
            Ok(config) => config,
            Err(errors) => return unusable(errors),
        };
        let Some(missing) = missing_root(&config.job) else {
            let _name = (!is_supervised).then(|| config.take_name());
            return work(config, outbox, inbox);
        };
        if !std::mem::replace(&mut is_told, true) {
            log::warn!("{missing}: waiting until it is there");
            if let Err(error) = inbox.hear_signals() {
                return Exit::defect(&error);
            }
        }
        match inbox.next(Some(Instant::now() + DRIVE_LOOK)) {
            Some(Event::Stop(_)) => return Exit::Stopped,
            Some(Event::ChildEnded) => drop(process::reap_some(|_, _| {})),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong is in `tests/contract/usage.rs`.
    #[test]
    fn arguments_are_commands() {
        for (line, command, dir, id, connect, help) in [
            ("", "", None, None, false, false),
            ("supervise", "supervise", None, None, false, false),
            ("check", "check", None, None, false, false),
            ("check d", "check", Some("d"), None, false, false),
            ("check --connect d", "check", Some("d"), None, true, false),
            ("run d", "run", Some("d"), None, false, false),
            (
                "run --id 7=8 d",
                "run",
                Some("d"),
                Some("7=8"),
                false,
                false,
            ),
            (
                "run d --id=7=8",
                "run",
                Some("d"),
                Some("7=8"),
                false,
                false,
            ),
            ("run d -h", "run", Some("d"), None, false, true),
            ("help", "help", None, None, false, true),
            ("--version -h", "--version", None, None, false, true),
        ] {
            let call = Call {
                command: command.to_owned(),
                dir: dir.map(OsString::from),
                id: id.map(str::to_owned),
                connect,
                help,
            };
            let arguments = line.split_whitespace().map(OsString::from);
            assert_eq!(Call::parse(arguments), Ok(call), "{line}");
        }
    }
}

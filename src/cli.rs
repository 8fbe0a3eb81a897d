//! Arguments → verb → exit status (docs/reference.md, "Commands").

use crate::config::Config;
use crate::contract::single_line;
use crate::{Exit, check, logging, run, supervise, worker};
use std::ffi::OsString;
use std::io::Write;

const HELP: &str = "\
One-shot job execution engine: MQTT for signals, a shared drive for data and logs.

Usage:
  job-worker                      wait for one job, run it, report it, exit
  job-worker supervise            keep one fresh worker process alive
  job-worker run DIR [--id ID]    run the job in DIR now, without a broker
  job-worker check [DIR]          validate the configuration, and the job in DIR
  job-worker --help | --version

Configuration is by environment variables, all optional:
  MQTT_URL (mqtt://localhost:1883), MQTT_USERNAME, MQTT_PASSWORD, MQTT_PASSWORD_FILE,
  MQTT_CA_FILE, MQTT_CERT_FILE, MQTT_KEY_FILE (for mqtts://, feature `tls`),
  MQTT_PROTOCOL_VERSION (auto), MQTT_TOPIC_ROOT (jobs), MQTT_KEEP_ALIVE (30),
  WORKER_ID (node-worker-01), JOB_ROOT, JOB_PAYLOAD_STEPS (allow), JOB_SHELL (/bin/sh),
  JOB_TIMEOUT, JOB_STOP_GRACE (8), JOB_DIR_WAIT (5), JOB_MAX_ATTEMPTS (3), JOB_LOG_LIMIT,
  JOB_ON_STOP (requeue), JOB_SYNC (on), RUST_LOG (info)
";

/// With the target triple: the first question about a binary that somebody copied to a board.
const VERSION: &str = concat!(
    "job-worker ",
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("TARGET_TRIPLE"),
    ")\n"
);

/// What the arguments ask for.
#[derive(Debug, PartialEq)]
enum Verb {
    Work,
    /// What `supervise` starts: it is told of a stop that it did not ask for.
    WorkSupervised,
    Supervise,
    Run {
        dir: OsString,
        id: Option<String>,
    },
    Check {
        dir: Option<OsString>,
    },
    Help,
    Version,
}

/// Runs the program with these arguments.
pub fn main(arguments: impl Iterator<Item = OsString>) -> Exit {
    let say = |text: &str| {
        write(std::io::stdout(), text);
        Exit::Done
    };
    let verb = match parse(arguments.collect()) {
        Ok(verb) => verb,
        Err(error) => {
            write(std::io::stderr(), &format!("job-worker: {error}\n\n{HELP}"));
            return Exit::Usage;
        }
    };
    match verb {
        Verb::Help => say(HELP),
        Verb::Version => say(VERSION),
        Verb::Check { dir } => show(&check::check(dir.as_deref())),
        Verb::Work => with_config(worker::run),
        Verb::WorkSupervised => match with_config(worker::run) {
            Exit::Stopped => Exit::Of(supervise::STOPPED),
            exit => exit,
        },
        Verb::Supervise => with_config(|_| supervise::run()),
        Verb::Run { dir, id } => with_config(|config| run::run(&config, &dir, id.as_deref())),
    }
}

fn parse(arguments: Vec<OsString>) -> Result<Verb, String> {
    let mut rest = arguments.into_iter();
    let Some(first) = rest.next() else {
        return Ok(Verb::Work);
    };
    let verb = match first.to_str() {
        Some("supervise") => Verb::Supervise,
        Some(supervise::SUPERVISED) => Verb::WorkSupervised,
        Some("--help" | "-h" | "help") => Verb::Help,
        Some("--version" | "-V") => Verb::Version,
        Some("check") => match rest.next().filter(|dir| !dir.is_empty()) {
            Some(option) if option.as_encoded_bytes().starts_with(b"-") => {
                return Err(format!("unknown option {option:?}"));
            }
            dir => Verb::Check { dir },
        },
        Some("run") => {
            let (mut dir, mut id) = (None, None);
            while let Some(argument) = rest.next() {
                match argument.to_str() {
                    Some("--id") => {
                        let value = rest.next().and_then(|value| value.into_string().ok());
                        id = Some(value.ok_or("--id needs the id of the job")?);
                    }
                    Some(option) if option.starts_with('-') => {
                        return Err(format!("unknown option {option}"));
                    }
                    _ if dir.is_none() => dir = Some(argument),
                    _ => {
                        return Err(format!(
                            "one directory is run at a time, not also {argument:?}"
                        ));
                    }
                }
            }
            Verb::Run {
                dir: dir.ok_or("run needs the directory of the job")?,
                id,
            }
        }
        _ => return Err(format!("unknown command {first:?}")),
    };
    match rest.next() {
        None => Ok(verb),
        Some(extra) => Err(format!("unexpected argument {extra:?}")),
    }
}

/// What is good goes to stdout, and what is wrong to stderr.
fn show(lines: &[Result<String, String>]) -> Exit {
    for line in lines {
        match line {
            Ok(good) => write(std::io::stdout(), &format!("{}\n", single_line(good))),
            Err(wrong) => write(std::io::stderr(), &format!("{}\n", single_line(wrong))),
        }
    }
    match lines.iter().all(Result::is_ok) {
        true => Exit::Done,
        false => Exit::Config,
    }
}

/// Into a closed pipe, too, which `println!` and `eprintln!` would answer with a panic: a reader who has gone wants no more.
fn write(mut to: impl Write, text: &str) {
    let _ = to.write_all(text.as_bytes());
}

fn with_config(verb: impl FnOnce(Config) -> Exit) -> Exit {
    logging::start();
    exit_on_defect();
    match Config::from_env() {
        Ok(config) => verb(config),
        Err(errors) => {
            for error in errors {
                log::error!("{error}");
            }
            Exit::Config
        }
    }
}

/// A panic on any thread ends the process: a worker whose connection thread is gone would wait for ever.
fn exit_on_defect() {
    std::panic::set_hook(Box::new(|panic| {
        log::error!("defect: {panic}");
        std::process::exit(Exit::Defect.status().into());
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verb(line: &str) -> Result<Verb, String> {
        parse(line.split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn arguments_are_verbs() {
        assert_eq!(verb(""), Ok(Verb::Work));
        assert_eq!(verb("supervise"), Ok(Verb::Supervise));
        assert_eq!(verb("check"), Ok(Verb::Check { dir: None }));
        assert_eq!(
            verb("check d"),
            Ok(Verb::Check {
                dir: Some("d".into())
            })
        );
        assert_eq!(
            verb("run d"),
            Ok(Verb::Run {
                dir: "d".into(),
                id: None
            })
        );
        assert_eq!(
            verb("run --id 7 d"),
            Ok(Verb::Run {
                dir: "d".into(),
                id: Some("7".into())
            })
        );
        assert_eq!(verb("--help"), Ok(Verb::Help));
        for wrong in [
            "start",
            "run",
            "run a b",
            "run --id",
            "run a --fast",
            "supervise now",
            "check a b",
            "check --all",
            "--version x",
        ] {
            assert!(verb(wrong).is_err(), "{wrong}");
        }
    }
}

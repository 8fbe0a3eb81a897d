//! Arguments → verb → exit status (docs/reference.md, "Commands").

use crate::check::Finding;
use crate::config::{Config, RunConfig, unknown_variables};
use crate::contract::single_line;
use crate::logging::Times;
use crate::{Exit, check, logging, run, supervise, worker};
use std::ffi::{OsStr, OsString};
use std::io::Write;

const HELP: &str = "\
One-shot job execution engine: MQTT for signals, a shared drive for data and logs.

Usage:
  job-worker                        wait for one job, run it, report it, exit
  job-worker supervise              keep one fresh worker process alive
  job-worker run DIR [--id ID]      run the job in DIR now, without a broker
  job-worker check [DIR] [--connect]  validate the configuration, and the job in DIR;
                                    with --connect also try the broker, leaving no trace there
  job-worker --help | --version     --help stands behind every command, too

Configuration is by environment variables, all optional:
  MQTT_URL (mqtt://localhost:1883), MQTT_USERNAME, MQTT_PASSWORD, MQTT_PASSWORD_FILE,
  MQTT_CA_FILE, MQTT_CERT_FILE, MQTT_KEY_FILE (for mqtts://, feature `tls`),
  MQTT_PROTOCOL_VERSION (auto), MQTT_TOPIC_ROOT (jobs), MQTT_KEEP_ALIVE (30),
  WORKER_ID (node-worker-01), JOB_POOL, JOB_ROOT, JOB_PAYLOAD_STEPS (allow), JOB_SHELL (/bin/sh),
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
        connect: bool,
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
            let line = format!("job-worker: {error}; job-worker --help says what there is");
            write(std::io::stderr(), &format!("{}\n", single_line(&line)));
            return Exit::Usage;
        }
    };
    match verb {
        Verb::Help => say(HELP),
        Verb::Version => say(VERSION),
        Verb::Check { dir, connect } => show(&check::check(dir.as_deref(), connect)),
        Verb::Work => {
            begin(logging::times());
            warn_of_unknown_variables();
            with_config(Config::from_env(), worker::run)
        }
        Verb::WorkSupervised => {
            begin(logging::times()); // the supervisor has warned
            match with_config(Config::from_env(), worker::run) {
                Exit::Stopped => Exit::Of(supervise::STOPPED),
                exit => exit,
            }
        }
        Verb::Supervise => {
            begin(logging::times());
            warn_of_unknown_variables();
            with_config(Config::from_env(), |_| supervise::run())
        }
        Verb::Run { dir, id } => {
            begin(Times::Left);
            warn_of_unknown_variables();
            let run = |config| run::run(&config, &dir, id.as_deref());
            with_config(RunConfig::from_env(), run)
        }
    }
}

fn parse(arguments: Vec<OsString>) -> Result<Verb, String> {
    let mut arguments = arguments.into_iter();
    let Some(first) = arguments.next() else {
        return Ok(Verb::Work);
    };
    let command = first.to_str().unwrap_or_default();
    let takes: &[&str] = match command {
        "run" => &["DIR", "--id"],
        "check" => &["DIR", "--connect"],
        "supervise" | supervise::SUPERVISED => &[],
        "--help" | "-h" | "help" | "--version" | "-V" => &[],
        option if option.starts_with('-') => return Err(unknown_option(&first)),
        _ => return Err(format!("unknown command {first:?}")),
    };
    let rest = Rest::read(arguments, takes)?;
    Ok(match command {
        _ if rest.help => Verb::Help,
        "run" => Verb::Run {
            dir: rest.dir.ok_or("run needs the directory of the job")?,
            id: rest.id,
        },
        "check" => Verb::Check {
            dir: rest.dir,
            connect: rest.connect,
        },
        "supervise" => Verb::Supervise,
        supervise::SUPERVISED => Verb::WorkSupervised,
        "--version" | "-V" => Verb::Version,
        _ => Verb::Help,
    })
}

/// What stands behind a command.
#[derive(Default)]
struct Rest {
    dir: Option<OsString>,
    id: Option<String>,
    connect: bool,
    help: bool,
}

impl Rest {
    /// Reads the arguments behind a command that takes these.
    fn read(mut arguments: impl Iterator<Item = OsString>, takes: &[&str]) -> Result<Self, String> {
        let mut rest = Self::default();
        while let Some(argument) = arguments.next() {
            let text = argument.to_str().unwrap_or_default();
            match text.split_once('=').unwrap_or((text, "")) {
                _ if text == "--help" || text == "-h" => rest.help = true,
                _ if text == "--connect" && takes.contains(&text) => rest.connect = true,
                ("--id", value) if takes.contains(&"--id") => {
                    let value = match text.contains('=') {
                        true => Some(value.to_owned()),
                        false => arguments.next().and_then(|value| value.into_string().ok()),
                    };
                    rest.id = Some(value.ok_or("--id needs the id of the job")?);
                }
                _ if argument.as_encoded_bytes().starts_with(b"-") => {
                    return Err(unknown_option(&argument));
                }
                _ if takes.contains(&"DIR") && rest.dir.is_none() && !argument.is_empty() => {
                    rest.dir = Some(argument);
                }
                _ => return Err(format!("unexpected argument {argument:?}")),
            }
        }
        Ok(rest)
    }
}

fn unknown_option(option: &OsStr) -> String {
    format!("unknown option {option:?}")
}

/// What is good goes to stdout, and what is wrong to stderr.
fn show(findings: &[Finding]) -> Exit {
    for finding in findings {
        match finding {
            Finding::Good(line) => write(std::io::stdout(), &format!("{}\n", single_line(line))),
            Finding::Doubtful(line) => {
                let line = single_line(line);
                write(std::io::stderr(), &format!("warning: {line}\n"));
            }
            Finding::Wrong(line) => write(std::io::stderr(), &format!("{}\n", single_line(line))),
        }
    }
    let is_wrong = |finding: &Finding| matches!(finding, Finding::Wrong(_));
    match findings.iter().any(is_wrong) {
        false => Exit::Done,
        true => Exit::Config,
    }
}

/// Into a closed pipe, too, which `println!` and `eprintln!` would answer with a panic: a reader who has gone wants no more.
fn write(mut to: impl Write, text: &str) {
    let _ = to.write_all(text.as_bytes());
}

/// Begins what every command that runs something needs.
fn begin(times: Times) {
    logging::start(times);
    exit_on_defect();
}

fn warn_of_unknown_variables() {
    if let Some(warning) = unknown_variables(std::env::vars_os()) {
        log::warn!("{warning}");
    }
}

fn with_config<C>(config: Result<C, Vec<String>>, verb: impl FnOnce(C) -> Exit) -> Exit {
    match config {
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
        for (line, dir, connect) in [
            ("check", None, false),
            ("check d", Some("d"), false),
            ("check --connect", None, true),
            ("check --connect d", Some("d"), true),
        ] {
            let dir = dir.map(OsString::from);
            assert_eq!(verb(line), Ok(Verb::Check { dir, connect }), "{line}");
        }
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
        assert_eq!(verb("run d --id=7=8"), verb("run --id 7=8 d"));
        for line in [
            "--help",
            "-h",
            "help",
            "run --help",
            "run d -h",
            "check --help",
            "supervise --help",
            "--version -h",
        ] {
            assert_eq!(verb(line), Ok(Verb::Help), "{line}");
        }
        for wrong in [
            "start",
            "run",
            "run a b",
            "run --id",
            "run a --fast",
            "supervise now",
            "check a b",
            "check --all",
            "check --connect=now",
            "run --connect d",
            "check --id 7",
            "supervise --connect",
            "--version x",
        ] {
            assert!(verb(wrong).is_err(), "{wrong}");
        }
    }
}

//! `job-worker check [DIR]`: says what is wrong before anything runs (contract section 9).

use crate::Exit;
use crate::cli::write;
use crate::config::Config;
use crate::contract::{Definition, MAX_DEFINITION_BYTES, single_line};
use crate::job::WorkDir;
use std::ffi::OsStr;
use std::io::{stderr, stdout};

/// Validates the configuration, and the job in `dir`. What is wrong goes to stderr, one line each.
pub fn run(dir: Option<&OsStr>) -> Exit {
    let mut exit = Exit::Done;
    match Config::from_env() {
        Ok(config) => {
            let broker = &config.broker;
            let topic = &config.topics.pending;
            write(
                stdout(),
                &format!(
                    "configuration: good; {} serves {topic} of {}:{}\n",
                    config.worker_id, broker.host, broker.port
                ),
            );
        }
        Err(errors) => {
            for error in errors {
                write(
                    stderr(),
                    &format!("configuration: {}\n", single_line(&error)),
                );
            }
            exit = Exit::Config;
        }
    }
    if let Some(dir) = dir {
        match check_job(dir) {
            Ok(summary) => write(stdout(), &format!("{}\n", single_line(&summary))),
            Err(error) => {
                write(stderr(), &format!("job: {}\n", single_line(&error)));
                exit = Exit::Config;
            }
        }
    }
    exit
}

fn check_job(dir: &OsStr) -> Result<String, String> {
    let path = std::path::absolute(dir).map_err(|error| format!("{dir:?}: {error}"))?;
    let dir = WorkDir::open(path, None).map_err(|error| error.to_string())?;
    let place = dir.path().join("job.json");
    let content = dir
        .read("job.json", MAX_DEFINITION_BYTES)
        .map_err(|error| format!("{}: {error}", place.display()))?;
    let content = content.ok_or_else(|| format!("{} does not exist", place.display()))?;
    let definition = Definition::parse(&content)?;
    let steps = definition.steps.ok_or("job.json has no `steps`")?;
    let unknown = match definition.unknown.is_empty() {
        true => String::new(),
        false => format!(
            "; unknown fields are ignored: {}",
            definition.unknown.join(", ")
        ),
    };
    Ok(format!("job: good; {} steps{unknown}", steps.len()))
}

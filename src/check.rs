//! `job-worker check [DIR]`: says what is wrong before anything runs (docs/reference.md, "Commands").

use crate::config::Config;
use crate::contract::{Definition, MAX_DEFINITION_BYTES};
use crate::job::WorkDir;
use std::ffi::OsStr;

/// Validates the configuration, and the job in `dir`: a line for each thing that is good, and one for each that is wrong.
pub fn check(dir: Option<&OsStr>) -> Vec<Result<String, String>> {
    let mut lines = match Config::from_env() {
        Ok(config) => {
            let (broker, topic) = (&config.broker, &config.topics.pending);
            vec![Ok(format!(
                "configuration: good; {} serves {topic} of {}:{}",
                config.worker_id, broker.host, broker.port
            ))]
        }
        Err(errors) => errors
            .iter()
            .map(|error| Err(format!("configuration: {error}")))
            .collect(),
    };
    lines.extend(dir.map(|dir| check_job(dir).map_err(|error| format!("job: {error}"))));
    lines
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

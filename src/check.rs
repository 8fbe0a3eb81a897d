//! `job-worker check [DIR]`: says what is wrong before anything runs (docs/reference.md, "Commands").

use crate::config::{Config, Durability, JobConfig, PoolConfig, unknown_variables, variables};
use crate::contract::{Definition, Plan};
use crate::job::{CANCEL_FILE, WorkDir, apart, definition, missing_root};
use crate::mqtt::{self, Subscription};
use crate::pool::Place;
use crate::random;
use log::Level::{self, Error, Info, Warn};
use std::ffi::OsStr;

/// Takes what is found, line by line: what is good, what is worth a word and makes nothing fail, or an error.
type Tell<'a> = &'a mut dyn FnMut(Level, String);

/// Validates the configuration, tries the broker if it is to `connect`, and validates the job in `dir`.
pub fn check(dir: Option<&OsStr>, connect: bool, tell: Tell) {
    let config = Config::from_env();
    tell(Info, settings());
    if let Some(names) = unknown_variables(std::env::vars_os()) {
        tell(Warn, format!("configuration: {names}"));
    }
    match &config {
        Ok(config) => {
            if let Some(missing) = missing_root(&config.job) {
                let line = format!("configuration: {missing}; a worker waits until it is there");
                tell(Error, line);
            } else {
                let (id, pending) = (&config.worker_id, &config.topics.pending);
                let line = format!("good; {id} serves {pending} of {}", config.broker);
                tell(Info, format!("configuration: {line}"));
                if let Some(pool) = &config.pool {
                    check_pool(config, pool, tell);
                }
            }
            if connect {
                check_broker(config, tell);
            }
        }
        Err(errors) => {
            for error in errors {
                tell(Error, format!("configuration: {error}"));
            }
            if connect {
                let line = "broker: not tried, since the configuration is not usable";
                tell(Error, line.to_owned());
            }
        }
    }
    if let Some(dir) = dir
        && let Err(error) = check_job(dir, config.ok().map(|config| config.job), tell)
    {
        tell(Error, format!("job: {error}"));
    }
}

/// Where the settings come from. Those of a service are not in the shell of the person who asks.
fn settings() -> String {
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let names: Vec<_> = variables().filter(is_set).collect();
    match names.is_empty() {
        true => {
            "settings: none in this environment, so the defaults; a service has its own".to_owned()
        }
        false => format!("settings: from this environment: {}", names.join(", ")),
    }
}

/// Does what a worker does at its start, under a client id of its own: the worker may be there at this moment.
fn check_broker(config: &Config, tell: Tell) {
    let (id, topics) = (&config.worker_id, &config.topics);
    let subscriptions = vec![
        Subscription::Requests(topics.pending.clone()),
        Subscription::Cancels(topics.cancel_filter.clone()),
    ];
    let settings = mqtt::Settings {
        broker: config.broker.clone(),
        client_id: format!("{id}-check-{:08x}", random() as u32),
        keeps_session: false,
        is_lasting: false,
        subscriptions,
        last_will: None,
    };
    let hosts = &config.broker.hosts;
    for host in hosts {
        let broker = match hosts.len() {
            1 => "broker".to_owned(),
            _ => format!("broker {host}"),
        };
        let mut settings = settings.clone();
        settings.broker.hosts = vec![host.clone()];
        let mut tell = |level, line| tell(level, format!("{broker}: {line}"));
        match mqtt::probe(settings, &mut tell) {
            Err(error) => tell(Error, error),
            Ok(()) => tell(
                Info,
                format!(
                    "not checked: whether it takes the client id {id}, keeps its session, and lets it write to {root}/results/+, \
                 {root}/status/+, {root}/workers/{id} and {root}/rejected",
                    root = topics.root(),
                ),
            ),
        }
    }
}

/// Looks at the place of the pool, and changes nothing there.
fn check_pool(config: &Config, pool: &PoolConfig, tell: Tell) {
    let name = &pool.name;
    match Place::survey(config, pool) {
        Ok(found) => tell(
            Info,
            format!(
                "pool {name}: {found}; not checked: whether all members see the same drive and each other's locks, and whether the broker \
             takes the client id {name} and keeps its session"
            ),
        ),
        Err(error) => tell(Error, format!("pool {name}: {error}")),
    }
}

/// What a worker with this configuration would make of the job.
fn check_job(dir: &OsStr, config: Option<JobConfig>, tell: Tell) -> Result<(), String> {
    let path = std::path::absolute(dir).map_err(|error| format!("{dir:?}: {error}"))?;
    let dir = WorkDir::open(path, None, Durability::Cache).map_err(|error| error.to_string())?;
    if dir.contains(CANCEL_FILE) {
        let file = dir.path().join(CANCEL_FILE);
        let file = file.display();
        let line = format!("job: withdrawn by {file}; it does not run while that file is there");
        tell(Warn, line);
    }
    if let Err(error) = dir.may_write() {
        tell(Error, format!("job: {error}"));
    }
    let (root, reserved, timeout, attempts) = match config {
        Some(config) => (
            config.root,
            config.reserved,
            config.timeout,
            config.max_attempts,
        ),
        None => (None, None, None, u32::MAX),
    };
    let real = dir.real_path().unwrap_or_default();
    let opened = WorkDir::open(real, root.as_deref(), Durability::Cache);
    if let Err(error) = opened.and_then(|dir| apart(dir, reserved.as_deref())) {
        tell(Warn, format!("job: {error}"));
    }
    let content = definition(&dir).map_err(|error| error.to_string())?;
    let missing = || format!("{}/job.json does not exist", dir.path().display());
    let content = content.ok_or_else(missing)?;
    let plan = Definition::parse(&content).and_then(|definition| {
        Plan::merge(&Definition::default(), Some(definition), timeout, attempts)
    });
    match plan {
        Ok(plan) => {
            for warning in plan.warnings {
                tell(Warn, format!("job: {warning}"));
            }
            tell(Info, format!("job: good; steps: {}", plan.steps.len()));
        }
        Err(faults) => {
            for fault in faults {
                tell(Error, format!("job: {fault}"));
            }
        }
    }
    Ok(())
}

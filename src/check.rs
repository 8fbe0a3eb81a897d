//! `job-worker check [DIR]`: says what is wrong before anything runs (docs/reference.md, "Commands").

use crate::config::{Config, PoolConfig, unknown_variables, variables};
use crate::contract::{Definition, MAX_DEFINITION_BYTES, Plan};
use crate::job::{CANCEL_FILE, WorkDir, missing_root};
use crate::mqtt::{self, Life, Session, Subscription};
use crate::pool::Place;
use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};

/// What was found, in one line.
pub enum Finding {
    Good(String),
    /// Worth a word, and nothing fails by it.
    Doubtful(String),
    Wrong(String),
}

/// Validates the configuration, tries the broker if it is to `connect`, and validates the job in `dir`.
pub fn check(dir: Option<&OsStr>, connect: bool) -> Vec<Finding> {
    let config = Config::from_env();
    let mut findings = vec![Finding::Good(settings())];
    match &config {
        Ok(config) => findings.push(match missing_root(&config.job) {
            Some(missing) => Finding::Wrong(format!(
                "configuration: {missing}; a worker waits until it is there"
            )),
            None => Finding::Good(format!(
                "configuration: good; {} serves {} of {}",
                config.worker_id, config.topics.pending, config.broker
            )),
        }),
        Err(errors) => {
            let line = |error| Finding::Wrong(format!("configuration: {error}"));
            findings.extend(errors.iter().map(line));
        }
    }
    let unknown = unknown_variables(std::env::vars_os());
    findings.extend(unknown.map(|names| Finding::Doubtful(format!("configuration: {names}"))));
    if let Ok(config) = &config
        && let Some(pool) = &config.pool
        && missing_root(&config.job).is_none()
    {
        check_pool(pool, &mut findings);
    }
    if connect {
        match &config {
            Ok(config) => check_broker(config, &mut findings),
            Err(_) => findings.push(Finding::Wrong(
                "broker: not tried, since the configuration is not usable".to_owned(),
            )),
        }
    }
    if let Some(dir) = dir {
        check_job(dir, &mut findings)
            .unwrap_or_else(|error| findings.push(Finding::Wrong(format!("job: {error}"))));
    }
    findings
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
fn check_broker(config: &Config, findings: &mut Vec<Finding>) {
    let (id, topics) = (&config.worker_id, &config.topics);
    // seeded with what the system calls random
    let random = RandomState::new().hash_one(());
    let subscriptions = vec![
        Subscription::Requests(topics.pending.clone()),
        Subscription::Cancels(topics.cancel_filter.clone()),
    ];
    let settings = mqtt::Settings {
        broker: config.broker.clone(),
        client_id: format!("{id}-check-{:08x}", random as u32),
        session: Session::Fleeting,
        life: Life::Lasting,
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
        let mut tell = |finding| {
            findings.push(match finding {
                Finding::Good(line) => Finding::Good(format!("{broker}: {line}")),
                Finding::Doubtful(line) => Finding::Doubtful(format!("{broker}: {line}")),
                Finding::Wrong(line) => Finding::Wrong(format!("{broker}: {line}")),
            })
        };
        let end = mqtt::probe(&settings, &mut tell);
        tell(match end {
            Err(error) => Finding::Wrong(error),
            Ok(()) => Finding::Good(format!(
                "not checked: whether it takes the client id {id}, keeps its session, and lets it write to {root}results/+, \
                 {root}status/+, {root}workers/{id} and {root}rejected",
                root = topics.rejected.trim_end_matches("rejected"),
            )),
        });
    }
}

/// Looks at the place of the pool, and changes nothing there.
fn check_pool(pool: &PoolConfig, findings: &mut Vec<Finding>) {
    let name = &pool.name;
    findings.push(match Place::survey(pool) {
        Ok(found) => Finding::Good(format!(
            "pool {name}: {found}; not checked: whether all members see the same drive and each other's locks, and whether the broker \
             takes the client id {name} and keeps its session"
        )),
        Err(error) => Finding::Wrong(format!("pool {name}: {error}")),
    });
}

fn check_job(dir: &OsStr, findings: &mut Vec<Finding>) -> Result<(), String> {
    let path = std::path::absolute(dir).map_err(|error| format!("{dir:?}: {error}"))?;
    let dir = WorkDir::open(path, None).map_err(|error| error.to_string())?;
    let doubtful = |what: String| Finding::Doubtful(format!("job: {what}"));
    if dir.contains(CANCEL_FILE) {
        let file = dir.path().join(CANCEL_FILE);
        let file = file.display();
        findings.push(doubtful(format!(
            "withdrawn by {file}; it does not run while that file is there"
        )));
    }
    if let Err(error) = dir.may_write() {
        findings.push(Finding::Wrong(format!("job: {error}")));
    }
    let place = dir.path().join("job.json");
    let content = dir
        .read("job.json", MAX_DEFINITION_BYTES)
        .map_err(|error| format!("{}: {error}", place.display()))?;
    let content = content.ok_or_else(|| format!("{} does not exist", place.display()))?;
    let plan = Definition::parse(&content).and_then(|definition| {
        Plan::merge(&Definition::default(), Some(definition), None, u32::MAX)
    });
    match plan {
        Ok(plan) => {
            findings.extend(plan.warnings.into_iter().map(doubtful));
            let steps = plan.steps.len();
            findings.push(Finding::Good(format!("job: good; steps: {steps}")));
        }
        Err(faults) => findings.extend(
            faults
                .iter()
                .map(|fault| Finding::Wrong(format!("job: {fault}"))),
        ),
    }
    Ok(())
}

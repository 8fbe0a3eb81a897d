//! Members that come, go, and work side by side: nobody waits for a busy one, and each job runs once.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use super::support::site::{Hub, Site};
use super::support::wait;
use super::support::worker::Worker;

/// The environment of a member of the site's pool.
pub fn member_of<'a, B: Hub>(
    site: &'a Site<B>,
    name: &'a str,
    version: &'a str,
) -> impl Fn(&mut Command) + 'a {
    move |command| {
        command.env("JOB_POOL", "the-pool");
        command.env("JOB_ROOT", site.drive.path());
        command.env("WORKER_ID", name);
        command.env("MQTT_PROTOCOL_VERSION", version);
        command.env("JOB_STOP_GRACE", "1");
    }
}

/// A member that goes on after each job.
pub fn supervised(site: &Site, name: &str, version: &str) -> Worker {
    site.worker(|command| {
        member_of(site, name, version)(command);
        command.arg("supervise");
    })
}

/// Waits until the pool's session has its subscription: what is published from now on is kept.
pub fn await_queue(site: &Site) {
    wait::until("the pool's subscription", || {
        let log = site.broker.log();
        log.contains("Received SUBSCRIBE from the-pool")
    });
}

/// The member that has the lock of the pool on this drive.
pub fn head_of(drive: &Path) -> Option<String> {
    let lock = fs::metadata(drive.join(".job-worker/the-pool/head.lock")).ok()?;
    let end = format!(":{}", lock.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // one that waits for the lock has an arrow in its line
    let mut held = locks
        .lines()
        .filter(|line| !line.contains("->"))
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let held = held.find(|words| words.get(5).is_some_and(|file| file.ends_with(&end)))?;
    let environment = fs::read_to_string(format!("/proc/{}/environ", held.get(4)?)).ok()?;
    let mut variables = environment.split('\0');
    variables.find_map(|variable| Some(variable.strip_prefix("WORKER_ID=")?.to_owned()))
}

/// Makes the directory of the pool by hand, as the reference says it of a queue that was a worker's own.
pub fn make_pool(site: &Site) -> PathBuf {
    site.directory(".job-worker/the-pool")
}

/// The claims that are left.
pub fn claims(site: &Site) -> Vec<String> {
    let names = super::support::site::names(&site.drive.path().join(".job-worker/the-pool"));
    names
        .into_iter()
        .filter(|name| name.contains('-') && !name.starts_with("d-"))
        .collect()
}

#[test]
fn members_come_and_go_and_each_job_runs_once() {
    let site = Site::start();
    let mut members = vec![supervised(&site, "m0", "5")];
    await_queue(&site);
    let log = site.drive.path().join("runs");
    let jobs = 60;
    for number in 0..jobs {
        let step = format!("echo {number} >> {}", log.display());
        site.submit(
            &format!("job-{number}"),
            json!({ "steps": [step, "sleep 0.02"] }),
        );
        if number % 6 == 5 && number < 45 {
            let name = format!("m{}", members.len());
            members.push(supervised(&site, &name, "5"));
        }
        if number >= 45 && number % 2 == 0 && members.len() > 1 {
            let mut leaver = members.remove(0);
            leaver.sigterm();
            leaver.exits_with(0);
        }
    }
    for number in 0..jobs {
        site.result(&format!("job-{number}"));
    }
    let runs = fs::read_to_string(&log).unwrap();
    let mut runs: Vec<u32> = runs.lines().map(|line| line.parse().unwrap()).collect();
    runs.sort_unstable();
    let doubled: Vec<u32> = runs
        .windows(2)
        .filter(|two| two[0] == two[1])
        .map(|two| two[0])
        .collect();
    // a job that a leaving member interrupts runs again
    let interrupted = |number: &u32| {
        let path = site.drive.path().join(format!("job-{number}/job.log"));
        fs::read_to_string(path)
            .unwrap()
            .contains("the worker was asked to stop in mid-run")
    };
    assert!(doubled.iter().all(interrupted), "run twice: {doubled:?}");
    runs.dedup();
    assert_eq!(runs.len(), jobs);
    wait::until("no claim to be left", || claims(&site).is_empty());
}

#[test]
fn a_member_that_waits_stops_at_once() {
    let site = Site::start();
    let mut head = site.idle_worker(member_of(&site, "a", "5"));
    await_queue(&site);
    let mut standing = site.idle_worker(member_of(&site, "b", "5"));
    let started = Instant::now();
    standing.sigterm();
    standing.exits_with(0);
    head.sigterm();
    head.exits_with(0);
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
}

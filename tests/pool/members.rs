//! Members that come, go, and work side by side: nobody waits for a busy one, and each job runs once.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use super::support::site::{Hub, Site};
use super::support::wait;
use super::support::worker::Worker;

on_both_protocols!(
    no_short_job_waits_for_a_long_one,
    members_come_and_go_and_each_job_runs_once,
    one_member_alone_runs_all_in_their_order,
    a_member_that_waits_stops_at_once,
);

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

fn no_short_job_waits_for_a_long_one(version: &str) {
    let site = Site::start();
    let _members: Vec<Worker> = ["a", "b", "c"]
        .iter()
        .map(|name| supervised(&site, name, version))
        .collect();
    await_queue(&site);
    site.submit("long", json!({ "steps": ["sleep 20"] }));
    wait::until("the long job to begin", || {
        !site.controller.heard("jobs/status/long").is_empty()
    });
    // on a machine that is busy with something else, a worker that nobody shares its queue with shows what is to be had
    let _alone = site.worker(|command| _ = command.env("MQTT_TOPIC_ROOT", "own").arg("supervise"));
    wait::until("a queue of its own", || {
        site.broker.log().contains("own/pending (QoS 1)")
    });
    let started = Instant::now();
    let mut rounds = Vec::new();
    loop {
        let round = rounds.len();
        let own = slowest_of_8(&site, "own", round);
        let pool = slowest_of_8(&site, "jobs", round);
        rounds.push((pool, own));
        if pool < own.max(Duration::from_millis(500)) {
            break;
        }
        assert!(
            started.elapsed() < Duration::from_secs(14),
            "the slowest of the pool, and of a queue of its own: {rounds:?}"
        );
    }
    eprintln!("the slowest of the pool, and of a queue of its own: {rounds:?}");
    assert!(site.controller.heard("jobs/results/long").is_empty());
}

/// How long the slowest of 8 short jobs takes from its request to its result, on the topics below `root`.
fn slowest_of_8(site: &Site, root: &str, round: usize) -> Duration {
    let mut published = BTreeMap::new();
    for number in 0..8 {
        let id = format!("{root}-{round}-{number}");
        let dir = site.prepare(&id, json!({ "steps": ["true"] }));
        let request = json!({ "id": id, "workDir": dir });
        site.controller
            .publish(&format!("{root}/pending"), request.to_string());
        published.insert(id, Instant::now());
    }
    let mut slowest = Duration::ZERO;
    let mut begun = Vec::new();
    for (id, at) in &published {
        let result = site.controller.next(&format!("{root}/results/{id}"));
        slowest = slowest.max(at.elapsed());
        let result = result.json();
        assert_eq!(result["status"], "success", "{result}");
        begun.push((result["startedAt"].as_str().unwrap().to_owned(), id.clone()));
    }
    // in the order of the queue, as far as milliseconds tell
    let by_time: Vec<String> = begun.iter().map(|(at, _)| at.clone()).collect();
    assert!(by_time.is_sorted(), "{begun:?}");
    slowest
}

fn one_member_alone_runs_all_in_their_order(version: &str) {
    let site = Site::start();
    let _member = supervised(&site, "a", version);
    await_queue(&site);
    let log = site.drive.path().join("order");
    for number in 0..30 {
        let step = format!("echo {number} >> {}", log.display());
        site.submit(&format!("job-{number}"), json!({ "steps": [step] }));
    }
    site.result("job-29");
    let order: Vec<String> = fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    let expected: Vec<String> = (0..30).map(|number| number.to_string()).collect();
    assert_eq!(order, expected);
    wait::until("no claim to be left", || claims(&site).is_empty());
}

fn members_come_and_go_and_each_job_runs_once(version: &str) {
    let site = Site::start();
    let mut members = vec![supervised(&site, "m0", version)];
    await_queue(&site);
    let log = site.drive.path().join("runs");
    let jobs = 200;
    for number in 0..jobs {
        let step = format!("echo {number} >> {}", log.display());
        site.submit(
            &format!("job-{number}"),
            json!({ "steps": [step, "sleep 0.02"] }),
        );
        if number % 20 == 19 && number < 150 {
            let name = format!("m{}", members.len());
            members.push(supervised(&site, &name, version));
        }
        if number >= 150 && number % 7 == 0 && members.len() > 1 {
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

fn a_member_that_waits_stops_at_once(version: &str) {
    let site = Site::start();
    let mut head = site.idle_worker(member_of(&site, "a", version));
    await_queue(&site);
    let mut standing = site.idle_worker(member_of(&site, "b", version));
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

//! Workers and brokers killed at random while a pool works: every request is run to its end, and no attempt of it twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::members::{await_queue, claims, member_of};
use super::support::site::Site;
use super::support::wait;
use super::support::worker::Worker;

on_both_protocols!(each_attempt_of_each_request_is_run_once);

const IDS: usize = 8;

fn each_attempt_of_each_request_is_run_once(version: &str) {
    let seed: u64 = std::env::var("POOL_SEED").map_or(1, |seed| seed.parse().unwrap());
    let requests: usize = std::env::var("POOL_REQUESTS").map_or(150, |n| n.parse().unwrap());
    let mut random = 0x9e37_79b9_7f4a_7c15_u64 ^ seed;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut site = Site::start();
    let members: Vec<Worker> = ["a", "b", "c", "d"]
        .iter()
        .map(|name| {
            site.worker(|command| {
                member_of(&site, name, version)(command);
                command.env("JOB_MAX_ATTEMPTS", "100").arg("supervise");
            })
        })
        .collect();
    await_queue(&site);
    // it has packet identifier 1, which tells nothing
    site.submit("first", json!({ "steps": ["true"] }));
    site.result("first");
    let runs = site.drive.path().join("runs");
    let mut expected: BTreeMap<String, usize> = BTreeMap::new();
    let (mut kills, mut broker_kills) = (0, 0);
    for number in 0..requests {
        let id = format!("job-{}", next(IDS as u64));
        let dir = site.directory(&id);
        // one line is one write
        let step = format!(
            "flock -n .running sh -c 'echo start {number} $JOB_ATTEMPT >> {runs}; sleep 0.0{}; \
             echo end {number} $JOB_ATTEMPT >> {runs}' || echo overlap {number} $JOB_ATTEMPT >> {runs}",
            next(9),
            runs = runs.display()
        );
        site.request(json!({ "id": id, "workDir": dir, "steps": [step] }));
        *expected.entry(id).or_default() += 1;
        if next(2) == 0 {
            let member = &members[next(4) as usize];
            kills += usize::from(kill_worker_of(member.pid()));
        }
        if next(60) == 0 {
            broker_kills += 1;
            site.kill9_broker();
            site.restart_broker();
        }
        std::thread::sleep(Duration::from_millis(next(40)));
    }
    let published = Instant::now();
    let lines = || fs::read_to_string(&runs).unwrap_or_default();
    let ended = || {
        let lines = lines();
        let ends = lines.lines().filter_map(|line| line.strip_prefix("end "));
        ends.filter_map(|end| end.split(' ').next().map(str::to_owned))
            .collect::<BTreeSet<String>>()
    };
    wait::until("all requests to be run", || ended().len() == requests);
    wait::until("no claim to be left", || claims(&site).is_empty());
    eprintln!(
        "seed {seed}: {requests} requests, {kills} workers and {broker_kills} brokers killed; done {:?} after the last",
        published.elapsed()
    );
    let lines = lines();
    let mut seen = BTreeSet::new();
    for line in lines.lines() {
        assert!(!line.starts_with("overlap"), "two in one directory: {line}");
        assert!(seen.insert(line), "an attempt was run twice: {line}");
    }
    for (id, count) in expected {
        let topic = format!("jobs/results/{id}");
        let results = || {
            site.controller
                .heard(&topic)
                .iter()
                .filter(|m| m.topic == topic)
                .count()
        };
        wait::until("a result for each request", || results() >= count);
    }
}

/// Kills the worker of a supervisor, if there is one now.
fn kill_worker_of(supervisor: u32) -> bool {
    let list = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"));
    let list = list.unwrap_or_default();
    let worker = list
        .split_whitespace()
        .next()
        .and_then(|pid| pid.parse().ok());
    let worker = worker.and_then(Pid::from_raw);
    worker.is_some_and(|worker| kill_process(worker, Signal::KILL).is_ok())
}

//! The worker's own log on stderr (docs/reference.md, "Configuration").

use crate::support::broker::Broker;
use crate::support::site::{Site, WORKER, read};
use crate::support::wait;
use crate::support::worker::Worker;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

/// What a worker says that is stopped while it waits, where stderr is a file, and the journal's or not.
fn log(is_journal: bool) -> String {
    let site = Site::scripted();
    let path = site.drive.path().join("log");
    let file = File::create(&path).unwrap();
    let meta = file.metadata().unwrap();
    let inode = meta.ino() + u64::from(!is_journal);
    let mut command = site.command::<&str>([]);
    command.stderr(file);
    command.env("JOURNAL_STREAM", format!("{}:{inode}", meta.dev()));
    command.env(format!("JOB_{}", "x".repeat(100_000)), "x");
    let mut child = command.spawn().unwrap();
    site.await_idle(0);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    read(&path)
}

#[test]
fn each_line_has_the_time_or_the_journal_its_priority() {
    for is_journal in [false, true] {
        let log = log(is_journal);
        assert!(log.lines().count() > 1, "{log}");
        for (number, line) in log.lines().enumerate() {
            let (start, text) = match is_journal {
                // which splits what is longer
                true => line.split_at(3),
                false => line.split_once(' ').unwrap(),
            };
            let starts = ["<4>", "<6>"];
            match is_journal {
                true => assert!(
                    start == starts[number.min(1)] && line.len() < 4096,
                    "{line}"
                ),
                false => assert!(humantime::parse_rfc3339(start).is_ok(), "{line}"),
            }
            let expected = ["job-worker: warn: unknown variables", "job-worker: info: "];
            assert!(text.starts_with(expected[number.min(1)]), "{line}");
        }
    }
}

/// The lines of a process without times, numbers of bytes and seconds.
fn lines(process: &Worker) -> Vec<String> {
    let mask = |line: &str| {
        let (_, text) = line.split_once(' ').unwrap();
        let text = text.strip_prefix("job-worker: ").unwrap();
        let is_number = |word: &str| word.parse::<f64>().is_ok();
        let words: Vec<_> = text.split(' ').collect();
        let mut masked = words.clone();
        for (i, pair) in words.windows(2).enumerate() {
            if is_number(pair[0]) && ["bytes)", "s,"].contains(&pair[1]) {
                masked[i] = "N";
            }
        }
        masked.join(" ")
    };
    process.stderr().lines().map(mask).collect()
}

/// From its start to its end, on a broker that has no session for it.
fn start_of(site: &Site<Broker>) -> [String; 3] {
    [
        format!(
            "info: connected to the broker at 127.0.0.1:{}",
            site.broker.port()
        ),
        format!("info: the broker has no session for {WORKER}: the queue begins now, and is empty"),
        "info: waiting for a job on jobs/pending".to_owned(),
    ]
}

#[test]
fn each_fact_of_a_job_has_one_line() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|_| {});
    let dir = site.submit("a", json!({ "steps": ["true"] }));
    worker.exits_with(0);
    let of_the_job = [
        "info: job a: request taken (jobs/pending, N bytes)".to_owned(),
        format!("info: job a: running in {}, attempt 1", dir.display()),
        "info: job a: success in N s, exit code 0".to_owned(),
    ];
    let expected: Vec<_> = start_of(&site).into_iter().chain(of_the_job).collect();
    assert_eq!(lines(&worker), expected);
}

#[test]
fn a_cancel_is_told_when_it_comes_and_by_the_result() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|_| {});
    site.hold("a");
    site.broker.publish("jobs/cancel/a", "");
    worker.exits_with(0);
    let said = lines(&worker);
    let of_it: Vec<_> = said.iter().filter(|line| line.contains("cancel")).collect();
    let expected = [
        "info: job a: cancel received",
        "warn: job a: failed in N s, exit code 130: cancelled by the controller",
    ];
    assert_eq!(of_it, expected);
}

#[test]
fn a_rejection_is_told_once() {
    let site = Site::scripted();
    let worker = site.idle_worker(|_| {});
    site.request(json!({ "id": "a", "workDir": "/no/such" }));
    site.result("a");
    worker.await_stderr("rejected: workDir");
    let said = lines(&worker);
    let of_it: Vec<_> = said
        .iter()
        .filter(|line| line.contains("/no/such"))
        .collect();
    assert_eq!(of_it, [said.last().unwrap()]);
    assert!(of_it[0].starts_with("warn: job a: rejected: "), "{said:?}");
}

#[test]
fn a_session_that_is_lost_is_told_and_one_that_is_kept_is_not() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|_| {});
    let lost = "the broker does not know our session: what was queued is gone";
    site.broker.kick(WORKER);
    wait::until("the second connection", || {
        worker.stderr().matches("connected to the broker").count() == 2
    });
    assert!(!worker.stderr().contains(lost), "{}", worker.stderr());
    site.broker.forget_session(WORKER);
    worker.await_stderr(lost);
    worker.stop();
    let mut worker = site.idle_worker(|_| {});
    worker.stop();
    assert!(!worker.stderr().contains("session"), "{}", worker.stderr());
}

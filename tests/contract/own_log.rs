//! The worker's own log on stderr (docs/reference.md, "Configuration").

use crate::support;

use rustix::process::Signal;
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use support::broker::Broker;
use support::site::{Site, WORKER, await_file, read, until_exists};
use support::wait;
use support::worker::Worker;

/// What a worker says that is stopped while it waits, with stderr in a file, and with that file's device and inode.
fn log(site: &Site<Broker>, journal: impl FnOnce(u64, u64) -> String) -> String {
    let misspelt = "x".repeat(100_000);
    let path = site.drive.path().join("log");
    let file = File::create(&path).unwrap();
    let meta = file.metadata().unwrap();
    let mut command = site.command::<&str>([]);
    command
        .stderr(file)
        .env("JOURNAL_STREAM", journal(meta.dev(), meta.ino()));
    command.env(format!("JOB_{misspelt}"), "x");
    let mut child = command.spawn().unwrap();
    site.await_idle(0);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    read(&path)
}

#[test]
fn each_line_has_the_time() {
    let log = log(&Site::scripted(), |device, inode| {
        format!("{device}:{}", inode + 1)
    });
    assert!(log.lines().count() > 1, "{log}");
    for line in log.lines() {
        let (time, text) = line.split_once(' ').unwrap();
        assert_eq!(time.len(), "2026-02-17T09:12:01.024Z".len(), "{line}");
        assert!(humantime::parse_rfc3339(time).is_ok(), "{line}");
        let warns = text.starts_with("job-worker: warn: unknown variables");
        assert!(warns || text.starts_with("job-worker: info: "), "{line}");
    }
}

#[test]
fn the_journal_has_the_time_and_gets_the_priority_and_no_line_that_it_splits() {
    let log = log(&Site::scripted(), |device, inode| {
        format!("{device}:{inode}")
    });
    assert!(log.lines().count() > 1, "{log}");
    for (number, line) in log.lines().enumerate() {
        let start = ["<4>job-worker: warn: ", "<6>job-worker: info: "][number.min(1)];
        assert!(line.starts_with(start) && line.len() < 4096, "{line}");
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
    let step = format!("touch up; {}", until_exists("gate"));
    let dir = site.submit("a", json!({ "steps": [step] }));
    await_file(&dir.join("up"));
    site.broker.publish("jobs/cancel/a", "");
    worker.exits_with(0);
    let said = lines(&worker);
    let end = [
        "info: job a: cancel received",
        "warn: job a: failed in N s, exit code 130: cancelled by the controller",
    ];
    assert_eq!(said[said.len() - 2..], end, "{said:?}");
    assert_eq!(
        said.iter().filter(|line| line.contains("cancel")).count(),
        2
    );
}

#[test]
fn a_rejection_is_told_once() {
    let site = Site::scripted();
    let worker = site.idle_worker(|_| {});
    site.request(json!({ "id": "a", "workDir": "/no/such" }));
    site.result("a");
    wait::until("the rejection", || {
        lines(&worker).iter().any(|line| line.contains("rejected"))
    });
    let said = lines(&worker);
    let last = said.last().unwrap();
    assert!(
        last.starts_with("warn: job a: rejected: workDir"),
        "{said:?}"
    );
    assert_eq!(
        said.iter().filter(|line| line.contains("/no/such")).count(),
        1
    );
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

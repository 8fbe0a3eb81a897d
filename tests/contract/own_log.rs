//! The worker's own log on stderr (docs/reference.md, "Configuration").

use crate::support::site::{Site, WORKER, read};
use crate::support::wait;
use crate::support::worker::{Worker, binary};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

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
            let (priority, text) = match number {
                0 => ("<4>", "job-worker: warn: unknown variables"),
                _ => ("<6>", "job-worker: info: "),
            };
            let rest = match is_journal {
                // which splits what is longer
                true => line.strip_prefix(priority).filter(|rest| rest.len() < 4093),
                false => line
                    .split_once(' ')
                    .and_then(|(time, rest)| humantime::parse_rfc3339(time).ok().map(|_| rest)),
            };
            let is_good = rest.is_some_and(|rest| rest.starts_with(text));
            assert!(is_good, "{line}");
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

#[test]
fn each_fact_of_a_job_has_one_line() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|_| {});
    site.request(json!({ "id": "bad", "workDir": "/no/such" }));
    let dir = site.submit("a", json!({ "steps": ["true"] }));
    worker.exits_with(0);
    let broker = format!("at 127.0.0.1:{}", site.broker.port());
    let of_session = format!("no session for {WORKER}: the queue begins now, and is empty");
    let in_dir = format!("running in {}, attempt 1", dir.display());
    let expected = [
        format!("info: connected to the broker {broker}"),
        format!("info: the broker has {of_session}"),
        "info: waiting for a job on jobs/pending".to_owned(),
        "info: job bad: request taken (jobs/pending, N bytes)".to_owned(),
        "warn: job bad: rejected: workDir /no/such does not exist".to_owned(),
        "info: job a: request taken (jobs/pending, N bytes)".to_owned(),
        format!("info: job a: {in_dir}"),
        "info: job a: success in N s, exit code 0".to_owned(),
    ];
    assert_eq!(lines(&worker), expected);

    let mut worker = site.idle_worker(|_| {});
    site.hold("b");
    site.broker.publish("jobs/cancel/b", "");
    worker.exits_with(0);
    let said = lines(&worker);
    let expected = [
        "info: job b: cancel received",
        "warn: job b: failed in N s, exit code 130: cancelled by the controller",
    ];
    assert_eq!(said[said.len() - 2..], expected, "{said:?}");
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

/// Not even its first one, on an unknown variable.
#[test]
fn no_line_stops_a_worker_in_the_background_of_a_terminal() {
    let site = Site::scripted();
    let dir = site.prepare("a", json!({ "steps": ["true"] }));
    let binary = binary();
    for arguments in ["", "run a"] {
        let line = format!("{} {arguments} & wait $!", binary.display());
        let mut command = Command::new("script");
        let line = format!("stty tostop; set -m; JOB_X=1 {line}");
        site.equip(command.args(["-qec", &line, "/dev/null"]));
        if arguments.is_empty() {
            let mut worker = site.idle(command);
            site.request(json!({ "id": "a", "workDir": dir }));
            worker.exits_with(0);
        } else {
            site.start_as(command).exits_with(0);
        }
    }
}

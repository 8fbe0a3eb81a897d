//! Jobs that remove what is the worker's in their own workDir: log, journal, count of attempts and lock survive.

use crate::support::process_tree::ProcessTree;
use crate::support::site::{
    Site, WORKER, await_file, read, read_json, release, until_exists, verdict,
};
use crate::support::wait::{self, DEADLINE};
use serde_json::json;
use std::fs::{self, File};

const CLEAN: &str = "git init -q . && git clean -fdxq";

/// The ways in which jobs empty their directory, or only what is ours in it.
const WAYS: [&str; 5] = [
    CLEAN,
    "rm -rf ./* ./.* 2> /dev/null; true",
    "find . -mindepth 1 -delete",
    "echo of the step > new; mv new job.log; rm job.status.json",
    "mkdir kept; mv job.* kept; mkfifo job.log",
];

fn count(log: &str, line: &str) -> usize {
    log.lines().filter(|l| l.ends_with(line)).count()
}

#[test]
fn the_log_is_whole_whatever_a_step_removes() {
    for way in WAYS {
        let site = Site::scripted();
        let way = format!("echo one; {way}");
        // the journal is there again before the next step
        let steps = json!([way, "[ -e job.status.json ] && echo two", "echo three", way]);
        let job = site.run("a", json!({ "steps": steps }));
        assert_eq!(job.verdict(), ("success", "", 0), "{way}: {}", job.log);
        assert!(job.log.starts_with("Job ID: a\n"), "{way}: {}", job.log);
        for (line, times) in [("one", 2), ("two", 1), ("three", 1)] {
            let found = job.log.lines().filter(|l| *l == line).count();
            assert_eq!(found, times, "{way}: {line} in {}", job.log);
        }
        let log = job.dir.join("job.log").display().to_string();
        let told = format!("{log} was removed or replaced by a step");
        assert!(job.worker.stderr().contains(&told), "{way}");
        for number in 1..=4 {
            let end = format!(" step {number}/4: exit 0 in ");
            assert!(job.log.contains(&end), "{way}: {end} in {}", job.log);
        }
        let journal = read_json(&job.dir.join("job.status.json"));
        assert_eq!(journal["status"], "success", "{way}");
    }
}

#[test]
fn what_an_earlier_step_left_running_still_writes_to_the_log() {
    let site = Site::scripted();
    let late = "(until [ -e now ]; do sleep 0.02; done; echo late; touch said) &";
    let again = format!("rm job.log; touch now; {}", until_exists("said"));
    let steps = json!([late, "rm job.log", again, "echo last"]);
    let job = site.run("a", json!({ "steps": steps }));
    assert_eq!(job.verdict(), ("success", "", 0));
    assert_eq!(count(&job.log, "late"), 1, "{}", job.log);
    let last = count(&job.log, "last"); // the step and what it wrote
    assert_eq!(last, 2, "{}", job.log);
}

#[test]
fn attempts_go_on_counting() {
    let site = Site::scripted();
    let steps = json!([CLEAN, "echo in $JOB_ATTEMPT; exec sleep 1000"]);
    let mut worker = site.idle_worker(|_| {});
    let dir = site.drive.path().join("a");
    fs::create_dir(&dir).unwrap();
    site.request(json!({ "id": "a", "workDir": dir, "steps": steps, "maxAttempts": 2 }));
    for attempt in 1..=2 {
        wait::until("the step to write", || {
            let log = fs::read_to_string(dir.join("job.log")).unwrap_or_default();
            count(&log, &format!("in {attempt}")) == 1
        });
        // as a host that goes down
        ProcessTree::freeze(worker.pid()).kill9();
        worker.wait();
        worker = site.worker(|_| {});
    }
    let result = site.result("a").json();
    assert_eq!(verdict(&result), ("failed", "interrupted", 1), "{result}");
    worker.exits_with(0);
    let log = read(&dir.join("job.log"));
    assert_eq!([count(&log, "in 1"), count(&log, "in 2")], [1, 1], "{log}");
    site.broker.wait_for_queued(WORKER, 0, DEADLINE);
}

#[test]
fn a_second_worker_waits_for_the_lock() {
    for way in WAYS {
        let site = Site::scripted();
        let next = format!("echo first; touch up; {}", until_exists("../gate"));
        let dir = site.prepare("a", json!({ "steps": [way, next] }));
        let definition = read(&dir.join("job.json"));
        let run = || site.start_as(site.command(["run", "a"]));
        let mut first = run();
        await_file(&dir.join("up"));
        fs::write(dir.join("job.json"), definition).unwrap();
        let mut second = run();
        second.await_stderr("is in use by another worker");
        release(site.drive.path());
        first.exits_with(0);
        second.exits_with(0);
        let shown = first.stdout();
        assert_eq!(count(&shown, "first"), 1, "{way}: {shown}");
    }
}

#[test]
fn a_job_ends_where_another_worker_has_its_directory() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|_| {});
    let step = format!("rm job.*; touch up; {}", until_exists("gate"));
    let dir = site.begin("a", json!({ "steps": [step, "touch ran"] }));
    let other = File::create(dir.join("job.log")).unwrap();
    other.lock().expect("nobody has it");
    fs::write(dir.join("job.status.json"), "of the other").unwrap();
    release(&dir);
    let result = site.result("a").json();
    assert_eq!(verdict(&result), ("failed", "internal", 1), "{result}");
    let error = result["error"].as_str().expect("an error");
    assert!(error.contains("another worker has it by now"), "{error}");
    worker.exits_with(0);
    assert!(!dir.join("ran").exists());
    assert_eq!(read(&dir.join("job.log")), "");
    assert_eq!(read(&dir.join("job.status.json")), "of the other");
}

#[test]
fn a_directory_that_the_last_step_moved_is_told() {
    let site = Site::scripted();
    let job = site.run("a", json!({ "steps": ["mv ../a ../b"] }));
    assert_eq!(job.verdict(), ("success", "", 0));
    let warning = job.result["warning"].as_str().unwrap_or_default();
    assert!(warning.contains("the job has moved it"), "{}", job.result);
    let log = read(&job.dir.with_file_name("b").join("job.log"));
    assert!(log.contains(&format!("warning: {warning}\n")), "{log}");
    let last = log.lines().last().unwrap();
    assert!(last.contains(" job success in "), "{log}");
}

#[test]
fn a_line_of_the_worker_is_cut() {
    let site = Site::scripted();
    let long = "x".repeat(300_000);
    let steps = json!([{ "run": format!("exit 3 # {}", &long[..100_000]), "name": long }]);
    let dir = site.directory("a");
    let request = json!({ "id": "a", "workDir": dir, "steps": steps, long: 1 });
    let job = site.run_request(site.idle_worker(|_| {}), dir, request);
    assert_eq!(job.result["reason"], "step");
    let error = job.result["error"].to_string();
    for text in [&job.log, &job.worker.stderr(), &error] {
        assert!(text.lines().all(|line| line.len() < 5000), "{}", text.len());
    }
}

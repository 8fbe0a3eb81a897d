//! docs/reference.md, "Delivery" on a real Mosquitto: nothing lost, nothing run twice without cause.

use crate::support;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::log::untimed;
use support::mosquitto::Mosquitto;
use support::site::{Site, read, while_exists};
use support::wait;
use support::worker::speaking;

fn ids(results: &[support::broker::Message]) -> Vec<String> {
    results
        .iter()
        .map(|message| message.topic.trim_start_matches("jobs/results/").to_owned())
        .collect()
}

/// The lines that runs of a job have left in a file of its workDir.
fn lines(dir: &Path, file: &str) -> Vec<String> {
    fs::read_to_string(dir.join(file))
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// A job of one step that notes its start and end in `runs`, its shell in `shell`, and in between is held by `hold`.
pub fn held_job(site: &Site, id: &str, request: Value) -> std::path::PathBuf {
    let step = format!(
        "echo $$ > shell; echo start $JOB_ATTEMPT >> runs; {}; echo end $JOB_ATTEMPT >> runs",
        while_exists("hold")
    );
    let dir = site.prepare(id, json!({ "steps": [step, "echo the second step"] }));
    fs::write(dir.join("hold"), "").unwrap();
    let mut pointer = json!({ "id": id, "workDir": dir });
    for (field, value) in request.as_object().into_iter().flatten() {
        pointer[field] = value.clone();
    }
    site.request(pointer);
    dir
}

pub fn await_starts(dir: &Path, count: usize) {
    wait::until(&format!("start {count} of the step"), || {
        lines(dir, "runs")
            .iter()
            .filter(|line| line.starts_with("start"))
            .count()
            == count
    });
}

pub fn release(dir: &Path) {
    fs::remove_file(dir.join("hold")).unwrap();
}

/// Ends the step that a killed worker has left behind.
fn kill9_shell(dir: &Path) {
    let pid = read(&dir.join("shell"))
        .trim()
        .parse()
        .expect("a process id");
    kill_process(Pid::from_raw(pid).expect("a process id"), Signal::KILL)
        .expect("the orphan is there");
}

fn next_job_succeeds(site: &Site, configure: impl Fn(&mut Command)) {
    let next = site.run_on(
        site.idle_worker(configure),
        "next",
        json!({ "steps": ["true"] }),
    );
    assert_eq!(next.result["status"], "success");
}

fn jobs_queued_while_the_worker_is_away_run_once_each_in_order(version: &str) {
    const COUNT: usize = 22; // more than 3.1.1 has in flight at once
    let site = Site::start();
    site.open_queue(speaking(version));
    let expected: Vec<String> = (0..COUNT)
        .map(|number| format!("job-{number:02}"))
        .collect();
    let step = "echo $PPID >> runs";
    let dirs: Vec<_> = expected
        .iter()
        .map(|id| site.submit(id, json!({ "steps": [step] })))
        .collect();

    let mut pids = HashSet::new();
    for (number, dir) in dirs.iter().enumerate() {
        let mut worker = site.worker(speaking(version));
        worker.exits_with(0);
        assert_eq!(
            lines(dir, "runs"),
            [worker.pid().to_string()],
            "job {number} ran in the {number}th process"
        );
        assert!(pids.insert(worker.pid()), "a process of its own");
    }
    wait::until("the last result", || {
        site.controller.heard("jobs/results/").len() >= COUNT
    });
    let results = site.controller.heard("jobs/results/");
    assert_eq!(ids(&results), expected);
    assert!(
        results
            .iter()
            .all(|message| message.json()["status"] == "success")
    );

    // Nothing is left in the queue: a further worker stays idle until there is a further job.
    next_job_succeeds(&site, speaking(version));
    assert_eq!(site.controller.heard("jobs/results/").len(), COUNT + 1);
    for dir in &dirs {
        assert_eq!(lines(dir, "runs").len(), 1);
    }
}

fn a_job_interrupted_by_a_crash_runs_again_as_the_next_attempt(version: &str) {
    let site = Site::start();
    let mut first = site.idle_worker(speaking(version));
    let dir = held_job(&site, "crashed", json!({}));
    await_starts(&dir, 1);
    first.kill9();
    kill9_shell(&dir);
    release(&dir);
    let second = site.worker(speaking(version));
    let finished = site.finish(second, dir, "crashed");
    assert_eq!(finished.result["status"], "success");
    assert_eq!(finished.result["attempt"], 2);
    assert_eq!(
        lines(&finished.dir, "runs"),
        ["start 1", "start 2", "end 2"]
    );
    let (earlier, later) = finished
        .log
        .split_once("attempt 2 of 3")
        .expect("a line says that this is another attempt");
    assert!(
        earlier.starts_with("Job ID: crashed\n") && untimed(earlier).contains("==> step 1/2"),
        "the old log stays: {earlier}"
    );
    assert!(
        later.contains(" step 1/2") && later.contains("\nthe second step\n"),
        "{later}"
    );
    next_job_succeeds(&site, speaking(version));
    assert_eq!(site.controller.heard("jobs/results/crashed").len(), 1);
}

fn a_successor_waits_for_the_orphans_of_a_killed_worker(version: &str) {
    let site = Site::start();
    let mut first = site.idle_worker(speaking(version));
    let dir = held_job(&site, "orphaned", json!({}));
    await_starts(&dir, 1);
    first.kill9();
    let mut second = site.worker(speaking(version));
    wait::throughout(Duration::from_millis(500), "the successor waits", || {
        lines(&dir, "runs") == ["start 1"]
    });
    assert_eq!(second.ended(), None);
    release(&dir);
    let finished = site.finish(second, dir, "orphaned");
    assert_eq!(finished.result["status"], "success");
    assert_eq!(finished.result["attempt"], 2);
    assert_eq!(
        lines(&finished.dir, "runs"),
        ["start 1", "end 1", "start 2", "end 2"],
        "never two at once"
    );
}

on_both_protocols!(
    jobs_queued_while_the_worker_is_away_run_once_each_in_order,
    a_job_interrupted_by_a_crash_runs_again_as_the_next_attempt,
    a_successor_waits_for_the_orphans_of_a_killed_worker,
    a_job_published_afresh_after_its_end_runs_again,
    a_job_published_afresh_behind_another_job_runs_again,
    a_result_that_the_broker_never_acknowledged_is_answered_from_the_file,
    a_broker_that_crashes_in_mid_step_runs_nothing_twice,
    a_job_that_ends_while_the_broker_is_away_is_reported_when_it_is_back,
    a_worker_outlives_a_broker_that_restarts_while_it_waits,
);

fn a_job_published_afresh_after_its_end_runs_again(version: &str) {
    let site = Site::start();
    let definition = json!({ "steps": ["echo run >> runs; [ $(wc -l < runs) != 1 ]"] });
    for run in 1..=3 {
        let worker = site.idle_worker(speaking(version));
        let result = site.run_on(worker, "again", definition.clone()).result;
        let end = if run == 1 { "failed" } else { "success" };
        assert_eq!(
            (&result["status"], &result["attempt"]),
            (&json!(end), &json!(1))
        );
        assert_eq!(result.get("reason").is_some(), run == 1, "{result}");
        assert_eq!(lines(&site.drive.path().join("again"), "runs").len(), run);
    }
    assert_eq!(site.controller.heard("jobs/results/again").len(), 3);
}

/// In 3.1.1 the second request of the same job has been pushed and comes back with DUP set, though nobody ran it.
fn a_job_published_afresh_behind_another_job_runs_again(version: &str) {
    let site = Site::start();
    site.open_queue(speaking(version));
    let order = ["again", "other", "again", "again", "other"];
    for id in order {
        site.submit(id, json!({ "steps": ["echo run >> runs"] }));
    }
    for _ in order {
        site.worker(speaking(version)).exits_with(0);
    }
    wait::until("five results", || {
        site.controller.heard("jobs/results/").len() >= order.len()
    });
    assert_eq!(ids(&site.controller.heard("jobs/results/")), order);
    assert_eq!(lines(&site.drive.path().join("again"), "runs").len(), 3);
    assert_eq!(lines(&site.drive.path().join("other"), "runs").len(), 2);
}

/// The worker dies after the job is final on disk and before the broker has acknowledged anything of it.
fn a_result_that_the_broker_never_acknowledged_is_answered_from_the_file(version: &str) {
    let mut site = Site::start();
    next_job_succeeds(&site, speaking(version)); // it has packet identifier 1, which tells nothing
    let mut first = site.idle_worker(speaking(version));
    // in 3.1.1 nothing but a key tells the redelivery from a fresh request
    let key = (version == "4").then_some("k");
    let dir = held_job(&site, "final", json!({ "key": key }));
    await_starts(&dir, 1);
    site.kill9_broker();
    release(&dir);
    let document = await_final_status(&dir);
    first.kill9();
    site.restart_broker();
    let finished = site.finish(site.worker(speaking(version)), dir, "final");
    assert_eq!(
        lines(&finished.dir, "runs"),
        ["start 1", "end 1"],
        "not run again"
    );
    assert_eq!(finished.published.text(), document, "the stored result");
    assert_eq!(finished.result["attempt"], 1);
    next_job_succeeds(&site, speaking(version));
    assert_eq!(lines(&finished.dir, "runs").len(), 2);
}

pub fn await_final_status(dir: &Path) -> String {
    wait::until_some("a final status on disk", || {
        let text = read(&dir.join("job.status.json"));
        let document: Value = serde_json::from_str(&text).expect("valid JSON at any moment");
        (document["status"] == "success" || document["status"] == "failed").then_some(text)
    })
}

/// A site whose broker keeps what it has when it is killed, and one whose broker forgets it.
fn with_and_without_memory() -> [Site; 2] {
    let mut forgetful = Mosquitto::prepare().without_persistence();
    forgetful.restart();
    [Site::start(), Site::on(forgetful)]
}

fn a_broker_that_crashes_in_mid_step_runs_nothing_twice(version: &str) {
    for mut site in with_and_without_memory() {
        let worker = site.idle_worker(speaking(version));
        let dir = held_job(&site, "survivor", json!({}));
        await_starts(&dir, 1);
        site.kill9_broker();
        site.restart_broker();
        release(&dir);
        let finished = site.finish(worker, dir, "survivor");
        assert_eq!(finished.result["status"], "success");
        assert_eq!(finished.result["attempt"], 1);
        next_job_succeeds(&site, speaking(version));
        assert_eq!(lines(&finished.dir, "runs"), ["start 1", "end 1"]);
        assert!(finished.log.contains("\nthe second step\n"));
    }
}

fn a_job_that_ends_while_the_broker_is_away_is_reported_when_it_is_back(version: &str) {
    for mut site in with_and_without_memory() {
        let worker = site.idle_worker(speaking(version));
        let dir = held_job(&site, "patient", json!({}));
        await_starts(&dir, 1);
        site.kill9_broker();
        release(&dir);
        let document = await_final_status(&dir);
        // A broker that has forgotten the controller would drop a result that comes before it has subscribed again.
        worker.freeze();
        site.restart_broker();
        worker.thaw();
        let finished = site.finish(worker, dir, "patient");
        assert_eq!(finished.published.text(), document);
        next_job_succeeds(&site, speaking(version));
        assert_eq!(lines(&finished.dir, "runs"), ["start 1", "end 1"]);
    }
}

fn a_worker_outlives_a_broker_that_restarts_while_it_waits(version: &str) {
    for mut site in with_and_without_memory() {
        let mut worker = site.idle_worker(speaking(version));
        site.kill9_broker();
        let mark = site.controller.mark();
        site.restart_broker();
        site.await_state(&mut worker, mark, "idle");
        let finished = site.run_on(worker, "after", json!({ "steps": ["true"] }));
        assert_eq!(finished.result["status"], "success");
    }
}

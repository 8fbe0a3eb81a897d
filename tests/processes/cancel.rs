//! Cancelling a job by `jobs/cancel/{id}` (docs/reference.md, "Withdrawing and cancelling").

use crate::support::broker::{Broker, Entry, Packet, Verdict, slowness};
use crate::support::site::{
    Site, WORKER, await_file, names, read, read_json, release, shell, until_exists, verdict,
};
use crate::support::wait::{self, DEADLINE};
use crate::support::worker::{speaking, with};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::Path;

const CANCELLED: (&str, &str, i64) = ("failed", "cancelled", 130);

fn cancel(site: &Site<Broker>) {
    site.broker.publish("jobs/cancel/a", "");
}

/// The result that follows is this one, and the journal is the same.
#[track_caller]
fn is_cancelled(site: &Site<Broker>, dir: &Path) -> Value {
    let result = site.result("a").json();
    assert_eq!(verdict(&result), CANCELLED, "{result}");
    assert_eq!(read_json(&dir.join("job.status.json")), result);
    result
}

#[test]
fn a_cancel_of_nothing_or_of_another_job_is_ignored() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(with(&[("RUST_LOG", "debug")]));
    cancel(&site);
    worker.await_stderr("the cancel of job a is ignored");
    let dir = site.hold("a");
    site.broker.publish("jobs/cancel/b", "a");
    worker.await_stderr("the cancel of job b is ignored");
    release(&dir);
    site.succeeds("a");
    worker.exits_with(0);
}

/// No next worker runs a job again that its controller has ended.
#[test]
fn a_cancel_in_the_grace_of_a_stop_ends_the_job() {
    let site = Site::scripted();
    // the drive has as long
    let grace = slowness().to_string();
    let mut worker = site.idle_worker(with(&[("JOB_STOP_GRACE", &grace)]));
    let steps = json!(["trap '' TERM; touch up; sleep 1000", "true"]);
    let dir = site.submit("a", json!({ "steps": steps }));
    await_file(&dir.join("up"));
    worker.sigterm();
    worker.await_stderr("SIGTERM: stopping");
    cancel(&site);
    is_cancelled(&site, &dir);
    worker.exits_with(0);
}

/// The steps have none then, and the drive has a second, which it may need on a busy machine.
#[test]
fn a_stop_without_a_grace_behind_a_cancel_has_the_result() {
    let has_result = |_| {
        let site = Site::scripted();
        let mut worker = site.idle_worker(with(&[("JOB_STOP_GRACE", "0")]));
        let always = json!({ "run": "touch always; sleep 1000", "always": true });
        let dir = site.begin("a", json!({ "steps": ["touch up; sleep 1000", always] }));
        cancel(&site);
        await_file(&dir.join("always"));
        worker.sigterm();
        worker.exits_with(0);
        let is_there = !site.broker.received("jobs/results/a").is_empty();
        is_there && is_cancelled(&site, &dir)["status"] == "failed"
    };
    assert!((0..10).any(has_result));
}

#[test]
fn a_retained_cancel_is_ignored() {
    for version in ["5", "4"] {
        let site = Site::scripted();
        site.broker
            .publish_retained("jobs/cancel/a", "an empty one would clear the topic");
        // a session that exists, so that the request is there before the subscription brings the retained cancel
        site.idle_worker(speaking(version));
        let step = format!("touch up; {}", until_exists("gate"));
        let dir = site.submit("a", json!({ "steps": [step] }));
        let variables = [("MQTT_PROTOCOL_VERSION", version), ("RUST_LOG", "debug")];
        let mut worker = site.worker(with(&variables));
        await_file(&dir.join("up"));
        let is_sent = |entry: &&Entry| matches!(entry.told(), Some(Packet::Publish { topic, .. }) if topic == "jobs/cancel/a");
        if version == "4" {
            // to the worker before, and to this one
            let are_sent = |log: &[Entry]| log.iter().filter(is_sent).count() == 2;
            site.broker.wait_until(DEADLINE, are_sent);
        }
        // a cancel that counts comes behind it: the worker has seen both when it has seen this one
        site.broker.publish("jobs/cancel/b", "");
        worker.await_stderr("the cancel of job b is ignored");
        release(&dir);
        site.succeeds("a");
        worker.exits_with(0);
    }
}

const OF_ANOTHER: &str = "of another worker\n";

#[derive(Clone, Copy, Debug, PartialEq)]
enum WaitsFor {
    Directory,
    Definition,
    Lock,
    Reader,
}

#[derive(Clone, Copy, PartialEq)]
enum EndedBy {
    Cancel,
    Withdrawal,
    Stop,
}

fn a_waiting_job_is_ended(waits_for: WaitsFor, by: EndedBy) {
    let site = Site::scripted();
    let mut worker = site.idle_worker(with(&[("JOB_DIR_WAIT", "1000")]));
    let dir = site.drive.path().join("a");
    let files = ["job.log", "job.status.json"].map(|name| dir.join(name));
    let is_locked = matches!(waits_for, WaitsFor::Lock | WaitsFor::Reader);
    let locked = is_locked.then(|| {
        site.prepare("a", json!({ "steps": ["touch ran"] }));
        for file in &files {
            fs::write(file, OF_ANOTHER).unwrap();
        }
        let log = File::open(&files[0]).unwrap();
        match waits_for {
            WaitsFor::Lock => log.lock().unwrap(),
            _ => log.lock_shared().unwrap(),
        }
        log
    });
    if waits_for == WaitsFor::Definition {
        site.directory("a");
    }
    site.request(json!({ "id": "a", "workDir": dir }));
    worker.await_stderr(match waits_for {
        WaitsFor::Directory | WaitsFor::Definition => "request taken",
        WaitsFor::Lock => "is in use by another worker",
        WaitsFor::Reader => "that only reads it",
    });
    let of_another = || assert_eq!(files.each_ref().map(|file| read(file)), [OF_ANOTHER; 2]);
    match by {
        EndedBy::Cancel => cancel(&site),
        EndedBy::Withdrawal => shell(&dir, "touch job.cancel"),
        EndedBy::Stop => {
            worker.stop();
            assert_eq!(site.broker.queued(WORKER), 1);
            assert!(site.broker.received("jobs/results/+").is_empty());
            match locked {
                Some(_) => of_another(),
                None => assert!(files.iter().all(|file| !file.exists())),
            }
            // the next one gets it
            drop(locked);
            site.prepare("a", json!({ "steps": ["touch ran"] }));
            let mut worker = site.worker(|_| {});
            site.succeeds("a");
            return worker.exits_with(0);
        }
    }
    let result = site.result("a").json();
    assert_eq!(verdict(&result), CANCELLED);
    if by == EndedBy::Withdrawal {
        names_the_file(&result, &dir);
    }
    worker.exits_with(0);
    match waits_for {
        WaitsFor::Directory => assert!(!dir.exists() && result["logFile"].is_null()),
        WaitsFor::Lock => of_another(),
        // for good
        WaitsFor::Definition | WaitsFor::Reader => assert_eq!(read_json(&files[1]), result),
    }
    assert!(!dir.join("ran").exists());
}

#[test]
fn a_job_that_waits_is_cancelled_or_withdrawn_or_its_worker_stopped() {
    for waits_for in [
        WaitsFor::Directory,
        WaitsFor::Definition,
        WaitsFor::Lock,
        WaitsFor::Reader,
    ] {
        a_waiting_job_is_ended(waits_for, EndedBy::Cancel);
        a_waiting_job_is_ended(waits_for, EndedBy::Stop);
        if waits_for != WaitsFor::Directory {
            a_waiting_job_is_ended(waits_for, EndedBy::Withdrawal);
        }
    }
}

#[test]
fn a_job_cancelled_before_its_attempt_begins_is_over_also_when_its_request_comes_again() {
    for is_interrupted in [false, true] {
        let site = Site::scripted();
        let mut before = site.idle_worker(|_| {});
        let dir = site.directory("a");
        let request = json!({ "id": "a", "workDir": dir });
        if is_interrupted {
            site.hold("a");
            before.stop();
            fs::remove_file(dir.join("job.json")).unwrap();
        } else {
            before.stop();
            site.request(request.clone());
        }
        let log = || fs::read(dir.join("job.log")).ok();
        let log_before = log();
        let mut worker = site.worker(with(&[("JOB_DIR_WAIT", "1000")]));
        worker.await_stderr("request taken");
        // it dies before it can acknowledge its request
        site.broker.set_script(|step| match step.packet {
            Packet::PubAck { .. } if !step.from_client => Verdict::Drop,
            _ => Verdict::Pass,
        });
        cancel(&site);
        let first = is_cancelled(&site, &dir);
        worker.kill9();
        site.broker.set_script(|_| Verdict::Pass);
        site.prepare("a", json!({ "steps": ["touch ran"] }));
        let mut worker = site.worker(|_| {});
        assert_eq!(site.results("a", 2)[1], first);
        worker.exits_with(0);
        assert!(!dir.join("ran").exists());
        assert_eq!(log(), log_before);
        // published afresh, it is a run of its own
        let mut worker = site.idle_worker(|_| {});
        site.request(request);
        assert_eq!(site.results("a", 3)[2]["status"], "success");
        worker.exits_with(0);
    }
}

fn names_the_file(result: &Value, dir: &Path) {
    let error = result["error"].as_str().unwrap();
    let file = dir.join("job.cancel").display().to_string();
    assert!(error.contains(&file) && error.contains("remove"), "{error}");
}

#[test]
fn a_job_with_a_file_job_cancel_is_not_run_until_that_is_removed() {
    for kind in [
        "echo '{}' > job.cancel",
        "mkdir job.cancel",
        "ln -s nowhere job.cancel",
        "mkfifo job.cancel",
    ] {
        let site = Site::scripted();
        let mut worker = site.idle_worker(|_| {});
        let dir = site.prepare("a", json!({ "steps": ["true"] }));
        shell(&dir, kind);
        site.request(json!({ "id": "a", "workDir": dir }));
        names_the_file(&is_cancelled(&site, &dir), &dir);
        worker.exits_with(0);
        assert_eq!(names(&dir), ["job.cancel", "job.json", "job.status.json"]);
        shell(&dir, "rm -r job.cancel");
        let mut worker = site.idle_worker(|_| {});
        site.request(json!({ "id": "a", "workDir": dir }));
        site.succeeds("a");
        worker.exits_with(0);
    }
}

#[test]
fn an_interrupted_job_is_withdrawn() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|_| {});
    let dir = site.hold("a");
    shell(&dir, "touch job.cancel");
    worker.stop();
    shell(&dir, "rm up");
    let mut worker = site.worker(|_| {});
    names_the_file(&is_cancelled(&site, &dir), &dir);
    worker.exits_with(0);
    assert!(!dir.join("up").exists());
}

/// Each press on a button that cancels is a message, and the Node-RED flow repeats its cancel each second.
#[test]
fn a_step_that_always_runs_has_its_time_however_often_the_job_is_cancelled() {
    for (first, expected) in [("exit 3", ("failed", "step", 3)), ("true", CANCELLED)] {
        let site = Site::scripted();
        let mut worker = site.idle_worker(with(&[("JOB_STOP_GRACE", "0")]));
        let clean = format!("touch up; {}; touch cleaned", until_exists("gate"));
        let steps = json!([first, { "run": clean, "always": true }, "true", { "run": "true", "always": true }]);
        let dir = site.begin("a", json!({ "steps": steps }));
        for count in 1..=3 {
            cancel(&site);
            wait::until("the cancel to be heard", || {
                worker.stderr().matches("cancel received").count() == count
            });
        }
        release(&dir);
        let result = site.result("a").json();
        assert_eq!(verdict(&result), expected, "{result}");
        worker.exits_with(0);
        let states = [1, 2, 3].map(|step| result["steps"][step]["status"].clone());
        assert_eq!(states, ["success", "skipped", "success"], "{first}");
        let log = read(&dir.join("job.log"));
        assert_eq!(log.matches("this step always runs").count(), 1, "{log}");
        site.broker.wait_for_queued(WORKER, 0, DEADLINE);
    }
}

#[test]
fn a_step_that_always_runs_and_never_ends_has_its_time_once() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|_| {});
    // the first step's own limit is none of the job's
    let steps = json!([{ "run": "sleep 1000", "timeoutSeconds": 0.1 },
        { "run": "touch up; exec sleep 1000", "always": true, "timeoutSeconds": 1000 }]);
    let limit = slowness() / 2.0;
    let dir = site.begin("own", json!({ "steps": steps, "timeoutSeconds": limit }));
    wait::until("the job's limit", || {
        read(&dir.join("job.log")).contains("this step always runs")
    });
    worker.stop(); // it has a limit of its own: only a stop is left

    let always = json!({ "run": "exec sleep 1000", "always": true });
    site.jobs(&json!([{ "job": { "steps": [always], "timeoutSeconds": 0.3 }, "ends": ["failed", "timeout", 124],
        "codes": [124], "error": "the job timed out after 0.3s" }]));
}

#[test]
fn a_step_that_always_runs_after_a_cancel_has_10_s() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|_| {});
    let steps = json!(["touch up; exec sleep 1000", { "run": "exec sleep 1000", "always": true }]);
    site.begin("a", json!({ "steps": steps }));
    cancel(&site);
    let result = site.result("a").json();
    assert_eq!(verdict(&result), CANCELLED, "{result}");
    assert_eq!(result["steps"][1]["exitCode"], 124, "{result}");
    worker.exits_with(0);
}

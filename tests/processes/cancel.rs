//! Cancelling a job by `jobs/cancel/{id}` (docs/reference.md, "Withdrawing and cancelling").

use crate::support;

use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use support::broker::{Broker, Entry, Packet, Verdict};
use support::site::{Site, WORKER, await_file, names, read_json, until_exists, verdict};
use support::wait::{self, DEADLINE};
use support::worker::{Worker, with};

#[test]
fn the_cancel_of_another_job_is_ignored() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(with(&[("RUST_LOG", "debug")]));
    let dir = site.submit(
        "a",
        json!({ "steps": ["touch up; ".to_owned() + &until_exists("gate")] }),
    );
    await_file(&dir.join("up"));
    site.broker.publish("jobs/cancel/b", "a");
    worker.await_stderr("the cancel of job b is ignored");
    fs::write(dir.join("gate"), "").unwrap();
    assert_eq!(verdict(&site.result("a").json()), ("success", "", 0));
    worker.exits_with(0);
}

#[test]
fn a_cancel_of_nothing_neither_ends_the_worker_nor_a_later_job() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(with(&[("RUST_LOG", "debug")]));
    site.broker.publish("jobs/cancel/a", "");
    worker.await_stderr("the cancel of job a is ignored");
    site.submit("a", json!({ "steps": ["true"] }));
    assert_eq!(verdict(&site.result("a").json()), ("success", "", 0));
    worker.exits_with(0);
}

#[test]
fn a_retained_cancel_is_ignored() {
    for version in ["5", "4"] {
        let site = Site::scripted();
        site.broker
            .publish_retained("jobs/cancel/a", "an empty one would clear the topic");
        // a session that exists, so that the request is there before the subscription brings the retained cancel
        site.idle_worker(with(&[("MQTT_PROTOCOL_VERSION", version)]));
        let dir = site.submit(
            "a",
            json!({ "steps": ["touch up; ".to_owned() + &until_exists("gate")] }),
        );
        let mut worker = site.worker(with(&[
            ("MQTT_PROTOCOL_VERSION", version),
            ("RUST_LOG", "debug"),
        ]));
        await_file(&dir.join("up"));
        let cancels = |log: &[Entry]| {
            let sent = |entry: &&Entry| {
                matches!(entry, Entry::Packet { from_client: false, packet: Packet::Publish { topic, .. }, .. }
                    if topic == "jobs/cancel/a")
            };
            log.iter().filter(sent).count()
        };
        if version == "4" {
            // to the worker before, and to this one
            site.broker.wait_until(DEADLINE, |log| cancels(log) == 2);
        }
        // a cancel that counts comes behind it: the worker has seen both when it has seen this one
        site.broker.publish("jobs/cancel/b", "");
        worker.await_stderr("the cancel of job b is ignored");
        fs::write(dir.join("gate"), "").unwrap();
        assert_eq!(
            verdict(&site.result("a").json()),
            ("success", "", 0),
            "MQTT {version}"
        );
        worker.exits_with(0);
    }
}

#[test]
fn a_job_that_waits_for_its_directory_is_cancelled() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(with(&[("JOB_DIR_WAIT", "1000")]));
    let dir = site.drive.path().join("later");
    site.request(json!({ "id": "a", "workDir": dir }));
    worker.await_stderr("request taken");
    site.broker.publish("jobs/cancel/a", "");
    let result = site.result("a").json();
    assert_eq!(verdict(&result), ("failed", "cancelled", 130));
    assert_eq!(result["logFile"], json!(null));
    worker.exits_with(0);
    assert!(!dir.exists());
}

#[test]
fn a_job_that_waits_for_its_lock_is_cancelled_or_withdrawn_and_touches_nothing() {
    for is_withdrawal in [false, true] {
        let site = Site::scripted();
        let mut worker = site.idle_worker(|_| {});
        let dir = site.prepare("a", json!({ "steps": ["touch ran"] }));
        let files = ["job.log", "job.status.json"].map(|name| dir.join(name));
        files
            .iter()
            .for_each(|file| fs::write(file, "of somebody else\n").unwrap());
        let log = File::open(dir.join("job.log")).unwrap();
        log.lock().unwrap();
        site.request(json!({ "id": "a", "workDir": dir }));
        worker.await_stderr("is in use by another worker");
        if is_withdrawal {
            fs::write(dir.join("job.cancel"), "").unwrap();
            is_withdrawn(&site.result("a").json(), &dir);
        } else {
            site.broker.publish("jobs/cancel/a", "");
            assert_eq!(
                verdict(&site.result("a").json()),
                ("failed", "cancelled", 130)
            );
        }
        worker.exits_with(0);
        for file in files {
            assert_eq!(fs::read_to_string(file).unwrap(), "of somebody else\n");
        }
        assert!(!dir.join("ran").exists());
    }
}

/// Kills a worker whose result the broker has, before it can acknowledge its request, and starts another one.
fn redeliver(site: &Site<Broker>, mut worker: Worker) -> Worker {
    worker.kill9();
    worker.wait();
    site.broker.set_script(|_| Verdict::Pass);
    site.worker(|_| {})
}

fn withhold_acknowledgements(site: &Site<Broker>) {
    site.broker.set_script(|step| match step.packet {
        Packet::PubAck { .. } if !step.from_client => Verdict::Drop,
        _ => Verdict::Pass,
    });
}

#[test]
fn a_job_cancelled_before_its_first_step_is_not_run_when_its_request_comes_again() {
    let site = Site::scripted();
    let worker = site.idle_worker(with(&[("JOB_DIR_WAIT", "1000")]));
    let dir = site.drive.path().join("a");
    fs::create_dir(&dir).unwrap();
    withhold_acknowledgements(&site);
    site.request(json!({ "id": "a", "workDir": dir }));
    worker.await_stderr("request taken");
    site.broker.publish("jobs/cancel/a", "");
    let first = site.result("a").json();
    assert_eq!(verdict(&first), ("failed", "cancelled", 130));
    assert_eq!(read_json(&dir.join("job.status.json")), first);
    assert_eq!(names(&dir), ["job.status.json"]);
    site.prepare("a", json!({ "steps": ["touch ran"] }));
    let mut worker = redeliver(&site, worker);
    assert_eq!(site.results("a", 2)[1], first);
    worker.exits_with(0);
    assert!(!dir.join("ran").exists());
    // published afresh, it is a run of its own
    let mut worker = site.idle_worker(|_| {});
    site.request(json!({ "id": "a", "workDir": dir }));
    assert_eq!(verdict(&site.results("a", 3)[2]), ("success", "", 0));
    worker.exits_with(0);
}

#[test]
fn an_interrupted_job_that_is_cancelled_before_its_next_attempt_is_over() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|_| {});
    let dir = site.submit("a", json!({ "steps": ["touch up; exec sleep 1000"] }));
    await_file(&dir.join("up"));
    worker.stop();
    let log = fs::read(dir.join("job.log")).unwrap();
    fs::remove_file(dir.join("job.json")).unwrap();
    let worker = site.worker(with(&[("JOB_DIR_WAIT", "1000")]));
    worker.await_stderr("request taken");
    withhold_acknowledgements(&site);
    site.broker.publish("jobs/cancel/a", "");
    let first = site.result("a").json();
    assert_eq!(verdict(&first), ("failed", "cancelled", 130));
    assert_eq!(read_json(&dir.join("job.status.json")), first);
    let mut worker = redeliver(&site, worker);
    assert_eq!(site.results("a", 2)[1], first);
    worker.exits_with(0);
    assert_eq!(fs::read(dir.join("job.log")).unwrap(), log);
}

#[test]
fn a_job_that_waits_for_a_reader_of_its_log_is_cancelled_for_good() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|_| {});
    let dir = site.prepare("a", json!({ "steps": ["touch ran"] }));
    let log = File::create(dir.join("job.log")).unwrap();
    log.lock_shared().unwrap();
    site.request(json!({ "id": "a", "workDir": dir }));
    worker.await_stderr("that only reads it");
    site.broker.publish("jobs/cancel/a", "");
    let result = site.result("a").json();
    assert_eq!(verdict(&result), ("failed", "cancelled", 130));
    worker.exits_with(0);
    assert_eq!(read_json(&dir.join("job.status.json")), result);
    assert!(!dir.join("ran").exists());
}

/// What `job.cancel` may be.
const KINDS: [&str; 4] = [
    "echo '{}' > job.cancel",
    "mkdir job.cancel",
    "ln -s nowhere job.cancel",
    "mkfifo job.cancel",
];

fn make(dir: &Path, command: &str) {
    let shell = Command::new("sh")
        .args(["-c", command])
        .current_dir(dir)
        .status();
    assert!(shell.unwrap().success(), "{command}");
}

#[track_caller]
fn is_withdrawn(result: &Value, dir: &Path) {
    assert_eq!(verdict(result), ("failed", "cancelled", 130), "{result}");
    let error = result["error"].as_str().unwrap();
    let file = dir.join("job.cancel");
    assert!(error.contains(&file.display().to_string()), "{error}");
    assert!(error.contains("remove"), "{error}");
}

#[test]
fn a_job_with_a_file_job_cancel_is_not_run_until_that_is_removed() {
    for kind in KINDS {
        let site = Site::scripted();
        let mut worker = site.idle_worker(|_| {});
        let dir = site.prepare("a", json!({ "steps": ["touch ran"] }));
        make(&dir, kind);
        site.request(json!({ "id": "a", "workDir": dir }));
        let result = site.result("a").json();
        is_withdrawn(&result, &dir);
        worker.exits_with(0);
        assert_eq!(names(&dir), ["job.cancel", "job.json", "job.status.json"]);
        assert_eq!(read_json(&dir.join("job.status.json")), result);
        make(&dir, "rm -r job.cancel");
        let mut worker = site.idle_worker(|_| {});
        site.request(json!({ "id": "a", "workDir": dir }));
        assert_eq!(verdict(&site.results("a", 2)[1]), ("success", "", 0));
        worker.exits_with(0);
    }
}

#[test]
fn a_job_is_withdrawn_before_its_definition_is_there() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(with(&[("JOB_DIR_WAIT", "1000")]));
    let dir = site.drive.path().join("a");
    fs::create_dir(&dir).unwrap();
    site.request(json!({ "id": "a", "workDir": dir }));
    worker.await_stderr("request taken");
    fs::write(dir.join("job.cancel"), "").unwrap();
    is_withdrawn(&site.result("a").json(), &dir);
    worker.exits_with(0);
}

#[test]
fn an_interrupted_job_is_withdrawn() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|_| {});
    let dir = site.submit("a", json!({ "steps": ["echo up > up; exec sleep 1000"] }));
    await_file(&dir.join("up"));
    fs::write(dir.join("job.cancel"), "").unwrap();
    worker.stop();
    fs::remove_file(dir.join("up")).unwrap();
    let mut worker = site.worker(|_| {});
    let result = site.result("a").json();
    is_withdrawn(&result, &dir);
    worker.exits_with(0);
    assert_eq!(read_json(&dir.join("job.status.json")), result);
    assert!(!dir.join("up").exists());
}

/// Each press on a button that cancels is a message, and the Node-RED flow repeats its cancel each second.
#[test]
fn a_step_that_always_runs_has_its_time_however_often_the_job_is_cancelled() {
    for (first, expected) in [
        ("exit 3", ("failed", "step", 3)),
        ("true", ("failed", "cancelled", 130)),
    ] {
        let site = Site::scripted();
        let mut worker = site.idle_worker(with(&[("JOB_STOP_GRACE", "0")]));
        let clean = format!("touch up; {}; touch cleaned", until_exists("gate"));
        let steps = json!([first, { "run": clean, "always": true }, "touch next", { "run": "touch last", "always": true }]);
        let dir = site.submit("a", json!({ "steps": steps }));
        await_file(&dir.join("up"));
        for cancel in 1..=3 {
            site.broker.publish("jobs/cancel/a", "");
            wait::until("the cancel to be heard", || {
                worker.stderr().matches("cancel received").count() == cancel
            });
        }
        fs::write(dir.join("gate"), "").unwrap();
        let result = site.result("a").json();
        assert_eq!(verdict(&result), expected, "{result}");
        worker.exits_with(0);
        let made = ["cleaned", "next", "last"].map(|file| dir.join(file).exists());
        assert_eq!(made, [true, false, true], "{first}");
        let log = fs::read_to_string(dir.join("job.log")).unwrap();
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
    let dir = site.submit("own", json!({ "steps": steps, "timeoutSeconds": 0.5 }));
    await_file(&dir.join("up"));
    wait::until("the job's limit", || {
        fs::read_to_string(dir.join("job.log"))
            .unwrap()
            .contains("this step always runs")
    });
    worker.signal(Signal::TERM); // it has a limit of its own: only a stop is left
    worker.exits_with(0);

    let mut worker = site.idle_worker(|_| {});
    let steps = json!([{ "run": "touch up; exec sleep 1000", "always": true }]);
    let dir = site.submit("none", json!({ "steps": steps, "timeoutSeconds": 0.3 }));
    await_file(&dir.join("up"));
    let result = site.result("none").json();
    assert_eq!(verdict(&result), ("failed", "timeout", 124));
    assert_eq!(result["error"], "the job timed out after 0.3s");
    assert_eq!(result["steps"][0]["exitCode"], 124);
    worker.exits_with(0);
}

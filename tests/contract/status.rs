//! docs/reference.md, "Status document" and "Topics": the document on disk and on the wire; at each change, a courtesy that never
//! delays a job.

use crate::support::broker::{Packet, Verdict};
use crate::support::schema::Schema;
use crate::support::site::{Site, await_final, names, read, until_exists};
use crate::support::wait::{self, DEADLINE};
use crate::support::worker::with;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

fn time(document: &Value, field: &str) -> SystemTime {
    let text = document[field].as_str().expect(field);
    let is_exact = text.len() == "2026-02-17T09:12:01.024Z".len();
    assert!(is_exact, "{field} is RFC 3339 with milliseconds: {text}");
    humantime::parse_rfc3339(text).expect(field)
}

#[test]
fn a_final_document_has_the_fields_of_the_contract() {
    let site = Site::start();
    let before = SystemTime::now() - Duration::from_millis(1);
    let steps = json!(["sleep 0.2", { "run": "true", "name": "tests" }]);
    let variables = [("WORKER_ID", "worker-7")];
    let finished = site.run_with(&variables, "whole", json!({ "steps": steps }));
    let result = &finished.result;
    // the four that never change come first
    let log = finished.dir.join("job.log").display().to_string();
    let first = format!(r#"{{"id":"whole","status":"success","logFile":"{log}","exitCode":0,"#);
    let text = finished.published.text();
    assert!(text.starts_with(&first), "{text}");
    assert_eq!(result["attempt"], 1);
    assert_eq!(result["worker"], "worker-7");
    let host = read(Path::new("/proc/sys/kernel/hostname"));
    assert_eq!(result["host"], host.trim_end());
    assert_eq!(result["workDir"], json!(finished.dir));
    let (started, ended) = (time(result, "startedAt"), time(result, "finishedAt"));
    assert!(before <= started && started <= ended && ended <= SystemTime::now());
    let between = ended.duration_since(started).unwrap().as_millis() as u64;
    let duration = result["durationMs"].as_u64().expect("a number");
    // the second look at the clock may come later
    let is_right = (150..=between + 50).contains(&duration);
    assert!(is_right, "{duration} ms of {between}");

    let steps = result["steps"].as_array().expect("steps is a list");
    for (step, name) in steps.iter().zip([Value::Null, json!("tests")]) {
        let said = json!([
            step["status"],
            step["exitCode"],
            step["name"],
            step["signal"]
        ]);
        assert_eq!(said, json!(["success", 0, name, null]));
        let began = time(step, "startedAt");
        assert!(started <= began && began <= ended, "{step}");
        assert!(step["durationMs"].is_u64(), "{step}");
    }
    assert_eq!(steps.len(), 2);
    assert!(steps[0]["durationMs"].as_u64() >= Some(150), "{}", steps[0]);
}

#[test]
fn every_result_has_the_directory_as_the_request_wrote_it() {
    let site = Site::start();
    let _worker = site.idle_worker(|_| {});
    let dir = site.prepare("withdrawn", json!({ "steps": [] }));
    fs::write(dir.join("job.cancel"), "").unwrap();
    let dotted = format!("{}/../withdrawn", dir.display());
    for (work_dir, steps, reason) in [
        (json!("/no/../such"), Value::Null, "rejected"),
        (json!("x"), json!(7), "rejected"),
        (json!(7), Value::Null, "rejected"),
        (json!(dotted), Value::Null, "cancelled"),
    ] {
        site.request(json!({ "id": "a", "workDir": work_dir, "steps": steps }));
        let result = site.result("a").json();
        let said = json!([result["workDir"].as_str(), result["reason"]]);
        assert_eq!(said, json!([work_dir.as_str(), reason]));
    }
}

#[test]
fn when_the_result_arrives_log_and_status_are_whole_and_all_that_is_added() {
    let site = Site::start();
    for (id, step) in [("good", "true"), ("bad", "exit 3")] {
        let mut worker = site.idle_worker(|_| {});
        let dir = site.submit(id, json!({ "steps": [step, "true"] }));
        let published = site.result(id);
        assert_eq!(published.qos, 1);
        let status = read(&dir.join("job.status.json"));
        assert_eq!(status, published.text(), "byte for byte");
        let log = read(&dir.join("job.log"));
        worker.exits_with(0);
        assert_eq!(log, read(&dir.join("job.log")));
        assert_eq!(names(&dir), ["job.json", "job.log", "job.status.json"]);
    }
}

#[test]
fn a_document_at_the_start_and_at_each_change() {
    let site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    let held = |step: u8| until_exists(&format!("gate-{step}"));
    let steps = json!([held(0), { "run": held(1) + "; exit 3", "name": "bad" }, "true", { "run": held(3), "always": true }]);
    let dir = site.submit("a", json!({ "steps": steps }));
    let expected = [
        (0, ["running", "pending", "pending", "pending"]),
        (1, ["success", "running", "pending", "pending"]),
        (3, ["success", "failed", "skipped", "running"]),
    ];
    for (count, (step, _)) in (1..).zip(&expected) {
        let last = wait::until_some(&format!("document {count}"), || {
            let mut told = site.controller.heard("jobs/status/");
            told.pop().filter(|_| told.len() == count - 1)
        });
        let on_disk = read(&dir.join("job.status.json"));
        assert_eq!(last.text(), on_disk, "it is told while the step runs");
        fs::write(dir.join(format!("gate-{step}")), "").unwrap();
    }
    worker.exits_with(0);
    let messages = site.controller.heard("jobs/status/");
    assert_eq!(messages.len(), expected.len());
    for (message, (step, states)) in messages.iter().zip(expected) {
        let told = (message.topic.as_str(), message.qos, message.retain);
        assert_eq!(told, ("jobs/status/a", 0, false));
        let document = message.json();
        Schema::read("status.json").describes(&document);
        let steps = document["steps"].as_array().unwrap();
        let said: Vec<_> = steps.iter().map(|step| step["status"].clone()).collect();
        assert_eq!(said, states);
        assert_eq!(steps[1]["exitCode"] == 3, step == 3);
        for (field, value) in [
            ("status", json!("running")),
            ("logFile", json!(dir.join("job.log"))),
            ("attempt", json!(1)),
            ("finishedAt", Value::Null),
        ] {
            assert_eq!(document[field], value, "{document}");
        }
    }
}

/// The job says more than the buffers on the way to the broker hold.
#[test]
fn a_job_goes_on_and_a_worker_can_be_stopped_while_the_broker_does_not_read() {
    for stops in [false, true] {
        let site = Site::scripted();
        let mut worker = site.idle_worker(with(&[("JOB_STOP_GRACE", "1")]));
        // it stops reading at the first progress, until something is sent to it
        let (resume, stalled) = mpsc::channel::<()>();
        let mut stalled = Some(stalled);
        site.broker.set_script(move |step| {
            if let Packet::Publish { topic, .. } = step.packet
                && step.from_client
                && topic.starts_with("jobs/status/")
                && let Some(stalled) = stalled.take()
            {
                let _ = stalled.recv_timeout(6 * DEADLINE); // the test is over
            }
            Verdict::Pass
        });
        let step = |number: u8| json!({ "run": ":", "name": format!("{number:0400}") });
        let steps: Vec<_> = (0..160).map(step).collect();
        let dir = site.submit("a", json!({ "steps": steps }));
        // without a word to the broker: it does not answer now
        await_final(&dir);
        if stops {
            worker.stop();
            resume.send(()).unwrap();
        } else {
            resume.send(()).unwrap();
            worker.exits_with(0);
            assert_eq!(site.broker.received("jobs/results/a").len(), 1);
        }
    }
}

#[test]
fn many_short_steps_are_told_of_together() {
    let site = Site::start();
    let steps: Vec<_> = (0..120).map(|_| ":").collect();
    let worker = site.idle_worker(|_| {});
    let started = Instant::now();
    let finished = site.run_on(worker, "a", json!({ "steps": steps }));
    let tenths = started.elapsed().as_millis() / 100;
    let told = site.controller.heard("jobs/status/").len() as u128;
    let is_right = (1..=tenths + 1).contains(&told);
    assert!(is_right, "{told} in {tenths} tenths of a second");
    let (stored, published) = (finished.read("job.status.json"), finished.published.text());
    assert_eq!(stored, published, "it is on the drive without delay");
}

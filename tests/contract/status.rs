//! docs/reference.md, "Status document" and "Topics": the status document on disk and on the wire, and the presence
//! of a worker.

use crate::support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use support::controller::Controller;
use support::site::{Site, names, read};
use support::worker::with;

fn time(document: &Value, field: &str) -> std::time::SystemTime {
    let text = document[field]
        .as_str()
        .unwrap_or_else(|| panic!("{field} is a string in {document}"));
    let shape: String = text
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    assert_eq!(
        shape, "0000-00-00T00:00:00.000Z",
        "{field} is RFC 3339 with milliseconds"
    );
    humantime::parse_rfc3339(text).unwrap_or_else(|error| panic!("{field} is no time: {error}"))
}

#[test]
fn a_final_document_has_the_fields_of_the_contract() {
    let site = Site::start();
    let before = std::time::SystemTime::now() - Duration::from_millis(1);
    let worker = site.idle_worker(with(&[("WORKER_ID", "worker-7")]));
    let steps = json!(["sleep 0.2", { "run": "true", "name": "tests" }]);
    let finished = site.run_on(worker, "whole", json!({ "steps": steps }));
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
    assert_eq!(result["workDir"], finished.dir.display().to_string());
    let (started, ended) = (time(result, "startedAt"), time(result, "finishedAt"));
    assert!(before <= started && started <= ended && ended <= std::time::SystemTime::now());
    let between = ended.duration_since(started).expect("in order").as_millis() as i64;
    let duration = result["durationMs"]
        .as_i64()
        .expect("durationMs is an integer");
    // the second look at the clock may come later
    assert!(
        duration >= 150 && duration <= between + 50,
        "{duration} ms of {between}"
    );
    assert!(
        result.get("reason").is_none_or(Value::is_null),
        "a success has no reason"
    );
    assert!(
        result.get("error").is_none_or(Value::is_null),
        "a success has no error"
    );

    let steps = result["steps"].as_array().expect("steps is a list");
    assert_eq!(steps.len(), 2);
    for step in steps {
        assert_eq!(
            (&step["status"], &step["exitCode"]),
            (&json!("success"), &json!(0))
        );
        assert!(step["durationMs"].is_u64(), "{step}");
        assert!(
            started <= time(step, "startedAt") && time(step, "startedAt") <= ended,
            "{step}"
        );
        assert!(step.get("signal").is_none_or(Value::is_null), "{step}");
    }
    assert!(steps[0].get("name").is_none_or(Value::is_null));
    assert_eq!(steps[1]["name"], "tests");
    assert!(steps[0]["durationMs"].as_u64() >= Some(150), "{}", steps[0]);
}

#[test]
fn every_result_has_the_directory_as_the_request_wrote_it() {
    let site = Site::start();
    let _worker = site.idle_worker(with(&[("JOB_DIR_WAIT", "0")]));
    let dir = site.prepare("withdrawn", json!({ "steps": [] }));
    fs::write(dir.join("job.cancel"), "").unwrap();
    let dotted = format!("{}/../withdrawn", dir.display());
    for (request, reason, work_dir) in [
        (
            json!({ "id": "a", "workDir": "/no/../such" }),
            "rejected",
            json!("/no/../such"),
        ),
        (
            json!({ "id": "b", "workDir": "x", "steps": 7 }),
            "rejected",
            json!("x"),
        ),
        (json!({ "id": "c", "workDir": 7 }), "rejected", Value::Null),
        (
            json!({ "id": "d", "workDir": dotted }),
            "cancelled",
            json!(dotted),
        ),
    ] {
        site.request(request.clone());
        let result = site.result(request["id"].as_str().unwrap()).json();
        assert_eq!(result["reason"], reason, "{result}");
        assert_eq!(result["workDir"], work_dir, "{result}");
        assert!(result["host"].is_string(), "{result}");
    }
}

#[test]
fn when_the_result_arrives_log_and_status_are_whole_and_all_that_is_added() {
    let site = Site::start();
    for (id, steps) in [
        ("good", json!(["true", "true"])),
        ("bad", json!(["exit 3", "true"])),
    ] {
        let mut worker = site.idle_worker(|_| {});
        let dir = site.submit(id, json!({ "steps": steps }));
        let published = site.result(id);
        assert_eq!(published.qos, 1);
        let status = fs::read(dir.join("job.status.json")).expect("a status file");
        assert_eq!(status, published.payload, "byte for byte");
        let log = read(&dir.join("job.log"));
        worker.exits_with(0);
        assert_eq!(log, read(&dir.join("job.log")));
        assert_eq!(names(&dir), ["job.json", "job.log", "job.status.json"]);
    }
}

#[test]
fn the_file_is_replaced_and_never_rewritten() {
    let site = Site::start();
    // A second name for the file as it is now: a write into the same file would show through it.
    let finished = site.run(
        "atomic",
        json!({ "steps": ["ln job.status.json earlier.json"] }),
    );
    let earlier: Value = serde_json::from_str(&finished.read("earlier.json"))
        .expect("the earlier document is whole");
    assert_eq!(earlier["status"], "running");
    assert_eq!(finished.result["status"], "success");
}

#[test]
fn results_and_statuses_are_not_retained_and_presence_is() {
    let site = Site::start();
    site.run("gone", json!({ "steps": ["true"] }));
    let latecomer = Controller::connect_as(&site.broker, "latecomer", None);
    let presence = latecomer.next("jobs/workers/node-worker-01");
    assert!(presence.retain);
    assert_eq!(presence.json()["state"], "offline");
    assert_eq!(
        latecomer.heard("jobs/results/").len() + latecomer.heard("jobs/status/").len(),
        0
    );
}

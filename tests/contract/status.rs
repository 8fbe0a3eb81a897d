//! docs/reference.md, "Status document" and "Topics": the status document on disk and on the wire, and the presence
//! of a worker.

use crate::support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use rumqttc::QoS;
use serde_json::{Value, json};
use support::controller::Controller;
use support::json::top_level_keys;
use support::site::{Site, names, read, while_exists};
use support::wait;

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
fn the_four_fields_that_never_change_come_first() {
    let site = Site::start();
    for (id, steps) in [
        ("good", json!(["true"])),
        ("bad", json!(["exit 3"])),
        ("none", json!([])),
    ] {
        let finished = site.run(id, json!({ "steps": steps }));
        let keys = top_level_keys(&finished.published.text());
        assert_eq!(
            keys[..4],
            ["id", "status", "logFile", "exitCode"],
            "{}",
            finished.published.text()
        );
    }
    for message in site.controller.heard("jobs/status/") {
        assert_eq!(
            top_level_keys(&message.text())[..4],
            ["id", "status", "logFile", "exitCode"]
        );
    }
}

#[test]
fn a_final_document_has_the_fields_of_the_contract() {
    let site = Site::start();
    let before = std::time::SystemTime::now() - Duration::from_millis(1);
    let worker = site.idle_worker(|command| {
        command.env("WORKER_ID", "worker-7");
    });
    let steps = json!(["sleep 0.2", { "run": "true", "name": "tests" }]);
    let finished = site.run_on(worker, "whole", json!({ "steps": steps }));
    let result = &finished.result;
    assert_eq!(result["id"], "whole");
    assert_eq!(result["status"], "success");
    assert_eq!(
        result["logFile"],
        finished.dir.join("job.log").display().to_string()
    );
    assert_eq!(result["exitCode"], 0);
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
    assert!(
        duration >= 150 && (duration - between).abs() <= 50,
        "{duration} ms is about {between} ms"
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
fn a_step_that_is_not_started_has_no_start() {
    let site = Site::start();
    let finished = site.run("skipped", json!({ "steps": ["exit 3", "true"] }));
    let steps = &finished.result["steps"];
    assert!(steps[0]["startedAt"].is_string() && steps[1]["startedAt"].is_null());
}

#[test]
fn every_result_has_the_directory_as_the_request_wrote_it() {
    let site = Site::start();
    let _worker = site.idle_worker(|command| {
        command.env("JOB_DIR_WAIT", "0");
    });
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
fn a_failed_document_says_why() {
    let site = Site::start();
    let finished = site.run("why", json!({ "steps": ["exit 3"] }));
    assert_eq!(finished.result["status"], "failed");
    assert_eq!(finished.result["reason"], "step");
    assert!(
        finished.result["error"]
            .as_str()
            .is_some_and(|error| error.len() > 3)
    );
}

#[test]
fn the_file_is_the_published_result_byte_for_byte() {
    let site = Site::start();
    for (id, steps) in [("good", json!(["true"])), ("bad", json!(["exit 3"]))] {
        let finished = site.run(id, json!({ "steps": steps }));
        let file = fs::read(finished.dir.join("job.status.json")).expect("a status file");
        assert_eq!(file, finished.published.payload);
        assert_eq!(finished.published.qos, QoS::AtLeastOnce);
    }
}

#[test]
fn the_file_is_there_before_the_result_arrives() {
    let site = Site::start();
    let _worker = site.idle_worker(|_| {});
    let dir = site.submit("first", json!({ "steps": ["true"] }));
    let published = site.result("first");
    assert_eq!(read(&dir.join("job.status.json")), published.text());
}

#[test]
fn while_a_step_runs_the_document_says_so_on_disk_and_on_the_wire() {
    let site = Site::start();
    let worker = site.idle_worker(|_| {});
    let steps = json!([
        "true",
        format!("touch started; {}", while_exists("hold")),
        "true"
    ]);
    let dir = site.prepare("running", json!({ "steps": steps }));
    fs::write(dir.join("hold"), "").expect("the drive can be written");
    site.request(json!({ "id": "running", "workDir": dir }));
    wait::until("the second step to start", || dir.join("started").exists());

    let statuses = |document: &Value| -> Vec<String> {
        let steps = document["steps"].as_array().into_iter().flatten();
        steps
            .filter_map(|step| step["status"].as_str().map(str::to_owned))
            .collect()
    };
    // the journal is written at most ten times a second
    let mut document = Value::Null;
    wait::until("the second step in the file", || {
        document = serde_json::from_str(&read(&dir.join("job.status.json")))
            .expect("valid JSON at any moment");
        statuses(&document) == ["success", "running", "pending"]
    });
    assert_eq!(document["id"], "running");
    assert_eq!(document["status"], "running");
    assert_eq!(document["exitCode"], Value::Null);
    assert_eq!(
        document["logFile"],
        dir.join("job.log").display().to_string()
    );
    assert_eq!(document["attempt"], 1);
    time(&document, "startedAt");
    assert!(document.get("finishedAt").is_none_or(Value::is_null));
    wait::until("the same document on the wire", || {
        site.controller
            .heard("jobs/status/running")
            .iter()
            .any(|message| message.json() == document)
    });

    fs::remove_file(dir.join("hold")).expect("the drive can be written");
    let finished = site.finish(worker, dir, "running");
    assert_eq!(
        statuses(&finished.result),
        ["success", "success", "success"]
    );
    let on_the_wire = site.controller.heard("jobs/status/running");
    let seen: Vec<Vec<String>> = on_the_wire
        .iter()
        .map(|message| statuses(&message.json()))
        .collect();
    for expected in [
        ["running", "pending", "pending"],
        ["success", "running", "pending"],
    ] {
        assert!(
            seen.iter().any(|statuses| statuses[..] == expected),
            "{expected:?} is among {seen:?}"
        );
    }
    assert!(
        on_the_wire
            .iter()
            .all(|message| message.qos == QoS::AtMostOnce)
    );
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
fn only_log_and_status_are_added_to_the_work_dir() {
    let site = Site::start();
    for (id, steps) in [
        ("good", json!(["true", "true"])),
        ("bad", json!(["exit 3", "true"])),
    ] {
        let finished = site.run(id, json!({ "steps": steps }));
        assert_eq!(
            names(&finished.dir),
            ["job.json", "job.log", "job.status.json"]
        );
    }
}

#[test]
fn the_status_of_an_old_run_does_not_show_in_a_new_one() {
    let site = Site::start();
    let first = site.run("again", json!({ "steps": ["exit 3"] }));
    let second = site.run("again", json!({ "steps": ["true"] }));
    assert_eq!(second.result["status"], "success");
    assert_eq!(second.result["attempt"], 1);
    assert!(second.result.get("reason").is_none_or(Value::is_null));
    assert!(time(&first.result, "finishedAt") <= time(&second.result, "startedAt"));
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

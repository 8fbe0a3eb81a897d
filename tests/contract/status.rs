//! docs/reference.md, "Status document" and "Topics": the status document on disk and on the wire, and the presence
//! of a worker.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::support::site::{Site, names, read};
use serde_json::{Value, json};

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
    let [reason, error] = ["reason", "error"].map(|field| result.get(field));
    assert_eq!((reason, error), (None, None), "a success has none");

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
    for (request, reason, work_dir) in [
        (
            json!({ "id": "a", "workDir": "/no/../such" }),
            "rejected",
            "/no/../such",
        ),
        (
            json!({ "id": "b", "workDir": "x", "steps": 7 }),
            "rejected",
            "x",
        ),
        (json!({ "id": "c", "workDir": 7 }), "rejected", ""),
        (
            json!({ "id": "d", "workDir": dotted }),
            "cancelled",
            &dotted,
        ),
    ] {
        site.request(request.clone());
        let result = site.result(request["id"].as_str().unwrap()).json();
        let said = result["workDir"].as_str().unwrap_or_default();
        assert_eq!((said, &result["reason"]), (work_dir, &json!(reason)));
        assert!(result["host"].is_string(), "{result}");
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

//! `docs/schema`: the schemas take what the worker takes, refuse what it refuses, and describe all that it says.

use crate::support;

use job_worker::contract::{Definition, Request};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use support::corpus;
use support::schema::Schema;
use support::site::{Site, while_exists};
use support::temp_dir::TempDir;
use support::wait;
use support::worker::with;

/// Definitions of the corpus that are JSON, and whether the worker takes them.
fn definitions() -> Vec<(String, bool)> {
    let texts = corpus::each(corpus::DEFINITIONS);
    let judged =
        |(_, text): (_, &str)| (text.to_owned(), Definition::parse(text.as_bytes()).is_ok());
    texts.map(judged).filter(is_json).collect()
}

/// Requests.
fn requests() -> Vec<(String, bool)> {
    let whole = corpus::each(corpus::REQUESTS).chain(corpus::each(corpus::NAMELESS));
    let whole = whole.map(|(_, text)| text.to_owned());
    let ids = corpus::each(corpus::IDS).map(|(_, id)| corpus::request_with_id(id));
    let definitions = corpus::each(corpus::DEFINITIONS);
    let definitions = definitions.filter_map(|(_, text)| corpus::request_with(text, "d"));
    let long = ["é".repeat(128), "x".repeat(129)];
    let long = long.iter().flat_map(|text| {
        let keyed = json!({ "id": "a", "workDir": "d", "key": text }).to_string();
        [keyed, corpus::request_with_id(&format!("{text:?}"))]
    });
    let all = whole.chain(ids).chain(definitions).chain(long);
    let judged = |text: String| {
        let is_good = Request::parse(text.as_bytes()).is_ok();
        (text, is_good)
    };
    all.map(judged).filter(is_json).collect()
}

/// Whether a validator gets to see it: some of the corpus is no JSON to everybody.
fn is_json((text, _): &(String, bool)) -> bool {
    let is_number = |error: serde_json::Error| error.to_string().contains("out of range");
    serde_json::from_str::<Value>(text).map_or_else(is_number, |_| true)
}

#[test]
fn what_is_good_for_the_schema_is_good_for_the_worker_and_the_other_way_round() {
    for (file, texts) in [("job.json", definitions()), ("request.json", requests())] {
        let schema = Schema::read(file);
        let mut good = 0;
        for (text, is_good) in texts {
            // the numbers that only a text can hold are for the other validator
            let Ok(value) = serde_json::from_str(&text) else {
                continue;
            };
            let said = schema.check(&value);
            assert_eq!(said.is_ok(), is_good, "{text}: {said:?}");
            good += usize::from(is_good);
        }
        assert!(good > 15, "only {good} good ones");
    }
}

/// A plain validator follows no reference to another file.
#[test]
fn a_request_says_of_a_job_what_a_definition_says() {
    let read = |name: &str| -> Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema");
        serde_json::from_slice(&fs::read(path.join(name)).unwrap()).unwrap()
    };
    let (job, request) = (read("job.json"), read("request.json"));
    assert_eq!(job["$defs"], request["$defs"]);
    for field in job["properties"].as_object().unwrap().keys() {
        assert_eq!(job["properties"][field], request["properties"][field]);
    }
}

/// The same documents, and numbers that only a text can hold, given to a validator that others have written.
#[test]
#[ignore = "needs python3-jsonschema"]
fn another_validator_thinks_of_them_as_the_worker_does() {
    let named = |name: &'static str| move |(text, is_good)| (name, is_good, text);
    let definitions = definitions().into_iter().map(named("job"));
    let table: Vec<_> = definitions
        .chain(requests().into_iter().map(named("request")))
        .collect();
    assert!(table.len() > 100);
    let dir = TempDir::new();
    let file = dir.path().join("table.json");
    fs::write(&file, serde_json::to_vec(&table).unwrap()).unwrap();
    let output = Command::new("python3")
        .arg("tests/schema.py")
        .arg(&file)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let trouble = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{trouble}");
}

#[test]
fn presence_and_rejections_are_as_their_schemas_say() {
    let site = Site::start();
    let mut worker = site.idle_worker(with(&[("JOB_DIR_WAIT", "600")]));
    site.controller.publish("jobs/pending", "no JSON");
    let rejected = site.controller.next("jobs/rejected").json();
    site.request(json!({ "id": 7, "workDir": site.directory("none").join("x") }));
    let topic = "jobs/workers/node-worker-01";
    let heard = || site.controller.heard(topic).into_iter().map(|m| m.json());
    wait::until("what the job waits for", || {
        heard().any(|presence| presence["waitingFor"].is_string())
    });
    worker.stop();
    wait::until("the farewell", || {
        heard().any(|presence| presence["state"] == "offline")
    });
    let schema = Schema::read("presence.json");
    for document in heard() {
        assert_eq!(schema.check(&document), Ok(()), "{document}");
        assert!(schema.undescribed(&document).is_empty(), "{document}");
    }
    let mut bad = heard().next_back().unwrap();
    bad["job"] = json!("a");
    assert!(schema.check(&bad).is_err(), "{bad}");
    let schema = Schema::read("rejected.json");
    assert_eq!(schema.check(&rejected), Ok(()), "{rejected}");
    assert!(schema.undescribed(&rejected).is_empty(), "{rejected}");
    let short = json!({ "worker": "w", "error": "e", "truncated": true });
    assert_eq!(schema.check(&short), Ok(()));
    assert!(
        schema
            .check(&json!({ "worker": "w", "error": "e" }))
            .is_err()
    );
}

#[test]
fn every_document_of_the_worker_is_as_its_schema_says() {
    let site = Site::start();
    let mut documents = Vec::new();
    // a job, what is in the worker's environment, and how it ends
    let jobs = [
        (
            "success",
            json!({ "steps": ["true", { "run": "true", "name": "second" }] }),
            None,
            "success",
        ),
        ("empty", json!({ "steps": [] }), None, "success"),
        (
            "step",
            json!({ "steps": ["exit 3", "true", { "run": "true", "always": true }] }),
            None,
            "step",
        ),
        (
            "signal",
            json!({ "steps": ["kill -KILL $$"] }),
            None,
            "step",
        ),
        (
            "timeout",
            json!({ "steps": ["exec sleep 600"], "timeoutSeconds": 0.1 }),
            None,
            "timeout",
        ),
        (
            "loud",
            json!({ "steps": ["yes"] }),
            Some(("JOB_LOG_LIMIT", "100000")),
            "log_limit",
        ),
        (
            "shell",
            json!({ "steps": ["rm -rf \"$JOB_WORK_DIR\"", "true"] }),
            None,
            "internal",
        ),
    ];
    for (id, definition, variable, end) in jobs {
        let worker = site.idle_worker(|command| _ = command.envs(variable));
        let finished = site.run_on(worker, id, definition);
        let result = &finished.result;
        assert_eq!(
            result.get("reason").unwrap_or(&result["status"]),
            end,
            "{result}"
        );
        documents.push(finished.result);
    }

    let mut worker = site.idle_worker(|_| {});
    site.request(json!({ "id": 7, "workDir": "/", "steps": 7 }));
    documents.push(site.result("7").json());
    let dir = site.prepare("cancelled", json!({ "steps": ["exec sleep 600"] }));
    site.request(json!({ "id": "cancelled", "workDir": dir }));
    documents.push(site.controller.next("jobs/status/cancelled").json());
    site.controller.publish("jobs/cancel/cancelled", "");
    documents.push(site.result("cancelled").json());
    worker.exits_with(0);

    let mut worker = site.idle_worker(|_| {});
    let dir = site.prepare("stopped", json!({ "steps": [while_exists("gate")] }));
    fs::write(dir.join("gate"), "").unwrap();
    site.request(json!({ "id": "stopped", "workDir": dir }));
    site.controller.next("jobs/status/stopped");
    worker.stop();
    documents.push(on_disk(&dir));
    let mut worker = site.worker(|_| {});
    wait::until("the second run", || on_disk(&dir)["status"] == "running");
    worker.kill9();
    fs::remove_file(dir.join("gate")).unwrap();
    let mut worker = site.worker(with(&[("JOB_MAX_ATTEMPTS", "1")]));
    documents.push(site.result("stopped").json());
    worker.exits_with(0);

    documents.extend(
        site.controller
            .heard("jobs/status/")
            .iter()
            .map(|message| message.json()),
    );
    let schema = Schema::read("status.json");
    for document in &documents {
        assert_eq!(schema.check(document), Ok(()), "{document}");
        assert!(schema.undescribed(document).is_empty(), "{document}");
    }
    let all: [(&str, &[&str]); 2] = [
        ("status", &["running", "success", "failed", "interrupted"]),
        (
            "reason",
            &[
                "step",
                "timeout",
                "cancelled",
                "log_limit",
                "interrupted",
                "rejected",
                "internal",
            ],
        ),
    ];
    for (field, values) in all {
        for value in values {
            assert!(
                documents.iter().any(|document| document[field] == *value),
                "no document with {field} {value}"
            );
        }
    }
}

fn on_disk(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("job.status.json")).unwrap()).unwrap()
}

#[test]
fn the_schema_of_the_status_refuses_what_the_contract_rules_out() {
    let schema = Schema::read("status.json");
    let good = json!({
        "id": "a", "status": "failed", "logFile": "/a/job.log", "exitCode": 1, "reason": "step", "error": "why",
        "attempt": 1, "worker": "w", "host": "h", "workDir": "a", "startedAt": "2026-02-17T09:12:01.024Z", "finishedAt": "2026-02-17T09:12:02.024Z",
        "durationMs": 1000, "steps": [{ "status": "failed", "exitCode": 1 }], "key": "k", "origin": "w 5 7 ab", "stops": 1
    });
    assert_eq!(schema.check(&good), Ok(()));
    for (field, value) in [
        ("id", json!(null)),
        ("status", json!("done")),
        ("logFile", json!(5)),
        ("exitCode", json!(null)),
        ("reason", json!("bored")),
        ("status", json!("success")),
        ("status", json!("running")),
        ("steps", json!([{ "status": "asleep" }])),
        ("key", json!("")),
        ("origin", json!(7)),
        ("stops", json!(0)),
        ("attempt", json!(0)),
        ("host", json!(null)),
        ("workDir", json!("")),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        assert!(schema.check(&bad).is_err(), "{bad}");
    }
}

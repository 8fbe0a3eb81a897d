//! `docs/schema`: the schemas take what the worker takes, refuse what it refuses, and describe all that it says: each result
//! that a test of any kind hears, too.

use crate::support::broker::Message;
use crate::support::corpus;
use crate::support::schema::Schema;
use crate::support::site::Site;
use crate::support::temp_dir::TempDir;
use crate::support::wait;
use crate::support::worker::{said, with};
use job_worker::contract::{Definition, Request};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Definitions of the corpus that are JSON, and whether the worker takes them.
fn definitions() -> Vec<(String, bool)> {
    let texts = corpus::each(corpus::DEFINITIONS);
    let judged =
        |(_, text): (_, &str)| (text.to_owned(), Definition::parse(text.as_bytes()).is_ok());
    texts.map(judged).filter(is_json).collect()
}

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
    let mut python = Command::new("python3");
    python.arg("tests/schema.py").arg(&file);
    let (shown, trouble, status) = said(python.current_dir(env!("CARGO_MANIFEST_DIR")));
    assert_eq!(status, Some(0), "{shown}{trouble}");
}

#[test]
fn presence_and_rejections_are_as_their_schemas_say() {
    let site = Site::start();
    let mut worker = site.idle_worker(with(&[("JOB_DIR_WAIT", "600")]));
    site.controller.publish("jobs/pending", "no JSON");
    let rejected = site.controller.next("jobs/rejected").json();
    site.request(json!({ "id": 7, "workDir": site.directory("none").join("x") }));
    let heard = || -> Vec<Value> {
        let heard = site.controller.heard("jobs/workers/node-worker-01");
        heard.iter().map(Message::json).collect()
    };
    wait::until("what the job waits for", || {
        heard().iter().any(|told| told["waitingFor"].is_string())
    });
    worker.stop();
    wait::until("the farewell", || {
        heard().iter().any(|told| told["state"] == "offline")
    });
    let schema = Schema::read("presence.json");
    let documents = heard();
    for document in &documents {
        schema.describes(document);
    }
    let mut bad = documents.last().unwrap().clone();
    bad["job"] = json!("a");
    assert!(schema.check(&bad).is_err(), "{bad}");
    let schema = Schema::read("rejected.json");
    schema.describes(&rejected);
    let mut short = json!({ "worker": "w", "error": "e" });
    assert!(schema.check(&short).is_err());
    short["truncated"] = json!(true);
    assert_eq!(schema.check(&short), Ok(()));
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

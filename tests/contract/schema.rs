//! `docs/schema`: the schemas take what the worker takes, refuse what it refuses, and describe all that it says.

use crate::support;

use job_worker::contract::{Definition, Request};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use support::schema::Schema;
use support::site::{Site, while_exists};
use support::temp_dir::TempDir;
use support::wait;

/// Definitions, which may be of a request, too, and whether they are good.
fn definitions() -> Vec<Value> {
    let with = |name: &str, values: Value| -> Vec<Value> {
        values
            .as_array()
            .unwrap()
            .iter()
            .map(|value| json!({ name: value }))
            .collect()
    };
    let step = |fields: Value| {
        let mut fields = fields;
        fields["run"] = json!("make");
        fields
    };
    [
        with("steps", json!([[], ["a", ""], [{ "run": "" }], null, "make", {}, 5, [5], [null], [[]], ["a\u{0}"]])),
        with("steps", json!([[{}], [{ "name": "x" }], [{ "run": 5 }], [{ "run": null }], [{ "run": "a\u{0}" }]])),
        with("steps", json!([[step(json!({ "name": "x", "timeoutSeconds": 0.5, "always": true, "colour": "red" }))]])),
        with("steps", json!([[step(json!({ "name": null, "timeoutSeconds": null, "always": null }))]])),
        with("steps", json!([[step(json!({ "name": 5 }))], [step(json!({ "name": "a\u{0}" }))]])),
        with("steps", json!([[step(json!({ "timeoutSeconds": 0 }))], [step(json!({ "always": "yes" }))]])),
        with("env", json!([{}, { "A": "x", "B": 8080, "C": false, "D": 1.5 }, null, [], "A=x", 5])),
        with("env", json!([{ "A": null }, { "A": {} }, { "A": [] }, { "A": "\u{0}" }, { "": "x" }, { "A=B": "x" }])),
        with("timeoutSeconds", json!([1, 0.5, 1e6, 1e300, 1e-300, null, 0, 0.0, -0.0, -1, "1", true, []])),
        with("maxAttempts", json!([1, 3, 2.0, 1e300, 0.0, 4_294_967_295u64, null, 0, -1, 1.5, 4_294_967_296u64, "1", true])),
        with("colour", json!(["red"])),
    ]
    .concat()
}

#[test]
fn a_definition_is_good_for_the_schema_and_for_the_worker_alike() {
    let schema = Schema::read("job.json");
    let mut good = 0;
    for definition in
        definitions()
            .into_iter()
            .chain([json!([]), json!("x"), json!(null), json!(5)])
    {
        let (by_schema, by_worker) = (
            schema.check(&definition),
            Definition::parse(definition.to_string().as_bytes()),
        );
        assert_eq!(
            by_schema.is_ok(),
            by_worker.is_ok(),
            "{definition}: {by_schema:?}, {by_worker:?}"
        );
        good += usize::from(by_worker.is_ok());
    }
    assert!(good > 15, "only {good} good ones");
}

/// Requests, good and bad.
fn requests() -> Vec<Value> {
    let id = |id: Value| json!({ "id": id, "workDir": "/data/a" });
    let texts = [
        "a",
        "é",
        "a b",
        "a-b",
        "",
        "a/b",
        "a+",
        "#",
        "\n",
        "a\n",
        "\u{0}",
        "\u{7f}",
        "\u{9f}",
        "\u{fdd0}",
        "\u{ffff}",
        "\u{1fffe}",
        "\u{10ffff}",
        "😀",
    ];
    let ids = texts.into_iter().map(|text| json!(text));
    let ids = ids.chain([
        json!(7),
        json!(-1.5),
        json!(null),
        json!(true),
        json!({}),
        json!([]),
    ]);
    let ids = ids.chain(["é".repeat(128), "x".repeat(129)].map(|text| json!(text)));
    let dirs = json!(["/data/a", "a", "a\n", "..", "", null, 5, "a\u{0}"]);
    let dirs = dirs.as_array().unwrap().iter();
    let dirs = dirs.map(|dir| json!({ "id": "a", "workDir": dir }));
    let keys = json!([
        "k",
        "",
        "k\n",
        "k\u{0}",
        "é".repeat(128),
        "x".repeat(129),
        7
    ]);
    let keys = keys.as_array().unwrap().iter();
    let keys = keys.map(|key| json!({ "id": "a", "workDir": "a", "key": key }));
    let others = [
        json!([]),
        json!({}),
        json!({ "id": "a" }),
        json!({ "workDir": "a" }),
    ];
    let with_definition = definitions().into_iter().map(|mut request| {
        (request["id"], request["workDir"]) = (json!("a"), json!("a"));
        request
    });
    let requests = ids.map(id).chain(dirs).chain(keys).chain(others);
    requests.chain(with_definition).collect()
}

#[test]
fn a_request_is_good_for_the_schema_and_for_the_worker_alike() {
    let schema = Schema::read("request.json");
    for request in requests() {
        let (by_schema, by_worker) = (
            schema.check(&request),
            Request::parse(request.to_string().as_bytes()),
        );
        assert_eq!(
            by_schema.is_ok(),
            by_worker.is_ok(),
            "{request}: {by_schema:?}, {by_worker:?}"
        );
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
    let numbers = [
        "1e400",
        "1E2",
        "2e0",
        "-0",
        "0.5e-400",
        "-1e400",
        "12345678901234567890",
    ];
    let numbers = numbers.into_iter().flat_map(|number| {
        ["timeoutSeconds", "maxAttempts"].map(|field| format!(r#"{{"{field}":{number}}}"#))
    });
    let definitions = definitions().into_iter().map(|value| value.to_string());
    let definitions = definitions.chain(numbers).map(|text| {
        let is_good = Definition::parse(text.as_bytes()).is_ok();
        ("job", is_good, text)
    });
    let requests = requests().into_iter().map(|request| {
        let text = request.to_string();
        ("request", Request::parse(text.as_bytes()).is_ok(), text)
    });
    let table: Vec<_> = definitions.chain(requests).collect();
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
    let mut worker = site.idle_worker(|command| {
        command.env("JOB_DIR_WAIT", "600");
    });
    site.controller.publish("jobs/pending", "no JSON");
    let rejected = site.controller.next("jobs/rejected").json();
    site.request(json!({ "id": 7, "workDir": site.directory("none").join("x") }));
    let topic = "jobs/workers/node-worker-01";
    let heard = || site.controller.heard(topic).into_iter().map(|m| m.json());
    wait::until("what the job waits for", || {
        heard().any(|presence| presence["waitingFor"].is_string())
    });
    worker.sigterm();
    worker.exits_with(0);
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
        let worker = site.idle_worker(|command| {
            command.envs(variable);
        });
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
    worker.sigterm();
    worker.exits_with(0);
    documents.push(on_disk(&dir));
    let mut worker = site.worker(|_| {});
    wait::until("the second run", || on_disk(&dir)["status"] == "running");
    worker.kill9();
    fs::remove_file(dir.join("gate")).unwrap();
    let mut worker = site.worker(|command| {
        command.env("JOB_MAX_ATTEMPTS", "1");
    });
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

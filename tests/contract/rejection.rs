//! docs/reference.md, "Bad input": bad input is answered and acknowledged, and the worker waits on.

use crate::support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::mosquitto::tool;
use support::site::{Site, names};
use support::wait;

const NAME: &str = "job_of_the_table";

fn eager(version: &str) -> impl Fn(&mut Command) {
    let version = version.to_owned();
    move |command| {
        command
            .env("MQTT_PROTOCOL_VERSION", &version)
            .env("JOB_DIR_WAIT", "0");
    }
}

/// The failed result that a request with a usable id gets.
fn assert_rejected(result: &Value, what: &str) {
    assert_eq!(result["status"], "failed", "{what}: {result}");
    assert_eq!(result["reason"], "rejected", "{what}: {result}");
    assert_eq!(result["exitCode"], 1, "{what}: {result}");
    assert_eq!(
        result["logFile"],
        Value::Null,
        "{what}: no log was opened: {result}"
    );
    assert!(
        result["error"]
            .as_str()
            .is_some_and(|error| !error.is_empty()),
        "{what}: {result}"
    );
    assert_eq!(result["worker"], "node-worker-01", "{what}: {result}");
}

/// The rejections of one worker, then proof that it lives on, and that nothing comes back to the next.
fn all_are_answered_by_id(version: &str, cases: &[(&str, Value)]) {
    let site = Site::start();
    let configure = eager(version);
    let mut worker = site.idle_worker(&configure);
    for (what, request) in cases {
        site.request(request.clone());
        let result = site.result(NAME).json();
        assert_rejected(&result, what);
        assert_eq!(result["id"], NAME, "{what}");
        assert_eq!(worker.ended(), None, "{what}");
    }
    lives_on(&site, worker, configure);
    assert_eq!(
        site.controller.heard(&format!("jobs/results/{NAME}")).len(),
        cases.len(),
        "no rejection came back"
    );
    assert_eq!(site.controller.heard("jobs/rejected").len(), 0);
}

/// This worker still takes a job, and the next one finds nothing of what was rejected in its queue.
fn lives_on(site: &Site, worker: support::worker::Worker, configure: impl Fn(&mut Command)) {
    let good = site.run_on(worker, "good", json!({ "steps": ["true"] }));
    assert_eq!(good.result["status"], "success");
    let next = site.run_on(
        site.idle_worker(configure),
        "next",
        json!({ "steps": ["true"] }),
    );
    assert_eq!(next.result["status"], "success");
}

fn a_bad_request_with_an_id(version: &str) {
    let drive = support::temp_dir::TempDir::new();
    let dir = drive.path().join("empty");
    fs::create_dir(&dir).expect("the drive can be written");
    fs::write(drive.path().join("file"), "").expect("the drive can be written");
    let with = |field: &str, value: Value| {
        let mut request = json!({ "id": NAME, "workDir": dir, "steps": ["touch ran"] });
        request[field] = value;
        request
    };
    let cases = [
        ("no workDir", json!({ "id": NAME, "steps": ["true"] })),
        ("workDir is a number", with("workDir", json!(7))),
        ("workDir is null", with("workDir", Value::Null)),
        ("workDir is empty", with("workDir", json!(""))),
        (
            "workDir does not exist",
            with("workDir", json!(drive.path().join("nowhere"))),
        ),
        (
            "workDir is a file",
            with("workDir", json!(drive.path().join("file"))),
        ),
        ("workDir has a NUL", with("workDir", json!("/tmp/\0"))),
        (
            "workDir is too long a name",
            with("workDir", json!(format!("/{}", "x".repeat(5000)))),
        ),
        (
            "no job.json and no steps",
            json!({ "id": NAME, "workDir": dir }),
        ),
        ("steps is a string", with("steps", json!("true"))),
        (
            "steps is an object",
            with("steps", json!({ "run": "true" })),
        ),
        ("a step is a number", with("steps", json!(["touch ran", 1]))),
        ("a step is null", with("steps", json!(["touch ran", null]))),
        (
            "a step is a list",
            with("steps", json!(["touch ran", ["true"]])),
        ),
        (
            "a step has no run",
            with("steps", json!(["touch ran", { "name": "nameless" }])),
        ),
        (
            "run is a list",
            with("steps", json!([{ "run": ["touch", "ran"] }])),
        ),
        (
            "run has a NUL",
            with("steps", json!(["touch ran", "echo \0"])),
        ),
        (
            "always is a string",
            with("steps", json!([{ "run": "touch ran", "always": "yes" }])),
        ),
        (
            "name is a number",
            with("steps", json!([{ "run": "touch ran", "name": 1 }])),
        ),
        (
            "timeoutSeconds of a step is a string",
            with(
                "steps",
                json!([{ "run": "touch ran", "timeoutSeconds": "1" }]),
            ),
        ),
        (
            "timeoutSeconds is a string",
            with("timeoutSeconds", json!("soon")),
        ),
        (
            "timeoutSeconds is negative",
            with("timeoutSeconds", json!(-1)),
        ),
        (
            "maxAttempts is a string",
            with("maxAttempts", json!("three")),
        ),
        ("maxAttempts is negative", with("maxAttempts", json!(-1))),
        ("env is a list", with("env", json!(["A=1"]))),
        (
            "a value of env is an object",
            with("env", json!({ "A": {} })),
        ),
        ("a name in env is empty", with("env", json!({ "": "x" }))),
        (
            "a name in env has an equals sign",
            with("env", json!({ "A=B": "x" })),
        ),
        (
            "a value of env has a NUL",
            with("env", json!({ "A": "\0" })),
        ),
    ];
    all_are_answered_by_id(version, &cases);
    assert_eq!(
        names(&dir),
        [""; 0],
        "a rejected request leaves nothing in the workDir"
    );
}

fn a_bad_job_json(version: &str) {
    let definitions: [(&str, &[u8]); 19] = [
        ("empty", b""),
        ("no JSON", b"steps: [true]"),
        ("cut short", b"{\"steps\": [\"touch ran\"]"),
        ("more than one value", b"{\"steps\": [\"touch ran\"]} {}"),
        ("a list", b"[\"touch ran\"]"),
        ("null", b"null"),
        ("without steps", b"{\"env\": {}}"),
        ("steps is null", b"{\"steps\": null}"),
        ("steps is a string", b"{\"steps\": \"touch ran\"}"),
        ("a step is a number", b"{\"steps\": [\"touch ran\", 1]}"),
        (
            "a step has no run",
            b"{\"steps\": [\"touch ran\", {\"always\": true}]}",
        ),
        ("run is null", b"{\"steps\": [{\"run\": null}]}"),
        (
            "timeoutSeconds is a string",
            b"{\"steps\": [\"touch ran\"], \"timeoutSeconds\": \"60\"}",
        ),
        (
            "timeoutSeconds is negative",
            b"{\"steps\": [\"touch ran\"], \"timeoutSeconds\": -60}",
        ),
        (
            "maxAttempts is a fraction",
            b"{\"steps\": [\"touch ran\"], \"maxAttempts\": 1.5}",
        ),
        (
            "env is a string",
            b"{\"steps\": [\"touch ran\"], \"env\": \"A=1\"}",
        ),
        ("not UTF-8", b"{\"steps\": [\"touch ran \xff\"]}"),
        ("binary", b"\x7fELF\0\0\0"),
        (
            "a value out of range",
            b"{\"steps\": [\"touch ran\"], \"maxAttempts\": 1e999}",
        ),
    ];
    let drive = support::temp_dir::TempDir::new();
    let mut cases = Vec::new();
    for (number, (what, text)) in definitions.into_iter().enumerate() {
        let dir = drive.path().join(number.to_string());
        fs::create_dir(&dir).expect("the drive can be written");
        fs::write(dir.join("job.json"), text).expect("the drive can be written");
        cases.push((what, json!({ "id": NAME, "workDir": dir })));
    }
    for (what, make) in [
        (
            "a directory",
            (|path| fs::create_dir(path)) as fn(&Path) -> std::io::Result<()>,
        ),
        ("endless", |path| symlink("/dev/zero", path)),
        ("a link to itself", |path| symlink("job.json", path)),
        ("a pipe that nobody writes", |path| {
            Command::new("mkfifo").arg(path).status().map(|_| ())
        }),
        ("deeper than anyone nests", |path| {
            fs::write(path, "[".repeat(100_000))
        }),
    ] {
        let dir = drive.path().join(what);
        fs::create_dir(&dir).expect("the drive can be written");
        make(&dir.join("job.json")).expect("the drive can be written");
        cases.push((what, json!({ "id": NAME, "workDir": dir })));
    }
    all_are_answered_by_id(version, &cases);
    for (what, request) in &cases {
        let dir = Path::new(request["workDir"].as_str().expect("a workDir"));
        assert_eq!(
            names(dir),
            ["job.json"],
            "{what}: a rejected request leaves nothing in the workDir"
        );
    }
}

#[test]
fn a_work_dir_outside_job_root() {
    let site = Site::start();
    let definition = json!({ "steps": ["touch ran"] });
    let outside = site.prepare("outside", definition.clone());
    let sibling = site.prepare("root-but-longer", definition);
    let root = site.directory("root");
    symlink(&outside, root.join("link")).expect("the drive can be written");
    let configure = |command: &mut Command| {
        command.env("JOB_ROOT", &root).env("JOB_DIR_WAIT", "0");
    };
    let worker = site.idle_worker(configure);
    let cases = [
        ("absolute", json!(outside)),
        ("a sibling whose name starts alike", json!(sibling)),
        ("upwards", json!("../outside")),
        (
            "upwards from inside, absolute",
            json!(root.join("../outside")),
        ),
        ("through a link", json!("link")),
        ("through a link, absolute", json!(root.join("link"))),
        ("the root of everything", json!("/")),
        ("missing, outside", json!(site.drive.path().join("nowhere"))),
    ];
    for (what, work_dir) in cases {
        site.request(json!({ "id": NAME, "workDir": work_dir }));
        assert_rejected(&site.result(NAME).json(), what);
    }
    for dir in [&outside, &sibling] {
        assert_eq!(names(dir), ["job.json"]);
    }
    let inside = site.prepare("root/inside", json!({ "steps": ["true"] }));
    let good = site.run_request(worker, inside, json!({ "id": "good", "workDir": "inside" }));
    assert_eq!(good.result["status"], "success");
}

/// Payloads that name no job, so there is no topic for a result of theirs.
fn unanswerable() -> Vec<(&'static str, Vec<u8>)> {
    let mut payloads: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", b"".to_vec()),
        ("white space", b" \n".to_vec()),
        ("no JSON", b"run my job please".to_vec()),
        (
            "cut short",
            br#"{"id": "job_of_the_table", "workDir": "/tm"#.to_vec(),
        ),
        (
            "more than one value",
            br#"{"id": "job_of_the_table", "workDir": "/tmp"} trailing"#.to_vec(),
        ),
        (
            "a list",
            br#"[{"id": "job_of_the_table", "workDir": "/tmp"}]"#.to_vec(),
        ),
        ("a string", br#""job_of_the_table""#.to_vec()),
        ("null", b"null".to_vec()),
        (
            "no id",
            br#"{"workDir": "/tmp", "steps": ["true"]}"#.to_vec(),
        ),
        ("not UTF-8", b"\xff\xfe\x00".to_vec()),
        (
            "not UTF-8 inside a string",
            b"{\"id\": \"job\xff\", \"workDir\": \"/tmp\"}".to_vec(),
        ),
        ("deeper than anyone nests", "[".repeat(100_000).into_bytes()),
        (
            "deeper than anyone nests, with an id",
            [
                br#"{"id": "deep", "x": "#.as_slice(),
                "[".repeat(100_000).as_bytes(),
            ]
            .concat(),
        ),
        ("long", "x".repeat(5000).into_bytes()),
        (
            "long, of several bytes a character",
            format!("x{}", "é".repeat(5000)).into_bytes(),
        ),
        ("long, not UTF-8", vec![0xff; 5000]),
    ];
    let ids = [
        ("id is empty", json!("")),
        ("id is null", Value::Null),
        ("id is a boolean", json!(true)),
        ("id is a list", json!(["a"])),
        ("id is an object", json!({ "a": "b" })),
        ("id has 129 characters", json!("x".repeat(129))),
        ("id has a level", json!("a/b")),
        ("id has a plus", json!("+")),
        ("id has a hash", json!("#")),
        ("id is another topic", json!("../pending")),
        ("id has a line feed", json!("a\nb")),
        ("id has a NUL", json!("a\0b")),
        ("id has an escape", json!("\u{1b}[31m")),
        ("id has a DEL", json!("\u{7f}")),
        ("id has a control character beyond ASCII", json!("\u{85}")),
    ];
    for (what, id) in ids {
        payloads.push((
            what,
            json!({ "id": id, "workDir": "/tmp", "steps": ["true"] })
                .to_string()
                .into_bytes(),
        ));
    }
    payloads
}

fn a_request_without_a_usable_id(version: &str) {
    let site = Site::start();
    let configure = eager(version);
    let mut worker = site.idle_worker(&configure);
    let payloads = unanswerable();
    for (what, payload) in &payloads {
        site.controller.publish("jobs/pending", payload.clone());
        let answer = site.controller.next("jobs/rejected").json();
        assert_eq!(answer["worker"], "node-worker-01", "{what}: {answer}");
        assert!(
            answer["error"]
                .as_str()
                .is_some_and(|error| !error.is_empty()),
            "{what}: {answer}"
        );
        let shown = answer["payload"]
            .as_str()
            .unwrap_or_else(|| panic!("{what}: payload is text in {answer}"));
        let sent = String::from_utf8_lossy(payload);
        assert!(
            shown.len() <= 1024,
            "{what}: {} bytes are more than 1 KiB",
            shown.len()
        );
        if sent.len() <= 1024 {
            assert_eq!(shown, sent, "{what}");
        } else {
            // A character that does not fit whole may be left out or replaced.
            let whole = shown.trim_end_matches('\u{fffd}');
            assert!(
                shown.len() > 1000 && sent.starts_with(whole),
                "{what}: {shown}"
            );
        }
        assert_eq!(worker.ended(), None, "{what}");
    }
    lives_on(&site, worker, configure);
    assert_eq!(
        site.controller.heard("jobs/rejected").len(),
        payloads.len(),
        "no rejection came back"
    );
    let results: Vec<String> = site
        .controller
        .heard("jobs/results")
        .into_iter()
        .map(|message| message.topic)
        .collect();
    assert_eq!(results, ["jobs/results/good", "jobs/results/next"]);
}

fn a_retained_request_is_never_run(version: &str) {
    let site = Site::start();
    let dir = site.prepare("retained", json!({ "steps": ["touch ran"] }));
    let request = json!({ "id": "retained", "workDir": dir }).to_string();
    site.controller
        .publish_retained("jobs/pending", request.clone());
    let configure = eager(version);
    let worker = site.worker(&configure);
    let answer = site.controller.next("jobs/rejected").json();
    assert!(
        answer["error"]
            .as_str()
            .is_some_and(|error| error.contains("retained")),
        "{answer}"
    );
    assert_eq!(answer["payload"], request);
    assert_eq!(answer["worker"], "node-worker-01");

    // what docs/troubleshooting.md says: the broker has it no more, and the empty message is no request
    let mut cure = Command::new(tool("mosquitto_pub"));
    cure.args(["-p", &site.broker.port().to_string(), "-h", "127.0.0.1"])
        .args(["-t", "jobs/pending", "-r", "-n"]);
    assert!(cure.status().unwrap().success());
    lives_on(&site, worker, configure);
    assert_eq!(names(&dir), ["job.json"]);
    assert_eq!(site.controller.heard("jobs/rejected").len(), 1);
    assert_eq!(site.controller.heard("jobs/results/retained").len(), 0);
}

/// Over 3.1.1 it cannot be told from others: the broker takes the flag off for those who are subscribed already.
#[test]
fn a_retained_request_is_never_run_even_if_it_comes_live() {
    let site = Site::start();
    let worker = site.idle_worker(eager("5"));
    let dir = site.prepare("retained", json!({ "steps": ["touch ran"] }));
    let request = json!({ "id": "retained", "workDir": dir }).to_string();
    site.controller.publish_retained("jobs/pending", request);
    let answer = site.controller.next("jobs/rejected").json();
    assert!(
        answer["error"]
            .as_str()
            .is_some_and(|error| error.contains("retained")),
        "{answer}"
    );
    lives_on(&site, worker, eager("5"));
    assert_eq!(names(&dir), ["job.json"]);
}

/// Several bad ones ahead of a good one in the queue: the worker works its way through them in one life.
fn a_queue_that_starts_with_bad_requests(version: &str) {
    let site = Site::start();
    let configure = eager(version);
    site.open_queue(&configure);
    for number in 0..30 {
        match number % 2 {
            0 => site.controller.publish("jobs/pending", "garbage"),
            _ => site.request(json!({ "id": NAME, "workDir": "/nowhere" })),
        }
    }
    let dir = site.submit("good", json!({ "steps": ["true"] }));
    let worker = site.worker(&configure);
    let good = site.finish(worker, dir, "good");
    assert_eq!(good.result["status"], "success");
    assert_eq!(site.controller.heard("jobs/rejected").len(), 15);
    assert_eq!(
        site.controller.heard(&format!("jobs/results/{NAME}")).len(),
        15
    );
}

on_both_protocols!(
    a_bad_request_with_an_id,
    a_bad_job_json,
    a_request_without_a_usable_id,
    a_retained_request_is_never_run,
    a_queue_that_starts_with_bad_requests,
);

#[test]
fn a_hostile_log_file_in_the_work_dir_does_not_stop_the_worker() {
    let site = Site::start();
    for (name, make) in [
        (
            "directory",
            (|path| fs::create_dir(path)) as fn(&Path) -> std::io::Result<()>,
        ),
        ("pipe", |path| {
            Command::new("mkfifo").arg(path).status().map(|_| ())
        }),
        ("dangling", |path| symlink("/nowhere/at/all", path)),
    ] {
        let mut worker = site.idle_worker(eager("5"));
        let dir = site.prepare(name, json!({ "steps": ["touch ran"] }));
        make(&dir.join("job.log")).expect("the drive can be written");
        site.request(json!({ "id": name, "workDir": dir }));
        let result = site.result(name).json();
        assert_eq!(result["status"], "failed", "{name}: {result}");
        assert_eq!(result["logFile"], Value::Null, "{name}: {result}");
        assert!(!dir.join("ran").exists(), "{name}");
        worker.exits_with(0);
    }
    let good = site.run_on(
        site.idle_worker(eager("5")),
        "good",
        json!({ "steps": ["true"] }),
    );
    assert_eq!(good.result["status"], "success");
}

#[test]
fn a_request_on_a_neighbouring_topic_is_none() {
    let site = Site::start();
    let mut worker = site.idle_worker(eager("5"));
    let dir = site.prepare("neighbour", json!({ "steps": ["touch ran"] }));
    for topic in ["jobs/pending/extra", "jobs", "jobs/cancel/neighbour"] {
        site.controller.publish(
            topic,
            json!({ "id": "neighbour", "workDir": dir }).to_string(),
        );
    }
    wait::throughout(Duration::from_millis(200), "the worker waits", || {
        worker.ended().is_none()
    });
    assert_eq!(names(&dir), ["job.json"]);
}

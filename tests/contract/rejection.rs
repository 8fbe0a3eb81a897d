//! docs/reference.md, "Bad input": bad input is answered and acknowledged, and the worker waits on.

use crate::support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::corpus;
use support::mosquitto::tool;
use support::site::{Site, names};
use support::wait;
use support::worker::speaking;

/// The failed result that a request with a usable id gets.
fn assert_rejected(result: &Value, what: &str) {
    let expected = json!({ "id": 7, "status": "failed", "reason": "rejected", "exitCode": 1, "logFile": null,
        "worker": "node-worker-01" });
    for (field, value) in expected.as_object().expect("an object") {
        assert_eq!(result[field], *value, "{what}: {result}");
    }
    assert!(result["error"].is_string(), "{what}: {result}");
}

/// The rejections of one worker, then proof that it lives on, and that nothing comes back to the next.
fn all_are_answered_by_id(cases: &[(&str, String)]) {
    let site = Site::start();
    let mut worker = site.idle_worker(speaking("5"));
    for (words, request) in cases {
        site.controller.publish("jobs/pending", request.clone());
        let result = site.result("7").json();
        assert_rejected(&result, request);
        assert!(result["error"].to_string().contains(words), "{result}");
        assert_eq!(worker.ended(), None, "{request}");
    }
    lives_on(&site, worker, speaking("5"));
    let results = site.controller.heard("jobs/results/7").len();
    assert_eq!(results, cases.len(), "no rejection came back");
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

#[test]
fn a_bad_request_with_an_id() {
    let drive = support::temp_dir::TempDir::new();
    let dir = drive.path().join("empty");
    fs::create_dir(&dir).unwrap();
    fs::write(drive.path().join("file"), "").unwrap();
    let of_work_dir = |work_dir: Value| json!({ "id": 7, "workDir": work_dir, "steps": [] });
    let mut cases: Vec<(&str, String)> = [
        ("does not exist", json!(drive.path().join("nowhere"))),
        ("is not a directory", json!(drive.path().join("file"))),
        ("too long", json!(format!("/{}", "x".repeat(5000)))),
    ]
    .map(|(words, work_dir)| (words, of_work_dir(work_dir).to_string()))
    .into();
    let neither = json!({ "id": 7, "workDir": dir }).to_string();
    cases.push(("job.json does not exist", neither));
    // a misspelt field may be the one that is missing
    let misspelt = json!({ "id": 7, "workdir": dir, "steps": [] }).to_string();
    cases.push(("did you mean workDir?", misspelt));
    let misspelt = json!({ "id": 7, "workDir": dir, "step": [] }).to_string();
    cases.push(("did you mean steps?", misspelt));
    let whole = corpus::one_of_each(corpus::REQUESTS);
    cases.extend(whole.map(|(words, text)| (words, text.to_owned())));
    let place = dir.display().to_string();
    for (words, text) in corpus::one_of_each(corpus::DEFINITIONS) {
        let request = corpus::request_with(text, &place);
        cases.extend(request.map(|request| (words, request)));
    }
    all_are_answered_by_id(&cases);
    assert_eq!(
        names(&dir),
        [""; 0],
        "a rejected request leaves nothing in the workDir"
    );
}

#[test]
fn a_bad_job_json() {
    type Make<'a> = Box<dyn Fn(&Path) -> std::io::Result<()> + 'a>;
    let mut files: Vec<(&str, Make)> = vec![
        ("not a regular file", Box::new(|path| fs::create_dir(path))),
        (
            "not a regular file",
            Box::new(|path| symlink("/dev/zero", path)),
        ),
        ("symbolic links", Box::new(|path| symlink("job.json", path))),
        (
            "not a regular file",
            Box::new(|path| Command::new("mkfifo").arg(path).status().map(|_| ())),
        ),
        (
            "ends in the middle",
            Box::new(|path| fs::write(path, "[".repeat(100_000))),
        ),
        ("is empty", Box::new(|path| fs::write(path, ""))),
        (
            "did you mean steps?",
            Box::new(|path| fs::write(path, r#"{"stpes":[]}"#)),
        ),
        (
            "no `steps`",
            Box::new(|path| fs::write(path, r#"{"env":{}}"#)),
        ),
        (
            "not valid JSON",
            Box::new(|path| fs::write(path, b"{\"steps\":[\"\xff\"]}")),
        ),
    ];
    for (words, text) in corpus::one_of_each(corpus::DEFINITIONS) {
        files.push((words, Box::new(move |path| fs::write(path, text))));
    }
    let drive = support::temp_dir::TempDir::new();
    let mut cases = Vec::new();
    for (number, (words, make)) in files.into_iter().enumerate() {
        let dir = drive.path().join(number.to_string());
        fs::create_dir(&dir).unwrap();
        make(&dir.join("job.json")).unwrap();
        cases.push((words, json!({ "id": 7, "workDir": dir }).to_string()));
    }
    all_are_answered_by_id(&cases);
    for (number, case) in cases.iter().enumerate() {
        let left = names(&drive.path().join(number.to_string()));
        assert_eq!(left, ["job.json"], "{case:?}");
    }
}

/// All ways out are in `tests/security/fence.rs`.
#[test]
fn a_work_dir_outside_job_root() {
    let site = Site::start();
    let definition = json!({ "steps": ["touch ran"] });
    let outside = site.prepare("outside", definition);
    let root = site.directory("root");
    symlink(&outside, root.join("link")).unwrap();
    let configure = |command: &mut Command| {
        command.env("JOB_ROOT", &root);
    };
    let worker = site.idle_worker(configure);
    let cases = [
        ("absolute", json!(outside)),
        ("upwards", json!("../outside")),
        ("through a link", json!("link")),
    ];
    for (what, work_dir) in cases {
        site.request(json!({ "id": 7, "workDir": work_dir }));
        assert_rejected(&site.result("7").json(), what);
    }
    assert_eq!(names(&outside), ["job.json"]);
    let inside = site.prepare("root/inside", json!({ "steps": ["true"] }));
    let good = site.run_request(worker, inside, json!({ "id": "good", "workDir": "inside" }));
    assert_eq!(good.result["status"], "success");
}

/// Payloads that name no job, so there is no topic for a result of theirs: one of each class.
fn unanswerable() -> Vec<Vec<u8>> {
    let mut payloads: Vec<Vec<u8>> = vec![
        "[".repeat(100_000).into_bytes(),
        format!(r#"{{"id":"deep","x":{}"#, "[".repeat(100_000)).into_bytes(),
        format!("x{}", "é".repeat(5000)).into_bytes(),
        vec![0xff; 5000],
        corpus::request_with_id(&format!("{:?}", "x".repeat(129))).into_bytes(),
    ];
    payloads.extend(corpus::BYTES.map(<[u8]>::to_vec));
    let nameless = corpus::one_of_each(corpus::NAMELESS);
    payloads.extend(nameless.map(|(_, text)| text.into()));
    let ids = corpus::one_of_each(corpus::IDS);
    payloads.extend(ids.map(|(_, id)| corpus::request_with_id(id).into()));
    payloads
}

#[test]
fn a_request_without_a_usable_id() {
    let site = Site::start();
    let mut worker = site.idle_worker(speaking("5"));
    let payloads = unanswerable();
    for payload in &payloads {
        site.controller.publish("jobs/pending", payload.clone());
        let answer = site.controller.next("jobs/rejected").json();
        let sent = String::from_utf8_lossy(payload);
        assert_eq!(answer["worker"], "node-worker-01", "{answer}");
        assert!(!answer["error"].as_str().unwrap_or_default().is_empty());
        let shown = answer["payload"].as_str().expect("a text");
        if sent.len() <= 1024 {
            assert_eq!(shown, sent);
        } else {
            // a character that does not fit whole may be left out or replaced
            let whole = shown.trim_end_matches('\u{fffd}');
            assert!(shown.len() > 1000 && shown.len() <= 1024, "{shown}");
            assert!(sent.starts_with(whole), "{shown}");
        }
        assert_eq!(worker.ended(), None, "{answer}");
    }
    lives_on(&site, worker, speaking("5"));
    let notices = site.controller.heard("jobs/rejected").len();
    assert_eq!(notices, payloads.len(), "no rejection came back");
    let results = site.controller.heard("jobs/results").into_iter();
    let topics: Vec<String> = results.map(|message| message.topic).collect();
    assert_eq!(topics, ["jobs/results/good", "jobs/results/next"]);
}

fn a_retained_request_is_never_run(version: &str) {
    let site = Site::start();
    let dir = site.prepare("retained", json!({ "steps": ["touch ran"] }));
    let request = json!({ "id": "retained", "workDir": dir }).to_string();
    site.controller
        .publish_retained("jobs/pending", request.clone());
    let configure = speaking(version);
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
    let worker = site.idle_worker(speaking("5"));
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
    lives_on(&site, worker, speaking("5"));
    assert_eq!(names(&dir), ["job.json"]);
}

/// Several bad ones ahead of a good one in the queue: the worker works its way through them in one life.
fn a_queue_that_starts_with_bad_requests(version: &str) {
    let site = Site::start();
    let configure = speaking(version);
    site.open_queue(&configure);
    for number in 0..30 {
        match number % 2 {
            0 => site.controller.publish("jobs/pending", "garbage"),
            _ => site.request(json!({ "id": 7, "workDir": "/nowhere" })),
        }
    }
    let dir = site.submit("good", json!({ "steps": ["true"] }));
    let worker = site.worker(&configure);
    let good = site.finish(worker, dir, "good");
    assert_eq!(good.result["status"], "success");
    assert_eq!(site.controller.heard("jobs/rejected").len(), 15);
    assert_eq!(site.controller.heard("jobs/results/7").len(), 15);
}

on_both_protocols!(
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
        let mut worker = site.idle_worker(speaking("5"));
        let dir = site.prepare(name, json!({ "steps": ["touch ran"] }));
        make(&dir.join("job.log")).unwrap();
        site.request(json!({ "id": name, "workDir": dir }));
        let result = site.result(name).json();
        assert_eq!(result["status"], "failed", "{name}: {result}");
        assert_eq!(result["logFile"], Value::Null, "{name}: {result}");
        assert!(!dir.join("ran").exists(), "{name}");
        worker.exits_with(0);
    }
    let good = site.run_on(
        site.idle_worker(speaking("5")),
        "good",
        json!({ "steps": ["true"] }),
    );
    assert_eq!(good.result["status"], "success");
}

#[test]
fn a_request_on_a_neighbouring_topic_is_none() {
    let site = Site::start();
    let mut worker = site.idle_worker(speaking("5"));
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

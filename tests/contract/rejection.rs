//! docs/reference.md, "Bad input": bad input is answered and acknowledged, and the worker waits on.

use std::fs;
use std::process::Command;

use crate::support::corpus;
use crate::support::mosquitto::tool;
use crate::support::site::{Site, WORKER, names, shell, verdict};
use crate::support::temp_dir::TempDir;
use crate::support::worker::{Worker, speaking};
use serde_json::json;

/// The rejections of one worker, in the order of its queue, then proof that it lives on, and that nothing comes back to the next.
fn all_are_answered_by_id(cases: &[(&str, String)]) {
    let site = Site::start();
    site.open_queue(|_| {});
    for (_, request) in cases {
        site.controller.publish("jobs/pending", request.clone());
    }
    let worker = site.worker(|_| {});
    let results = site.results("7", cases.len());
    for ((words, request), result) in cases.iter().zip(results) {
        assert_eq!(verdict(&result), ("failed", "rejected", 1), "{request}");
        let others = json!([result["id"], result["logFile"], result["worker"]]);
        assert_eq!(others, json!([7, null, WORKER]), "{request}");
        let error = result["error"].to_string();
        assert!(error.contains(words), "{request}: {error}");
    }
    lives_on(&site, worker, |_| {});
    let results = site.controller.heard("jobs/results/7").len();
    assert_eq!(results, cases.len(), "no rejection came back");
    assert_eq!(site.controller.heard("jobs/rejected").len(), 0);
}

/// This worker still takes a job, and the next one finds nothing of what was rejected in its queue.
fn lives_on(site: &Site, mut worker: Worker, configure: impl Fn(&mut Command)) {
    site.runs_a_job(&mut worker);
    site.runs_a_job(&mut site.idle_worker(configure));
}

#[test]
fn a_bad_request_with_an_id() {
    let drive = TempDir::new();
    let dir = drive.path().join("empty");
    fs::create_dir(&dir).unwrap();
    fs::write(drive.path().join("file"), "").unwrap();
    let at = |place| json!({ "id": 7, "workDir": place, "steps": [] });
    let mut cases: Vec<(&str, String)> = [
        ("does not exist", at(drive.path().join("nowhere"))),
        ("is not a directory", at(drive.path().join("file"))),
        ("too long", at(format!("/{}", "x".repeat(5000)).into())),
        (
            "job.json does not exist",
            json!({ "id": 7, "workDir": dir }),
        ),
        // a misspelt field may be the one that is missing
        (
            "did you mean workDir?",
            json!({ "id": 7, "workdir": dir, "steps": [] }),
        ),
        (
            "did you mean steps?",
            json!({ "id": 7, "workDir": dir, "step": [] }),
        ),
    ]
    .map(|(words, request)| (words, request.to_string()))
    .into();
    let whole = corpus::one_of_each(corpus::REQUESTS);
    cases.extend(whole.map(|(words, text)| (words, text.to_owned())));
    let place = dir.display().to_string();
    for (words, text) in corpus::one_of_each(corpus::DEFINITIONS) {
        let request = corpus::request_with(text, &place);
        cases.extend(request.map(|request| (words, request)));
    }
    all_are_answered_by_id(&cases);
    let left = names(&dir);
    assert!(left.is_empty(), "a rejected request leaves {left:?}");
}

#[test]
fn a_bad_job_json() {
    let files = [
        ("not a regular file", "mkdir job.json"),
        ("not a regular file", "mkfifo job.json"),
        ("not a regular file", "ln -s /dev/zero job.json"),
        ("symbolic links", "ln -s job.json job.json"),
        ("ends in the middle", "yes '[' | head -100000 > job.json"),
        ("is empty", ": > job.json"),
        (
            "more than 1048576 bytes",
            "printf '{\"steps\":[]%1048565s}' > job.json",
        ),
        ("did you mean steps?", "echo '{\"stpes\":[]}' > job.json"),
        ("no `steps`", "echo '{\"env\":{}}' > job.json"),
        (
            "not valid JSON",
            "printf '{\"steps\":[\"\\377\"]}' > job.json",
        ),
    ];
    let texts = corpus::one_of_each(corpus::DEFINITIONS);
    let texts = texts.map(|(words, text)| {
        let script = format!("cat > job.json <<'END'\n{text}\nEND");
        (words, script)
    });
    let files = files.map(|(words, script)| (words, script.to_owned()));
    let drive = TempDir::new();
    let mut cases = Vec::new();
    for (number, (words, script)) in files.into_iter().chain(texts).enumerate() {
        let dir = drive.path().join(number.to_string());
        fs::create_dir(&dir).unwrap();
        shell(&dir, &script);
        cases.push((words, json!({ "id": 7, "workDir": dir }).to_string()));
    }
    all_are_answered_by_id(&cases);
    for (number, case) in cases.iter().enumerate() {
        let left = names(&drive.path().join(number.to_string()));
        assert_eq!(left, ["job.json"], "{case:?}");
    }
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
    let mut worker = site.idle_worker(|_| {});
    let payloads = unanswerable();
    for payload in &payloads {
        site.controller.publish("jobs/pending", payload.clone());
        let answer = site.controller.next("jobs/rejected").json();
        let sent = String::from_utf8_lossy(payload);
        assert_eq!(answer["worker"], "node-worker-01", "{answer}");
        assert!(!answer["error"].as_str().unwrap_or_default().is_empty());
        let shown = answer["payload"].as_str().expect("a text");
        // a character that does not fit whole may be left out or replaced
        let whole = shown.trim_end_matches('\u{fffd}');
        let is_cut = (1000..=1024).contains(&shown.len()) && sent.starts_with(whole);
        assert!(shown == sent || sent.len() > 1024 && is_cut, "{shown}");
        assert_eq!(worker.ended(), None, "{answer}");
    }
    lives_on(&site, worker, |_| {});
    let notices = site.controller.heard("jobs/rejected").len();
    assert_eq!(notices, payloads.len(), "no rejection came back");
    let results = site.controller.heard("jobs/results").into_iter();
    let topics: Vec<String> = results.map(|message| message.topic).collect();
    assert_eq!(topics, ["jobs/results/a-job"; 2]);
}

/// Where a worker is subscribed already, 3.1.1 cannot tell it from others: the broker takes the flag off.
fn a_retained_request_is_never_run(version: &str) {
    for is_there in [false, true] {
        let configure = speaking(version);
        let site = Site::start();
        let dir = site.prepare("retained", json!({ "steps": ["touch ran"] }));
        let request = json!({ "id": "retained", "workDir": dir }).to_string();
        let publish = || site.controller.publish_retained("jobs/pending", &*request);
        let worker = match is_there {
            true if version == "4" => break,
            true => {
                let worker = site.idle_worker(&configure);
                publish();
                worker
            }
            false => {
                publish();
                site.worker(&configure)
            }
        };
        let notice = site.controller.next("jobs/rejected").json();
        let error = notice["error"].as_str().unwrap_or_default();
        assert!(error.contains("retained"), "{notice}");
        assert_eq!(notice["payload"], request);
        assert_eq!(notice["worker"], "node-worker-01");

        // what docs/troubleshooting.md says: the broker has it no more, and the empty message is no request
        let mut cure = Command::new(tool("mosquitto_pub"));
        cure.args(["-p", &site.broker.port().to_string(), "-h", "127.0.0.1"]);
        cure.args(["-t", "jobs/pending", "-r", "-n"]);
        assert!(cure.status().unwrap().success());
        lives_on(&site, worker, configure);
        assert_eq!(names(&dir), ["job.json"]);
        assert_eq!(site.controller.heard("jobs/rejected").len(), 1);
        assert_eq!(site.controller.heard("jobs/results/retained").len(), 0);
    }
}

on_both_protocols!(a_retained_request_is_never_run);

#[test]
fn a_hostile_log_file_in_the_work_dir_does_not_stop_the_worker() {
    let site = Site::start();
    let scripts = [
        "mkdir job.log",
        "mkfifo job.log",
        "ln -s /nowhere/at/all job.log",
    ];
    for (number, script) in scripts.into_iter().enumerate() {
        let id = number.to_string();
        let mut worker = site.idle_worker(|_| {});
        shell(&site.directory(&id), script);
        let dir = site.submit(&id, json!({ "steps": ["touch ran"] }));
        let result = site.result(&id).json();
        let ends = json!([result["status"], result["logFile"]]);
        assert_eq!(ends, json!(["failed", null]), "{script}: {result}");
        assert!(!dir.join("ran").exists(), "{script}");
        worker.exits_with(0);
    }
    lives_on(&site, site.idle_worker(|_| {}), |_| {});
}

//! docs/reference.md, "Request" and "Job definition": what a request and a job.json may say, and which of the two wins.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::corpus;
use crate::support::mosquitto::tool;
use crate::support::site::{Finished, Site, names, shell};
use crate::support::wait;
use crate::support::worker::{speaking, with, without_privileges};
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

const IN_THE_MIDDLE: &str = "job.json ends in the middle of its JSON";

#[track_caller]
fn assert_success(job: &Finished) {
    assert_eq!(job.verdict(), ("success", "", 0), "{}", job.result);
}

#[test]
fn job_json_is_read_once_and_the_request_wins() {
    let good = json!(["success", "", 0]);
    Site::start().jobs(&json!([
        { "job": { "steps": ["echo from the file"], "env": { "KEPT": "yes", "BOTH": "the file's" } },
            "request": { "steps": ["echo from the request, kept: $KEPT, $BOTH"], "env": { "BOTH": "the request's" } }, "ends": good,
            "output": "from the request, kept: yes, the request's\n" },
        { "job": { "steps": ["echo '{\"steps\": []}' > job.json", "echo still here"] }, "ends": good,
            "output": "still here\n" },
        // it is not waited for where the request has the steps
        { "request": { "steps": ["echo one", { "run": "echo two", "name": "second" }] }, "ends": good,
            "env": { "JOB_DIR_WAIT": "3600" }, "output": "one\ntwo\n" },
    ]));
}

#[test]
fn a_work_dir_is_absolute_or_taken_from_job_root_or_else_from_the_current_directory() {
    let site = Site::start();
    let dir = site.prepare("root/nested/job", json!({ "steps": ["pwd"] }));
    let root = site.drive.path().join("root").display().to_string();
    for (work_dir, job_root) in [
        (json!(dir), &*root),
        (json!("nested/job"), &root),
        (json!("nested/job"), "./root"),
        (json!("root/nested/job"), ""),
    ] {
        let worker = site.idle_worker(with(&[("JOB_ROOT", job_root)]));
        site.request(json!({ "id": "out", "workDir": format!("{root}/../out") }));
        let error = site.result("out").json()["error"].to_string();
        let is_fenced = error.contains("lies outside of JOB_ROOT");
        assert_eq!(is_fenced, !job_root.is_empty(), "{error}");
        let request = json!({ "id": "placed", "workDir": work_dir });
        let finished = site.run_request(worker, dir.clone(), request);
        assert_success(&finished);
        assert_eq!(finished.output(), format!("{}\n", dir.display()));
        assert_eq!(finished.result["logFile"], json!(dir.join("job.log")));
    }
}

#[test]
fn an_id_comes_back_as_it_was_written_and_is_that_of_the_topic() {
    let site = Site::start();
    let dir = site.prepare("d", json!({ "steps": ["printf '%s\\n' \"$JOB_ID\""] }));
    let (_, good) = corpus::classes(corpus::IDS).next().expect("a first class");
    let longest = format!("{:?}", "é".repeat(128));
    // the last one has no exact representation as a double or a 64-bit integer
    let others = [
        &longest,
        r#""$dollar.and:colons \"quoted\"""#,
        "12345678901234567890123",
    ];
    // what is no double to our reader is for the unit tests
    let readable = |id: &&str| serde_json::from_str::<Value>(id).is_ok();
    for id in good.into_iter().chain(others).filter(readable) {
        let worker = site.idle_worker(|_| {});
        let request = corpus::request_with_id(id);
        site.controller.publish("jobs/pending", request);
        let text = serde_json::from_str(id).unwrap_or_else(|_| id.to_owned());
        let finished = site.finish(worker, dir.clone(), &text);
        let start = format!(r#"{{"id":{id},"#);
        assert!(finished.published.text().starts_with(&start), "{id}");
        assert!(finished.read("job.status.json").starts_with(&start));
        assert_eq!(finished.output(), format!("{text}\n"));
    }
}

#[test]
fn what_is_not_whole_or_not_readable_yet_is_waited_for_and_then_rejected_with_what_is_wrong() {
    let site = Site::start();
    for (number, (make, error)) in [
        (": > job.json", "job.json is empty"),
        (r#"printf '{"steps": ["to' > job.json"#, IN_THE_MIDDLE),
        (r#"printf '{"steps": ["\303' > job.json"#, IN_THE_MIDDLE),
        (
            "echo '{}' > job.json; chmod 0 job.json",
            "job.json cannot be opened: Permission denied",
        ),
        // an error of the drive
        ("ln -s /proc/self/mem job.json", "Input/output error"),
        ("chmod 0 .", "Permission denied"),
        ("rmdir \"$PWD\"", "does not exist"),
    ]
    .into_iter()
    .enumerate()
    {
        let start = |patience: &str| {
            site.idle_worker(|command| {
                command.env("JOB_DIR_WAIT", patience);
                without_privileges(command);
            })
        };
        let id = number.to_string();
        let dir = site.directory(&id);
        shell(&dir, make);
        let left = || dir.exists().then(|| names(&dir));
        let made = left();
        let mut worker = start("0.2");
        let asked = Instant::now();
        site.request(json!({ "id": id, "workDir": dir }));
        let result = site.result(&id).json();
        let is_rejected = result["reason"] == "rejected";
        assert_eq!(is_rejected, !make.contains("/proc"), "{result}");
        let said = result["error"].as_str().unwrap();
        assert!(said.contains(error), "{said}");
        assert!(asked.elapsed() >= Duration::from_millis(200), "{said}");
        assert_eq!(left(), made);
        worker.stop();

        let worker = start("100");
        site.request(json!({ "id": id, "workDir": dir }));
        let topic = format!("jobs/results/{id}");
        wait::throughout(Duration::from_millis(300), make, || {
            site.controller.heard(&topic).len() == 1
        });
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        let whole = r#"echo '{"steps": ["echo whole"]}' > new; mv -f new job.json"#;
        shell(&dir, whole);
        let finished = site.finish(worker, dir, &id);
        assert_eq!(finished.output(), "whole\n", "{make}");
    }
}

#[test]
fn a_missing_directory_may_have_had_its_result_where_the_request_comes_again() {
    let site = Site::start();
    let gone = site.drive.path().join("gone");
    let mut patient = site.idle_worker(with(&[("JOB_DIR_WAIT", "100")]));
    site.request(json!({ "id": "again", "workDir": gone }));
    patient.await_stderr("request taken");
    patient.kill9();
    let _worker = site.worker(|_| {});
    site.request(json!({ "id": "fresh", "workDir": gone }));
    for (id, hints) in [("again", true), ("fresh", false)] {
        let result = site.result(id).json();
        let error = result["error"].as_str().unwrap_or_default();
        assert!(error.contains("does not exist"), "{error}");
        let hint = "a result may have been published before";
        assert_eq!(error.contains(hint), hints, "{error}");
    }
}

#[test]
fn unknown_fields_are_ignored_and_named_once_in_each_log_and_in_the_result() {
    let site = Site::start();
    let steps = json!([{ "run": "true", "flavour": 1 }, { "run": "true", "flavour": 2 }]);
    let jobs = site.jobs(
        &json!([{ "job": { "steps": steps, "colour": "red" }, "ends": ["success", "", 0],
        "request": { "priority": { "colour": "not a field of its own" } }, "log": " warning: " }]),
    );
    let warning = jobs[0].result["warning"].as_str().unwrap_or_default();
    for place in [&jobs[0].worker.stderr(), &jobs[0].log, warning] {
        for field in ["flavour", "colour", "priority"] {
            assert_eq!(place.matches(field).count(), 1, "`{field}` in:\n{place}");
        }
    }
}

/// A document that has exactly `size` bytes; the padding is white space, which means nothing.
fn json_of_size(size: usize, document: &Value) -> String {
    let mut payload = document.to_string();
    let padding = " ".repeat(size - payload.len());
    payload.insert_str(1, &padding);
    assert_eq!(payload.len(), size);
    payload
}

/// One of 1 MiB is taken. A larger one is neither lost in silence, nor fatal to the connection, nor redelivered for ever, nor held more than once.
fn a_request_may_have_1_mebibyte_and_no_more(version: &str) {
    let site = Site::start();
    let worker = site.idle_worker(speaking(version));
    let dir = site.directory("oversized");
    let file = site.drive.path().join("request");
    const LARGEST: usize = 32 * MIB;
    for size in [MIB + 1, LARGEST] {
        let request = json!({ "id": "oversized", "workDir": dir, "steps": ["touch ran"] });
        fs::write(&file, json_of_size(size, &request)).unwrap();
        let mut publish = Command::new(tool("mosquitto_pub"));
        publish
            .args(["-p", &site.broker.port().to_string(), "-h", "127.0.0.1"])
            .args(["-q", "1", "-t", "jobs/pending", "-f"])
            .arg(&file);
        assert!(publish.status().unwrap().success());
        let notice = site.controller.next("jobs/rejected");
        assert!(notice.payload.len() < 8192, "it does not carry all back");
        let error = notice.json()["error"].to_string();
        assert!(error.contains("are taken"), "{error}");
    }
    assert_eq!(names(&dir), [""; 0]);
    let status = fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|text| text.trim().strip_suffix(" kB")?.parse().ok());
    let peak: usize = peak.expect("a peak");
    assert!(peak * 1024 < LARGEST + LARGEST / 2, "{peak} kB at most");

    // half of what Linux takes as one argument
    let step = format!("echo taken # {}", "x".repeat(64 << 10));
    // and a job.json may be as large
    let definition = json_of_size(MIB, &json!({ "steps": [step] }));
    fs::write(dir.join("job.json"), definition).unwrap();
    let request = json!({ "id": "full", "workDir": dir });
    site.controller
        .publish("jobs/pending", json_of_size(MIB, &request));
    let finished = site.finish(worker, dir, "full");
    assert_success(&finished);
    assert!(finished.log.contains("\ntaken\n"));
    site.runs_a_job(&mut site.idle_worker(speaking(version)));
    let notices = site.controller.heard("jobs/rejected").len();
    assert_eq!(notices, 2, "acknowledged: it does not come back");
}

on_both_protocols!(a_request_may_have_1_mebibyte_and_no_more);

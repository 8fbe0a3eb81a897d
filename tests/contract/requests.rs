//! docs/reference.md, "Request" and "Job definition": what a request and a job.json may say, and which of the two wins.

use crate::support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::mosquitto::tool;
use support::site::{Finished, Site, names};
use support::wait;
use support::worker::{Worker, speaking, with, without_privileges};

const MIB: usize = 1 << 20;

fn assert_success(finished: &Finished) {
    assert_eq!(
        finished.result["status"],
        "success",
        "{}",
        finished.published.text()
    );
    assert_eq!(finished.result["exitCode"], 0);
}

fn waits_for_files(seconds: &str) -> impl FnOnce(&mut Command) {
    let seconds = seconds.to_owned();
    move |command| {
        command.env("JOB_DIR_WAIT", seconds);
    }
}

#[test]
fn steps_of_the_request_override_those_of_job_json() {
    let site = Site::start();
    let dir = site.prepare(
        "steps",
        json!({ "steps": ["echo from the file"], "env": { "KEPT": "yes" } }),
    );
    let request =
        json!({ "id": "steps", "workDir": dir, "steps": ["echo from the request, kept: $KEPT"] });
    let finished = site.run_request(site.idle_worker(|_| {}), dir, request);
    assert_success(&finished);
    assert_eq!(finished.output(), "from the request, kept: yes\n");
}

#[test]
fn a_work_dir_is_absolute_or_taken_from_job_root_or_else_from_the_current_directory() {
    let site = Site::start();
    let (drive, root) = (site.drive.path(), site.drive.path().join("root"));
    let dir = site.prepare("root/nested/job", json!({ "steps": ["pwd"] }));
    for (work_dir, job_root) in [
        (json!(dir), Some(&root)),
        (json!("nested/job"), Some(&root)),
        (json!("root/nested/job"), None),
    ] {
        let worker = site.idle_worker(|command| {
            command.current_dir(drive);
            command.envs(job_root.map(|root| ("JOB_ROOT", root)));
        });
        let request = json!({ "id": "placed", "workDir": work_dir });
        let finished = site.run_request(worker, dir.clone(), request);
        assert_success(&finished);
        assert_eq!(finished.output(), format!("{}\n", dir.display()));
        assert_eq!(finished.result["logFile"], json!(dir.join("job.log")));
    }
}

#[test]
fn a_number_as_id_keeps_its_json_type_and_its_digits() {
    // The second one has no exact representation as a double or a 64-bit integer.
    for digits in ["4711", "12345678901234567890123"] {
        let site = Site::start();
        let dir = site.prepare("job", json!({ "steps": ["echo $JOB_ID"] }));
        let worker = site.idle_worker(|_| {});
        site.controller.publish(
            "jobs/pending",
            format!(r#"{{"id": {digits}, "workDir": "{}"}}"#, dir.display()),
        );
        let finished = site.finish(worker, dir, digits);
        let start = format!(r#"{{"id":{digits},"#);
        assert!(finished.published.text().starts_with(&start));
        assert!(finished.read("job.status.json").starts_with(&start));
        assert_eq!(finished.output(), format!("{digits}\n"));
    }
}

#[test]
fn any_character_but_topic_and_control_characters_may_be_in_an_id() {
    let site = Site::start();
    let longest = "é".repeat(128);
    for id in [
        "with space",
        "007",
        "dots.and:colons",
        "$dollar",
        "quote\"d",
        "日本語",
        "..",
        longest.as_str(),
    ] {
        let dir = site.prepare("job", json!({ "steps": ["true"] }));
        let request = json!({ "id": id, "workDir": dir });
        let finished = site.run_request(site.idle_worker(|_| {}), dir, request);
        assert_success(&finished);
        assert_eq!(finished.result["id"], id);
    }
}

#[test]
fn what_is_not_whole_or_not_readable_yet_is_waited_for() {
    type Make = fn(&Path);
    let makes: [(&str, Make); 6] = [
        ("empty", |path| fs::write(path, "").unwrap()),
        ("cut", |path| fs::write(path, r#"{"steps": ["to"#).unwrap()),
        ("cut in a character", |path| {
            fs::write(path, b"{\"steps\": [\"touch \xc3").unwrap();
        }),
        ("not readable", |path| {
            fs::write(path, "{}").unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o000)).unwrap();
        }),
        ("an error of the drive", |path| {
            symlink("/proc/self/mem", path).unwrap();
        }),
        ("in a directory that is closed", |path| {
            fs::set_permissions(path.parent().unwrap(), Permissions::from_mode(0o000)).unwrap();
        }),
    ];
    for (what, make) in makes {
        let site = Site::start();
        let worker = site.idle_worker(|command| {
            waits_for_files("100")(command);
            without_privileges(command);
        });
        let dir = site.directory("slow");
        make(&dir.join("job.json"));
        site.request(json!({ "id": "slow", "workDir": dir }));
        nothing_is_answered(&site, "slow");
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.join("new"), r#"{"steps": ["echo whole"]}"#).unwrap();
        fs::rename(dir.join("new"), dir.join("job.json")).unwrap();
        let finished = site.finish(worker, dir, "slow");
        assert_success(&finished);
        assert_eq!(finished.output(), "whole\n", "{what}");
    }
}

#[test]
fn what_never_gets_whole_is_rejected_after_the_wait_with_what_is_wrong() {
    let site = Site::start();
    let mut worker = site.idle_worker(|command| {
        waits_for_files("0.2")(command);
        without_privileges(command);
    });
    for (text, error) in [
        ("", "job.json is empty"),
        ("{\"steps\": [", "job.json ends in the middle of its JSON"),
        ("closed", "job.json cannot be opened: Permission denied"),
        ("no directory", "does not exist"),
    ] {
        let dir = site.directory("never");
        fs::write(dir.join("job.json"), text).unwrap();
        if text == "closed" {
            fs::set_permissions(dir.join("job.json"), Permissions::from_mode(0o000)).unwrap();
        }
        if text == "no directory" {
            fs::remove_dir_all(&dir).unwrap();
        }
        let asked = Instant::now();
        site.request(json!({ "id": "never", "workDir": dir, "steps": ["touch ran"] }));
        let result = site.result("never").json();
        assert_eq!(result["reason"], "rejected", "{result}");
        let said = result["error"].as_str().unwrap();
        assert!(said.contains(error), "{said}");
        assert!(asked.elapsed() >= Duration::from_millis(200), "{said}");
        match text {
            "no directory" => assert!(!dir.exists()),
            _ => assert_eq!(names(&dir), ["job.json"]),
        }
    }
    assert!(worker.ended().is_none());
}

#[test]
fn a_missing_directory_may_have_had_its_result_where_the_request_comes_again() {
    const HINT: &str = "a result may have been published before";
    let site = Site::start();
    let gone = site.drive.path().join("gone");
    let mut patient = site.idle_worker(waits_for_files("100"));
    site.request(json!({ "id": "gone", "workDir": gone }));
    wait::until("the request to be taken", || {
        patient.stderr().contains("request taken")
    });
    patient.kill9();
    let _worker = site.worker(waits_for_files("0"));
    let error = |message: &Value| message["error"].as_str().unwrap_or_default().to_owned();
    let redelivered = error(&site.result("gone").json());
    assert!(
        redelivered.contains("does not exist") && redelivered.contains(HINT),
        "{redelivered}"
    );
    site.request(json!({ "id": "fresh", "workDir": gone }));
    let fresh = error(&site.result("fresh").json());
    assert!(
        fresh.contains("does not exist") && !fresh.contains(HINT),
        "{fresh}"
    );
}

#[test]
fn job_json_is_not_waited_for_where_the_request_has_the_steps() {
    let site = Site::start();
    let dir = site.directory("bare");
    let worker = site.idle_worker(waits_for_files("3600"));
    let steps = json!(["echo one", { "run": "echo two", "name": "second" }]);
    let request = json!({ "id": "bare", "workDir": dir, "steps": steps });
    let finished = site.run_request(worker, dir, request);
    assert_success(&finished);
    assert_eq!(finished.output(), "one\ntwo\n");
}

fn nothing_is_answered(site: &Site, id: &str) {
    let topic = format!("jobs/results/{id}");
    wait::throughout(Duration::from_millis(300), "no answer yet", || {
        site.controller.heard(&topic).is_empty()
    });
}

#[test]
fn unknown_fields_are_ignored_and_named_once_in_each_log_and_in_the_result() {
    let site = Site::start();
    let definition = json!({ "steps": [{ "run": "true", "flavour": 1 }, { "run": "true", "flavour": 2 }], "colour": "red" });
    let dir = site.prepare("unknown", definition);
    let request = json!({ "id": "unknown", "workDir": dir, "priority": { "colour": "not a field of its own" } });
    let finished = site.run_request(site.idle_worker(|_| {}), dir, request);
    assert_success(&finished);
    let warning = finished.result["warning"].as_str().unwrap_or_default();
    let own_log = finished.worker.stderr();
    for place in [&own_log, &finished.log, warning] {
        for field in ["flavour", "colour", "priority"] {
            assert_eq!(place.matches(field).count(), 1, "`{field}` in:\n{place}");
        }
    }
    assert!(finished.log.contains(&format!(
        " warning: {}",
        warning.split("; ").next().unwrap()
    )));
}

#[test]
fn job_json_is_read_once_before_the_first_step() {
    let site = Site::start();
    let finished = site.run(
        "once",
        json!({ "steps": ["echo '{\"steps\": []}' > job.json", "echo still here"] }),
    );
    assert_success(&finished);
    assert_eq!(finished.output(), "still here\n");
}

#[test]
fn topics_start_with_the_configured_root() {
    let site = Site::start();
    let worker = site.idle_worker(with(&[("MQTT_TOPIC_ROOT", "plant/7/jobs")]));
    let mut worker: Worker = worker;
    let dir = site.prepare("rooted", json!({ "steps": ["true"] }));
    site.controller.publish(
        "plant/7/jobs/pending",
        json!({ "id": "rooted", "workDir": dir }).to_string(),
    );
    assert_eq!(
        site.controller.next("plant/7/jobs/results/rooted").json()["status"],
        "success"
    );
    worker.exits_with(0);
    assert_eq!(site.controller.heard("jobs/").len(), 0);
    assert!(
        !site
            .controller
            .heard("plant/7/jobs/status/rooted")
            .is_empty()
    );
}

/// A request whose payload has exactly `size` bytes; the padding is white space, which means nothing.
fn request_of_size(size: usize, request: &Value) -> String {
    let mut payload = request.to_string();
    let padding = " ".repeat(size - payload.len());
    payload.insert_str(1, &padding);
    assert_eq!(payload.len(), size);
    payload
}

fn a_request_of_1_mebibyte_is_taken(version: &str) {
    let site = Site::start();
    let dir = site.directory("full");
    let worker = site.idle_worker(speaking(version));
    // half of what Linux takes as one argument
    let step = format!("echo taken # {}", "x".repeat(64 << 10));
    let request = json!({ "id": "full", "workDir": dir, "steps": [step] });
    site.controller
        .publish("jobs/pending", request_of_size(MIB, &request));
    let finished = site.finish(worker, dir, "full");
    assert_success(&finished);
    assert!(finished.log.contains("\ntaken\n"));
}

/// Neither lost in silence, nor fatal to the connection, nor redelivered for ever, nor held more than once.
fn a_larger_request_is_rejected_and_the_worker_lives_on(version: &str) {
    let site = Site::start();
    let worker = site.idle_worker(speaking(version));
    let dir = site.directory("oversized");
    let file = site.drive.path().join("request");
    const LARGEST: usize = 32 * MIB;
    for size in [MIB + 1, LARGEST] {
        let request = json!({ "id": "oversized", "workDir": dir, "steps": ["touch ran"] });
        fs::write(&file, request_of_size(size, &request)).unwrap();
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

    assert_success(&site.run_on(worker, "after", json!({ "steps": ["true"] })));
    let next = site.idle_worker(speaking(version));
    assert_success(&site.run_on(next, "next", json!({ "steps": ["true"] })));
    let notices = site.controller.heard("jobs/rejected").len();
    assert_eq!(notices, 2, "acknowledged: it does not come back");
}

on_both_protocols!(
    a_request_of_1_mebibyte_is_taken,
    a_larger_request_is_rejected_and_the_worker_lives_on,
);

fn definition_of_size(size: usize) -> String {
    request_of_size(size, &json!({ "steps": ["echo read"] }))
}

#[test]
fn job_json_may_have_1_mebibyte_and_no_more() {
    let site = Site::start();
    let worker = site.idle_worker(|_| {});
    let dir = site.directory("sized");
    let path = dir.join("job.json");
    fs::write(&path, definition_of_size(MIB + 1)).unwrap();
    let request = json!({ "id": "sized", "workDir": dir });
    site.request(request.clone());
    assert_eq!(site.result("sized").json()["reason"], "rejected");
    assert_eq!(names(&dir), ["job.json"]);
    fs::write(&path, definition_of_size(MIB)).unwrap();
    assert_success(&site.run_request(worker, dir, request));
}

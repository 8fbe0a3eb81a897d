//! `job-worker check [DIR]` (docs/reference.md, "Commands").

use crate::support;

use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use support::scene::Scene;

fn check(scene: &Scene, dir: Option<&str>, configure: impl FnOnce(&mut Command)) -> Output {
    let mut command = scene.command(["check"].into_iter().chain(dir));
    configure(&mut command);
    command.output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// All files below, with their content.
fn contents(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
        .into_iter()
        .map(|path| (path.clone(), fs::read(&path).unwrap_or_default()))
        .collect()
}

#[test]
fn a_good_configuration_and_a_good_job() {
    let scene = Scene::new();
    let output = check(&scene, None, |_| {});
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(0), String::new())
    );
    assert!(text(&output.stdout).contains("jobs/pending"), "{output:?}");

    let dir = scene.prepare(
        "a",
        json!({ "steps": ["touch ran", { "run": "touch ran", "colour": "blue" }] }),
    );
    let before = contents(&dir);
    let output = check(&scene, Some("a"), |_| {});
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(0), String::new())
    );
    let said = text(&output.stdout);
    assert!(
        said.contains("2 steps") && said.contains("steps[].colour"),
        "{said}"
    );
    assert_eq!(contents(&dir), before, "nothing is run, nothing is written");
    assert!(scene.broker.log().is_empty(), "nobody is asked");
}

#[test]
fn every_fault_of_the_configuration_is_named() {
    let scene = Scene::new();
    let output = check(&scene, None, |command| {
        command
            .env("JOB_TIMEOUT", "soon")
            .env("JOB_ON_STOP", "never")
            .env("MQTT_URL", "mqtt://me:hunter2@host:x");
    });
    assert_eq!(output.status.code(), Some(78));
    let said = text(&output.stderr);
    for word in [
        "JOB_TIMEOUT",
        "soon",
        "JOB_ON_STOP",
        "never",
        "requeue or finish",
        "MQTT_URL",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn a_fault_of_the_job_is_named() {
    let scene = Scene::new();
    fs::create_dir(scene.drive().join("empty")).unwrap();
    fs::write(scene.drive().join("file"), "").unwrap();
    scene.prepare("no-steps", json!({ "env": {} }));
    scene.prepare("wrong-step", json!({ "steps": ["true", 7] }));
    scene.prepare("wrong-time", json!({ "steps": [], "timeoutSeconds": -1 }));
    fs::write(scene.prepare("no-json", json!({})).join("job.json"), "{").unwrap();
    for (dir, word) in [
        ("missing", "does not exist"),
        ("file", "not a directory"),
        ("empty", "job.json does not exist"),
        ("no-steps", "no `steps`"),
        ("wrong-step", "item 2"),
        ("wrong-time", "timeoutSeconds"),
        ("no-json", "job.json"),
    ] {
        let output = check(&scene, Some(dir), |_| {});
        assert_ne!(output.status.code(), Some(0), "{dir}");
        let said = text(&output.stderr);
        assert!(
            said.starts_with("job: ") && said.contains(word),
            "{dir}: {said}"
        );
    }
}

#[test]
fn both_are_checked_even_if_the_first_has_a_fault() {
    let scene = Scene::new();
    let output = check(&scene, Some("missing"), |command| {
        command.env("JOB_TIMEOUT", "soon");
    });
    let said = text(&output.stderr);
    assert!(
        said.contains("JOB_TIMEOUT") && said.contains("missing"),
        "{said}"
    );
}

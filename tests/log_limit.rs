//! `JOB_LOG_LIMIT` (contract section 8).

mod support;

use serde_json::json;
use support::scene::{Finished, Scene};

const LIMIT: &str = "100000";

fn run(scene: &Scene, steps: serde_json::Value) -> Finished {
    scene.run("a", json!({ "steps": steps }), |worker| {
        worker.env("JOB_LOG_LIMIT", LIMIT);
    })
}

#[track_caller]
fn has_passed_it(finished: &Finished) {
    assert_eq!(
        (&finished.result["status"], &finished.result["reason"]),
        (&json!("failed"), &json!("log_limit"))
    );
    assert_ne!(finished.result["exitCode"], 0);
    assert!(
        finished.result["error"].as_str().unwrap().contains(LIMIT),
        "{}",
        finished.result
    );
    assert!(
        finished
            .log
            .lines()
            .any(|line| line.starts_with("==> ") && line.contains(LIMIT)),
        "the log says so"
    );
}

/// Some 5 MB a second, so that a log that is not limited does no harm.
const CHATTERS: &str = "while :; do head -c 50000 /dev/zero; sleep 0.01; done";

#[test]
fn a_job_whose_log_passes_it_is_ended() {
    let scene = Scene::new();
    let finished = run(&scene, json!([CHATTERS, "touch next"]));
    has_passed_it(&finished);
    assert!(!finished.dir.join("next").exists());
    scene.nothing_survives();
}

#[test]
fn orphans_that_end_all_the_time_do_not_distract() {
    let scene = Scene::new();
    has_passed_it(&run(
        &scene,
        json!(["while :; do (true &); head -c 5000 /dev/zero; sleep 0.01; done"]),
    ));
}

#[test]
fn a_step_that_passes_it_and_ends_quickly_has_passed_it() {
    let scene = Scene::new();
    let finished = run(&scene, json!(["head -c 200000 /dev/zero", "touch next"]));
    has_passed_it(&finished);
    assert!(!finished.dir.join("next").exists());
}

#[test]
fn an_always_step_runs_after_it_and_is_limited_too() {
    let scene = Scene::new();
    let finished = run(
        &scene,
        json!([
            CHATTERS,
            { "run": "sleep 0.5; echo collected; touch first", "always": true },
            { "run": CHATTERS, "always": true },
            { "run": "touch last", "always": true }
        ]),
    );
    has_passed_it(&finished);
    let exists = |file: &str| finished.dir.join(file).exists();
    assert_eq!([exists("first"), exists("last")], [true, true]);
    assert!(finished.log.contains("collected"));
}

#[test]
fn a_log_below_it_is_no_matter() {
    let scene = Scene::new();
    let finished = run(&scene, json!(["head -c 90000 /dev/zero; sleep 0.3"]));
    assert_eq!(finished.verdict(), ("success", "", 0));
}

#[test]
fn without_one_a_log_may_grow() {
    let scene = Scene::new();
    let finished = scene.run(
        "a",
        json!({ "steps": ["head -c 2000000 /dev/zero"] }),
        |_| {},
    );
    assert_eq!(finished.verdict(), ("success", "", 0));
    assert!(finished.log.len() > 2_000_000);
}

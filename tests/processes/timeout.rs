//! Timeouts of steps and jobs (docs/reference.md, "Limits" and "Stopping"): TERM to the whole job, the grace, KILL;
//! 124 and `timeout`.

use crate::support;

use serde_json::json;
use support::site::{Finished, Site};

/// Says what it was told, and goes.
const HEEDS_TERM: &str = "trap 'echo told to stop; exit 0' TERM; while :; do sleep 0.02; done";

fn is_timeout(finished: &Finished) {
    assert_eq!(
        finished.verdict(),
        ("failed", "timeout", 124),
        "{}",
        finished.log
    );
    assert!(
        finished.result["error"]
            .as_str()
            .is_some_and(|error| error.contains("timed out"))
    );
}

#[test]
fn each_source_of_a_job_limit_counts_and_the_nearest_wins() {
    let never = || json!(["sleep 1000"]);
    let site = Site::scripted();
    is_timeout(&site.run("file", json!({ "steps": never(), "timeoutSeconds": 0.2 })));
    is_timeout(&site.run_on(
        site.idle_worker(|worker| _ = worker.env("JOB_TIMEOUT", "0.2")),
        "env",
        json!({ "steps": never() }),
    ));
    let below = site.run_on(
        site.idle_worker(|worker| _ = worker.env("JOB_TIMEOUT", "1000")),
        "file-below-env",
        json!({ "steps": never(), "timeoutSeconds": 0.2, "maxAttempts": 1 }),
    );
    is_timeout(&below);
    assert_eq!(below.result["error"], "the job timed out after 0.2s");
    let said = below.worker.stderr();
    assert!(!said.contains("allows"), "less is no matter: {said}");

    let mut worker = site.idle_worker(|_| {});
    let dir = site.prepare(
        "request",
        json!({ "steps": never(), "timeoutSeconds": 1000 }),
    );
    site.request(json!({ "id": "request", "workDir": dir, "timeoutSeconds": 0.2 }));
    assert_eq!(site.result("request").json()["reason"], "timeout");
    worker.exits_with(0);
}

#[test]
fn a_job_limit_is_for_all_steps_together() {
    let site = Site::scripted();
    let steps: Vec<_> = (0..50)
        .map(|_| json!({ "run": "sleep 0.2", "timeoutSeconds": 60 }))
        .collect();
    let finished = site.run("a", json!({ "steps": steps, "timeoutSeconds": 0.7 }));
    is_timeout(&finished);
    assert_eq!(finished.result["steps"][49]["status"], "skipped");
}

#[test]
fn the_grace_is_for_every_process_of_the_job() {
    let site = Site::scripted();
    // the shell of the step goes at once; what it has started, in its group and out of it, needs some time
    let cleans = |name: &str| {
        format!(
            "trap 'sleep 0.3; touch {name}; exit' TERM; touch {name}-up; while :; do sleep 0.02; done"
        )
    };
    let step = format!(
        r#"sh -c "{}" & setsid sh -c "{}" & until [ -e in-up ] && [ -e out-up ]; do sleep 0.02; done; touch up; wait"#,
        cleans("in"),
        cleans("out")
    );
    let finished = site.run_on(
        site.idle_worker(|worker| _ = worker.env("JOB_STOP_GRACE", "30")),
        "a",
        json!({ "steps": [{ "run": step, "timeoutSeconds": 2 }] }),
    );
    is_timeout(&finished);
    for file in ["up", "in", "out"] {
        assert!(finished.dir.join(file).exists(), "{file}: {}", finished.log);
    }
    assert_eq!(finished.result["steps"][0]["signal"], "SIGTERM");
}

#[test]
fn a_step_that_has_stopped_itself_can_be_told_to_stop() {
    let site = Site::scripted();
    let step = json!({ "run": format!("trap 'echo told to stop; exit 1' TERM; kill -STOP $$; sleep 1000"), "timeoutSeconds": 0.2 });
    let finished = site.run_on(
        site.idle_worker(|worker| _ = worker.env("JOB_STOP_GRACE", "30")),
        "a",
        json!({ "steps": [step] }),
    );
    is_timeout(&finished);
    assert!(finished.log.contains("told to stop"), "{}", finished.log);
}

#[test]
fn always_steps_run_after_a_timeout_and_cannot_turn_it_into_a_success() {
    let site = Site::scripted();
    let steps = json!([
        { "run": "sleep 1000", "timeoutSeconds": 0.1 },
        "touch next",
        { "run": "touch first", "always": true },
        { "run": "sleep 1000", "always": true, "timeoutSeconds": 0.1 },
        { "run": "exit 7", "always": true },
        { "run": "touch last", "always": true }
    ]);
    let finished = site.run("a", json!({ "steps": steps, "timeoutSeconds": 1000 }));
    is_timeout(&finished);
    let exists = |file: &str| finished.dir.join(file).exists();
    assert_eq!(
        [exists("next"), exists("first"), exists("last")],
        [false, true, true]
    );
    let codes: Vec<_> = finished.result["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| &step["exitCode"])
        .collect();
    assert_eq!(json!(codes), json!([124, null, 0, 124, 7, 0]));
}

#[test]
fn a_first_failure_keeps_its_reason_when_an_always_step_times_out() {
    let site = Site::scripted();
    let steps = json!(["exit 3", { "run": "sleep 1000", "always": true, "timeoutSeconds": 0.1 }]);
    let finished = site.run("a", json!({ "steps": steps }));
    assert_eq!(finished.verdict(), ("failed", "step", 3));
}

#[test]
fn limits_beyond_all_clocks_are_no_limits() {
    let site = Site::scripted();
    let definition =
        json!({ "steps": [{ "run": "true", "timeoutSeconds": 1e19 }], "timeoutSeconds": 1e19 });
    let finished = site.run_on(
        site.idle_worker(|worker| {
            worker
                .env("JOB_TIMEOUT", "1e19")
                .env("JOB_STOP_GRACE", "1e19")
                .env("JOB_DIR_WAIT", "1e19");
        }),
        "a",
        definition,
    );
    assert_eq!(finished.verdict(), ("success", "", 0));

    let mut worker = site.idle_worker(|worker| _ = worker.env("JOB_STOP_GRACE", "1e19"));
    site.submit(
        "b",
        json!({ "steps": [{ "run": HEEDS_TERM, "timeoutSeconds": 0.1 }] }),
    );
    assert_eq!(site.result("b").json()["reason"], "timeout");
    worker.exits_with(0);
}

#[test]
fn what_the_worker_is_configured_for_is_a_bound() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|worker| {
        worker
            .env("JOB_TIMEOUT", "0.5")
            .env("JOB_MAX_ATTEMPTS", "2");
    });
    let steps =
        json!(["sleep 1000", { "run": "sleep 1000", "always": true, "timeoutSeconds": 1000 }]);
    site.submit(
        "a",
        json!({ "steps": steps, "timeoutSeconds": 1000, "maxAttempts": 9 }),
    );
    let result = site.result("a").json();
    worker.exits_with(0);
    assert_eq!(
        result["error"],
        "the job timed out after 0.5s (JOB_TIMEOUT)"
    );
    assert_eq!(
        result["steps"][1]["exitCode"], 124,
        "nor is a step that always runs a way around it"
    );
    let said = worker.stderr();
    for told in [
        "asks for timeoutSeconds 1000, more than JOB_TIMEOUT allows: 0.5",
        "asks for maxAttempts 9, more than JOB_MAX_ATTEMPTS allows: 2",
    ] {
        assert_eq!(said.matches(told).count(), 1, "{told}: {said}");
    }
}

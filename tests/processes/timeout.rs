//! Timeouts of steps and jobs (docs/reference.md, "Limits" and "Stopping"): TERM to the whole job, the grace, KILL;
//! 124 and `timeout`.

use crate::orphans::STORM;
use crate::support::site::Site;
use serde_json::json;

#[test]
fn each_limit_counts_and_the_nearest_wins() {
    let never = json!(["sleep 1000"]);
    let ends = json!(["failed", "timeout", 124]);
    let slow = json!({ "run": "sleep 0.2", "timeoutSeconds": 60 });
    let short = |run: &str| json!({ "run": run, "timeoutSeconds": 0.1 });
    let always = |run: &str| json!({ "run": run, "always": true });
    let always_never =
        |limit: f64| json!({ "run": "sleep 1000", "always": true, "timeoutSeconds": limit });
    let endless =
        json!({ "JOB_TIMEOUT": "1e19", "JOB_STOP_GRACE": "1e19", "JOB_DIR_WAIT": "1e19" });
    let patient = json!({ "JOB_STOP_GRACE": "30" });
    let heeds_term = "trap 'echo told to stop; exit 1' TERM";
    // the shell of the step goes at once; what it has started, in its group and out of it, needs some time
    let cleans = |name: &str| {
        format!(
            "trap 'sleep 0.3; touch {name}; exit' TERM; touch {name}-up; while :; do sleep 0.02; done"
        )
    };
    let in_and_out = format!(
        r#"sh -c "{}" & setsid sh -c "{}" & until [ -e in-up ] && [ -e out-up ]; do sleep 0.02; done; touch up; wait"#,
        cleans("in"),
        cleans("out")
    );
    let cases = json!([
        { "job": { "steps": never, "timeoutSeconds": 0.2 }, "ends": ends, "error": "the job timed out after 0.2s" },
        { "job": { "steps": never }, "env": { "JOB_TIMEOUT": "0.2" }, "ends": ends, "error": "timed out" },
        { "job": { "steps": never, "timeoutSeconds": 0.2 }, "env": { "JOB_TIMEOUT": "1000" }, "ends": ends, "error": "0.2s" },
        { "job": { "steps": never, "timeoutSeconds": 1000 }, "request": { "timeoutSeconds": 0.2 }, "ends": ends },
        // the limit of a job is for all of its steps together
        { "job": { "steps": vec![slow; 9], "timeoutSeconds": 0.7 }, "ends": ends, "log": "step 9/9: skipped" },
        // no step that always runs turns a timeout into a success, nor another failure into a timeout
        { "job": { "steps": [short("sleep 1000"), "true", always("true"), always_never(0.1), always("exit 7"), always("true")],
            "timeoutSeconds": 1000 }, "ends": ends, "codes": [124, null, 0, 124, 7, 0], "error": "timed out" },
        { "job": { "steps": ["exit 3", always_never(0.1)] }, "ends": ["failed", "step", 3], "codes": [3, 124] },
        // limits beyond all clocks are none
        { "job": { "steps": [{ "run": "true", "timeoutSeconds": 1e19 }], "timeoutSeconds": 1e19 }, "env": endless,
            "ends": ["success", "", 0] },
        { "job": { "steps": [short(&format!("{heeds_term}; while :; do sleep 0.02; done"))] }, "env": endless, "ends": ends,
            "log": "\ntold to stop\n" },
        // the grace is for every process of the job
        { "job": { "steps": [{ "run": in_and_out, "timeoutSeconds": 2 }, always("ls up in out")] }, "env": patient, "ends": ends,
            "codes": [124, 0], "error": "timed out" },
        // one that has stopped itself can be told to stop
        { "job": { "steps": [short(&format!("{heeds_term}; kill -STOP $$; sleep 1000"))] }, "env": patient, "ends": ends,
            "log": "\ntold to stop\n" },
        // the worker's own is a bound, also for a step that always runs
        { "job": { "steps": ["sleep 1000", always_never(1000.0)], "timeoutSeconds": 1000, "maxAttempts": 9 }, "ends": ends,
            "env": { "JOB_TIMEOUT": "0.5", "JOB_MAX_ATTEMPTS": "2" }, "codes": [124, 124],
            "error": "the job timed out after 0.5s (JOB_TIMEOUT)" },
    ]);
    let _calm = STORM.read();
    let site = Site::scripted();
    let jobs = site.jobs(&cases);
    let (last, others) = jobs.split_last().expect("there are some");
    let said = last.worker.stderr();
    for told in [
        "asks for timeoutSeconds 1000, more than JOB_TIMEOUT allows: 0.5",
        "asks for maxAttempts 9, more than JOB_MAX_ATTEMPTS allows: 2",
    ] {
        assert_eq!(said.matches(told).count(), 1, "{told}: {said}");
    }
    let others: String = others.iter().map(|job| job.worker.stderr()).collect();
    assert!(!others.contains("asks for"), "less is no matter: {others}");
}

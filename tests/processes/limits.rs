//! Limits of steps, of jobs and of the log (docs/reference.md, "Limits" and "Stopping").

use crate::orphans::STORM;
use crate::support::broker::slowness;
use crate::support::site::Site;
use crate::support::worker::with;
use serde_json::json;

/// How often a job may be tried: on a busy machine a step has not heeded TERM by the next look at the log, 0.1 s later, which kills it.
const TRIES: u64 = 20;

#[test]
fn each_limit_counts_and_the_nearest_wins() {
    let never = json!(["sleep 1000"]);
    let ends = json!(["failed", "timeout", 124]);
    let slow = json!({ "run": "sleep 0.2", "timeoutSeconds": 60 });
    let short = |run: &str| json!({ "run": run, "timeoutSeconds": 0.1 });
    // it has its trap by then
    let trapped = |run: &str| json!({ "run": run, "timeoutSeconds": slowness() / 2.0 });
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
        { "job": { "steps": [trapped(&format!("{heeds_term}; while :; do sleep 0.02; done"))] }, "env": endless, "ends": ends,
            "log": "\ntold to stop\n" },
        // the grace is for every process of the job
        { "job": { "steps": [{ "run": in_and_out, "timeoutSeconds": 2.0 * slowness() }, always("ls up in out")] }, "env": patient, "ends": ends,
            "codes": [124, 0], "error": "timed out" },
        // one that has stopped itself can be told to stop
        { "job": { "steps": [trapped(&format!("{heeds_term}; kill -STOP $$; sleep 1000"))] }, "env": patient, "ends": ends,
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
        ": asks for timeoutSeconds 1000, more than JOB_TIMEOUT allows: 0.5",
        ": step 2 asks for timeoutSeconds 1000, more than JOB_TIMEOUT allows: 0.5",
        "asks for maxAttempts 9, more than JOB_MAX_ATTEMPTS allows: 2",
    ] {
        assert_eq!(said.matches(told).count(), 1, "{told}: {said}");
    }
    let others: String = others.iter().map(|job| job.worker.stderr()).collect();
    assert!(!others.contains("asks for"), "less is no matter: {others}");
}

const LIMIT: &str = "100000";

/// Some 5 MB a second, so that a log that is not limited does no harm.
const CHATTERS: &str = "while :; do head -c 50000 /dev/zero; sleep 0.01; done";

/// The same by a process that takes no TERM.
const CHATTERS_ON: &str =
    "trap '' TERM; while :; do head -c 50000 /dev/zero; sleep 0.01; touch up; done";

/// What a log may have at the end, whoever writes 5 MB a second and is killed in the next second. On a machine that is
/// too loaded to look ten times a second the writer is slowed down as well.
const SOON_ENDED: usize = 5_000_000;

#[test]
fn a_job_whose_log_passes_it_is_ended() {
    let env = json!({ "JOB_LOG_LIMIT": LIMIT });
    let patient = json!({ "JOB_LOG_LIMIT": LIMIT, "JOB_STOP_GRACE": "20" });
    let [told, killed, quick] = [143, 137, 1].map(|code| json!(["failed", "log_limit", code]));
    let always = |run: &str| json!({ "run": run, "always": true });
    let cases = json!([
        { "job": { "steps": [CHATTERS, "true", always("sleep 0.5; echo collected"), always(CHATTERS), always("true")] },
            "env": env, "ends": told, "codes": [143, null, 0, 143, 0], "log": "\ncollected\n", "tries": TRIES },
        // one that ends before the next look has passed it, too
        { "job": { "steps": ["head -c 200000 /dev/zero", "true"] }, "env": env, "ends": quick, "codes": [1, null] },
        { "job": { "steps": ["while :; do (true &); head -c 5000 /dev/zero; sleep 0.01; done"] }, "env": env, "ends": told, "tries": TRIES },
        { "job": { "steps": [CHATTERS_ON] }, "env": patient, "ends": killed },
        // the limit of the job still counts after it
        { "job": { "steps": [CHATTERS, always("until grep -q 'timed out after 1.5s' job.log; do sleep 0.02; done")],
            "timeoutSeconds": 1.5 }, "env": env, "ends": told, "codes": [143, 0], "tries": TRIES },
        { "job": { "steps": ["head -c 90000 /dev/zero; sleep 0.3"] }, "env": env, "ends": ["success", "", 0] },
        { "job": { "steps": ["head -c 2000000 /dev/zero"] }, "ends": ["success", "", 0] },
        // what always runs may write as much again together, and not for each that fails
        { "job": { "steps": ["exit 3", always("head -c 60000 /dev/zero; exit 4"), always("head -c 60000 /dev/zero; exec sleep 9")] },
            "env": env, "ends": ["failed", "step", 3], "codes": [3, 4, 143], "tries": TRIES },
    ]);
    let site = Site::scripted();
    let jobs = site.jobs(&cases);
    for job in &jobs[..5] {
        let error = job.result["error"].as_str().unwrap_or_default();
        let is_told = |line: &str| line.starts_with("==> ") && line.contains(LIMIT);
        let in_log = job.log.lines().any(is_told);
        assert!(error.contains(LIMIT) && in_log, "{}", job.result);
        assert!(job.log.len() < SOON_ENDED, "{}", job.log.len());
    }
    assert!(jobs[6].log.len() > 2_000_000);
}

#[test]
fn there_is_no_haste_with_who_makes_room() {
    let site = Site::scripted();
    let run =
        format!("trap 'echo > \"$JOB_LOG\"; sleep 0.5; touch cleaned; exit 3' TERM; {CHATTERS}");
    let steps = json!([run, { "run": "ls cleaned", "always": true }]);
    let is_left_alone = |number| {
        let worker = site.idle_worker(with(&[("JOB_LOG_LIMIT", LIMIT)]));
        let job = site.run_on(worker, &format!("a{number}"), json!({ "steps": steps }));
        job.verdict() == ("failed", "log_limit", 3) && job.result["steps"][1]["exitCode"] == 0
    };
    assert!((0..TRIES).any(is_left_alone));
}

#[test]
fn the_grace_of_a_stop_is_no_time_to_pass_it() {
    let site = Site::scripted();
    let variables = [("JOB_LOG_LIMIT", LIMIT), ("JOB_STOP_GRACE", "20")];
    let mut worker = site.idle_worker(with(&variables));
    let step = "trap 'touch term' TERM; touch up; until [ -e term ]; do sleep 0.02; done";
    let steps = json!([format!("{step}; {CHATTERS_ON}")]);
    let dir = site.begin("a", json!({ "steps": steps }));
    worker.stop();
    let bytes = dir.join("job.log").metadata().unwrap().len();
    assert!(bytes < SOON_ENDED as u64, "{bytes}");
    site.nothing_survives();
}

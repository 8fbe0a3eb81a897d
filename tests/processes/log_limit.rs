//! `JOB_LOG_LIMIT` (docs/reference.md, "Limits").

use crate::support::site::{Site, read, release, until_exists};
use crate::support::wait;
use crate::support::worker::with;
use serde_json::json;

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
            "env": env, "ends": told, "codes": [143, null, 0, 143, 0], "log": "\ncollected\n" },
        // one that ends before the next look has passed it, too
        { "job": { "steps": ["head -c 200000 /dev/zero", "true"] }, "env": env, "ends": quick, "codes": [1, null] },
        { "job": { "steps": ["while :; do (true &); head -c 5000 /dev/zero; sleep 0.01; done"] }, "env": env, "ends": told },
        { "job": { "steps": [CHATTERS_ON] }, "env": patient, "ends": killed },
        { "job": { "steps": ["head -c 90000 /dev/zero; sleep 0.3"] }, "env": env, "ends": ["success", "", 0] },
        { "job": { "steps": ["head -c 2000000 /dev/zero"] }, "ends": ["success", "", 0] },
    ]);
    let site = Site::scripted();
    let jobs = site.jobs(&cases);
    for job in &jobs[..4] {
        let error = job.result["error"].as_str().unwrap_or_default();
        let is_told = |line: &str| line.starts_with("==> ") && line.contains(LIMIT);
        let in_log = job.log.lines().any(is_told);
        assert!(error.contains(LIMIT) && in_log, "{}", job.result);
        assert!(job.log.len() < SOON_ENDED, "{}", job.log.len());
    }
    assert!(jobs[5].log.len() > 2_000_000);
}

#[test]
fn there_is_no_haste_with_who_makes_room() {
    let site = Site::scripted();
    let run =
        format!("trap 'echo > \"$JOB_LOG\"; sleep 0.5; touch cleaned; exit 3' TERM; {CHATTERS}");
    let steps = json!([run, { "run": "ls cleaned", "always": true }]);
    // on a busy machine it may take longer than the 0.1 s between two looks
    let is_left_alone = |number: u32| {
        let worker = site.idle_worker(with(&[("JOB_LOG_LIMIT", LIMIT)]));
        let job = site.run_on(worker, &format!("a{number}"), json!({ "steps": steps }));
        job.verdict() == ("failed", "log_limit", 3) && job.result["steps"][1]["exitCode"] == 0
    };
    assert!((0..10).any(is_left_alone));
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

#[test]
fn the_limit_of_the_job_still_counts_after_it() {
    let site = Site::scripted();
    let worker = site.idle_worker(with(&[("JOB_LOG_LIMIT", LIMIT)]));
    let steps = json!([CHATTERS, { "run": until_exists("gate"), "always": true }]);
    let dir = site.submit("a", json!({ "steps": steps, "timeoutSeconds": 1.5 }));
    let log = dir.join("job.log");
    wait::until("the limit of the job", || {
        log.exists() && read(&log).contains("timed out after 1.5s")
    });
    release(&dir);
    let job = site.finish(worker, dir, "a");
    assert_eq!(job.verdict(), ("failed", "log_limit", 143));
}

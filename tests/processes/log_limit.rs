//! `JOB_LOG_LIMIT` (docs/reference.md, "Limits").

use crate::support;

use rustix::process::Signal;
use serde_json::json;
use support::broker::Broker;
use support::site::{Finished, Site, await_file, read, until_exists};
use support::wait;

const LIMIT: &str = "100000";

fn run(site: &Site<Broker>, steps: serde_json::Value) -> Finished {
    site.run_on(
        site.idle_worker(|worker| _ = worker.env("JOB_LOG_LIMIT", LIMIT)),
        "a",
        json!({ "steps": steps }),
    )
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
fn orphans_that_end_all_the_time_do_not_distract() {
    let site = Site::scripted();
    has_passed_it(&run(
        &site,
        json!(["while :; do (true &); head -c 5000 /dev/zero; sleep 0.01; done"]),
    ));
}

#[test]
fn a_step_that_passes_it_and_ends_quickly_has_passed_it() {
    let site = Site::scripted();
    let finished = run(&site, json!(["head -c 200000 /dev/zero", "touch next"]));
    has_passed_it(&finished);
    assert!(!finished.dir.join("next").exists());
}

#[test]
fn a_job_whose_log_passes_it_is_ended_and_its_always_steps_are_limited_too() {
    let site = Site::scripted();
    let finished = run(
        &site,
        json!([
            CHATTERS,
            "touch next",
            { "run": "sleep 0.5; echo collected; touch first", "always": true },
            { "run": CHATTERS, "always": true },
            { "run": "touch last", "always": true }
        ]),
    );
    has_passed_it(&finished);
    let exists = |file: &str| finished.dir.join(file).exists();
    assert_eq!(
        [exists("next"), exists("first"), exists("last")],
        [false, true, true]
    );
    assert!(finished.log.contains("collected"));
    site.nothing_survives();
}

#[test]
fn below_it_or_without_one_a_log_may_grow() {
    let site = Site::scripted();
    let below = run(&site, json!(["head -c 90000 /dev/zero; sleep 0.3"]));
    assert_eq!(below.verdict(), ("success", "", 0));
    let without = site.run("b", json!({ "steps": ["head -c 2000000 /dev/zero"] }));
    assert_eq!(without.verdict(), ("success", "", 0));
    assert!(without.log.len() > 2_000_000);
}

/// As [`CHATTERS`], by a process that takes no TERM.
const CHATTERS_ON: &str =
    "trap '' TERM; while :; do head -c 50000 /dev/zero; sleep 0.01; touch up; done";

/// What a log may have at the end, whoever writes 5 MB a second and is killed in the next second. On a machine that is
/// too loaded to look ten times a second the writer is slowed down as well.
const SOON_ENDED: usize = 5_000_000;

#[test]
fn whoever_ignores_term_is_killed_long_before_the_grace_is_over() {
    let site = Site::scripted();
    let steps = json!([CHATTERS_ON]);
    let finished = site.run_on(
        site.idle_worker(|worker| {
            worker
                .env("JOB_LOG_LIMIT", LIMIT)
                .env("JOB_STOP_GRACE", "20");
        }),
        "a",
        json!({ "steps": steps }),
    );
    has_passed_it(&finished);
    assert_eq!(finished.result["steps"][0]["signal"], "SIGKILL");
    assert!(finished.log.len() < SOON_ENDED, "{}", finished.log.len());
}

#[test]
fn the_grace_of_a_stop_is_no_time_to_pass_it() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|worker| {
        worker
            .env("JOB_LOG_LIMIT", LIMIT)
            .env("JOB_STOP_GRACE", "20");
    });
    let step =
        "trap 'touch term' TERM; touch up; until [ -e term ]; do sleep 0.02; done; trap '' TERM";
    let steps = json!([format!("{step}; {CHATTERS_ON}")]);
    let dir = site.submit("a", json!({ "steps": steps }));
    await_file(&dir.join("up"));
    worker.signal(Signal::TERM);
    worker.exits_with(0);
    let bytes = dir.join("job.log").metadata().unwrap().len();
    assert!(bytes < SOON_ENDED as u64, "{bytes}");
    site.nothing_survives();
}

#[test]
fn who_stops_writing_on_term_has_the_grace_to_clean_up() {
    let site = Site::scripted();
    let step = "trap 'echo > \"$JOB_LOG\"; sleep 0.5; touch cleaned; exit' TERM";
    let finished = site.run_on(
        site.idle_worker(|worker| _ = worker.env("JOB_LOG_LIMIT", LIMIT)),
        "a",
        json!({ "steps": [format!("{step}; {CHATTERS}")] }),
    );
    assert_eq!(finished.result["reason"], "log_limit");
    assert!(
        finished.dir.join("cleaned").exists(),
        "it has made room, so there is no haste"
    );
}

#[test]
fn the_limit_of_the_job_still_counts_after_it() {
    let site = Site::scripted();
    let worker = site.idle_worker(|worker| _ = worker.env("JOB_LOG_LIMIT", LIMIT));
    let steps = json!([CHATTERS, { "run": until_exists("gate"), "always": true }]);
    let dir = site.submit("a", json!({ "steps": steps, "timeoutSeconds": 1.5 }));
    let log = dir.join("job.log");
    wait::until("the limit of the job", || {
        log.exists() && read(&log).contains("timed out after 1.5s")
    });
    std::fs::write(dir.join("gate"), "").unwrap();
    has_passed_it(&site.finish(worker, dir, "a"));
}

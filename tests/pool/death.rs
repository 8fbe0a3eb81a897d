//! Members that die: their job is another's next attempt, and nothing waits for them.

use std::time::{Duration, Instant};

use serde_json::json;

use super::members::{await_queue, claims, member_of, supervised};
use super::support::process_tree::ProcessTree;
use super::support::site::Site;
use super::support::wait;

on_both_protocols!(
    a_job_of_a_dead_member_is_the_next_attempt_of_another,
    a_result_that_was_not_published_is_published_by_another,
);

#[test]
#[ignore = "needs 70 s"]
fn a_head_that_hangs_is_named_and_goes_on_when_it_can() {
    let site = Site::start();
    let mut head = site.idle_worker(member_of(&site, "first", "5"));
    await_queue(&site);
    let mut other = site.idle_worker(member_of(&site, "second", "5"));
    head.freeze();
    site.submit("a", json!({ "steps": ["true"] }));
    std::thread::sleep(Duration::from_secs(60)); // what it waits for before it says so
    other.await_stderr("was not touched for a minute");
    assert!(site.controller.heard("jobs/results/").is_empty());
    head.thaw();
    assert_eq!(site.result("a").json()["status"], "success");
    wait::until("one of them to end", || {
        head.ended().is_some() || other.ended().is_some()
    });
    wait::until("no claim to be left", || claims(&site).is_empty());
}

fn a_job_of_a_dead_member_is_the_next_attempt_of_another(version: &str) {
    let site = Site::start();
    let first = supervised(&site, "first", version);
    await_queue(&site);
    let dir = site.submit(
        "a",
        json!({ "steps": ["touch began; [ $JOB_ATTEMPT = 2 ] || sleep 60"] }),
    );
    wait::until("the job to run", || dir.join("began").exists());
    let _second = supervised(&site, "second", version);
    site.submit("b", json!({ "steps": ["true"] }));
    assert_eq!(site.result("b").json()["worker"], "second");
    ProcessTree::freeze(first.pid()).kill9();
    let died = Instant::now();
    let result = site.result("a").json();
    eprintln!("taken over after {:?}", died.elapsed());
    assert!(
        died.elapsed() < Duration::from_secs(6),
        "{:?}",
        died.elapsed()
    );
    assert_eq!(result["status"], "success", "{result}");
    assert_eq!(result["attempt"], 2);
    assert_eq!(result["worker"], "second");
    site.submit("c", json!({ "steps": ["true"] }));
    site.result("c");
    wait::until("no claim to be left", || claims(&site).is_empty());
}

#[test]
fn a_job_that_kills_its_worker_ends() {
    let site = Site::start();
    let _member = supervised(&site, "a", "5");
    await_queue(&site);
    let dir = site.submit(
        "a",
        json!({ "steps": ["echo >> runs; kill -9 $PPID; sleep 60"] }),
    );
    let result = site.result("a").json();
    assert_eq!(
        (&result["status"], &result["reason"]),
        (&json!("failed"), &json!("interrupted"))
    );
    let runs = std::fs::read_to_string(dir.join("runs")).unwrap();
    assert_eq!(runs.lines().count(), 3);
    site.submit("b", json!({ "steps": ["true"] }));
    site.result("b");
}

fn a_result_that_was_not_published_is_published_by_another(version: &str) {
    let mut site = Site::start();
    let mut first = site.idle_worker(member_of(&site, "first", version));
    await_queue(&site);
    let dir = site.submit(
        "a",
        json!({ "steps": ["echo >> runs; touch began; while [ ! -e go ]; do sleep 0.02; done"] }),
    );
    wait::until("the job to run", || dir.join("began").exists());
    site.kill9_broker();
    std::fs::write(dir.join("go"), "").unwrap();
    wait::until("the result on the drive", || {
        let status = std::fs::read_to_string(dir.join("job.status.json")).unwrap_or_default();
        status.contains("success")
    });
    let claim = claims(&site).pop().expect("a claim");
    let path = site.drive.path().join(".job-worker/the-pool").join(claim);
    wait::until("the result in the claim", || {
        std::fs::read_to_string(&path).unwrap().contains("success")
    });
    first.kill9();
    // whatever becomes of the directory
    std::fs::remove_dir_all(&dir).unwrap();
    site.restart_broker();
    let mut second = site.worker(member_of(&site, "second", version));
    let result = site.result("a").json();
    assert_eq!(
        (&result["status"], &result["worker"]),
        (&json!("success"), &json!("first"))
    );
    second.exits_with(0);
    assert_eq!(claims(&site), [""; 0]);
}

//! Members that die: their job is another's next attempt, and nothing waits for them.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use super::members::{await_queue, member_of, supervised};
use super::support::broker::{Packet, Verdict};
use super::support::pool::await_no_claims;
use super::support::process_tree::ProcessTree;
use super::support::site::{Site, await_file, read, release, verdict};
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
    let mut other = site.idle_worker(member_of(&site, "second", "5"));
    head.freeze();
    site.submit("a", json!({ "steps": ["true"] }));
    let is_without_result = || site.controller.heard("jobs/results/").is_empty();
    wait::throughout(Duration::from_secs(60), "no result", is_without_result);
    other.await_stderr("was not touched for a minute");
    assert!(is_without_result());
    head.thaw();
    site.succeeds("a");
    wait::until("one of them to end", || {
        head.ended().is_some() || other.ended().is_some()
    });
    await_no_claims(site.drive.path());
}

fn a_job_of_a_dead_member_is_the_next_attempt_of_another(version: &str) {
    let site = Site::start();
    let first = supervised(&site, "first", version);
    await_queue(&site);
    let step = "touch began; [ $JOB_ATTEMPT = 2 ] || sleep 60";
    let dir = site.submit("a", json!({ "steps": [step] }));
    await_file(&dir.join("began"));
    let _second = supervised(&site, "second", version);
    site.submit("b", json!({ "steps": ["true"] }));
    assert_eq!(site.result("b").json()["worker"], "second");
    ProcessTree::freeze(first.pid()).kill9();
    let died = Instant::now();
    let result = site.result("a").json();
    let took = died.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_eq!(verdict(&result), ("success", "", 0), "{result}");
    assert_eq!(result["attempt"], 2);
    assert_eq!(result["worker"], "second");
    site.submit("c", json!({ "steps": ["true"] }));
    site.result("c");
    await_no_claims(site.drive.path());
}

/// A power cut may leave a claim without its content, whose request the broker still has.
#[test]
fn a_request_runs_whose_claim_is_empty_before_it_is_acknowledged() {
    let site = Site::scripted();
    site.broker.set_script(|step| match step.packet {
        Packet::PubAck { .. } if step.client == "the-pool" => Verdict::CutBefore,
        _ => Verdict::Pass,
    });
    let mark = site.mark();
    let mut first = supervised(&site, "first", "5");
    site.await_state(&mut first, mark, "idle");
    let step = "[ -e began ] || { touch began; sleep 1000; }";
    let dir = site.submit("b", json!({ "steps": [step] }));
    await_file(&dir.join("began"));
    ProcessTree::freeze(first.pid()).kill9();
    site.broker.set_script(|_| Verdict::Pass);
    let claims = site.claims();
    let [claim] = &claims[..] else {
        panic!("one claim: {claims:?}")
    };
    fs::write(site.pool().join(claim), "").unwrap();
    let _second = supervised(&site, "second", "5");
    assert_eq!(site.result("b").json()["attempt"], 1);
    let aside = claim.replacen('c', "bad", 1);
    wait::until("the end of its claim", || site.claims() == [aside.as_str()]);
    let told = site.broker.received("jobs/rejected");
    assert_eq!(
        told.iter().map(|notice| notice.qos).collect::<Vec<_>>(),
        [1]
    );
}

#[test]
fn a_job_that_kills_its_worker_ends() {
    let site = Site::start();
    let _member = supervised(&site, "a", "5");
    await_queue(&site);
    let steps = json!(["echo >> runs; kill -9 $PPID; sleep 60"]);
    let dir = site.submit("a", json!({ "steps": steps }));
    assert_eq!(site.result("a").json()["reason"], "interrupted");
    assert_eq!(read(&dir.join("runs")).lines().count(), 3);
    site.submit("b", json!({ "steps": ["true"] }));
    site.result("b");
}

fn a_result_that_was_not_published_is_published_by_another(version: &str) {
    let mut site = Site::start();
    let mut first = site.idle_worker(member_of(&site, "first", version));
    let dir = site.hold("a");
    site.kill9_broker();
    release(&dir);
    let claim = site.claims().pop().expect("a claim");
    let path = site.pool().join(claim);
    wait::until("the result in the claim", || {
        read(&path).contains("success")
    });
    first.kill9();
    // whatever becomes of the directory
    fs::remove_dir_all(&dir).unwrap();
    site.restart_broker();
    let mut second = site.worker(member_of(&site, "second", version));
    let result = site.result("a").json();
    assert_eq!(verdict(&result), ("success", "", 0), "{result}");
    assert_eq!(result["worker"], "first");
    second.exits_with(0);
    assert_eq!(site.claims(), [""; 0]);
}

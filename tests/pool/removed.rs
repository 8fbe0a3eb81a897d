//! Steps, people and scripts that remove what belongs to the pool. What they remove is not remembered; what runs has its result.

use std::fs;
use std::process::Command;

use serde_json::json;

use super::members::{await_queue, member_of, supervised};
use super::support::broker::{Packet, Verdict};
use super::support::pool::await_no_claims;
use super::support::site::{Site, await_file, read_json, release, until_exists};

#[test]
fn a_job_that_removes_its_claim_has_its_result() {
    let site = Site::start();
    let mut worker = site.idle_worker(member_of(&site, "a", "5"));
    let step = format!("rm {}/c-*", site.pool().display());
    let dir = site.submit("a", json!({ "steps": [step, "echo second"] }));
    site.succeeds("a");
    assert_eq!(read_json(&dir.join("job.status.json"))["status"], "success");
    worker.exits_with(0);
    let said = worker.stderr();
    assert!(!said.contains(": warn:"), "nothing is wrong: {said}");
}

#[test]
fn a_job_that_removes_all_of_the_pool_has_its_result_and_the_pool_goes_on() {
    let site = Site::start();
    let _members = ["a", "b", "c"].map(|name| supervised(&site, name, "5"));
    await_queue(&site);
    for round in 0..3 {
        // members put files there meanwhile
        let pools = site.drive.path().join(".job-worker");
        let step = format!("until rm -r {}; do :; done", pools.display());
        let ids = (0..5).map(|number| format!("{round}-{number}"));
        for (id, step) in ids.zip([&*step, "true", "true", "true", "true"]) {
            site.submit(&id, json!({ "steps": [step] }));
            site.succeeds(&id);
        }
    }
    await_no_claims(site.drive.path());
}

/// Another member that has found nothing there, and made it anew, takes it for another drive's unless it is told in time.
#[test]
fn a_job_that_removes_all_of_the_pool_has_it_in_use_again_where_another_member_made_it_meanwhile() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(member_of(&site, "a", "5"));
    let step = format!("rm -r ../.job-worker; touch up; {}", until_exists("gate"));
    let dir = site.begin("a", json!({ "steps": [step] }));
    site.broker.set_script(|step| match step.packet {
        Packet::Connect { client_id, .. } if client_id == "the-pool" => Verdict::CutBefore,
        _ => Verdict::Pass,
    });
    let mut other = site.worker(member_of(&site, "b", "5"));
    other.await_stderr("the head has no connection to the broker");
    release(&dir);
    worker.exits_with(0);
    site.broker.set_script(|_| Verdict::Pass);
    site.await_state(&mut other, 0, "idle");
    site.runs_a_job(&mut other);
}

/// Where its drive was, the worker must not tell the next members that the pool is in use there.
#[test]
fn a_job_that_removes_its_claim_on_a_drive_that_goes_away_makes_no_pool_on_another() {
    let site = Site::start();
    let [root, away] = ["root", "away"].map(|name| site.drive.path().join(name));
    let on_root = |command: &mut Command| {
        member_of(&site, "a", "5")(command);
        command.env("JOB_ROOT", &root);
    };
    fs::create_dir_all(root.join("a")).unwrap();
    let mut worker = site.idle_worker(on_root);
    let step = format!(
        "rm ../.job-worker/the-pool/c-*; touch up; {}",
        until_exists("gate")
    );
    site.request(json!({ "id": "a", "workDir": "a", "steps": [step] }));
    await_file(&root.join("a/up"));
    fs::rename(&root, &away).unwrap();
    fs::create_dir(&root).unwrap();
    release(&away.join("a"));
    worker.exits_with(0);
    let mut next = site.worker(on_root);
    next.exits_with(78);
}

/// Somebody else has the request of a claim that has another file by now.
#[test]
fn a_claim_in_the_place_of_another_is_not_removed() {
    let site = Site::start();
    let mut worker = site.idle_worker(member_of(&site, "a", "5"));
    let dir = site.hold("a");
    let claim = site.pool().join(site.claims().pop().unwrap());
    let copy = claim.with_file_name("copy");
    fs::copy(&claim, &copy).unwrap();
    fs::rename(&copy, &claim).unwrap();
    release(&dir);
    worker.exits_with(0);
    assert!(worker.stderr().contains("another worker has its claim"));
    assert!(site.controller.heard("jobs/results/").is_empty());
    assert!(claim.exists());
    let mut next = site.worker(member_of(&site, "b", "5"));
    assert_eq!(site.result("a").json()["attempt"], 2);
    next.exits_with(0);
}

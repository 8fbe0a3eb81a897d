//! Steps, people and scripts that remove what belongs to the pool. What they remove is not remembered; what runs has its result.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use super::members::{await_queue, claims, member_of, supervised};
use super::support::site::{Site, while_exists};
use super::support::wait;

on_both_protocols!(
    a_job_that_removes_its_claim_has_its_result,
    a_job_that_removes_all_of_the_pool_has_its_result_and_the_pool_goes_on,
    a_member_that_makes_a_removed_pool_anew_is_joined_by_those_who_are_there,
    a_claim_in_the_place_of_another_is_not_removed,
);

fn pool(site: &Site) -> PathBuf {
    site.drive.path().join(".job-worker/the-pool")
}

fn a_job_that_removes_its_claim_has_its_result(version: &str) {
    let site = Site::start();
    let mut worker = site.idle_worker(member_of(&site, "a", version));
    await_queue(&site);
    let step = format!("rm {}/c-*", pool(&site).display());
    let dir = site.submit("a", json!({ "steps": [step, "echo second"] }));
    let result = site.result("a").json();
    assert_eq!(result["status"], "success", "{result}");
    assert!(
        fs::read_to_string(dir.join("job.status.json"))
            .unwrap()
            .contains("success")
    );
    worker.exits_with(0);
    assert!(
        !worker.stderr().contains("the claim"),
        "nothing is wrong with it: {}",
        worker.stderr()
    );
}

fn a_job_that_removes_all_of_the_pool_has_its_result_and_the_pool_goes_on(version: &str) {
    let site = Site::start();
    let members = ["a", "b", "c"].map(|name| supervised(&site, name, version));
    await_queue(&site);
    for round in 0..3 {
        let id = format!("remover-{round}");
        // members put files there meanwhile
        let step = format!(
            "until rm -r {}/.job-worker; do :; done",
            site.drive.path().display()
        );
        site.submit(&id, json!({ "steps": [step] }));
        assert_eq!(site.result(&id).json()["status"], "success");
        for number in 0..4 {
            let id = format!("after-{round}-{number}");
            site.submit(&id, json!({ "steps": ["true"] }));
            let result = site.result(&id).json();
            assert_eq!(result["status"], "success", "{result}");
        }
    }
    wait::until("no claim to be left", || claims(&site).is_empty());
    for member in members {
        let told = member.stderr();
        assert!(!told.contains("another pool"), "{told}");
    }
}

fn a_member_that_makes_a_removed_pool_anew_is_joined_by_those_who_are_there(version: &str) {
    let site = Site::start();
    let mut busy = site.idle_worker(member_of(&site, "a", version));
    await_queue(&site);
    let dir = site.directory("long");
    fs::write(dir.join("gate"), "").unwrap();
    let step = format!("touch up; {}", while_exists("gate"));
    site.request(json!({ "id": "long", "workDir": dir, "steps": [step] }));
    wait::until("the job to run", || dir.join("up").exists());
    fs::remove_dir_all(site.drive.path().join(".job-worker")).unwrap();
    // it finds no pool, and one who is busy in a pool with another id
    let mut next = site.worker(member_of(&site, "b", version));
    site.submit("next", json!({ "steps": ["true"] }));
    assert_eq!(site.result("next").json()["status"], "success");
    next.exits_with(0);
    fs::remove_file(dir.join("gate")).unwrap();
    assert_eq!(site.result("long").json()["status"], "success");
    busy.exits_with(0);
    for member in [next, busy] {
        let told = member.stderr();
        assert!(!told.contains("another pool"), "{told}");
    }
    assert_eq!(claims(&site), [""; 0]);
}

/// Somebody else has the request of a claim that has another file by now.
fn a_claim_in_the_place_of_another_is_not_removed(version: &str) {
    let site = Site::start();
    let mut worker = site.idle_worker(member_of(&site, "a", version));
    await_queue(&site);
    let dir = site.prepare("a", json!({ "steps": [while_exists("gate")] }));
    fs::write(dir.join("gate"), "").unwrap();
    site.request(json!({ "id": "a", "workDir": dir }));
    wait::until("the job to run", || {
        !site.controller.heard("jobs/status/a").is_empty()
    });
    let claim = pool(&site).join(claims(&site).pop().unwrap());
    let copy = pool(&site).join("copy");
    fs::copy(&claim, &copy).unwrap();
    fs::rename(&copy, &claim).unwrap();
    fs::remove_file(dir.join("gate")).unwrap();
    worker.exits_with(0);
    assert!(worker.stderr().contains("another worker has its claim"));
    assert!(site.controller.heard("jobs/results/").is_empty());
    assert!(claim.exists());
    let mut next = site.worker(member_of(&site, "b", version));
    assert_eq!(site.result("a").json()["attempt"], 2);
    next.exits_with(0);
}

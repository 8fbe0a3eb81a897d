//! Steps, people and scripts that remove what belongs to the pool. What they remove is not remembered; what runs has its result.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use super::members::{await_queue, claims, member_of, supervised};
use super::support::site::{Site, while_exists};
use super::support::wait;

fn pool(site: &Site) -> PathBuf {
    site.drive.path().join(".job-worker/the-pool")
}

#[test]
fn a_job_that_removes_its_claim_has_its_result() {
    let site = Site::start();
    let mut worker = site.idle_worker(member_of(&site, "a", "5"));
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
        !worker.stderr().contains(": warn:"),
        "nothing is wrong with it: {}",
        worker.stderr()
    );
}

#[test]
fn a_job_that_removes_all_of_the_pool_has_its_result_and_the_pool_goes_on() {
    let site = Site::start();
    let _members = ["a", "b", "c"].map(|name| supervised(&site, name, "5"));
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
}

/// Somebody else has the request of a claim that has another file by now.
#[test]
fn a_claim_in_the_place_of_another_is_not_removed() {
    let site = Site::start();
    let mut worker = site.idle_worker(member_of(&site, "a", "5"));
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
    let mut next = site.worker(member_of(&site, "b", "5"));
    assert_eq!(site.result("a").json()["attempt"], 2);
    next.exits_with(0);
}

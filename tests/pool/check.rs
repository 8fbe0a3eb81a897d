//! `job-worker check` with `JOB_POOL`: what is at the pool's place, without a change there.

use std::fs;

use super::members::{await_queue, member_of};
use super::support::site::Site;

/// What `check` says, and what it exits with.
fn check(site: &Site, configure: impl FnOnce(&mut std::process::Command)) -> (String, i32) {
    let mut command = site.command(["check"]);
    member_of(site, "checker", "5")(&mut command);
    configure(&mut command);
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        String::from_utf8(said).unwrap(),
        output.status.code().unwrap(),
    )
}

#[test]
fn a_pool_that_is_not_there_yet_is_good_and_is_not_made() {
    let site = Site::start();
    let (said, status) = check(&site, |_| {});
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("the first member makes it"), "{said}");
    assert!(!site.drive.path().join(".job-worker").exists());
}

#[test]
fn a_pool_that_works_is_described_and_not_disturbed() {
    let site = Site::start();
    let mut member = site.idle_worker(member_of(&site, "a", "5"));
    await_queue(&site);
    let pool = site.drive.path().join(".job-worker/the-pool");
    fs::write(pool.join("bad-7"), "").unwrap();
    let before = super::support::site::names(&pool);
    let (said, status) = check(&site, |_| {});
    assert_eq!(status, 0, "{said}");
    for line in [
        "the-pool is there, and we may write to it",
        "pool.json says of the pool what our configuration says",
        "the drive has locks",
        "requests in progress: 0; claims that could not be read: 1",
        "not checked: whether all members see the same drive",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert_eq!(super::support::site::names(&pool), before);
    site.submit("a", serde_json::json!({ "steps": ["true"] }));
    assert_eq!(site.result("a").json()["status"], "success");
    member.exits_with(0);
}

#[test]
fn what_a_member_would_end_with_is_said() {
    let site = Site::start();
    let _member = site.idle_worker(member_of(&site, "a", "5"));
    let (said, status) = check(&site, |command| {
        command.env("MQTT_TOPIC_ROOT", "other");
    });
    assert_eq!(status, 78, "{said}");
    assert!(said.contains("MQTT_TOPIC_ROOT \"jobs\""), "{said}");
    let description = site.drive.path().join(".job-worker/the-pool/pool.json");
    fs::write(description, "{").unwrap();
    let (said, status) = check(&site, |_| {});
    assert_eq!(status, 78, "{said}");
    assert!(said.contains("pool.json"), "{said}");
}

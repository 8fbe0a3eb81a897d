//! `job-worker check` with `JOB_POOL`: what is at the pool's place, without a change there.

use super::members::{await_queue, member_of};
use super::support::site::Site;

/// What `check` says, and what it exits with.
fn check(site: &Site) -> (String, i32) {
    let mut command = site.command(["check"]);
    member_of(site, "checker", "5")(&mut command);
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
    let (said, status) = check(&site);
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
    let before = super::support::site::names(&pool);
    let (said, status) = check(&site);
    assert_eq!(status, 0, "{said}");
    for line in [
        "the-pool is there; a member waits for a request; requests in progress: 0",
        "not checked: whether all members see the same drive",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert_eq!(super::support::site::names(&pool), before);
    site.submit("a", serde_json::json!({ "steps": ["true"] }));
    assert_eq!(site.result("a").json()["status"], "success");
    member.exits_with(0);
}

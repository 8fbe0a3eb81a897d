//! `job-worker check` with `JOB_POOL`: what is at the pool's place, without a change there.

use super::members::member_of;
use super::support::site::{Site, names};
use std::fs;
use std::os::unix::fs::symlink;

/// What `check` says, which finds nothing wrong.
fn check(site: &Site) -> String {
    let mut command = site.command(["check"]);
    member_of(site, "checker", "5")(&mut command);
    let output = command.output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn a_pool_that_is_not_there_yet_is_good_and_is_not_made() {
    let site = Site::start();
    let said = check(&site);
    assert!(said.contains("the first member makes it"), "{said}");
    assert!(!site.drive.path().join(".job-worker").exists());
}

#[test]
fn a_pool_that_works_is_described_and_not_disturbed() {
    let site = Site::start();
    let mut member = site.idle_worker(member_of(&site, "a", "5"));
    let before = names(&site.pool());
    let said = check(&site);
    for line in [
        "the-pool is there; a member waits for a request; requests in progress: 0",
        "not checked: whether all members see the same drive",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let mut other = site.command(["check"]);
    member_of(&site, "b", "5")(&mut other);
    other.env("JOB_PAYLOAD_STEPS", "deny");
    let mut other = site.start_as(other);
    other.exits_with(78);
    other.await_stderr("all members need the same");
    let mut root = site.command(["check", "."]);
    member_of(&site, "b", "5")(&mut root);
    root.current_dir(site.drive.path());
    let root = site.start_as(root);
    root.await_stderr("contains the directory of the pool");
    assert_eq!(names(&site.pool()), before);
    site.runs_a_job(&mut member);
}

#[test]
fn the_directory_of_the_pool_is_no_job_s_by_whatever_way() {
    let site = Site::start();
    let elsewhere = site.drive.path().join("elsewhere");
    fs::create_dir_all(elsewhere.join("job")).unwrap();
    symlink("elsewhere", site.drive.path().join(".job-worker")).unwrap();
    let mut check = site.command(["check", "job"]);
    member_of(&site, "a", "5")(&mut check);
    check.current_dir(&elsewhere);
    let mut check = site.start_as(check);
    check.await_stderr("or lies in it");
    check.exits_with(78);
}

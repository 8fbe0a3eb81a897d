//! What is no file stands where the pool has one: the log says where, and the pool goes on when it is gone.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::members::{await_queue, member_of};
use super::support::site::Site;
use super::support::wait;

const NO_FILE: &str = "it is not a regular file";

/// What may stand there, how it is made, and what is said of it.
type Thing = (&'static str, fn(&Path), &'static str);

const THINGS: [Thing; 3] = [
    ("directory", |path| fs::create_dir(path).unwrap(), NO_FILE),
    ("FIFO", make_fifo, NO_FILE),
    (
        "symlink",
        |path| symlink("elsewhere", path).unwrap(),
        "it is a symlink, which JOB_ROOT forbids",
    ),
];

fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn remove(path: &Path) {
    if fs::remove_file(path).is_err() {
        fs::remove_dir(path).unwrap();
    }
}

/// A pool that a member has made, and whose session is there.
fn pool_on(site: &Site) -> PathBuf {
    let mut maker = site.idle_worker(member_of(site, "maker", "5"));
    await_queue(site);
    maker.sigterm();
    maker.exits_with(0);
    site.drive.path().join(".job-worker/the-pool")
}

/// A job is taken as soon as nothing is in the place of `path` any more, of which the log has said `said`.
fn goes_on_without(site: &Site, path: &Path, said: &str) {
    let mut member = site.worker(member_of(site, "a", "5"));
    let told = format!("{}: {said}", path.display());
    wait::until(&told, || member.stderr().contains(&told));
    remove(path);
    site.submit("a", json!({ "steps": ["true"] }));
    assert_eq!(site.result("a").json()["status"], "success");
    member.exits_with(0);
}

#[test]
fn a_member_names_what_stands_in_the_place_of_a_file_and_goes_on_without_it() {
    for (_, make, said) in THINGS {
        for name in ["head.lock", "taken"] {
            let site = Site::start();
            let path = pool_on(&site).join(name);
            let _ = fs::remove_file(&path);
            make(&path);
            goes_on_without(&site, &path, said);
        }
    }
}

#[test]
fn a_directory_in_the_place_of_a_temporary_file_is_named() {
    let site = Site::start();
    let pool = pool_on(&site);
    let taken = pool.join("taken");
    let _ = fs::remove_file(&taken);
    let temporary = pool.join(".taken.tmp");
    fs::create_dir(&temporary).unwrap();
    let mut member = site.worker(member_of(&site, "a", "5"));
    let told = format!("{}: .taken.tmp is in the way", taken.display());
    wait::until(&told, || member.stderr().contains(&told));
    fs::remove_dir(&temporary).unwrap();
    site.submit("a", json!({ "steps": ["true"] }));
    assert_eq!(site.result("a").json()["status"], "success");
    member.exits_with(0);
}

#[test]
fn a_pool_whose_description_is_no_file_is_a_configuration_error() {
    for (thing, make, said) in THINGS {
        let site = Site::start();
        let path = pool_on(&site).join("pool.json");
        fs::remove_file(&path).unwrap();
        make(&path);
        let mut member = site.worker(member_of(&site, "a", "5"));
        member.exits_with(78);
        let told = format!("{}: {said}", path.display());
        assert!(
            member.stderr().contains(&told),
            "{thing}: {}",
            member.stderr()
        );
    }
}

#[test]
fn a_lock_that_is_no_file_keeps_a_pool_from_being_made() {
    for (thing, make, said) in THINGS {
        let site = Site::start();
        let path = site.directory(".job-worker/the-pool").join("head.lock");
        make(&path);
        let mut member = site.worker(member_of(&site, "a", "5"));
        member.exits_with(78);
        let told = format!("{}: {said}", path.display());
        assert!(
            member.stderr().contains(&told),
            "{thing}: {}",
            member.stderr()
        );
    }
}

#[test]
fn a_claim_that_is_no_file_is_named_once_and_keeps_nobody_waiting() {
    let site = Site::start();
    let pool = pool_on(&site);
    let paths = [0, 1, 2].map(|number| pool.join(format!("c-000000000000000{number}-0")));
    for (path, (_, make, _)) in paths.iter().zip(THINGS) {
        make(path);
    }
    let mut member = site.idle_worker(member_of(&site, "a", "5"));
    site.submit("a", json!({ "steps": ["true"] }));
    assert_eq!(site.result("a").json()["status"], "success");
    member.exits_with(0);
    for (path, (thing, _, said)) in paths.iter().zip(THINGS) {
        let told = format!("a claim cannot be taken over: {}: {said}", path.display());
        assert_eq!(
            member.stderr().matches(&told).count(),
            1,
            "{thing}: {}",
            member.stderr()
        );
    }
}

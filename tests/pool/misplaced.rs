//! What is no file stands where the pool has one: the log says where, and the pool goes on when it is gone. And a pool that the
//! member's user may not write.

use std::fs;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::members::{await_queue, member_of};
use super::support::site::Site;
use super::support::worker::without_privileges;

const NO_FILE: &str = "it is not a regular file";

/// What may stand there, and how it is made.
type Thing = (&'static str, fn(&Path));

const THINGS: [Thing; 2] = [
    ("directory", |path| fs::create_dir(path).unwrap()),
    ("FIFO", make_fifo),
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

#[test]
fn a_member_names_what_stands_in_the_place_of_a_file_and_goes_on_without_it() {
    for (_, make) in THINGS {
        let site = Site::start();
        let path = pool_on(&site).join("head.lock");
        fs::remove_file(&path).unwrap();
        make(&path);
        let mut member = site.worker(member_of(&site, "a", "5"));
        let told = format!("{}: {NO_FILE}", path.display());
        member.await_stderr(&told);
        remove(&path);
        site.submit("a", json!({ "steps": ["true"] }));
        assert_eq!(site.result("a").json()["status"], "success");
        member.exits_with(0);
    }
}

#[test]
fn a_lock_that_is_a_symlink_is_not_followed() {
    let site = Site::start();
    let path = pool_on(&site).join("head.lock");
    let outside = site.drive.path().join("outside");
    fs::write(&outside, "precious").unwrap();
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&outside, &path).unwrap();
    let mut member = site.worker(member_of(&site, "a", "5"));
    member.await_stderr("it is a symlink");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "precious");
    fs::remove_file(&path).unwrap();
    site.submit("a", json!({ "steps": ["true"] }));
    assert_eq!(site.result("a").json()["status"], "success");
    member.exits_with(0);
}

#[test]
fn a_claim_that_is_no_file_is_named_once_and_keeps_nobody_waiting() {
    let site = Site::start();
    let pool = pool_on(&site);
    let paths = [0, 1].map(|number| pool.join(format!("c-00000000000{number}-a-{number}-0-1")));
    for (path, (_, make)) in paths.iter().zip(THINGS) {
        make(path);
    }
    let mut member = site.idle_worker(member_of(&site, "a", "5"));
    site.submit("a", json!({ "steps": ["true"] }));
    assert_eq!(site.result("a").json()["status"], "success");
    member.exits_with(0);
    for (path, (thing, _)) in paths.iter().zip(THINGS) {
        let told = format!("{} is left alone: {NO_FILE}", path.display());
        assert_eq!(
            member.stderr().matches(&told).count(),
            1,
            "{thing}: {}",
            member.stderr()
        );
    }
}

/// A pool without the rights that a member needs, at `name`; a member and a check that have no others, and what they say.
fn without_rights(name: &str, mode: u32) {
    let site = Site::start();
    let pool = pool_on(&site);
    let path = pool.join(name);
    let path = path.components().collect::<PathBuf>();
    let may = |mode| fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    may(mode);
    let unprivileged = |command: &mut Command| {
        member_of(&site, "a", "5")(command);
        without_privileges(command);
    };
    let mut member = site.worker(unprivileged);
    member.exits_with(78);
    let mut check = site.command(["check"]);
    unprivileged(&mut check);
    let check = check.output().unwrap();
    assert_eq!(check.status.code(), Some(78));
    let user = rustix::process::geteuid().as_raw();
    let told = format!("cannot be written by this user (uid {user}, ");
    let said = member.stderr();
    assert!(
        said.contains(&format!("{} {told}", path.display())),
        "{said}"
    );
    let said = String::from_utf8_lossy(&check.stderr);
    assert!(said.contains(&told), "{said}");
    may(0o755);
    let member = site.idle_worker(unprivileged);
    let dir = site.prepare("a", json!({ "steps": ["true"] }));
    let request = json!({ "id": "a", "workDir": dir });
    assert_eq!(
        site.run_request(member, dir, request).result["status"],
        "success"
    );
}

#[test]
fn a_user_who_may_not_write_the_pool_is_a_configuration_error() {
    without_rights("", 0o555);
    without_rights("head.lock", 0o444);
}

#[test]
fn a_user_who_may_not_make_the_pool_is_a_configuration_error() {
    let site = Site::start();
    let root = site.directory("root");
    fs::set_permissions(&root, Permissions::from_mode(0o555)).unwrap();
    let mut member = site.worker(|command| {
        member_of(&site, "a", "5")(command);
        command.env("JOB_ROOT", &root);
        without_privileges(command);
    });
    member.exits_with(78);
    let told = format!(
        "{} cannot be written by this user",
        root.join(".job-worker/the-pool").display()
    );
    assert!(member.stderr().contains(&told), "{}", member.stderr());
}

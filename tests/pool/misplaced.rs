//! What is no file stands where the pool has one: the log says where, and the pool goes on when it is gone. And a pool that the
//! member's user may not write.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::members::member_of;
use super::support::site::{Site, read};
use super::support::worker::without_privileges;

const NO_FILE: &str = "it is not a regular file";

fn make_directory(path: &Path) {
    fs::create_dir(path).unwrap();
}

fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn make_symlink(path: &Path) {
    let precious = path.with_file_name("precious");
    fs::write(&precious, "precious").unwrap();
    symlink(&precious, path).unwrap();
}

/// A pool that a member has made, and whose session is there.
fn pool_on(site: &Site) -> PathBuf {
    let mut maker = site.idle_worker(member_of(site, "maker", "5"));
    maker.stop();
    site.pool()
}

#[test]
fn a_member_names_what_stands_in_the_place_of_the_lock_and_goes_on_without_it() {
    type Thing = (fn(&Path), &'static str);
    let things: [Thing; 3] = [
        (make_directory, NO_FILE),
        (make_fifo, NO_FILE),
        (make_symlink, "it is a symlink"),
    ];
    for (make, told) in things {
        let site = Site::start();
        let path = pool_on(&site).join("head.lock");
        fs::remove_file(&path).unwrap();
        make(&path);
        let mut member = site.worker(member_of(&site, "a", "5"));
        member.await_stderr(&format!("{}: {told}", path.display()));
        if fs::remove_file(&path).is_err() {
            fs::remove_dir(&path).unwrap();
        }
        let precious = path.with_file_name("precious");
        assert!(!precious.exists() || read(&precious) == "precious");
        site.runs_a_job(&mut member);
    }
}

#[test]
fn a_claim_that_is_no_file_is_put_aside() {
    let site = Site::start();
    let pool = pool_on(&site);
    let claims = [0, 1, 2].map(|number| format!("c-00000000000{number}-a-{number}-0-1"));
    for (make, claim) in [make_directory, make_fifo, make_symlink]
        .iter()
        .zip(&claims)
    {
        make(&pool.join(claim));
    }
    let mut member = site.idle_worker(member_of(&site, "a", "5"));
    site.runs_a_job(&mut member);
    let aside = claims.map(|claim| claim.replacen('c', "bad", 1));
    assert_eq!(site.claims(), aside);
    assert_eq!(read(&pool.join("precious")), "precious");
    assert_eq!(site.controller.heard("jobs/rejected").len(), 3);
}

/// A pool without the rights that a member needs, at `name`; a member and a check that have no others, and what they say.
#[test]
fn a_user_who_may_not_write_the_pool_is_a_configuration_error() {
    for (name, mode) in [("", 0o555), ("head.lock", 0o444)] {
        let site = Site::start();
        let path: PathBuf = pool_on(&site).join(name).components().collect();
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
        let of_member = format!("{} {told}", path.display());
        assert!(member.stderr().contains(&of_member), "{}", member.stderr());
        let said = String::from_utf8_lossy(&check.stderr);
        assert!(said.contains(&told), "{said}");
        may(0o755);
        site.runs_a_job(&mut site.idle_worker(unprivileged));
    }
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
    let pool = root.join(".job-worker/the-pool");
    let told = format!("{} cannot be written by this user", pool.display());
    assert!(member.stderr().contains(&told), "{}", member.stderr());
}

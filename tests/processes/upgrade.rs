//! A program that is replaced under a running `job-worker supervise` (docs/reference.md, "Commands").

use crate::support::broker::Broker;
use crate::support::processes::child_of;
use crate::support::site::{Site, WORKER, read, release};
use crate::support::wait::{self, DEADLINE};
use crate::support::worker::{Worker, binary};
use rustix::process::{Signal, kill_process};
use serde_json::json;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A copy of the binary on the drive, whose place others can take.
struct Installed {
    path: PathBuf,
}

impl Installed {
    fn on(site: &Site<Broker>) -> Self {
        let installed = Self {
            path: site.drive.path().join("job-worker"),
        };
        installed.upgrade();
        installed
    }

    fn supervise(&self, site: &Site<Broker>) -> Worker {
        let mut command = Command::new(&self.path);
        command.arg("supervise");
        site.equip(&mut command);
        let states = site.mark();
        let supervisor = site.start_as(command);
        site.await_idle(states);
        supervisor
    }

    /// As a package manager does: a new file takes the name of the old one.
    fn upgrade(&self) {
        fs::rename(self.copy("new"), &self.path).unwrap();
    }

    /// Another file, to which the name leads as a symlink.
    fn relink(&self) {
        let (version, link) = (self.copy("2"), self.path.with_extension("link"));
        std::os::unix::fs::symlink(version, &link).unwrap();
        fs::rename(link, &self.path).unwrap();
    }

    fn copy(&self, extension: &str) -> PathBuf {
        let new = self.path.with_extension(extension);
        // by another process: a file that this one has open for writing could not be executed, and neither could one that a
        // child inherits which another test is just starting
        let copied = Command::new("cp").arg(binary()).arg(&new).status();
        assert!(copied.expect("cp is there").success());
        new
    }

    /// The right to execute the program is given or taken, which changes nothing of its content.
    fn set_mode(&self, mode: u32) {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(&self.path, permissions).unwrap();
    }

    fn is_run_by(&self, pid: u32) -> bool {
        let running = fs::metadata(format!("/proc/{pid}/exe")).expect("it is running");
        let there = fs::metadata(&self.path).expect("it is installed");
        running.ino() == there.ino()
    }
}

/// Lets the job end, and waits for the next worker.
fn let_go(site: &Site<Broker>, id: &str, dir: &Path) {
    let states = site.mark();
    release(dir);
    let result = site.result(id).json();
    let ends = json!([result["status"], result["attempt"]]);
    assert_eq!(ends, json!(["success", 1]));
    site.await_idle(states);
}

#[test]
fn a_new_program_is_taken_after_the_job_under_the_same_pid() {
    let site = Site::scripted();
    let installed = Installed::on(&site);
    let mut supervisor = installed.supervise(&site);
    for (id, upgrade) in [
        ("file", Installed::upgrade as fn(&Installed)),
        ("symlink", Installed::relink),
        ("file-again", Installed::upgrade),
    ] {
        let dir = site.hold(id);
        let worker = read(&dir.join("worker")).trim().parse().expect("a pid");
        assert!(installed.is_run_by(worker) && installed.is_run_by(supervisor.pid()));
        upgrade(&installed);
        assert!(!installed.is_run_by(supervisor.pid()));
        let_go(&site, id, &dir);
        assert!(installed.is_run_by(supervisor.pid()), "{id}");
    }
    let dir = site.hold("killed");
    installed.upgrade();
    kill_process(child_of(&supervisor), Signal::KILL).unwrap();
    supervisor.await_stderr("the worker ended with status 137; starting another in 100ms");
    release(&dir);
    assert_eq!(site.result("killed").json()["attempt"], 2);
    assert!(installed.is_run_by(supervisor.pid()));
    site.broker.wait_for_queued(WORKER, 0, DEADLINE);
    supervisor.stop();
    site.nothing_survives();
}

#[test]
fn a_new_program_that_does_not_run_stops_nobody() {
    let site = Site::scripted();
    let installed = Installed::on(&site);
    let mut supervisor = installed.supervise(&site);
    let mut written = None;
    for (number, id) in ["text", "written", "rights"].into_iter().enumerate() {
        let dir = site.hold(id);
        match id {
            "text" => {
                let text = installed.path.with_extension("new");
                fs::write(&text, "no program").unwrap();
                fs::rename(text, &installed.path).unwrap();
                installed.set_mode(0o755);
            }
            "written" => {
                installed.upgrade();
                let file = File::options().append(true).open(&installed.path);
                written = Some(file.unwrap());
            }
            _ => {
                written = None;
                installed.set_mode(0o600);
            }
        }
        let_go(&site, id, &dir);
        supervisor.await_stderr("cannot be executed");
        // told once, not at each job
        let again = format!("{id}-again");
        let_go(&site, &again, &site.hold(&again));
        let said = supervisor.stderr();
        let warnings = said.matches("cannot be executed").count();
        assert_eq!(warnings, number + 1, "{said}");
    }
    let dir = site.hold("gone");
    drop(written);
    fs::remove_file(&installed.path).unwrap();
    let_go(&site, "gone", &dir);
    let dir = site.hold("good");
    installed.upgrade();
    installed.set_mode(0o755);
    let_go(&site, "good", &dir);
    assert!(installed.is_run_by(supervisor.pid()));
    supervisor.stop();
}

#[test]
fn a_stop_in_mid_upgrade_is_not_lost() {
    let site = Site::scripted();
    let installed = Installed::on(&site);
    for round in 0..25 {
        let mut supervisor = installed.supervise(&site);
        let id = format!("job-{round}");
        let states = site.mark();
        let dir = site.hold(&id);
        installed.upgrade();
        release(&dir);
        site.succeeds(&id);
        // from the end of the worker on, through the whole change, to the start of the next one
        if round % 5 == 0 {
            site.await_idle(states);
        } else {
            wait::until("the worker to leave", || {
                site.states(states).iter().any(|state| state == "offline")
            });
            std::thread::sleep(std::time::Duration::from_micros(400 * (round % 5)));
        }
        supervisor.stop();
    }
}

//! `job-worker supervise`, also where its program is replaced (docs/reference.md, "Commands").

use crate::support::broker::{Broker, Verdict};
use crate::support::processes::{child_of, marked, pid_1, zombies_of};
use crate::support::site::{Site, WORKER, read, release};
use crate::support::wait::{self, DEADLINE};
use crate::support::worker::{Worker, binary};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

fn idle(site: &Site<Broker>, configure: impl FnOnce(&mut Command)) -> Worker {
    let mut command = site.command(["supervise"]);
    configure(&mut command);
    site.idle(command)
}

/// Notes the worker that runs it, and waits for `gate` with a daemon that ignores everything.
const STAYS: &str = "echo $PPID >> worker; (setsid sh -c 'trap \"\" TERM HUP INT; touch up; sleep 1000' &); \
                     until [ -e gate ]; do sleep 0.02; done";

#[test]
fn each_job_has_a_fresh_worker_without_a_pause() {
    let site = Site::scripted();
    let mut supervisor = idle(&site, |_| {});
    let id = |number: i32| format!("job{number}");
    for number in 0..5 {
        let step = format!(
            "echo $PPID $(cat /proc/$PPID/comm) $(tr '\\0' ' ' < /proc/$PPID/cmdline) >> ../workers; exit {number}"
        );
        site.submit(&id(number), json!({ "steps": [step] }));
    }
    for number in 0..5 {
        assert_eq!(site.result(&id(number)).json()["exitCode"], number);
    }
    let workers = read(&site.drive.path().join("workers"));
    let workers: BTreeSet<_> = workers.lines().collect();
    assert_eq!(workers.len(), 5);
    let has_its_name = |worker: &&str| worker.ends_with(" job-worker job-worker --supervised");
    assert!(workers.iter().all(has_its_name), "{workers:?}");
    let said = supervisor.stderr();
    let pauses = said.contains("starting another in");
    assert!(!pauses, "a failed job is no error: {said}");
    supervisor.stop();
}

#[test]
fn a_stop_wakes_a_worker_that_is_stopped() {
    let site = Site::scripted();
    let mut supervisor = idle(&site, |_| {});
    kill_process(child_of(&supervisor), Signal::STOP).unwrap();
    supervisor.stop();
}

#[test]
fn errors_make_it_back_off_and_a_success_resets_that() {
    let site = Site::scripted();
    // not authorised: the worker ends with 77
    site.broker.deny(0x87);
    let mut supervisor = site.start_as(site.command(["supervise"]));
    for pause in ["100ms", "200ms", "400ms"] {
        supervisor.await_stderr(&format!("status 77; starting another in {pause}"));
    }
    site.broker.set_script(|_| Verdict::Pass);
    site.await_idle(0);
    let states = site.mark();
    site.submit("a", json!({ "steps": ["true"] }));
    site.result("a").json();
    site.await_idle(states); // the next one
    let said = supervisor.stderr().len();
    site.broker.deny(0x87);
    site.broker.kick(WORKER);
    // the last one is long enough to be stopped in
    for pause in ["100ms", "1.6s"] {
        let told = format!("starting another in {pause}");
        wait::until("a pause that is short again", || {
            supervisor.stderr()[said..].contains(&told)
        });
    }
    supervisor.signal(Signal::INT);
    supervisor.exits_with(77);
}

/// As systemd's default kill mode, `killall5` and Ctrl-C at a terminal do: both get it at once, in whatever order.
#[test]
fn one_stop_that_reaches_supervisor_and_worker_twice_is_one() {
    let site = Site::scripted();
    for round in 0..12 {
        let (finishes, is_ctrl_c) = (round % 3 == 0, round % 3 == 1);
        let mut supervisor = idle(&site, |supervisor| {
            supervisor.env("JOB_STOP_GRACE", "30").process_group(0);
            supervisor.env("JOB_ON_STOP", if finishes { "finish" } else { "requeue" });
        });
        let id = format!("job-{round}");
        // a request that was given back comes again, and ends at once
        let step = "[ -e up ] && exit; echo $PPID > worker; trap 'sleep 0.1; touch cleaned; exit' TERM; touch up; \
                    until [ -e gate ]; do sleep 0.02; done";
        let dir = site.begin(&id, json!({ "steps": [step] }));
        let worker = read(&dir.join("worker")).trim().parse().unwrap();
        let pids = [supervisor.pid() as i32, worker];
        for turn in 0..4 {
            if is_ctrl_c {
                supervisor.signal_group(Signal::INT);
                break;
            }
            let pid = Pid::from_raw(pids[(round + turn) % 2]).unwrap();
            let _ = kill_process(pid, Signal::TERM); // it may have ended
        }
        if finishes {
            supervisor.await_stderr("finishing the job first");
            release(&dir);
            site.succeeds(&id);
        }
        supervisor.exits_with(0);
        assert_eq!(dir.join("cleaned").exists(), !finishes, "round {round}");
        let log = supervisor.stderr();
        assert!(!log.contains("once more"), "{log}");
        if !finishes {
            let mut next = site.worker(|_| {});
            site.succeeds(&id);
            next.exits_with(0);
        }
    }
}

#[test]
fn what_a_killed_worker_leaves_is_swept_and_its_job_runs_again() {
    let site = Site::scripted();
    let mut supervisor = idle(&site, |_| {});
    let dir = site.begin("a", json!({ "steps": [STAYS] }));
    kill_worker(&dir);
    supervisor.await_stderr("status 137; starting another in 100ms");
    wait::until("the second attempt", || {
        read(&dir.join("worker")).lines().count() == 2
    });
    let daemons = marked(&site.label(), b"JOB_ATTEMPT=1");
    assert!(daemons.is_empty(), "{daemons:?}");
    wait::until("no zombie to be left", || zombies_of(supervisor.pid()) == 0);
    release(&dir);
    let result = site.result("a").json();
    let ends = json!([result["status"], result["attempt"]]);
    assert_eq!(ends, json!(["success", 2]));
    site.broker.wait_for_queued(WORKER, 0, DEADLINE);
    supervisor.stop();
    site.nothing_survives();
}

fn kill_worker(dir: &Path) {
    let pid = read(&dir.join("worker")).trim().parse().expect("one pid");
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

#[test]
#[ignore = "needs a PID namespace"]
fn pid_1_supervises_and_survives_a_step_that_kills_everything() {
    let site = Site::scripted();
    let mut supervisor = pid_1(&site, &["supervise"]);
    // all but PID 1: its worker too
    let step = "(setsid sleep 1000 &); kill -9 -1; sleep 1000";
    site.submit("a", json!({ "steps": [step], "maxAttempts": 2 }));
    assert_eq!(site.result("a").json()["reason"], "interrupted");
    let dir = site.submit("b", json!({ "steps": ["(setsid sleep 1000 &); echo ran"] }));
    site.succeeds("b");
    assert!(read(&dir.join("job.log")).contains("running, processes: 1"));
    site.broker.wait_for_queued(WORKER, 0, DEADLINE);
    kill_process(child_of(&supervisor), Signal::TERM).unwrap();
    supervisor.exits_with(0);
    site.nothing_survives();
}

#[test]
fn a_job_that_stops_its_workers_is_not_restarted_without_a_pause_in_which_a_stop_is_heard() {
    let site = Site::scripted();
    let mut supervisor = idle(&site, |_| {});
    let dir = site.submit(
        "a",
        json!({ "steps": ["echo >> starts; kill -TERM $PPID; sleep 1000"] }),
    );
    for pause in ["100ms", "200ms", "400ms", "800ms", "1.6s", "3.2s"] {
        let said = format!("stopped, and not by us; starting another in {pause}");
        supervisor.await_stderr(&said);
    }
    let asked = Instant::now();
    supervisor.signal(Signal::HUP);
    supervisor.exits_with(0);
    assert!(asked.elapsed() < Duration::from_secs(3));
    assert_eq!(read(&dir.join("starts")).lines().count(), 6);
}

/// The path of a copy of the binary on the drive, whose place others can take.
struct Installed(PathBuf);

impl Installed {
    fn on(site: &Site<Broker>) -> Self {
        let installed = Self(site.drive.path().join("job-worker"));
        installed.upgrade();
        installed
    }

    fn supervise(&self, site: &Site<Broker>) -> Worker {
        let mut command = Command::new(&self.0);
        command.arg("supervise");
        site.equip(&mut command);
        let states = site.mark();
        let supervisor = site.start_as(command);
        site.await_idle(states);
        supervisor
    }

    /// As a package manager does: a new file takes the name of the old one.
    fn upgrade(&self) {
        fs::rename(self.copy("new"), &self.0).unwrap();
    }

    /// Another file, to which the name leads as a symlink.
    fn relink(&self) {
        let (version, link) = (self.copy("2"), self.0.with_extension("link"));
        std::os::unix::fs::symlink(version, &link).unwrap();
        fs::rename(link, &self.0).unwrap();
    }

    fn copy(&self, extension: &str) -> PathBuf {
        let new = self.0.with_extension(extension);
        // by another process: a file that this one has open for writing could not be executed, and neither could one that a
        // child inherits which another test is just starting
        let copied = Command::new("cp").arg(binary()).arg(&new).status();
        assert!(copied.expect("cp is there").success());
        new
    }

    /// The right to execute the program is given or taken, which changes nothing of its content.
    fn set_mode(&self, mode: u32) {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(&self.0, permissions).unwrap();
    }

    fn is_run_by(&self, pid: u32) -> bool {
        let running = fs::metadata(format!("/proc/{pid}/exe")).expect("it is running");
        let there = fs::metadata(&self.0).expect("it is installed");
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
                let text = installed.0.with_extension("new");
                fs::write(&text, "no program").unwrap();
                fs::rename(text, &installed.0).unwrap();
                installed.set_mode(0o755);
            }
            "written" => {
                installed.upgrade();
                let file = File::options().append(true).open(&installed.0);
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
    fs::remove_file(&installed.0).unwrap();
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
            std::thread::sleep(Duration::from_micros(400 * (round % 5)));
        }
        supervisor.stop();
    }
}

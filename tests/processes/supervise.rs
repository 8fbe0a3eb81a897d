//! `job-worker supervise` (docs/reference.md, "Commands").

use crate::support::broker::{Broker, Verdict};
use crate::support::processes::{child_of, marked, pid_1, zombies_of};
use crate::support::site::{Site, WORKER, read, release};
use crate::support::wait::{self, DEADLINE};
use crate::support::worker::Worker;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::Path;
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
    wait::until("a pause that is short again", || {
        supervisor.stderr()[said..].contains("starting another in 100ms")
    });
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

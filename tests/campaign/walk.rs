//! A worker is killed at its N-th system call, of all its threads, for one N after the other: each has one outcome, the files are
//! whole, and the attempts are right.
//!
//! `WALK_POINTS` sets how many points each walk tries, 10 unless set; with 0 it tries every single call:
//!
//! ```text
//! WALK_POINTS=0 cargo test --test campaign walk -- --nocapture --test-threads 1
//! ```

use crate::support;

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use support::cases;
use support::pool::Queue;
use support::random::number;
use support::site::{Site, names, read, read_json};
use support::wait;
use support::worker::binary;

const POINTS: u64 = 10;

fn a_queue_of_its_own(version: &str) {
    walk(Queue::Own, version);
}

fn a_pool(version: &str) {
    walk(Queue::Pool, version);
}

on_both_protocols!(a_queue_of_its_own, a_pool);

fn walk(queue: Queue, version: &str) {
    let points = number("WALK_POINTS", POINTS) as usize;
    // it makes some more where the machine is busy
    let calls = [(); 2].map(|()| kill_at(queue, version, usize::MAX).expect("its own end"));
    let calls = calls.into_iter().min().unwrap_or_default();
    let step = calls.checked_div(points).unwrap_or(1).max(1);
    let points: Vec<usize> = (0..calls).step_by(step).collect();
    let killed = AtomicUsize::new(0);
    cases::try_all(cases::AT_ONCE, &points, |point| {
        // it may make fewer calls this time
        let is_killed = kill_at(queue, version, *point).is_none();
        killed.fetch_add(usize::from(is_killed), Relaxed);
    });
    let killed = killed.into_inner();
    println!("walk ({queue:?}, MQTT {version}): {calls} system calls, killed at {killed} of them");
    let is_walked = killed * 10 >= points.len() * 8;
    assert!(is_walked, "only {killed} were reached");
}

/// Two requests for one directory; the worker that takes the first is killed at this call. Returns how many calls it made, where it was
/// not.
fn kill_at(queue: Queue, version: &str, point: usize) -> Option<usize> {
    let site = Site::scripted();
    let session = queue.session();
    let configure = |command: &mut Command| {
        queue.serve(command, site.drive.path());
        command
            .env("MQTT_PROTOCOL_VERSION", version)
            .env("JOB_ROOT", site.drive.path())
            .env("JOB_STOP_GRACE", "1");
    };
    site.idle_worker(configure).stop();
    wait::until("its end", || !site.broker.is_connected(session));

    let dir = site.directory("job");
    for id in ["one", "two"] {
        site.request(json!({
            "id": id,
            // over 3.1.1 nothing else tells a redelivery
            "key": (queue == Queue::Own && version == "4").then_some(id),
            "workDir": dir,
            "steps": [format!("echo {id} $JOB_ATTEMPT >> ../runs")],
        }));
    }
    let mut command = Command::new("sh");
    command
        .args(["-c", "kill -STOP $$; exec \"$0\""])
        .arg(binary());
    site.equip(&mut command);
    configure(&mut command);
    let calls = trace(command, point, &dir.with_file_name("stderr"));

    let results = |id: &str| site.broker.received(&format!("jobs/results/{id}"));
    let mut next = site.worker(|command| {
        configure(command);
        command.arg("supervise");
    });
    wait::until("both results, and nothing to be left", || {
        ["one", "two"].iter().all(|id| !results(id).is_empty())
            && site.broker.queued(session) == 0
            && site.claims().is_empty()
    });
    next.stop();

    let runs = read(&dir.with_file_name("runs"));
    let runs: Vec<(&str, u64)> = runs
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(id, attempt)| (id, attempt.parse().unwrap()))
        .collect();
    let is_in_order = runs.is_sorted();
    assert!(is_in_order, "not in their order, or not counted: {runs:?}");
    let stored = read_json(&dir.join("job.status.json"));
    for id in ["one", "two"] {
        let results = site.results(id, 1);
        let result = &results[0];
        let is_one = results.iter().all(|other| other == result);
        assert!(is_one, "results of several runs: {results:?}");
        let own = runs.iter().filter(|(run, _)| *run == id);
        let own: Vec<u64> = own.map(|(_, attempt)| *attempt).collect();
        assert!(matches!(own[..], [1 | 2] | [1, 2]), "{id} ran as {own:?}");
        assert_eq!(result["status"], "success", "{result}");
        assert_eq!(own.last().copied(), result["attempt"].as_u64(), "{result}");
        assert!(id == "one" || stored == *result, "{stored} and {result}");
    }
    let mut files = names(&dir);
    files.retain(|name| name.starts_with("job.") || name.starts_with(".job"));
    assert_eq!(files, ["job.log", "job.status.json"]);
    calls
}

/// Runs a command that stops itself and then becomes the worker. Kills that at its call number `point`; else tells how many it made.
fn trace(mut command: Command, point: usize, stderr: &Path) -> Option<usize> {
    command.stderr(fs::File::create(stderr).unwrap());
    let mut child = command.spawn().unwrap();
    let leader = Pid::from_raw(child.id() as i32);
    wait::until("it to stop itself", || {
        let stat = fs::read_to_string(format!("/proc/{leader}/stat")).unwrap();
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" T"))
    });
    // threads are traced, steps are not
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(leader, options).unwrap();
    kill(leader, Signal::SIGCONT).unwrap();
    let mut calls = 0;
    let mut is_worker = false;
    let mut inside = BTreeSet::new();
    // only those that this very thread traces
    let flags = WaitPidFlag::__WALL | WaitPidFlag::from_bits_retain(0x2000_0000);
    let end = loop {
        let (thread, signal) = match waitpid(Pid::from_raw(-1), Some(flags)).unwrap() {
            WaitStatus::PtraceSyscall(thread) => {
                if !inside.remove(&thread) {
                    inside.insert(thread);
                    if is_worker && calls == point {
                        kill(leader, Signal::SIGKILL).unwrap();
                    }
                    calls += usize::from(is_worker);
                }
                (thread, None)
            }
            WaitStatus::PtraceEvent(thread, _, event) => {
                if event == ptrace::Event::PTRACE_EVENT_EXEC as i32 {
                    is_worker = true;
                }
                (thread, None)
            }
            WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
            WaitStatus::Exited(thread, code) if thread == leader => break Some(code),
            WaitStatus::Signaled(thread, ..) if thread == leader => break None,
            _ => continue,
        };
        let _ = ptrace::syscall(thread, signal); // it may be dead by now
    };
    let _ = child.wait(); // it was waited for above
    end.map(|code| {
        assert_eq!(code, 0, "{}", fs::read_to_string(stderr).unwrap());
        calls
    })
}

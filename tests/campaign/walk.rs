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
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use support::random::number;
use support::site::{Site, names};
use support::wait;
use support::worker::binary;

const POINTS: u64 = 10;
const AT_ONCE: usize = 4;
const POOL: &str = "the-pool";

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Queue {
    Own,
    Pool,
}

fn a_queue_of_its_own(version: &str) {
    walk(Queue::Own, version);
}

fn a_pool(version: &str) {
    walk(Queue::Pool, version);
}

on_both_protocols!(a_queue_of_its_own, a_pool);

fn walk(queue: Queue, version: &str) {
    let points = number("WALK_POINTS", POINTS) as usize;
    let calls = kill_at(queue, version, usize::MAX).expect("it does not end by itself");
    let step = calls.checked_div(points).unwrap_or(1).max(1);
    let (next, killed, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::default());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let point = next.fetch_add(step, Relaxed);
                    if point >= calls {
                        break;
                    }
                    match catch_unwind(AssertUnwindSafe(|| kill_at(queue, version, point))) {
                        Ok(None) => _ = killed.fetch_add(1, Relaxed),
                        Ok(Some(_)) => {} // it made fewer calls this time
                        Err(_) => {
                            let failed: &Mutex<Vec<usize>> = &failed;
                            failed.lock().unwrap().push(point);
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    let killed = killed.into_inner();
    println!("walk ({queue:?}, MQTT {version}): {calls} system calls, killed at {killed} of them");
    assert!(
        failed.is_empty(),
        "{queue:?}, {version}: it failed at {failed:?} of {calls}"
    );
    assert!(
        killed * 10 >= calls / step * 8,
        "only {killed} were reached"
    );
}

/// Two requests for one directory; the worker that takes the first is killed at this call. Returns how many calls it made, where it was
/// not.
fn kill_at(queue: Queue, version: &str, point: usize) -> Option<usize> {
    let site = Site::scripted();
    let session = match queue {
        Queue::Own => support::site::WORKER,
        Queue::Pool => POOL,
    };
    let configure = |command: &mut Command| {
        command
            .env("MQTT_PROTOCOL_VERSION", version)
            .env("JOB_ROOT", site.drive.path())
            .env("JOB_STOP_GRACE", "1");
        if queue == Queue::Pool {
            command.env("JOB_POOL", POOL).env("WORKER_ID", "m");
        }
    };
    let idle = |mark| {
        let heard = site.broker.received("jobs/workers/+");
        let idle = |said: &Value| said["state"] == "idle" && said["waitingFor"].is_null();
        let said = heard
            .iter()
            .map(|said| serde_json::from_slice(&said.payload).unwrap());
        said.filter(idle).count() > mark
    };
    let mut opener = site.worker(configure);
    wait::until("the queue", || idle(0));
    opener.sigterm();
    opener.exits_with(0);
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
    let left = || {
        let pool = site.drive.path().join(".job-worker").join(POOL);
        let mut names = match queue {
            Queue::Own => Vec::new(),
            Queue::Pool => names(&pool),
        };
        names.retain(|name| !name.starts_with("d-") && name != "head.lock");
        names
    };
    let mut next = site.worker(|command| {
        configure(command);
        command.arg("supervise");
    });
    wait::until("both results, and nothing to be left", || {
        ["one", "two"].iter().all(|id| !results(id).is_empty())
            && site.broker.queued(session) == 0
            && left().is_empty()
    });
    next.sigterm();
    next.exits_with(0);

    let runs = fs::read_to_string(dir.with_file_name("runs")).unwrap();
    let runs: Vec<(&str, u64)> = runs
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(id, attempt)| (id, attempt.parse().unwrap()))
        .collect();
    assert!(
        runs.is_sorted(),
        "not in their order, or not counted: {runs:?}"
    );
    for id in ["one", "two"] {
        let documents: BTreeSet<String> = results(id)
            .iter()
            .map(|result| String::from_utf8_lossy(&result.payload).into_owned())
            .collect();
        assert_eq!(documents.len(), 1, "results of several runs: {documents:?}");
        let result: Value = serde_json::from_str(documents.first().unwrap()).unwrap();
        let own: Vec<u64> = runs
            .iter()
            .filter(|(run, _)| *run == id)
            .map(|(_, n)| *n)
            .collect();
        assert_eq!(result["status"], "success", "{result}");
        assert_eq!(
            own.last().copied(),
            result["attempt"].as_u64(),
            "{result}: {own:?}"
        );
        assert!(matches!(own[..], [1 | 2] | [1, 2]), "{id} ran as {own:?}");
    }
    let stored = fs::read_to_string(dir.join("job.status.json")).unwrap();
    let last = results("two").last().map(|result| result.payload.clone());
    assert_eq!(Some(stored.trim_end().as_bytes()), last.as_deref());
    let mut files = names(&dir);
    files.retain(|name| name.starts_with("job."));
    assert_eq!(files, ["job.log", "job.status.json"]);
    assert!(
        !names(&dir).iter().any(|name| name.starts_with(".job")),
        "{:?}",
        names(&dir)
    );
    calls
}

/// Runs a command that stops itself and then becomes the worker. Kills that at its call number `point`; else tells how many it made.
fn trace(mut command: Command, point: usize, stderr: &std::path::Path) -> Option<usize> {
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

//! `JOB_SYNC`: a result means that it is on the disk; a drive that fails or hangs is told of, and never makes the worker
//! deaf. `strace` plays the drive: it shows what is asked of it, answers with errors, and takes its time.

use crate::support;

use rustix::process::Signal;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::cut_drive::{CutDrive, FILE_SYSTEMS};
use support::log::untimed;
use support::mount::Frozen;
use support::pool::{NAME, Queue};
use support::site::{Finished, Site, WORKER, await_file, read, read_json};
use support::wait;
use support::worker::{Worker, binary, with};

/// The program under `strace` with these arguments; and its trace.
fn under_strace(site: &Site, arguments: &[&str]) -> (Command, PathBuf) {
    let trace = site.drive.path().join("trace");
    let mut command = Command::new("strace");
    // -D: the worker stays our child; -I1: strace takes no signal away
    command
        .args(["-f", "-D", "-y", "-s", "256", "-o"])
        .arg(&trace);
    command.args(arguments).arg(binary());
    site.equip(&mut command);
    (command, trace)
}

/// A worker under `strace` with these arguments, waiting for a job; and its trace.
fn traced(site: &Site, arguments: &[&str], variables: &[(&str, &str)]) -> (Worker, PathBuf) {
    let (mut command, trace) = under_strace(site, arguments);
    with(variables)(&mut command);
    (site.idle(command), trace)
}

fn await_call(trace: &Path, call: &str) {
    wait::until("the drive to be asked", || {
        fs::read_to_string(trace).is_ok_and(|trace| trace.contains(call))
    });
}

/// Runs a job in the directory `a` of a site.
fn run_traced(arguments: &[&str], sync: &str, steps: &[&str]) -> (Site, Finished, String) {
    let site = Site::start();
    let (worker, trace) = traced(&site, arguments, &[("JOB_SYNC", sync)]);
    let finished = site.run_on(worker, "a", json!({ "steps": steps }));
    (site, finished, read(&trace))
}

/// The lines in which all of `words` are, by number.
fn places(trace: &str, words: &[&str]) -> Vec<usize> {
    let lines = trace.lines().enumerate();
    lines
        .filter(|(_, line)| words.iter().all(|word| line.contains(word)))
        .map(|(number, _)| number)
        .collect()
}

fn is_in_order(trace: &str, events: &[(&str, usize)]) {
    for pair in events.windows(2) {
        assert!(pair[0].1 < pair[1].1, "{pair:?} of {events:?} in\n{trace}");
    }
}

const TRACED: &str =
    "trace=syncfs,fsync,fdatasync,rename,renameat,renameat2,close,sendto,write,writev,execve";

#[test]
#[ignore = "needs strace"]
fn the_disk_has_it_before_the_result_is_published() {
    let steps = ["echo hello > file; echo hello"];
    let (_site, finished, trace) = run_traced(&["-e", TRACED], "on", &steps);
    let renamed = places(&trace, &["renameat", "job.status.json"]);
    let synced_dirs = places(&trace, &["fsync(", "/a>"]);
    let synced_files = places(&trace, &["fsync(", "/a/.job.status.json.tmp>"]);
    let counts = [renamed.len(), synced_dirs.len(), synced_files.len()];
    assert_eq!(counts, [2, 2, 2], "{trace}");
    let only = |words: &[&str]| *places(&trace, words).last().expect("one such call");
    let published = places(&trace, &["jobs/results/a"])[0];
    is_in_order(
        &trace,
        &[
            ("journal", synced_files[0]),
            ("its name", renamed[0]),
            ("directory", synced_dirs[0]),
            ("step", only(&["execve(", "echo hello"])),
            ("last line", only(&["write(", "job success"])),
            ("files of the steps", only(&["syncfs("])),
            ("log", only(&["fsync(", "/a/job.log>"])),
            ("final journal", synced_files[1]),
            ("its name", renamed[1]),
            ("directory", synced_dirs[1]),
            ("close of the log", only(&["close(", "/a/job.log>"])),
            ("result", published),
        ],
    );
    assert!(only(&["close(", "/a>"]) < published, "{trace}");
    succeeds(&finished);
    assert!(untimed(&finished.log).contains("\n==> job success in "));
}

#[test]
#[ignore = "needs strace"]
fn without_it_nobody_waits_for_the_disk() {
    let (_site, finished, trace) = run_traced(&["-e", TRACED], "off", &["true"]);
    assert_eq!(finished.result["status"], "success");
    assert!(places(&trace, &["sync"]).is_empty(), "{trace}");
}

#[test]
#[ignore = "needs strace"]
fn a_drive_that_loses_the_files_of_others_is_a_warning() {
    let error = ["-e", "inject=syncfs:error=EIO"];
    let (_site, finished, _) = run_traced(&error, "on", &["true"]);
    assert_eq!(finished.verdict(), ("success", "", 0));
    warns(&finished, "Input/output error");
    assert!(finished.log.lines().last().unwrap().contains("job success"));
    assert_eq!(finished.read("job.status.json"), finished.published.text());
}

/// In the result and in the log.
fn warns(finished: &Finished, text: &str) {
    let warning = finished.result["warning"].as_str().unwrap_or_default();
    assert!(warning.contains(text), "{}", finished.result);
    let line = format!("warning: {warning}\n");
    assert!(finished.log.contains(&line), "{}", finished.log);
}

/// `strace` counts the calls of each thread by itself: the main thread syncs journal and directory at the start, the drive's thread log,
/// journal and directory at the end.
#[test]
#[ignore = "needs strace"]
fn a_drive_that_does_not_take_something_makes_no_success() {
    for (fault, has_run, said) in [
        ("EIO:when=1", false, "Input/output error"),
        ("EIO:when=2", false, "Input/output error"),
        ("ENOSPC:when=3", true, ""),
    ] {
        let inject = format!("inject=fsync:error={fault}");
        let (_site, finished, _) = run_traced(&["-e", &inject], "on", &["touch ran"]);
        assert_eq!(finished.verdict(), ("failed", "internal", 1), "{fault}");
        assert_eq!(finished.dir.join("ran").exists(), has_run, "{fault}");
        let error = finished.result["error"].as_str().unwrap();
        assert!(error.contains(said), "{fault}: {error}");
        let document = read_json(&finished.dir.join("job.status.json"));
        assert_eq!(document["status"], "failed", "{fault}");
        ends_with_one_failure(&finished);
    }
}

/// With something in its way the drive keeps the first one.
#[test]
fn a_final_journal_that_is_not_written_makes_a_success_a_failure_and_is_a_warning_else() {
    let site = Site::start();
    for (exit, expected) in [(0, ("failed", "internal", 1)), (3, ("failed", "step", 3))] {
        let step = format!("mkdir .job.status.json.tmp; exit {exit}");
        let finished = site.run(&format!("exit-{exit}"), json!({ "steps": [step] }));
        assert_eq!(finished.verdict(), expected);
        let document = read_json(&finished.dir.join("job.status.json"));
        assert_eq!(document["status"], "running");
        match exit {
            0 => ends_with_one_failure(&finished),
            _ => warns(&finished, "job.status.json cannot be written"),
        }
    }
}

fn ends_with_one_failure(finished: &Finished) {
    let log = &finished.log;
    assert_eq!(untimed(log).matches("\n==> job ").count(), 1, "{log}");
    assert!(log.contains(" job failed: "), "{log}");
}

/// A log that cannot be synced, or closed where nothing is synced.
#[test]
#[ignore = "needs strace"]
fn a_log_that_the_drive_does_not_take_makes_a_success_a_failure() {
    for (fault, sync, said) in [
        ("inject=fsync:error=EIO", "on", "Input/output error"),
        ("inject=close:error=EDQUOT", "off", "quota"),
    ] {
        let site = Site::start();
        let dir = site.prepare("a", json!({ "steps": ["true"] }));
        fs::write(dir.join("job.log"), "").unwrap();
        let path = format!("--trace-path={}", dir.join("job.log").display());
        let (worker, _) = traced(&site, &[&path, "-e", fault], &[("JOB_SYNC", sync)]);
        let request = json!({ "id": "a", "workDir": dir });
        let finished = site.run_request(worker, dir, request);
        assert_eq!(finished.verdict(), ("failed", "internal", 1), "{fault}");
        let error = finished.result["error"].as_str().unwrap_or_default();
        assert!(error.contains(said), "{error}");
        if sync == "on" {
            assert_eq!(finished.read("job.status.json"), finished.published.text());
            ends_with_one_failure(&finished);
        }
    }
}

/// Its main thread is: where another thread waits for a drive, the kernel holds up the end of the process.
fn is_gone(worker: &mut Worker) -> bool {
    let stat = format!("/proc/{}/stat", worker.pid());
    worker.ended().is_some() || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z "))
}

/// The worker leaves while the drive's thread waits in a call, and publishes nothing: after the grace, or at once at a second stop,
/// which is one that comes a second later. The next worker runs the job again, since a stop does not count as an attempt.
#[test]
#[ignore = "needs strace"]
fn a_stop_waits_for_the_drive_no_longer_than_the_grace_or_a_second_stop_and_is_no_crash() {
    for (call, grace, is_repeated) in [
        ("syncfs", "1", false),
        ("fsync", "1", false),
        ("syncfs", "60", true),
    ] {
        let site = Site::start();
        let dir = site.prepare("a", json!({ "steps": ["touch ran"], "maxAttempts": 1 }));
        fs::write(dir.join("job.log"), "").unwrap();
        let path = format!("--trace-path={}", dir.join("job.log").display());
        let delay = format!("inject={call}:delay_enter=20s");
        let arguments = [&path, "-e", "trace=syncfs,fsync", "-e", &delay];
        let variables = [("JOB_STOP_GRACE", grace), ("JOB_SYNC", "on")];
        let (mut worker, trace) = traced(&site, &arguments, &variables);
        site.request(json!({ "id": "a", "workDir": dir }));
        await_call(&trace, &format!("{call}("));
        let asked = Instant::now();
        worker.sigterm();
        wait::until("the worker to leave", || {
            is_gone(&mut worker) || {
                if is_repeated {
                    worker.sigterm();
                }
                false
            }
        });
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(15), "{took:?}");
        assert!(site.controller.heard("jobs/results/").is_empty());
        let stored = read_json(&dir.join("job.status.json"));
        assert_eq!(
            (&stored["status"], &stored["stops"]),
            (&json!("interrupted"), &json!(1))
        );
        let finished = site.finish(site.worker(|_| {}), dir, "a");
        succeeds(&finished);
        assert_eq!(finished.result["attempt"], 1);
    }
}

#[test]
#[ignore = "needs strace"]
fn a_second_ctrl_c_leaves_a_run_by_hand_without_the_drive_and_is_a_cancel() {
    let site = Site::start();
    site.prepare("a", json!({ "steps": ["true"] }));
    let delay = ["-e", "inject=syncfs:delay_enter=10s"];
    let (mut command, trace) = under_strace(&site, &delay);
    let mut process = site.start_as({
        command.args(["run", "a"]);
        command
    });
    await_call(&trace, "syncfs(");
    process.insist(Signal::INT);
    process.exits_with(130);
}

/// Also where it is the claim that waits for the drive.
#[test]
#[ignore = "needs strace"]
fn a_member_is_stopped_while_its_claim_takes_the_result() {
    let site = Site::start();
    let serve = |worker: &mut Command| Queue::Pool.serve(worker, site.drive.path());
    let dir = site.prepare("a", json!({ "steps": ["echo >> runs"], "maxAttempts": 1 }));
    let drive = site.drive.path().to_str().unwrap();
    let variables = [
        ("JOB_STOP_GRACE", "1"),
        ("JOB_SYNC", "on"),
        ("JOB_POOL", NAME),
        ("WORKER_ID", WORKER),
        ("JOB_ROOT", drive),
    ];
    // the drive's thread syncs log, journal and directory before
    let delay = "inject=fsync:delay_enter=8s:when=4";
    let arguments = ["-e", "trace=fsync", "-e", delay];
    let (mut worker, trace) = traced(&site, &arguments, &variables);
    site.request(json!({ "id": "a", "workDir": dir }));
    await_call(&trace, "/c-0");
    worker.sigterm();
    worker.await_stderr("the drive does not answer; leaving without it");
    wait::until("the worker to leave", || is_gone(&mut worker));
    assert!(site.controller.heard("jobs/results/").is_empty());
    let finished = site.finish(site.worker(serve), dir, "a");
    succeeds(&finished);
    assert_eq!(finished.read("runs").lines().count(), 1);
}

fn succeeds(finished: &Finished) {
    let result = &finished.result;
    assert_eq!(finished.verdict(), ("success", "", 0), "{result}");
}

/// A drive that takes nothing, not even a byte.
#[test]
#[ignore = "needs root to mount, and mkfs.ext4"]
fn a_worker_that_is_stopped_on_a_frozen_drive_leaves_in_time() {
    for (queue, twice) in [
        (Queue::Own, false),
        (Queue::Pool, false),
        (Queue::Pool, true),
    ] {
        let site = Site::start();
        let drive = CutDrive::start(FILE_SYSTEMS[0], &format!("frozen-{queue:?}-{twice}"));
        let drive = drive.expect("a drive");
        let dir = drive.path().join("a");
        fs::create_dir(&dir).unwrap();
        let definition = json!({ "steps": ["touch up; exec sleep 1000"], "maxAttempts": 2 });
        fs::write(dir.join("job.json"), definition.to_string()).unwrap();
        let serve = |worker: &mut Command| {
            queue.serve(worker, &drive.path());
            worker.env("JOB_STOP_GRACE", if twice { "1000" } else { "1" });
        };
        let mut worker = site.idle_worker(serve);
        let mark = site.mark();
        site.request(json!({ "id": "a", "workDir": dir }));
        await_file(&dir.join("up"));
        let frozen = Frozen::at(&drive.path());
        worker.sigterm();
        if !twice {
            site.await_state(&mut worker, mark, "offline");
        }
        wait::until("the worker to leave", || {
            is_gone(&mut worker) || {
                if twice {
                    worker.sigterm();
                }
                false
            }
        });
        drop(frozen);
        wait::until("its end", || worker.ended().is_some());
        // the drive has taken nothing, or the note, which the kernel may still write once the drive goes on
        fs::write(dir.join("job.json"), r#"{"steps": []}"#).unwrap();
        let finished = site.finish(site.worker(serve), dir, "a");
        assert_eq!(finished.verdict(), ("success", "", 0));
    }
}

/// A worker on which opening `path` fails with these errors.
fn with_faults(site: &Site, path: &Path, faults: &str, variables: &[(&str, &str)]) -> Worker {
    let inject = format!("inject=openat:error={faults}");
    let opened = path.join("."); // as the worker opens a directory
    let arguments = ["-P", opened.to_str().unwrap(), "-e", &inject];
    traced(site, &arguments, variables).0
}

#[test]
#[ignore = "needs strace"]
fn an_error_of_this_machine_is_waited_for_and_is_no_rejection() {
    let site = Site::start();
    let dir = site.prepare("a", json!({ "steps": ["true"] }));
    for error in ["EMFILE", "ENFILE", "ENOMEM", "EIO", "ENOSPC", "ESTALE"] {
        let run = |faults: &str, patience| {
            let variables = [("JOB_DIR_WAIT", patience), ("JOB_SYNC", "off")];
            let worker = with_faults(&site, &dir, faults, &variables);
            let id = format!("{error}-{patience}");
            let request = json!({ "id": id, "workDir": dir });
            site.run_request(worker, dir.clone(), request)
        };
        let lasting = run(error, "0");
        assert_eq!(lasting.verdict(), ("failed", "internal", 1), "{error}");
        succeeds(&run(&format!("{error}:when=1..3"), "60"));
    }
}

#[test]
#[ignore = "needs strace"]
fn a_job_root_that_cannot_be_opened_is_waited_for_as_long_as_it_takes() {
    let site = Site::start();
    let root = site.directory("root");
    let dir = site.prepare("root/a", json!({ "steps": ["true"] }));
    let variables = [("JOB_ROOT", root.to_str().unwrap()), ("JOB_SYNC", "off")];
    let worker = with_faults(&site, &root, "EIO:when=1..4", &variables);
    succeeds(&site.run_request(worker, dir, json!({ "id": "a", "workDir": "a" })));
}

/// After a power cut the journal counts an attempt of which the log has nothing.
#[test]
fn a_log_that_went_with_the_power_begins_anew() {
    let site = Site::start();
    for (id, attempts) in [("runs", 3), ("given-up", 1)] {
        let dir = site.prepare(
            id,
            json!({ "steps": ["echo here"], "maxAttempts": attempts }),
        );
        let journal = json!({ "id": id, "status": "running", "attempt": 1 });
        fs::write(dir.join("job.status.json"), journal.to_string()).expect("a journal");
        fs::write(dir.join("job.log"), "").expect("a log");
        let worker = site.idle_worker(|_| {});
        let finished = site.run_request(worker, dir.clone(), json!({ "id": id, "workDir": dir }));
        let head = format!("Job ID: {id}\nWorking Directory: ");
        assert!(finished.log.starts_with(&head), "{}", finished.log);
    }
}

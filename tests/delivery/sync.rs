//! `JOB_SYNC`: a result means that it is on the disk; a drive that fails or hangs is told of, and never makes the worker
//! deaf. `strace` plays the drive: it shows what is asked of it, answers with errors, and takes its time.

use crate::support;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::cut_drive::{CutDrive, FILE_SYSTEMS};
use support::log::untimed;
use support::mount::Frozen;
use support::site::{Finished, Site};
use support::wait;
use support::worker::{Worker, binary, job_worker};

/// A worker under `strace` with these arguments, waiting for a job; and its trace.
fn traced(
    site: &Site,
    arguments: &[&str],
    configure: impl FnOnce(&mut Command),
) -> (Worker, PathBuf) {
    let trace = site.drive.path().join("trace");
    let mut command = Command::new("strace");
    // -D: the worker stays our child; -I1: strace takes no signal away
    command
        .args(["-f", "-D", "-y", "-s", "256", "-o"])
        .arg(&trace);
    command.args(arguments).arg(binary());
    for (name, value) in job_worker().get_envs() {
        if value.is_none() {
            command.env_remove(name);
        }
    }
    command
        .env("MQTT_URL", site.broker.url())
        .current_dir(site.broker.dir())
        .stdin(Stdio::null());
    configure(&mut command);
    let mark = site.controller.mark();
    let mut worker = Worker::start(command, site.broker.dir());
    site.await_state(&mut worker, mark, "idle");
    (worker, trace)
}

fn run_traced(
    arguments: &[&str],
    sync: &str,
    steps: serde_json::Value,
) -> (Finished, String, Site) {
    let site = Site::start();
    let (worker, trace) = traced(&site, arguments, |worker| _ = worker.env("JOB_SYNC", sync));
    let finished = site.run_on(worker, "a", json!({ "steps": steps }));
    let trace = fs::read_to_string(&trace).expect("a trace");
    (finished, trace, site)
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
    let steps = json!(["echo hello > file; echo hello"]);
    let (finished, trace, _site) = run_traced(&["-e", TRACED], "on", steps);
    let renamed = places(&trace, &["renameat", "job.status.json"]);
    let synced_dirs = places(&trace, &["fsync(", "/a>"]);
    let synced_files = places(&trace, &["fsync(", "/a/.job.status.json.tmp>"]);
    assert_eq!(
        [renamed.len(), synced_dirs.len(), synced_files.len()],
        [2, 2, 2],
        "{trace}"
    );
    let only = |words: &[&str]| {
        *places(&trace, words)
            .last()
            .unwrap_or_else(|| panic!("{words:?}: {trace}"))
    };
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
            ("result", places(&trace, &["jobs/results/a"])[0]),
        ],
    );
    let handle_of_directory = only(&["close(", "/a>"]);
    assert!(
        handle_of_directory < places(&trace, &["jobs/results/a"])[0],
        "{trace}"
    );
    assert_eq!(finished.result["status"], "success");
    assert!(
        finished.log.ends_with("s\n") && untimed(&finished.log).contains("\n==> job success in ")
    );
}

#[test]
#[ignore = "needs strace"]
fn without_it_nobody_waits_for_the_disk() {
    let (finished, trace, _site) = run_traced(&["-e", TRACED], "off", json!(["true"]));
    assert_eq!(finished.result["status"], "success");
    assert!(places(&trace, &["sync"]).is_empty(), "{trace}");
}

#[test]
#[ignore = "needs strace"]
fn a_drive_that_loses_the_files_of_others_is_a_warning() {
    let error = ["-e", "inject=syncfs:error=EIO"];
    let (finished, _, _site) = run_traced(&error, "on", json!(["true"]));
    assert_eq!(finished.result["status"], "success");
    let warning = finished.result["warning"].as_str().unwrap_or_default();
    assert!(
        warning.contains("Input/output error"),
        "{}",
        finished.result
    );
    assert!(finished.log.contains(warning), "{}", finished.log);
    assert!(finished.log.lines().last().unwrap().contains("job success"));
    assert_eq!(finished.read("job.status.json"), finished.published.text());
}

/// Runs a job on a drive that does not take something. `strace` counts the calls of each thread by itself: the main thread syncs
/// journal and directory at the start, the drive's thread log, journal and directory at the end.
fn fails(what: &str, arguments: &[&str], steps: &[&str]) -> (Finished, Site) {
    let (finished, _, site) = run_traced(arguments, "on", json!(steps));
    assert_eq!(finished.verdict(), ("failed", "internal", 1), "{what}");
    let stored: serde_json::Value =
        serde_json::from_str(&finished.read("job.status.json")).unwrap();
    // where the drive takes no journal at all, it has the first one
    let expected = match what {
        "the journal" => "running",
        _ => "failed",
    };
    assert_eq!(stored["status"], expected, "{what}: {stored}");
    let verdicts = untimed(&finished.log).matches("\n==> job ").count();
    let last = finished.log.lines().last().unwrap();
    assert!(
        verdicts == 1 && last.contains(" job failed: "),
        "{what}: {}",
        finished.log
    );
    (finished, site)
}

#[test]
#[ignore = "needs strace"]
fn a_drive_that_takes_no_first_journal_runs_nothing() {
    for fsync in ["1", "2"] {
        let error = format!("inject=fsync:error=EIO:when={fsync}");
        let (finished, _site) = fails(&format!("fsync {fsync}"), &["-e", &error], &["touch ran"]);
        assert!(!finished.dir.join("ran").exists());
        assert!(
            finished.result["error"]
                .as_str()
                .unwrap()
                .contains("Input/output error")
        );
    }
}

#[test]
#[ignore = "needs strace"]
fn a_drive_that_takes_no_log_or_journal_at_the_end_makes_a_success_a_failure() {
    let directory = ["-e", "inject=fsync:error=ENOSPC:when=3"];
    let in_the_way = "mkdir .job.status.json.tmp; touch ran";
    for (what, arguments, step) in [
        ("the directory", &directory[..], "touch ran"),
        ("the journal", &[], in_the_way),
    ] {
        let (finished, _site) = fails(what, arguments, &[step]);
        assert!(finished.dir.join("ran").exists());
    }
}

#[test]
#[ignore = "needs strace"]
fn a_log_that_is_not_synced_makes_a_success_a_failure() {
    let site = Site::start();
    let dir = site.prepare("a", json!({ "steps": ["touch ran"] }));
    fs::write(dir.join("job.log"), "").unwrap();
    let path = format!("--trace-path={}", dir.join("job.log").display());
    let (worker, _) = traced(&site, &[&path, "-e", "inject=fsync:error=EIO"], |_| {});
    let finished = site.run_request(worker, dir.clone(), json!({ "id": "a", "workDir": dir }));
    assert_eq!(finished.verdict(), ("failed", "internal", 1));
    assert_eq!(finished.read("job.status.json"), finished.published.text());
    let verdicts = untimed(&finished.log).matches("\n==> job ").count();
    assert!(
        verdicts == 1 && finished.log.contains("job failed: "),
        "{}",
        finished.log
    );
}

#[test]
#[ignore = "needs strace"]
fn a_failed_job_whose_final_journal_is_not_written_says_so_in_a_warning() {
    let steps = json!(["mkdir .job.status.json.tmp; exit 3"]);
    let (finished, _, _site) = run_traced(&[], "on", steps);
    assert_eq!(finished.verdict(), ("failed", "step", 3));
    let warning = finished.result["warning"].as_str().unwrap_or_default();
    assert!(
        warning.contains("job.status.json cannot be written"),
        "{}",
        finished.result
    );
    assert!(
        finished.log.contains(&format!("warning: {warning}\n")),
        "{}",
        finished.log
    );
}

#[test]
#[ignore = "needs strace"]
fn a_log_that_cannot_be_closed_makes_a_success_a_failure_without_any_sync() {
    let site = Site::start();
    let dir = site.prepare("a", json!({ "steps": ["true"] }));
    let path = format!("--trace-path={}", dir.join("job.log").display());
    fs::write(dir.join("job.log"), "").unwrap();
    let (worker, _) = traced(
        &site,
        &[&path, "-e", "inject=close:error=EDQUOT"],
        |worker| _ = worker.env("JOB_SYNC", "off"),
    );
    let finished = site.run_request(worker, dir.clone(), json!({ "id": "a", "workDir": dir }));
    let error = finished.result["error"].as_str().unwrap_or_default();
    assert!(error.contains("quota"), "{}", finished.result);
}

/// Waits until the drive's thread waits in this call, acts, and waits until the worker has left: nothing is published.
fn slow(call: &str, act: impl FnOnce(&Worker)) -> (Site, PathBuf) {
    let site = Site::start();
    let dir = site.prepare("a", json!({ "steps": ["touch ran"], "maxAttempts": 1 }));
    fs::write(dir.join("job.log"), "").unwrap();
    let path = format!("--trace-path={}", dir.join("job.log").display());
    let delay = format!("inject={call}:delay_enter=20s");
    let (mut worker, trace) = traced(
        &site,
        &[&path, "-e", "trace=syncfs,fsync", "-e", &delay],
        |worker| _ = worker.env("JOB_STOP_GRACE", "1").env("JOB_SYNC", "on"),
    );
    site.request(json!({ "id": "a", "workDir": dir }));
    wait::until("the drive to be asked", || {
        fs::read_to_string(&trace).is_ok_and(|trace| trace.contains(&format!("{call}(")))
    });
    let asked = Instant::now();
    act(&worker);
    leaves(&mut worker);
    assert!(
        asked.elapsed() < Duration::from_secs(15),
        "{:?}",
        asked.elapsed()
    );
    assert!(site.controller.heard("jobs/results/").is_empty());
    (site, dir)
}

/// Waits until a worker is gone, or its main thread: where another thread waits for a drive, the kernel holds up the end of the
/// process.
fn leaves(worker: &mut Worker) {
    let stat = format!("/proc/{}/stat", worker.pid());
    wait::until("the worker to leave", || {
        worker.ended().is_some()
            || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z "))
    });
}

/// The next worker runs the job again, since a stop does not count as an attempt.
fn runs_again(site: &Site, dir: &Path) {
    let stored: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(dir.join("job.status.json")).unwrap()).unwrap();
    assert_eq!(
        (&stored["status"], &stored["stops"]),
        (&json!("interrupted"), &json!(1))
    );
    let worker = site.worker(|_| {});
    let finished = site.finish(worker, dir.to_owned(), "a");
    assert_eq!(
        finished.verdict(),
        ("success", "", 0),
        "{}",
        finished.result
    );
    assert_eq!(finished.result["attempt"], 1);
}

fn signal(worker: &Worker) {
    kill_process(Pid::from_raw(worker.pid() as i32).unwrap(), Signal::TERM).unwrap();
}

#[test]
#[ignore = "needs strace"]
fn a_stop_waits_for_the_drive_no_longer_than_the_grace_and_is_no_crash() {
    for call in ["syncfs", "fsync"] {
        let (site, dir) = slow(call, signal);
        runs_again(&site, &dir);
    }
}

#[test]
#[ignore = "needs strace"]
fn a_second_stop_does_not_wait_for_the_drive_and_is_no_crash() {
    let (site, dir) = slow("syncfs", |worker| {
        signal(worker);
        worker.await_stderr("stopping");
        // a second stop is one that comes later
        wait::throughout(Duration::from_millis(700), "a while", || true);
        signal(worker);
    });
    runs_again(&site, &dir);
}

/// A drive that takes nothing, not even a byte.
#[test]
#[ignore = "needs root to mount, and mkfs.ext4"]
fn a_worker_that_is_stopped_on_a_frozen_drive_leaves_in_time() {
    let site = Site::start();
    let drive = CutDrive::start(FILE_SYSTEMS[0], "frozen").expect("a drive");
    let dir = drive.path().join("a");
    fs::create_dir(&dir).unwrap();
    let definition = json!({ "steps": ["touch up; exec sleep 1000"], "maxAttempts": 2 });
    fs::write(dir.join("job.json"), definition.to_string()).unwrap();
    let mut worker = site.idle_worker(|worker| _ = worker.env("JOB_STOP_GRACE", "1"));
    let mark = site.mark();
    site.request(json!({ "id": "a", "workDir": dir }));
    wait::until("the step", || dir.join("up").exists());
    let frozen = Frozen::at(&drive.path());
    worker.sigterm();
    site.await_state(&mut worker, mark, "offline");
    leaves(&mut worker);
    drop(frozen);
    wait::until("its end", || worker.ended().is_some());
    // the drive has taken nothing, or the note, which the kernel may still write once the drive goes on
    fs::write(dir.join("job.json"), r#"{"steps": []}"#).unwrap();
    let finished = site.finish(site.worker(|_| {}), dir, "a");
    assert_eq!(finished.verdict(), ("success", "", 0));
}

/// A worker on which opening `path` fails with these errors.
fn with_faults(site: &Site, path: &Path, faults: &str, wait: &str, root: bool) -> Worker {
    let inject = format!("inject=openat:error={faults}");
    let opened = path.join("."); // as the worker opens a directory
    let arguments = ["-P", opened.to_str().unwrap(), "-e", &inject];
    let (worker, _) = traced(site, &arguments, |worker| {
        worker.env("JOB_DIR_WAIT", wait).env("JOB_SYNC", "off");
        if root {
            worker.env("JOB_ROOT", path);
        }
    });
    worker
}

#[test]
#[ignore = "needs strace"]
fn an_error_of_this_machine_is_waited_for_and_is_no_rejection() {
    let site = Site::start();
    for error in ["EMFILE", "ENFILE", "ENOMEM", "EIO", "ENOSPC", "ESTALE"] {
        let dir = site.prepare("a", json!({ "steps": ["true"] }));
        let request = json!({ "id": error, "workDir": dir });
        let worker = with_faults(&site, &dir, error, "0", false);
        let finished = site.run_request(worker, dir.clone(), request);
        assert_eq!(finished.verdict(), ("failed", "internal", 1), "{error}");
        let request = json!({ "id": format!("{error}-passes"), "workDir": dir });
        let worker = with_faults(&site, &dir, &format!("{error}:when=1..3"), "60", false);
        let finished = site.run_request(worker, dir, request);
        assert_eq!(
            finished.verdict(),
            ("success", "", 0),
            "{}",
            finished.result
        );
    }
}

#[test]
#[ignore = "needs strace"]
fn a_job_root_that_cannot_be_opened_is_waited_for_as_long_as_it_takes() {
    let site = Site::start();
    let root = site.directory("root");
    let dir = site.prepare("root/a", json!({ "steps": ["true"] }));
    let worker = with_faults(&site, &root, "EIO:when=1..4", "0", true);
    let finished = site.run_request(worker, dir, json!({ "id": "a", "workDir": "a" }));
    assert_eq!(
        finished.verdict(),
        ("success", "", 0),
        "{}",
        finished.result
    );
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

//! `job-worker run DIR [--id ID]` (docs/reference.md, "Commands").

use crate::support;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use support::broker::Broker;
use support::log::untimed;
use support::site::{Site, await_file, read, read_json, until_exists};
use support::wait;
use support::worker::Worker;

fn command(site: &Site<Broker>, arguments: &[&str]) -> Command {
    let mut command = site.command(["run"].iter().chain(arguments));
    // nobody listens there: without a broker means without one
    command.env("MQTT_URL", "mqtt://127.0.0.1:1");
    command
}

fn run(site: &Site<Broker>, arguments: &[&str]) -> Worker {
    site.start_as(command(site, arguments))
}

#[test]
fn it_runs_the_job_writes_the_same_files_and_shows_the_log() {
    let site = Site::scripted();
    let dir = site.prepare(
        "a",
        json!({ "steps": ["echo out; echo err >&2; echo $JOB_ID $WORKER_ID", "true"] }),
    );
    let mut process = run(&site, &["a"]);
    process.exits_with(0);
    let log = read(&dir.join("job.log"));
    assert!(log.contains("\nout\nerr\na node-worker-01\n"), "{log}");
    assert_eq!(process.stdout(), log);
    let status = read_json(&dir.join("job.status.json"));
    assert_eq!(
        (&status["id"], &status["status"], &status["exitCode"]),
        (&json!("a"), &json!("success"), &json!(0))
    );
    assert_eq!(status["logFile"], json!(dir.join("job.log")));
}

#[test]
fn it_exits_with_the_job_s_exit_code() {
    let site = Site::scripted();
    for (id, step, code) in [
        ("failed", json!("exit 3"), 3),
        ("signalled", json!("kill -9 $$"), 137),
        ("missing", json!("no-such-program-of-ours"), 127),
        (
            "timeout",
            json!({ "run": "sleep 1000", "timeoutSeconds": 0.1 }),
            124,
        ),
    ] {
        site.prepare(id, json!({ "steps": [step] }));
        run(&site, &[id]).exits_with(code);
    }
}

#[test]
fn it_runs_a_final_job_again_and_takes_an_id() {
    let site = Site::scripted();
    let dir = site.prepare("a", json!({ "steps": ["echo $JOB_ID >> ids"] }));
    run(&site, &["a"]).exits_with(0);
    run(&site, &["--id", "other", dir.to_str().unwrap()]).exits_with(0);
    run(&site, &["./a/../a/", "--id", "7"]).exits_with(0);
    assert_eq!(read(&dir.join("ids")), "a\nother\n7\n");
    assert_eq!(read_json(&dir.join("job.status.json"))["attempt"], 1);
}

#[test]
fn the_current_directory_is_a_directory_too() {
    let site = Site::scripted();
    let dir = site.prepare("a", json!({ "steps": ["echo $JOB_ID > id"] }));
    let mut command = command(&site, &["."]);
    command.current_dir(&dir);
    site.start_as(command).exits_with(0);
    assert_eq!(read(&dir.join("id")), "a\n");
}

#[test]
fn the_log_is_shown_while_it_grows() {
    let site = Site::scripted();
    let dir = site.prepare(
        "a",
        json!({ "steps": ["echo early; ".to_owned() + &until_exists("gate"), "echo late"] }),
    );
    let mut process = run(&site, &["a"]);
    wait::until("the first line on the terminal", || {
        process.stdout().contains("\nearly\n")
    });
    fs::write(dir.join("gate"), "").unwrap();
    process.exits_with(0);
    assert!(process.stdout().contains("\nlate\n"));
}

#[test]
fn what_a_step_puts_in_the_place_of_the_log_is_neither_waited_for_nor_shown() {
    let site = Site::scripted();
    fs::write(site.drive.path().join("secret"), "of another\n").unwrap();
    for place in ["mkfifo new", "ln -s ../secret new"] {
        let step =
            format!("for i in $(seq 30); do rm -f new; {place}; mv new job.log; sleep 0.01; done");
        let dir = site.prepare("a", json!({ "steps": [step, "echo later"] }));
        let mut worker = run(&site, &[&dir.display().to_string()]);
        worker.exits_with(0);
        let shown = worker.stdout();
        assert!(
            shown.contains("later") && !shown.contains("of another"),
            "{shown}"
        );
    }
}

#[test]
fn an_attempt_after_a_crash_shows_only_what_is_new() {
    let site = Site::scripted();
    let dir = site
        .prepare("a", json!({ "steps": ["echo once >> runs; wc -l < runs; ".to_owned() + &until_exists("gate")] }));
    let mut process = run(&site, &["a"]);
    await_file(&dir.join("runs"));
    process.kill9();
    process.wait();
    fs::write(dir.join("gate"), "").unwrap();
    let mut process = run(&site, &["a"]);
    process.exits_with(0);
    assert!(
        read(&dir.join("job.log")).starts_with("Job ID: a\n"),
        "it is appended to"
    );
    assert!(
        untimed(&process.stdout()).starts_with("==> attempt 2 of 3, "),
        "{}",
        process.stdout()
    );
}

#[test]
fn bad_directories_are_told_and_left_alone() {
    let site = Site::scripted();
    fs::create_dir(site.drive.path().join("empty")).unwrap();
    fs::write(site.drive.path().join("file"), "").unwrap();
    site.prepare("no-steps", json!({ "env": {} }));
    fs::write(site.prepare("no-json", json!({})).join("job.json"), "{").unwrap();
    for (dir, said) in [
        ("missing", "missing"),
        ("file", "not a directory"),
        ("empty", "job.json"),
        ("no-steps", "steps"),
        ("no-json", "job.json"),
    ] {
        let mut process = run(&site, &[dir]);
        let status = process.wait();
        let told = process.stderr();
        let of_others = ["the request", "controller"];
        assert!(!of_others.iter().any(|word| told.contains(word)), "{told}");
        assert!(matches!(status.code(), Some(1 | 64)), "{dir}: {status}");
        assert!(
            process.stderr().contains(said),
            "{dir}: {}",
            process.stderr()
        );
        assert_eq!(process.stdout(), "");
        assert!(
            !site.drive.path().join(dir).join("job.log").exists(),
            "{dir}"
        );
    }
    let dir = site.prepare("a", json!({ "steps": ["true"] }));
    run(&site, &["a"]).exits_with(0);
    fs::write(dir.join("job.json"), "{").unwrap();
    run(&site, &["a"]).exits_with(1);
    let stored = read_json(&dir.join("job.status.json"));
    assert_eq!(stored["reason"], "rejected", "not the success before");
    site.prepare("a", json!({ "steps": ["true"] }));
    run(&site, &["a", "--id=no/id"]).exits_with(64);
    run(&site, &["/"]).exits_with(64);
}

#[test]
fn what_is_set_for_a_broker_does_not_stop_it() {
    let site = Site::scripted();
    site.prepare("a", json!({ "steps": ["true"] }));
    let mut command = command(&site, &["a"]);
    command
        .env("MQTT_URL", "no URL")
        .env("MQTT_PASSWORD_FILE", "/does/not/exist");
    site.start_as(command).exits_with(0);
}

/// Ctrl-C at a terminal reaches the whole group.
fn in_own_group(site: &Site<Broker>, grace: &str) -> Worker {
    let mut command = command(site, &["a"]);
    command.env("JOB_STOP_GRACE", grace).process_group(0);
    site.start_as(command)
}

#[test]
fn ctrl_c_is_a_cancel() {
    let site = Site::scripted();
    let steps = json!(["trap 'sleep 0.3; touch cleaned; exit' TERM; touch up; while :; do sleep 0.02; done", "touch next",
        { "run": "touch last", "always": true }]);
    let dir = site.prepare("a", json!({ "steps": steps }));
    let mut process = in_own_group(&site, "30");
    await_file(&dir.join("up"));
    process.signal_group(Signal::INT);
    process.exits_with(130);
    let status = read_json(&dir.join("job.status.json"));
    assert_eq!(
        (&status["status"], &status["reason"]),
        (&json!("failed"), &json!("cancelled"))
    );
    let exists = |file: &str| dir.join(file).exists();
    assert_eq!(
        [exists("cleaned"), exists("next"), exists("last")],
        [true, false, true]
    );
    let last = process
        .stdout()
        .lines()
        .last()
        .map(str::to_owned)
        .unwrap_or_default();
    assert!(
        untimed(&last) == "==> job failed: cancelled by ^C\n",
        "to its last line: {}",
        process.stdout()
    );
}

#[test]
fn a_second_ctrl_c_is_at_once_whatever_runs_by_then() {
    let heeds_not = "trap 'touch told' TERM; touch up; while :; do sleep 0.02; done";
    let always = "trap '' TERM; touch told; sleep 1000";
    for (first, second) in [(heeds_not, "true"), ("touch up; sleep 1000", always)] {
        let site = Site::scripted();
        let steps = json!([first, { "run": second, "always": true }, { "run": "touch last", "always": true }]);
        let dir = site.prepare("a", json!({ "steps": steps }));
        let mut process = in_own_group(&site, "1000");
        await_file(&dir.join("up"));
        process.signal_group(Signal::INT);
        await_file(&dir.join("told"));
        process.insist(Signal::INT);
        process.exits_with(130);
        site.nothing_survives();
        assert!(!dir.join("last").exists(), "nor are `always` steps run");
        let stored = read_json(&dir.join("job.status.json"));
        assert_eq!(stored["reason"], "cancelled");
    }
}

#[test]
fn ctrl_c_while_it_waits_for_another_worker_runs_nothing() {
    let site = Site::scripted();
    let dir = site.prepare("a", json!({ "steps": ["touch ran"] }));
    let log = File::create(dir.join("job.log")).unwrap();
    log.lock().unwrap();
    let mut process = in_own_group(&site, "1");
    process.await_stderr("is in use");
    process.signal_group(Signal::INT);
    process.exits_with(130);
    assert_eq!(
        [
            dir.join("ran").exists(),
            dir.join("job.status.json").exists()
        ],
        [false, false]
    );
}

#[test]
fn nothing_outlives_it() {
    let site = Site::scripted();
    site.prepare(
        "a",
        json!({ "steps": ["(setsid sleep 1000 &); sleep 1000 &"] }),
    );
    run(&site, &["a"]).exits_with(0);
    site.nothing_survives();
}

#[test]
fn a_reader_that_goes_away_does_not_end_the_job() {
    let site = Site::scripted();
    let dir = site.prepare(
        "a",
        json!({ "steps": [until_exists("gate") + "; head -c 1000000 /dev/zero; exit 5"] }),
    );
    let mut command = command(&site, &["a"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap(); // and closes it
    fs::write(dir.join("gate"), "").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert_eq!(read_json(&dir.join("job.status.json"))["exitCode"], 5);
}

#[test]
fn a_reader_that_does_not_read_holds_up_neither_a_timeout_nor_ctrl_c() {
    let site = Site::scripted();
    for (id, limit) in [("timeout", 0.5), ("cancel", 1000.0)] {
        let step = json!({ "run": "head -c 1000000 /dev/zero; touch up; sleep 1000", "timeoutSeconds": limit });
        let dir = site.prepare(id, json!({ "steps": [step] }));
        let mut command = command(&site, &[id]);
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        await_file(&dir.join("up"));
        if id == "cancel" {
            kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        }
        wait::until("the end of the job", || {
            read_json(&dir.join("job.status.json"))["status"] == "failed"
        });
        // what is left is for the drive and the reader; who does not want to wait for them interrupts again
        let mut child = child;
        wait::until_some("the process to end", || {
            let ended = child.try_wait().unwrap();
            if ended.is_none() {
                kill_process(Pid::from_child(&child), Signal::INT).unwrap();
            }
            ended
        });
    }
}

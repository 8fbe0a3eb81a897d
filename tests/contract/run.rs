//! `job-worker run DIR [--id ID]` (docs/reference.md, "Commands").

use crate::support::broker::Broker;
use crate::support::log::untimed;
use crate::support::pool::Queue;
use crate::support::site::{Site, await_file, names, read, read_json, release, until_exists};
use crate::support::wait;
use crate::support::worker::{Worker, binary, said};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

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
    let step = "(setsid sleep 1000 &); echo out; echo err >&2; echo $JOB_ID $WORKER_ID";
    let dir = site.prepare("a", json!({ "steps": [step, until_exists("gate")] }));
    // what is set for a broker does not stop it
    let mut command = command(&site, &["a"]);
    command.env("MQTT_URL", "no URL");
    command.env("MQTT_PASSWORD_FILE", "/does/not/exist");
    let mut process = site.start_as(command);
    process.await_stdout("\nout\nerr\n"); // while it grows
    release(&dir);
    process.exits_with(0);
    site.nothing_survives();
    let log = read(&dir.join("job.log"));
    assert!(log.contains("\nout\nerr\na node-worker-01\n"), "{log}");
    assert_eq!(process.stdout(), log);
    let status = journal(&dir);
    let ends = json!([status["id"], status["status"], status["exitCode"]]);
    assert_eq!(ends, json!(["a", "success", 0]));
    assert_eq!(status["logFile"], json!(dir.join("job.log")));
}

fn journal(dir: &Path) -> Value {
    read_json(&dir.join("job.status.json"))
}

#[test]
fn a_job_that_is_over_at_once_is_shown_whole() {
    let site = Site::scripted();
    let dir = site.prepare("a", json!({ "steps": [] }));
    let mut command = command(&site, &["a"]);
    command.env("JOB_SYNC", "off"); // no thread waits for the drive
    let mut process = site.start_as(command);
    process.exits_with(0);
    assert_eq!(process.stdout(), read(&dir.join("job.log")));
}

#[test]
fn it_runs_a_final_job_again_and_takes_an_id() {
    let site = Site::scripted();
    let dir = site.prepare("a", json!({ "steps": ["echo $JOB_ID >> ids"] }));
    run(&site, &["a"]).exits_with(0);
    run(&site, &["--id", "other", dir.to_str().unwrap()]).exits_with(0);
    run(&site, &["./a/../a/", "--id", "7"]).exits_with(0);
    let mut inside = command(&site, &["."]);
    inside.current_dir(&dir);
    site.start_as(inside).exits_with(0);
    assert_eq!(read(&dir.join("ids")), "a\nother\n7\na\n");
    assert_eq!(journal(&dir)["attempt"], 1);
}

#[test]
fn what_a_step_puts_in_the_place_of_the_log_is_neither_waited_for_nor_shown() {
    let site = Site::scripted();
    fs::write(site.drive.path().join("secret"), "of another\n").unwrap();
    for place in ["mkfifo new", "ln -s ../secret new"] {
        let step =
            format!("for i in $(seq 30); do rm -f new; {place}; mv new job.log; sleep 0.01; done");
        site.prepare("a", json!({ "steps": [step, "echo later"] }));
        let mut process = run(&site, &["a"]);
        process.exits_with(0);
        let shown = process.stdout();
        let is_good = shown.contains("later") && !shown.contains("of another");
        assert!(is_good, "{shown}");
    }
}

#[test]
fn an_attempt_after_a_crash_shows_only_what_is_new() {
    let site = Site::scripted();
    let step = format!("touch up; {}", until_exists("gate"));
    let (dir, mut process) = begin(&site, json!([step]), "8");
    process.kill9();
    release(&dir);
    let mut process = run(&site, &["a"]);
    process.exits_with(0);
    let log = read(&dir.join("job.log"));
    assert!(log.starts_with("Job ID: a\n"), "it is appended to: {log}");
    let shown = untimed(&process.stdout());
    assert!(shown.starts_with("==> attempt 2 of 3, "), "{shown}");
}

/// It belongs to no request.
#[test]
fn a_run_that_died_is_no_attempt_of_a_request() {
    for queue in [Queue::Own, Queue::Pool] {
        let site = Site::scripted();
        let step = format!("touch up; {}", until_exists("gate"));
        let (dir, mut process) = begin(&site, json!([step]), "8");
        process.kill9();
        release(&dir);
        let mut worker = site.idle_worker(|worker| queue.serve(worker, site.drive.path()));
        site.request(json!({ "id": "a", "workDir": dir, "maxAttempts": 1 }));
        let result = site.result("a").json();
        assert_eq!(
            (&result["status"], &result["attempt"]),
            (&json!("success"), &json!(1)),
            "{result}"
        );
        worker.exits_with(0);
    }
}

#[test]
fn bad_directories_are_told_also_by_check_and_left_alone() {
    let site = Site::scripted();
    site.directory("empty");
    fs::write(site.drive.path().join("file"), "").unwrap();
    let faults = r#"{"steps": ["true", 7, {"rum": "true"}], "maxAttempts": 0}"#;
    // what `check` says of each mistake
    let each = [
        "item 2",
        "\njob: job.json: `steps` item 3",
        "steps[].rum (did you mean run?)",
        "\njob: job.json: `maxAttempts`",
    ];
    for (dir, definition, code, word, checked) in [
        ("missing", "", 64, "missing", &["does not exist"][..]),
        ("file", "", 64, "not a directory", &["not a directory"]),
        ("empty", "", 1, "job.json", &["job.json does not exist"]),
        ("a", r#"{"env": {}}"#, 1, "steps", &["no `steps`"]),
        ("a", faults, 1, "item 2", &each),
        ("a", "{", 1, "job.json", &["ends in the middle of its JSON"]),
    ] {
        if !definition.is_empty() {
            fs::write(site.directory(dir).join("job.json"), definition).unwrap();
        }
        let (_, wrong, status) = said(&mut site.command(["check", dir]));
        assert_eq!(status, Some(78), "{dir}");
        let is_told = |word: &&str| wrong.contains(*word);
        let all = wrong.starts_with("job: ") && checked.iter().all(is_told);
        assert!(all, "{dir}, {checked:?}: {wrong}");

        let mut process = run(&site, &[dir]);
        process.exits_with(code);
        let told = process.stderr();
        let of_others = told.contains("the request") || told.contains("controller");
        assert!(told.contains(word) && !of_others, "{dir}: {told}");
        assert_eq!(process.stdout(), "");
        let log = site.drive.path().join(dir).join("job.log");
        assert!(!log.exists(), "{dir}");
    }
    let dir = site.prepare("a", json!({ "steps": ["true"] }));
    run(&site, &["a"]).exits_with(0);
    fs::write(dir.join("job.json"), "{").unwrap();
    run(&site, &["a"]).exits_with(1);
    let reason = &journal(&dir)["reason"];
    assert_eq!(reason, "rejected", "not the success before");
    site.prepare("a", json!({ "steps": ["true"] }));
    run(&site, &["a", "--id=no/id"]).exits_with(64);
    run(&site, &["/"]).exits_with(64);
}

/// A run whose first step has made `up`; Ctrl-C at a terminal reaches the whole group.
fn begin(site: &Site<Broker>, steps: Value, grace: &str) -> (PathBuf, Worker) {
    let dir = site.prepare("a", json!({ "steps": steps }));
    let mut command = command(site, &["a"]);
    command.env("JOB_STOP_GRACE", grace).process_group(0);
    let process = site.start_as(command);
    await_file(&dir.join("up"));
    (dir, process)
}

#[test]
#[ignore = "needs root to become another user"]
fn a_limit_of_processes_is_told_and_leaves_nothing() {
    let site = Site::scripted();
    // not in the drive, which only its owner may enter
    let place = std::env::temp_dir().join(format!("run-{}", std::process::id()));
    let [program, dir] = ["program", "a"].map(|name| place.join(name));
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    let mut copy = Command::new("cp"); // a child that another test starts now would have the file open for writing
    assert!(copy.arg(binary()).arg(&program).status().unwrap().success());
    fs::write(dir.join("job.json"), r#"{"steps": ["sleep 0.2"]}"#).unwrap();
    for most in 1..6 {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=54329", "--clear-groups", "prlimit"]);
        command.arg(format!("--nproc={most}:{most}"));
        site.equip(command.arg(&program).arg("run").arg(&dir));
        let run = command.output().unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        let code = journal(&dir)["exitCode"].as_i64().unwrap();
        assert_eq!(run.status.code().map(i64::from), Some(code), "{said}");
    }
    fs::remove_dir_all(&place).unwrap();
}

#[test]
fn ctrl_c_is_a_cancel() {
    let site = Site::scripted();
    let cleans =
        "trap 'sleep 0.3; touch cleaned; exit' TERM; touch up; while :; do sleep 0.02; done";
    let steps = json!([cleans, "touch next", { "run": "touch last", "always": true }]);
    let (dir, mut process) = begin(&site, steps, "30");
    process.signal_group(Signal::INT);
    process.exits_with(130);
    assert_eq!(journal(&dir)["reason"], "cancelled");
    let made = ["cleaned", "next", "last"].map(|file| dir.join(file).exists());
    assert_eq!(made, [true, false, true]);
    let shown = untimed(&process.stdout());
    let last = "\n==> job failed: cancelled by ^C\n";
    assert!(shown.ends_with(last), "to its last line: {shown}");
}

#[test]
fn a_second_ctrl_c_is_at_once_whatever_runs_by_then() {
    let heeds_not = "trap 'touch told' TERM; touch up; while :; do sleep 0.02; done";
    let always = "trap '' TERM; touch told; sleep 1000";
    for (first, second) in [(heeds_not, "true"), ("touch up; sleep 1000", always)] {
        let site = Site::scripted();
        let steps = json!([first, { "run": second, "always": true }, { "run": "touch last", "always": true }]);
        let (dir, mut process) = begin(&site, steps, "1000");
        process.signal_group(Signal::INT);
        await_file(&dir.join("told"));
        process.insist(Signal::INT);
        process.exits_with(130);
        site.nothing_survives();
        assert!(!dir.join("last").exists(), "nor are `always` steps run");
        assert_eq!(journal(&dir)["reason"], "cancelled");
    }
}

#[test]
fn ctrl_c_while_it_waits_for_another_worker_runs_nothing() {
    let site = Site::scripted();
    let dir = site.prepare("a", json!({ "steps": ["touch ran"] }));
    let log = File::create(dir.join("job.log")).unwrap();
    log.lock().unwrap();
    let mut process = run(&site, &["a"]);
    process.await_stderr("is in use");
    process.signal(Signal::INT);
    process.exits_with(130);
    assert_eq!(names(&dir), ["job.json", "job.log"]);
}

fn piped(site: &Site<Broker>, id: &str) -> Child {
    let mut command = command(site, &[id]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn a_reader_that_goes_away_does_not_end_the_job() {
    let site = Site::scripted();
    let step = until_exists("gate") + "; head -c 1000000 /dev/zero; exit 5";
    let dir = site.prepare("a", json!({ "steps": [step] }));
    let mut child = piped(&site, "a");
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap(); // and closes it
    release(&dir);
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert_eq!(journal(&dir)["exitCode"], 5);
}

/// Another program that has the same pipe or terminal may have set it so.
#[test]
fn an_output_that_does_not_wait_gets_all_of_the_log() {
    let site = Site::scripted();
    let steps = json!(["head -c 300000 /dev/zero | tr '\\0' x"]);
    let dir = site.prepare("a", json!({ "steps": steps }));
    let (reader, writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    let mut command = command(&site, &["a"]);
    let mut child = command
        .stdout(writer)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(command);
    wait::until("the end of the job", || {
        names(&dir).contains(&"job.status.json".to_owned()) && journal(&dir)["status"] == "success"
    });
    let shown = std::io::read_to_string(reader).unwrap();
    assert_eq!(shown, read(&dir.join("job.log")));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_reader_that_does_not_read_holds_up_neither_a_timeout_nor_ctrl_c() {
    let site = Site::scripted();
    for (id, limit) in [("timeout", 0.5), ("cancel", 1000.0)] {
        let step = json!({ "run": "head -c 1000000 /dev/zero; touch up; sleep 1000", "timeoutSeconds": limit });
        let dir = site.prepare(id, json!({ "steps": [step] }));
        let mut child = piped(&site, id);
        let ctrl_c = |child: &Child| kill_process(Pid::from_child(child), Signal::INT).unwrap();
        if id == "cancel" {
            await_file(&dir.join("up"));
            ctrl_c(&child);
        }
        await_file(&dir.join("job.status.json"));
        wait::until("the end of the job", || journal(&dir)["status"] == "failed");
        // what is left is for the drive and the reader; who does not want to wait for them interrupts again
        wait::until("the process to end", || {
            let ended = child.try_wait().unwrap().is_some();
            if !ended {
                ctrl_c(&child);
            }
            ended
        });
    }
}

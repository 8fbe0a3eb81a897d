//! Stopping a worker at every moment of its life, and what must not stop it.

use crate::support::broker::{Broker, Packet, Step, Verdict, slowness};
use crate::support::processes::{child_of, pid_1};
use crate::support::schema::Schema;
use crate::support::site::{
    Site, WORKER, await_file, read, read_json, release, until_exists, verdict,
};
use crate::support::wait::{self, DEADLINE};
use crate::support::worker::{binary, speaking, with};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use std::fs::{self};
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

/// Counts its runs, says what it was told, and goes; a run that finds `gate` ends at once.
const HEEDS_TERM: &str = "echo x >> runs; trap 'echo told to stop; exit 0' TERM; touch up; \
                          until [ -e gate ]; do sleep 0.02; done";

fn steps() -> Value {
    json!({ "steps": ["true", HEEDS_TERM, "touch next", { "run": "touch last", "always": true }] })
}

/// What `requeue` leaves: no result, the request with the broker, `interrupted` on disk; and the next worker runs the
/// same attempt again.
pub fn is_requeued(site: &Site<Broker>, dir: &Path) {
    site.nothing_survives();
    assert!(site.broker.received("jobs/results/+").is_empty());
    let queued = site.broker.queued(WORKER);
    assert_eq!(queued, 1, "the request is still with the broker");
    let status = read_json(&dir.join("job.status.json"));
    Schema::read("status.json").describes(&status);
    let ends = json!([status["status"], status["exitCode"]]);
    assert_eq!(ends, json!(["interrupted", null]));
    assert!(!dir.join("next").exists() && !dir.join("last").exists());

    release(dir);
    // as often as it was stopped, it still is the first attempt
    let mut worker = site.worker(with(&[("JOB_MAX_ATTEMPTS", "1")]));
    let result = site.result("a").json();
    let ends = json!([result["status"], result["attempt"]]);
    assert_eq!(ends, json!(["success", 1]));
    worker.exits_with(0);
    site.broker.wait_for_queued(WORKER, 0, DEADLINE);
    assert_eq!(read(&dir.join("runs")), "x\nx\n");
    let log = read(&dir.join("job.log"));
    assert!(log.contains("attempt 1 of 1 again"), "{log}");
    let (stop, _) = log.split_once("stopped before the end").unwrap_or_default();
    let told = "the worker is asked to stop; asking the job to stop\n";
    assert!(stop.contains(told), "{log}");
}

#[test]
fn an_idle_worker_takes_its_leave() {
    let site = Site::scripted();
    let is_farewell = |packet: &&Packet| matches!(packet, Packet::Disconnect { code: 0 });
    let stops = [("5", Signal::TERM), ("4", Signal::TERM), ("5", Signal::INT)];
    for (count, (version, signal)) in (1..).zip(stops) {
        let mut worker = site.idle_worker(speaking(version));
        worker.signal(signal);
        worker.exits_with(0);
        // no last will was needed
        wait::until("a farewell", || {
            site.broker.sent().iter().filter(is_farewell).count() == count
        });
        assert_eq!(site.states(0).last().map(String::as_str), Some("offline"));
    }
}

/// The commands are those of docs/several-machines.md, and SIGALRM is what tells `timeout` that its time is over. It sends TERM twice.
#[test]
fn a_worker_that_finishes_ends_its_job_first() {
    let page = include_str!("../../docs/several-machines.md");
    let commands = page.lines().filter_map(|line| line.strip_prefix("$ "));
    let commands: Vec<_> = commands
        .filter(|line| line.starts_with("JOB_ON_STOP=finish timeout "))
        .collect();
    assert_eq!(commands.len(), 2, "with supervise, and without");
    for line in commands {
        let site = Site::scripted();
        let start = || {
            let line = line.replace("job-worker", binary().to_str().unwrap());
            let mut command = Command::new("env");
            site.equip(command.args(line.split(' ')));
            site.idle(command)
        };
        let mut worker = start();
        worker.signal(Signal::ALARM);
        worker.exits_with(124);

        let mut worker = start();
        let dir = site.submit("a", steps());
        site.submit("b", json!({ "steps": ["true"] }));
        await_file(&dir.join("up"));
        worker.signal(Signal::ALARM);
        worker.await_stderr("finishing the job first");
        release(&dir);
        site.succeeds("a");
        worker.exits_with(124); // `timeout` has the last word
        assert!(dir.join("next").exists());
        assert!(!read(&dir.join("job.log")).contains("\ntold to stop\n"));
        // the job behind it waits for the next worker
        site.broker.wait_for_queued(WORKER, 1, DEADLINE);
        assert!(!site.drive.path().join("b/job.log").exists());
    }
}

#[test]
fn a_worker_without_a_broker_stops() {
    let site = Site::scripted();
    site.broker.stop_listening();
    let mut worker = site.worker(|_| {});
    worker.await_stderr("trying again until it is back");
    worker.stop();
}

#[test]
fn a_result_that_cannot_be_reported_is_reported_by_the_next_worker() {
    let site = Site::scripted();
    // the drive has as long
    let grace = slowness().to_string();
    let variables = [("JOB_ON_STOP", "finish"), ("JOB_STOP_GRACE", &grace)];
    let mut worker = site.idle_worker(with(&variables));
    let dir = site.begin("a", steps());
    site.broker.stop_listening();
    worker.await_stderr("trying again until it is back");
    worker.sigterm();
    worker.await_stderr("finishing the job first");
    release(&dir);
    worker.exits_with(0);
    site.broker.listen_again();
    answered_without_another_run(&site, &dir);
}

/// The job is over, and nobody knows.
fn answered_without_another_run(site: &Site<Broker>, dir: &Path) {
    assert_eq!(site.broker.queued(WORKER), 1);
    let reported = site.broker.received("jobs/results/a").len();
    let mut worker = site.worker(|_| {});
    let results = site.results("a", reported + 1);
    assert_eq!(verdict(&results[reported]), ("success", "", 0));
    site.broker.wait_for_queued(WORKER, 0, DEADLINE);
    worker.exits_with(0);
    assert_eq!(read(&dir.join("runs")), "x\n");
}

#[test]
fn a_stop_waits_for_the_acknowledgement_as_long_as_the_grace_and_a_second_one_does_not() {
    for grace in ["0.2", "1000"] {
        let site = Site::scripted();
        // no acknowledgement for what a client publishes
        site.broker.set_script(|step: &Step| match step.packet {
            Packet::PubAck { .. } if !step.from_client => Verdict::Drop,
            _ => Verdict::Pass,
        });
        let mut worker = site.idle_worker(with(&[("JOB_STOP_GRACE", grace)]));
        let dir = site.prepare("a", steps());
        release(&dir);
        site.request(json!({ "id": "a", "workDir": dir }));
        site.succeeds("a");
        worker.sigterm();
        if grace == "1000" {
            worker.await_stderr("SIGTERM: stopping");
            worker.insist(Signal::TERM);
        }
        worker.exits_with(0);
        site.broker.set_script(|_: &Step| Verdict::Pass);
        answered_without_another_run(&site, &dir);
    }
}

#[test]
fn a_cancel_that_is_under_way_stays_one() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(with(&[("JOB_STOP_GRACE", "1000")]));
    let step = format!("trap 'touch told' TERM; touch up; {}", until_exists("gate"));
    let last = json!({ "run": "touch last", "always": true });
    let dir = site.begin("a", json!({ "steps": [step, last] }));
    site.broker.publish("jobs/cancel/a", "");
    await_file(&dir.join("told"));
    worker.sigterm();
    worker.await_stderr("SIGTERM: stopping");
    release(&dir);
    let result = site.result("a").json();
    assert_eq!(verdict(&result), ("failed", "cancelled", 130));
    let skipped = &result["steps"][1]["status"];
    assert_eq!(skipped, "skipped", "nothing is still to come");
    worker.exits_with(0);
    assert!(!dir.join("last").exists(), "no further step");
}

#[test]
#[ignore = "needs a PID namespace"]
fn pid_1_runs_a_job_and_stops_idle_and_running() {
    let site = Site::scripted();
    let mut worker = pid_1(&site, &[]);
    let step = "(setsid sleep 1000 &); sleep 1000 & echo $PPID";
    let job = site.submit("first", json!({ "steps": [step] }));
    site.succeeds("first");
    worker.exits_with(0);
    let log = read(&job.join("job.log"));
    let tells = |line: &str| log.contains(line);
    assert!(tells("\n1\n") && tells("running, processes: 2"), "{log}");

    let site = Site::scripted();
    for signal in [Signal::TERM, Signal::INT] {
        let mut worker = pid_1(&site, &[]);
        kill_process(child_of(&worker), signal).unwrap();
        worker.exits_with(0);
    }
    let mut worker = pid_1(&site, &[]);
    let dir = site.begin("a", steps());
    kill_process(child_of(&worker), Signal::TERM).unwrap();
    worker.exits_with(0);
    is_requeued(&site, &dir);
}

/// Its numbers are those of other processes: the worker once took its own for one of the job's.
#[test]
#[ignore = "needs a PID namespace"]
fn the_proc_of_another_namespace_is_not_believed() {
    let site = Site::scripted();
    let mut command = Command::new("unshare");
    command.args([
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        "\"$0\"; exit $?",
    ]);
    site.equip(command.arg(binary()));
    let mut worker = site.idle(command);
    site.submit("a", json!({ "steps": ["(setsid sleep 1000 &)"] }));
    let result = site.result("a").json();
    let warning = result["warning"].as_str().unwrap_or_default();
    assert!(warning.ends_with("still run: 1"), "{result}");
    worker.exits_with(0);
}

#[test]
#[ignore = "needs a PID namespace"]
fn pid_1_reaps_the_orphans_of_others_while_it_waits() {
    let site = Site::scripted();
    let mut worker = pid_1(&site, &[]);
    // as a health check of a container may leave one
    let pid_1 = child_of(&worker);
    let mut enter = Command::new("nsenter");
    enter.args(["--pid", "--target", &pid_1.as_raw_pid().to_string()]);
    enter.args(["sh", "-c", "(readlink /proc/self > orphan &)"]);
    let entered = enter.current_dir(site.drive.path()).status();
    assert!(entered.expect("nsenter comes with unshare").success());
    let orphan = wait::until_some("an orphan", || {
        let pid = fs::read_to_string(site.drive.path().join("orphan")).ok()?;
        pid.trim().parse::<u32>().ok()
    });
    let directory = format!("/proc/{orphan}");
    wait::until("it to be reaped", || !Path::new(&directory).exists());
    kill_process(pid_1, Signal::TERM).unwrap();
    worker.exits_with(0);
}

/// A worker that a shell starts, which has done `first` before.
fn by_a_shell(site: &Site<Broker>, first: &str) -> Command {
    let mut command = Command::new("sh");
    let binary = binary();
    command.args(["-c", &format!("{first}; exec {}", binary.display())]);
    site.equip(&mut command);
    command
}

#[test]
fn a_hangup_that_was_ignored_before_stays_ignored() {
    let site = Site::scripted();
    let mut worker = site.idle(by_a_shell(&site, "trap '' HUP QUIT"));
    let dir = site.hold("a");
    worker.signal(Signal::HUP);
    worker.signal(Signal::QUIT);
    release(&dir);
    site.succeeds("a");
    worker.exits_with(0);
    assert!(!worker.stderr().contains("stopping"));
}

#[test]
fn a_limit_on_the_size_of_files_does_not_end_the_worker() {
    let site = Site::scripted();
    fs::write(site.drive.path().join("log"), [b'-'; 8192]).unwrap();
    let worker = site.idle(by_a_shell(&site, "exec 2>> log; ulimit -f 8"));
    // the step has the signal as it should be
    let step = "dd if=/dev/zero of=large bs=64k count=1; [ $? = 153 ]";
    let job = site.run_on(worker, "a", json!({ "steps": [step] }));
    assert_eq!(job.verdict(), ("success", "", 0));
}

/// Nobody reads the worker's own log: the pipe is full, or its reader has gone, before the worker starts.
#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    let site = Site::scripted();
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[b'-'; 65536]).unwrap(); // all that it holds
    let run = |id: &'static str, stderr: std::io::PipeWriter| {
        let mut command = site.command::<&str>([]);
        command.stderr(stderr);
        let states = site.mark();
        let mut worker = command.spawn().unwrap();
        drop(command); // it holds the pipe
        site.await_idle(states);
        let dir = site.hold(id);
        move |site: &Site<Broker>| {
            release(&dir);
            site.succeeds(id);
            wait::until("the worker to end", || worker.try_wait().unwrap().is_some());
        }
    };
    let mut go_on = run("full", writer.try_clone().unwrap());
    reader.read_exact(&mut [0; 65536]).unwrap();
    drop(writer);
    go_on(&site);
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    assert!(log.contains("job full: success"), "{log}");

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    run("closed", writer)(&site);
}

/// A handler is in place before it knows what to do: a signal of that moment is neither ignored nor fatal, and must not be lost. Nor must
/// one that comes to a supervisor between two workers.
#[test]
#[ignore = "needs strace"]
fn a_stop_at_any_moment_of_the_start_is_heeded() {
    let site = Site::scripted();
    let trace = site.drive.path().join("trace");
    let traced = |arguments: &[&str], command: &[&str]| {
        let mut strace = Command::new("strace");
        strace.arg("-D").args(["-o", &trace.display().to_string()]);
        strace.args(arguments).arg(binary());
        site.equip(strace.args(command));
        strace
    };
    let calls = [
        "clone", "clone3", "vfork", "wait4", "close", "recvfrom", "poll", "ppoll",
    ];
    let cases = [(&[][..], &["rt_sigaction"][..]), (&["supervise"], &calls)];
    for (command, calls) in cases {
        let submit = |id: &str| drop(site.submit(id, json!({ "steps": [] })));
        let is_supervisor = !command.is_empty();
        if is_supervisor {
            submit("first");
        }
        let mut worker = site.idle(traced(&[], command));
        worker.stop();
        let trace_of_all = read(&trace);
        let count = |call: &str| trace_of_all.matches(&format!("\n{call}(")).count();
        let moments = calls.iter().map(|call| (call, 1..=count(call)));
        let moments = moments.flat_map(|(call, all)| all.map(move |moment| (call, moment)));
        let moments: Vec<_> = moments.collect();
        assert!(moments.len() > 10, "{moments:?}");
        for (call, moment) in moments {
            let inject = format!("inject={call}:signal=TERM:when={moment}");
            if is_supervisor {
                submit(&format!("{call}-{moment}"));
            }
            let states = site.mark();
            let _ = fs::remove_file(&trace);
            let mut worker = site.start_as(traced(&["-e", &inject], command));
            wait::until(&inject, || {
                // another time it may have made fewer such calls
                let told = fs::read_to_string(&trace).unwrap_or_default();
                let is_told = told.contains("--- SIGTERM");
                let is_idle = site
                    .states(states)
                    .last()
                    .is_some_and(|state| state == "idle");
                worker.ended().is_some() || is_supervisor && is_idle && !is_told
            });
        }
    }
}

/// As `systemctl restart` of the worker, or `reboot`, would.
#[test]
fn a_job_that_stops_its_own_worker_ends_after_ten_stops() {
    let site = Site::scripted();
    site.idle_worker(|_| {}).stop();
    let step = "echo run >> runs; kill -TERM $PPID; sleep 30";
    let dir = site.submit("a", json!({ "steps": [step], "maxAttempts": 1 }));
    for _ in 0..=10 {
        site.worker(|_| {}).exits_with(0);
    }
    let result = site.result("a").json();
    assert_eq!(verdict(&result), ("failed", "interrupted", 1));
    let error = result["error"].as_str().unwrap_or_default();
    assert!(error.contains("stopped 10 times"), "{error}");
    assert_eq!(read(&dir.join("runs")).lines().count(), 10);
    site.broker.wait_for_queued(WORKER, 0, DEADLINE); // it is free again
}

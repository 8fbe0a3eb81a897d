//! Nothing of a job outlives it, and every exit status is the right one (docs/reference.md,
//! "Steps and their environment").

use crate::support;

use rustix::process::{Pid, Signal, test_kill_process};
use serde_json::json;
use std::fs;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};
use support::broker::{Broker, Packet, Step, Verdict};
use support::log::untimed;
use support::processes::{survivors, zombies_of};
use support::site::{Site, await_file, read, until_exists, verdict};
use support::wait;
use support::worker::{Worker, with, without};

const PLAIN: &str = "sleep 1000 &";
const SETSID: &str = "setsid sleep 1000 &";
const DOUBLE_FORK: &str = "(setsid sh -c 'sleep 1000 & sleep 1000' &)";
const NOHUP: &str = "nohup sleep 1000 > /dev/null 2>&1 &";
const IMMUNE: &str = "(setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep 0.02; done' &)";
const BOMB: &str = "bomb() { n=$1; if [ $n -gt 0 ]; then bomb $((n - 1)) & bomb $((n - 1)) & fi; sleep 1000; }; bomb 7 &";

/// Every `n`th process of the bomb is 2^8 - 1 shells, each with a sleep.
const KINDS: [&str; 6] = [PLAIN, SETSID, DOUBLE_FORK, NOHUP, IMMUNE, BOMB];

/// Runs a job of these steps, and counts what is alive when its result arrives at the broker.
#[track_caller]
fn alive_at_the_result(steps: serde_json::Value, wanted: (&str, &str, i64)) {
    let site = Site::scripted();
    let mark = site.label();
    let (sender, counts) = mpsc::channel();
    site.broker.set_script(move |step: &Step| {
        if let Packet::Publish { topic, .. } = step.packet
            && topic.starts_with("jobs/results/")
        {
            sender.send(survivors(&mark).len()).unwrap();
        }
        Verdict::Pass
    });
    let finished = site.run("a", json!({ "steps": steps }));
    assert_eq!(finished.verdict(), wanted, "{}", finished.log);
    assert_eq!(
        counts.try_recv(),
        Ok(0),
        "processes were alive when the result came"
    );
    let before_last = finished.log.lines().rev().nth(1).unwrap();
    assert!(
        untimed(before_last).starts_with("==> killed "),
        "{}",
        finished.log
    );
}

#[test]
fn nothing_is_alive_when_a_result_arrives() {
    for kind in KINDS {
        alive_at_the_result(json!([kind, "true"]), ("success", "", 0));
        alive_at_the_result(json!([format!("{kind}\nexit 3")]), ("failed", "step", 3));
    }
}

#[test]
fn who_forks_and_exits_all_the_time_is_caught() {
    // in a group of its own, and in a session of its own each time: no signal to a group reaches the next one
    // (it goes by itself when the directory of a test that has failed is removed)
    let scripts = ["if (fork) { exit }", "if (fork) { exit } setsid"];
    for script in scripts {
        let step = format!(
            "perl -MPOSIX=setsid -e 'open(F, \">>hops\"); while (-e \"hops\") {{ {script}; syswrite(F, \"x\") }}' &"
        );
        alive_at_the_result(
            json!([step, "until [ -s hops ]; do sleep 0.02; done"]),
            ("success", "", 0),
        );
    }
}

/// The process of another user, which this worker may not kill.
#[test]
#[ignore = "needs root to become another user"]
fn what_cannot_be_killed_is_told_after_one_try() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|command| {
        command.env("JOB_STOP_GRACE", "0.1");
        without("-kill", command);
    });
    let other = "setpriv --reuid=65534 --clear-groups sleep 1000 & touch up; exec sleep 1000";
    let dir = site.submit("a", json!({ "steps": [other] }));
    await_file(&dir.join("up"));
    site.broker.publish("jobs/cancel/a", "");
    let result = site.result("a").json();
    assert_eq!(verdict(&result), ("failed", "cancelled", 130));
    let warning = result["warning"].as_str().unwrap_or_default();
    assert!(
        warning.ends_with("could not be killed still run: 1"),
        "{result}"
    );
    worker.exits_with(0);
    let said = worker.stderr();
    assert_eq!(said.matches("cannot be killed").count(), 1, "{said}");
    let log = read(&dir.join("job.log"));
    assert!(log.contains(&format!("warning: {warning}\n")), "{log}");
}

#[test]
fn a_step_may_leave_something_running_for_the_next() {
    let site = Site::scripted();
    let finished = site.run(
        "a",
        json!({ "steps": ["(setsid sleep 1000 & echo $! > pid); sleep 1000 & echo $! >> pid",
        "for pid in $(cat pid); do kill -0 $pid || exit 1; done"] }),
    );
    assert_eq!(finished.verdict(), ("success", "", 0), "{}", finished.log);
    site.nothing_survives();
}

#[test]
fn zombies_are_reaped_while_a_long_step_runs() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|_| {});
    let step = format!(
        "for i in 1 2 3 4 5 6 7 8; do (true &); (setsid true &); done; touch up; {}",
        until_exists("gate")
    );
    let dir = site.submit("a", json!({ "steps": [step] }));
    await_file(&dir.join("up"));
    wait::until("no zombie to be left", || zombies_of(worker.pid()) == 0);
    fs::write(dir.join("gate"), "").unwrap();
    assert_eq!(verdict(&site.result("a").json()), ("success", "", 0));
    worker.exits_with(0);
}

#[test]
fn no_exit_status_is_stolen() {
    let site = Site::scripted();
    let steps: Vec<_> = (0..120)
        .map(|code| json!({ "run": format!("(true &); (false &); setsid sh -c 'exit 9' & exit {code}"), "always": true }))
        .collect();
    let finished = site.run("a", json!({ "steps": steps }));
    let codes: Vec<_> = finished.result["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["exitCode"].as_i64())
        .collect();
    assert_eq!(codes, (0..120).map(Some).collect::<Vec<_>>());
    assert_eq!(finished.verdict(), ("failed", "step", 1));
}

#[test]
fn a_step_that_kills_its_own_group_has_failed() {
    let site = Site::scripted();
    let finished = site.run(
        "a",
        json!({ "steps": ["sleep 1000 & kill -9 0; sleep 1000", "touch next"] }),
    );
    assert_eq!(finished.verdict(), ("failed", "step", 137));
    assert_eq!(finished.result["steps"][0]["signal"], "SIGKILL");
    site.nothing_survives();
}

#[test]
fn a_step_that_cannot_be_started_says_why() {
    let site = Site::scripted();
    // more than the kernel takes as one argument
    let steps = json!(["touch first", "#".repeat(300_000), "touch next", { "run": "touch last", "always": true }]);
    let finished = site.run("long", json!({ "steps": steps }));
    assert_eq!(finished.result["status"], "failed");
    let error = finished.result["error"].as_str().unwrap();
    assert!(error.contains("step 2/4"), "{error}");
    let exists = |file: &str| finished.dir.join(file).exists();
    assert_eq!(
        [exists("first"), exists("next"), exists("last")],
        [true, false, true]
    );

    let env = json!({ "LONG": "x".repeat(300_000) });
    let finished = site.run("env", json!({ "steps": ["true"], "env": env }));
    assert_eq!(finished.result["status"], "failed");
}

#[test]
fn a_shell_that_vanishes_fails_the_step() {
    let site = Site::scripted();
    let shell = site.drive.path().join("shell");
    fs::copy("/bin/sh", &shell).unwrap();
    let finished = site.run_on(
        site.idle_worker(|worker| _ = worker.env("JOB_SHELL", &shell)),
        "a",
        json!({ "steps": [format!("rm {}", shell.display()), "true"] }),
    );
    assert_eq!(finished.result["status"], "failed");
    assert!(
        finished.result["error"]
            .as_str()
            .unwrap()
            .contains("could not be started"),
        "{}",
        finished.result
    );
}

/// The binary, started by a shell that had a child already and became it: as a log writer or a companion is started.
fn with_companion(site: &Site<Broker>, arguments: &str) -> (Worker, Pid) {
    let mut command = Command::new("sh");
    let binary = support::worker::binary();
    command.args([
        "-c",
        &format!(
            "sleep 1000 & echo $! > companion; exec {} {arguments}",
            binary.display()
        ),
    ]);
    site.equip(&mut command);
    command.env("JOB_STOP_GRACE", "1000");
    let states = site.mark();
    let process = site.start_as(command);
    site.await_idle(states);
    let pid = read(&site.drive.path().join("companion"))
        .trim()
        .parse()
        .unwrap();
    (process, Pid::from_raw(pid).unwrap())
}

#[test]
fn who_was_there_before_is_no_part_of_a_job() {
    let site = Site::scripted();
    let (mut worker, companion) = with_companion(&site, "");
    // its end would be waited for, for the whole grace, if it counted
    let steps = json!(["(setsid sleep 1000 &)", { "run": "sleep 1000", "timeoutSeconds": 0.1 }]);
    site.submit("a", json!({ "steps": steps }));
    assert_eq!(
        verdict(&site.result("a").json()),
        ("failed", "timeout", 124)
    );
    worker.exits_with(0);
    site.nothing_survives();
    test_kill_process(companion).expect("the companion is alive");

    let (mut supervisor, companion) = with_companion(&site, "supervise");
    for id in ["b", "c"] {
        site.submit(id, json!({ "steps": ["(setsid sleep 1000 &)"] }));
        assert_eq!(verdict(&site.result(id).json()), ("success", "", 0));
    }
    supervisor.stop();
    site.nothing_survives();
    test_kill_process(companion).expect("the companion is alive");
}

/// A step that starts `chains` of processes, each of which ignores TERM, forks and exits all the time. They end by
/// themselves when the directory of the test is gone, or after a minute.
fn starving(chains: u32) -> String {
    let chain =
        "$SIG{TERM} = q(IGNORE); while (-e q(chains) && time < $^T + 60) { if (fork) { exit } }";
    format!(
        "trap '' TERM; touch chains; for i in $(seq {chains}); do perl -e '{chain}' & done; touch up; while :; do sleep 0.1; done"
    )
}

/// One storm of processes at a time, so that none starves the other.
static STORM: Mutex<()> = Mutex::new(());

fn only_storm() -> MutexGuard<'static, ()> {
    STORM.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Half a second is promised, where nothing else uses the machine. Starved, it took as long as the chains went on.
const NOT_STARVED: Duration = Duration::from_secs(8);

#[test]
fn who_forks_and_exits_all_the_time_delays_no_timeout() {
    let _alone = only_storm();
    let site = Site::scripted();
    let step = json!({ "run": starving(100), "timeoutSeconds": 0.5 });
    let worker = site.idle_worker(with(&[("JOB_STOP_GRACE", "0.5")]));
    let finished = site.run_on(worker, "a", json!({ "steps": [step] }));
    site.nothing_survives();
    assert_eq!(finished.verdict(), ("failed", "timeout", 124));
    let took = Duration::from_millis(finished.result["durationMs"].as_u64().unwrap());
    assert!(took < NOT_STARVED, "{took:?}");
}

#[test]
fn who_forks_and_exits_all_the_time_delays_no_cancel_and_no_stop() {
    let _alone = only_storm();
    let site = Site::scripted();
    for (id, grace) in [("cancel", "0.5"), ("stop", "0.5"), ("second", "1000")] {
        let mut worker = site.idle_worker(with(&[("JOB_STOP_GRACE", grace)]));
        let dir = site.submit(id, json!({ "steps": [starving(50)] }));
        await_file(&dir.join("up"));
        let asked = Instant::now();
        match id {
            "cancel" => site.broker.publish(&format!("jobs/cancel/{id}"), ""),
            "stop" => worker.signal(Signal::TERM),
            _ => {
                worker.signal(Signal::TERM);
                worker.await_stderr("SIGTERM: stopping");
                worker.insist(Signal::TERM);
            }
        }
        worker.exits_with(0);
        let took = asked.elapsed();
        assert!(took < NOT_STARVED, "{id}: {took:?}");
        site.nothing_survives();
        fs::remove_dir_all(dir).unwrap(); // the request that was given back is rejected by the next worker
    }
}

#[test]
fn who_forks_and_exits_all_the_time_delays_no_sweep_of_a_supervisor() {
    let _alone = only_storm();
    let site = Site::scripted();
    let mut supervisor = site.start_as(site.command(["supervise"]));
    site.await_idle(0);
    let step = format!("echo $PPID > worker; {}", starving(50));
    let dir = site.submit("a", json!({ "steps": [step], "maxAttempts": 1 }));
    await_file(&dir.join("up"));
    let worker = read(&dir.join("worker")).trim().parse().unwrap();
    let asked = Instant::now();
    rustix::process::kill_process(Pid::from_raw(worker).unwrap(), Signal::KILL).unwrap();
    supervisor.await_stderr("status 137");
    let took = asked.elapsed();
    assert!(took < NOT_STARVED, "{took:?}");
    site.nothing_survives();
    supervisor.signal(Signal::TERM);
    supervisor.wait(); // with 137, unless the next worker is there already
}

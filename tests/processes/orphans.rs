//! Nothing of a job outlives it, and every exit status is the right one (docs/reference.md,
//! "Steps and their environment").

use crate::support::broker::{Broker, Packet, Step, Verdict};
use crate::support::log::untimed;
use crate::support::processes::{children, survivors};
use crate::support::site::{Site, await_file, read, verdict};
use crate::support::wait;
use crate::support::worker::{Worker, apart, binary, without};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{RwLock, mpsc};

/// The last ones fork and exit all the time, in a group of their own, and in a session of its own each: no signal to a group reaches
/// the next one. They go by themselves when the directory of a test that has failed is removed.
const KINDS: [&str; 8] = [
    "sleep 1000 &",
    "setsid sleep 1000 &",
    "(setsid sh -c 'sleep 1000 & sleep 1000' &)",
    "nohup sleep 1000 > /dev/null 2>&1 &",
    "(setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep 0.02; done' &)",
    "bomb() { n=$1; if [ $n -gt 0 ]; then bomb $((n - 1)) & bomb $((n - 1)) & fi; sleep 1000; }; bomb 7 &", // 2^8 - 1 shells
    "perl -e 'open(F, q(>>hops)); while (-e q(hops)) { if (fork) { exit } syswrite(F, q(x)) }' &
     until [ -s hops ]; do sleep 0.02; done",
    "perl -MPOSIX=setsid -e 'open(F, q(>>hops)); while (-e q(hops)) { if (fork) { exit } setsid; syswrite(F, q(x)) }' &
     until [ -s hops ]; do sleep 0.02; done",
];

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
    assert_eq!(counts.try_recv(), Ok(0), "alive when the result came");
    let before_last = untimed(finished.log.lines().rev().nth(1).unwrap());
    assert!(before_last.starts_with("==> killed "), "{before_last}");
}

#[test]
fn nothing_is_alive_when_a_result_arrives() {
    for kind in KINDS {
        alive_at_the_result(json!([kind, "true"]), ("success", "", 0));
        alive_at_the_result(json!([format!("{kind}\nexit 3")]), ("failed", "step", 3));
    }
}

#[test]
#[ignore = "needs root to become another user"]
fn what_cannot_be_killed_is_told_after_one_try() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|command| {
        command.env("JOB_STOP_GRACE", "0.1");
        without("-kill", command);
    });
    let other = "setpriv --reuid=65534 --clear-groups sleep 1000 & \
                 until [ $(stat -c %u /proc/$!) = 65534 ]; do sleep 0.02; done; touch up; exec sleep 1000";
    let dir = site.begin("a", json!({ "steps": [other] }));
    site.broker.publish("jobs/cancel/a", "");
    let result = site.result("a").json();
    assert_eq!(verdict(&result), ("failed", "cancelled", 130));
    let warning = result["warning"].as_str().unwrap_or_default();
    let is_told = warning.ends_with("could not be killed still run: 1");
    assert!(is_told, "{result}");
    worker.exits_with(0);
    let said = worker.stderr();
    assert_eq!(said.matches("cannot be killed").count(), 1, "{said}");
    let log = read(&dir.join("job.log"));
    assert!(log.contains(&format!("warning: {warning}\n")), "{log}");
}

#[test]
fn every_exit_status_is_the_right_one_and_nothing_is_left() {
    let site = Site::scripted();
    let shell = site.drive.path().join("shell");
    fs::copy("/bin/sh", &shell).unwrap();
    let always = |run: String| json!({ "run": run, "always": true });
    let orphans = |code| format!("(true &); (false &); setsid sh -c 'exit 9' & exit {code}");
    let many: Vec<_> = (0..120).map(|code| always(orphans(code))).collect();
    let codes: Vec<_> = (0..120).collect();
    // more than the kernel takes as one argument
    let long = "#".repeat(300_000);
    let cases = json!([
        { "job": { "steps": many }, "ends": ["failed", "step", 1], "codes": codes },
        // a step may leave something running for the next
        { "job": { "steps": ["(setsid sleep 1000 & echo $! > pid); sleep 1000 & echo $! >> pid",
            "for pid in $(cat pid); do kill -0 $pid || exit 1; done"] }, "ends": ["success", "", 0] },
        // zombies are reaped while it runs
        { "job": { "steps": ["for i in 1 2 3 4 5 6 7 8; do (true &); (setsid true &); done
            while ps -o stat= --ppid $PPID | grep -q Z; do sleep 0.02; done"] }, "ends": ["success", "", 0] },
        // one that kills its own group has failed
        { "job": { "steps": ["sleep 1000 & kill -9 0; sleep 1000", "true"] }, "ends": ["failed", "step", 137],
            "codes": [137, null] },
        // what cannot be started says why
        { "job": { "steps": ["true", long, "true", always("true".into())] }, "ends": ["failed", "internal", 1],
            "codes": [0, null, null, 0], "error": "step 2/4" },
        { "job": { "steps": ["true"], "env": { "LONG": long } }, "ends": ["failed", "internal", 1] },
        { "job": { "steps": [format!("rm {}", shell.display()), "true"] }, "env": { "JOB_SHELL": shell },
            "ends": ["failed", "internal", 1], "error": "could not be started" },
    ]);
    site.jobs(&cases);
}

/// The binary, started by a shell that had a child already and became it: as a log writer or a companion is started. Another
/// companion has left a daemon by the time at which it waits for a job.
fn with_companions(site: &Site<Broker>, arguments: &str) -> (Worker, [Pid; 2]) {
    let mut command = Command::new("sh");
    let binary = binary().display().to_string();
    let script = format!(
        "sleep 1000 & echo $! > companion; rm -f late; \
         (until [ -e late ]; do sleep 0.02; done; sleep 1000 & echo $! > daemon) & exec {binary} {arguments}"
    );
    site.equip(command.args(["-c", &script]));
    command.env("JOB_STOP_GRACE", "1000");
    let states = site.mark();
    let process = site.start_as(command);
    site.await_idle(states);
    let [companion, late, daemon] =
        ["companion", "late", "daemon"].map(|name| site.drive.path().join(name));
    fs::write(late, "").unwrap();
    wait::until("the daemon to be an orphan", || {
        let daemon = fs::read_to_string(&daemon).unwrap_or_default();
        children(process.pid())
            .iter()
            .any(|pid| daemon == format!("{pid}\n"))
    });
    let companions = [companion, daemon].map(|file| pid_in(&file));
    (process, companions)
}

fn pid_in(file: &Path) -> Pid {
    Pid::from_raw(read(file).trim().parse().unwrap()).unwrap()
}

#[test]
fn who_was_there_before_is_no_part_of_a_job() {
    let site = Site::scripted();
    // its end would be waited for, for the whole grace, if it counted
    let timeout = json!({ "run": "sleep 1000", "timeoutSeconds": 0.1 });
    for (step, code) in [(json!("(setsid sleep 1000 &)"), 0), (timeout, 124)] {
        let (worker, companions) = with_companions(&site, "");
        let job = site.run_on(worker, "a", json!({ "steps": [step] }));
        assert_eq!(job.result["exitCode"], code);
        site.nothing_survives();
        assert!(companions.iter().all(|pid| test_kill_process(*pid).is_ok()));
    }

    let (mut supervisor, companions) = with_companions(&site, "supervise");
    for id in ["b", "c"] {
        site.submit(id, json!({ "steps": ["(setsid sleep 1000 &)"] }));
        site.succeeds(id);
    }
    supervisor.stop();
    site.nothing_survives();
    assert!(companions.iter().all(|pid| test_kill_process(*pid).is_ok()));
}

/// A step that starts `chains` of processes, each of which ignores TERM, forks and exits all the time. They end by
/// themselves when the directory of the test is gone, or after a minute.
fn starving(chains: u32) -> String {
    let chain =
        "$SIG{TERM} = q(IGNORE); while (-e q(chains) && time < $^T + 60) { if (fork) { exit } }";
    format!(
        "trap '' TERM; echo $PPID > worker; touch chains; for i in $(seq {chains}); do perl -e '{chain}' & done; \
         touch up; while :; do sleep 0.1; done"
    )
}

/// Held by a storm of processes, and shared by who must be found by a look at all processes within a second.
pub static STORM: RwLock<()> = RwLock::new(());

#[test]
fn who_forks_and_exits_all_the_time_delays_no_end() {
    let _alone = STORM.write().unwrap();
    let site = Site::scripted();
    for (id, grace) in [
        ("timeout", "0.5"),
        ("cancel", "0.5"),
        ("stop", "0.5"),
        ("second", "1000"),
        ("sweep", "0.5"),
    ] {
        let is_supervised = id == "sweep";
        let mut command = site.command(is_supervised.then_some("supervise"));
        command.env("JOB_STOP_GRACE", grace);
        apart(&mut command);
        let mut process = site.idle(command);
        let limit = (id == "timeout").then_some(0.5);
        let step = json!({ "run": starving(if id == "timeout" { 100 } else { 50 }), "timeoutSeconds": limit });
        let dir = site.submit(id, json!({ "steps": [step], "maxAttempts": 1 }));
        if limit.is_none() {
            await_file(&dir.join("up"));
        }
        match id {
            "timeout" => _ = site.result(id),
            "cancel" => site.broker.publish(&format!("jobs/cancel/{id}"), ""),
            "stop" => process.sigterm(),
            "second" => {
                process.sigterm();
                process.await_stderr("SIGTERM: stopping");
                process.insist(Signal::TERM);
            }
            _ => {
                kill_process(pid_in(&dir.join("worker")), Signal::KILL).unwrap();
                process.await_stderr("status 137");
            }
        }
        if !is_supervised {
            process.exits_with(0);
        }
        assert!(!process.stderr().contains("cannot be killed"), "{id}");
        site.nothing_survives();
        if is_supervised {
            process.sigterm();
            process.wait(); // with 137, unless the next worker is there already
        }
        fs::remove_dir_all(dir).unwrap(); // the request that was given back is rejected by the next worker
    }
}

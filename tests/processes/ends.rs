//! Why a job ends, by which of its processes ignore TERM: all are told, what is left after the grace is killed, and nothing of
//! the job is there when it is over.

use crate::stop::is_requeued;
use crate::support::broker::slowness;
use crate::support::cases::try_all;
use crate::support::site::{Site, WORKER, read, read_json, verdict};
use crate::support::wait::DEADLINE;
use crate::support::worker::{speaking, with};
use serde_json::json;
use std::process::Command;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Why {
    /// A stop by this signal: the job is given back.
    Stop(&'static str),
    /// A stop, and another one more than a second later, with this `JOB_ON_STOP`.
    SecondStop(&'static str),
    /// A cancel, over this version of MQTT.
    Cancel(&'static str),
    StepTimeout,
    JobTimeout,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    Nobody,
    TheStep,
    ADaemon,
}

const ON: &str = "while :; do sleep 0.02; done";

/// A worker, or `job-worker supervise` with one.
fn ends(command: Option<&str>, why: Why, ignores: Who) {
    let site = Site::scripted();
    let grace = match (why, ignores) {
        (Why::SecondStop(_), _) => "1000",
        (_, Who::Nobody) => "30",
        (Why::JobTimeout, _) => "0",
        _ => "0.2",
    };
    let mut command = site.command(command);
    match why {
        Why::Cancel(version) => speaking(version)(&mut command),
        Why::SecondStop(on_stop) => with(&[("JOB_ON_STOP", on_stop)])(&mut command),
        _ => {}
    }
    command.env("JOB_STOP_GRACE", grace);
    let mut worker = site.idle(command);
    let run = match ignores {
        Who::Nobody => format!("trap 'echo told to stop; exit 0' TERM; touch up; {ON}"),
        Who::TheStep => format!("trap '' TERM; ({ON}) & touch up; {ON}"),
        Who::ADaemon => {
            format!(r#"(setsid sh -c "trap '' TERM HUP; touch up; {ON}" &); exec sleep 1000"#)
        }
    };
    // it has made `up` by then
    let time = slowness().ceil();
    let limit = |of: Why| (why == of).then_some(time);
    let step = json!({ "run": format!("echo x >> runs; [ -e gate ] && exit; {run}"),
        "timeoutSeconds": limit(Why::StepTimeout) });
    let steps = json!(["true", step, "touch next", { "run": "touch last", "always": true }]);
    let definition = json!({ "steps": steps, "timeoutSeconds": limit(Why::JobTimeout) });
    let dir = site.begin("a", definition);
    let signal = |name: &str| {
        let kill = format!("kill -s {name} {}", worker.pid());
        let sent = Command::new("bash").args(["-c", &kill]).status();
        assert!(sent.unwrap().success());
    };
    match why {
        Why::Stop(name) => signal(name),
        Why::SecondStop(_) => {
            signal("TERM");
            worker.await_stderr("SIGTERM: stopping");
            worker.insist(rustix::process::Signal::INT);
        }
        Why::Cancel(_) => site.broker.publish("jobs/cancel/a", r#"{"whatever": 1}"#),
        Why::StepTimeout | Why::JobTimeout => {}
    }
    let is_stop = matches!(why, Why::Stop(_) | Why::SecondStop(_));
    if is_stop {
        worker.exits_with(0);
    } else {
        let result = site.result("a").json();
        site.nothing_survives();
        let (reason, code, said) = match why {
            Why::Cancel(_) => ("cancelled", 130, "cancelled"),
            _ => ("timeout", 124, &*format!("timed out after {time}s")),
        };
        assert_eq!(verdict(&result), ("failed", reason, code), "{result}");
        let error = result["error"].as_str().unwrap_or_default();
        assert!(error.contains(said), "{error}");
        let steps = &result["steps"];
        assert_eq!(steps[1]["exitCode"], code, "also where it says 0 on TERM");
        let is_killed = steps[1]["signal"] == "SIGKILL";
        assert_eq!(is_killed, ignores == Who::TheStep, "{result}");
        assert_eq!(steps[2]["status"], "skipped");
        let ran = ["next", "last"].map(|file| dir.join(file).exists());
        assert_eq!(ran, [false, true]);
        worker.exits_with(0);
        assert_eq!(read_json(&dir.join("job.status.json")), result);
        site.broker.wait_for_queued(WORKER, 0, DEADLINE);
    }
    let log = read(&dir.join("job.log"));
    let told = log.contains("\ntold to stop\n");
    let may_be_deaf = ignores != Who::Nobody || matches!(why, Why::SecondStop(_));
    assert!(told || may_be_deaf, "{log}");
    assert!(ignores == Who::Nobody || log.contains("killed "), "{log}");
    if is_stop {
        is_requeued(&site, &dir);
    }
}

#[test]
fn a_job_that_is_ended_leaves_nothing_whichever_process_ignores_term() {
    let mut cases = Vec::new();
    for ignores in [Who::Nobody, Who::TheStep, Who::ADaemon] {
        let why = [
            Why::Stop("TERM"),
            Why::SecondStop("requeue"),
            Why::Cancel("5"),
            Why::StepTimeout,
            Why::JobTimeout,
        ];
        cases.extend(why.map(|why| (None, why, ignores)));
    }
    for why in [Why::Cancel("4"), Why::SecondStop("finish")] {
        cases.push((None, why, Who::Nobody));
    }
    let supervised = [
        (Why::Stop("INT"), Who::Nobody),
        (Why::Stop("TERM"), Who::ADaemon),
        (Why::SecondStop("requeue"), Who::TheStep),
    ];
    cases.extend(supervised.map(|(why, ignores)| (Some("supervise"), why, ignores)));
    // RTMIN+3 is the stop signal of images that are made for systemd
    let signals = ["INT", "HUP", "QUIT", "USR1", "USR2", "PWR", "RTMIN+3"];
    cases.extend(signals.map(|name| (None, Why::Stop(name), Who::Nobody)));
    try_all(6, &cases, |&(command, why, ignores)| {
        ends(command, why, ignores)
    });
}

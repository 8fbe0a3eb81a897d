//! docs/reference.md, "Topics", `jobs/status/{id}`: the status document at each change, a courtesy that never delays
//! a job.

use crate::support::broker::{Packet, Verdict};
use crate::support::site::{Site, await_final, read, until_exists};
use crate::support::wait::{self, DEADLINE};
use crate::support::worker::with;
use serde_json::{Value, json};
use std::fs;
use std::sync::mpsc;
use std::time::Instant;

#[test]
fn a_document_at_the_start_and_at_each_change() {
    let site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    let held = |step: u8| until_exists(&format!("gate-{step}"));
    let steps = json!([held(0), { "run": held(1) + "; exit 3", "name": "bad" }, "true", { "run": held(3), "always": true }]);
    let dir = site.submit("a", json!({ "steps": steps }));
    let expected = [
        (0, ["running", "pending", "pending", "pending"]),
        (1, ["success", "running", "pending", "pending"]),
        (3, ["success", "failed", "skipped", "running"]),
    ];
    for (count, (step, _)) in (1..).zip(&expected) {
        let last = wait::until_some(&format!("document {count}"), || {
            let mut told = site.controller.heard("jobs/status/");
            told.pop().filter(|_| told.len() == count - 1)
        });
        let on_disk = read(&dir.join("job.status.json"));
        assert_eq!(last.text(), on_disk, "it is told while the step runs");
        fs::write(dir.join(format!("gate-{step}")), "").unwrap();
    }
    worker.exits_with(0);
    let messages = site.controller.heard("jobs/status/");
    assert_eq!(messages.len(), expected.len());
    for (message, (step, states)) in messages.iter().zip(expected) {
        let told = (message.topic.as_str(), message.qos, message.retain);
        assert_eq!(told, ("jobs/status/a", 0, false));
        let document = message.json();
        let steps = document["steps"].as_array().unwrap();
        let said: Vec<_> = steps.iter().map(|step| step["status"].clone()).collect();
        assert_eq!(said, states);
        assert_eq!(steps[1]["exitCode"] == 3, step == 3);
        for (field, value) in [
            ("status", json!("running")),
            ("exitCode", Value::Null),
            ("logFile", json!(dir.join("job.log"))),
            ("attempt", json!(1)),
            ("finishedAt", Value::Null),
        ] {
            assert_eq!(document[field], value, "{document}");
        }
        assert!(document["startedAt"].is_string());
    }
}

/// The job says more than the buffers on the way to the broker hold.
#[test]
fn a_job_goes_on_and_a_worker_can_be_stopped_while_the_broker_does_not_read() {
    for stops in [false, true] {
        let site = Site::scripted();
        let mut worker = site.idle_worker(with(&[("JOB_STOP_GRACE", "1")]));
        // it stops reading at the first progress, until something is sent to it
        let (resume, stalled) = mpsc::channel::<()>();
        let mut stalled = Some(stalled);
        site.broker.set_script(move |step| {
            if let Packet::Publish { topic, .. } = step.packet
                && step.from_client
                && topic.starts_with("jobs/status/")
                && let Some(stalled) = stalled.take()
            {
                let _ = stalled.recv_timeout(6 * DEADLINE); // the test is over
            }
            Verdict::Pass
        });
        let step = |number: u8| json!({ "run": ":", "name": format!("{number:0400}") });
        let steps: Vec<_> = (0..160).map(step).collect();
        let dir = site.submit("a", json!({ "steps": steps }));
        // without a word to the broker: it does not answer now
        await_final(&dir);
        if stops {
            worker.stop();
            resume.send(()).unwrap();
        } else {
            resume.send(()).unwrap();
            worker.exits_with(0);
            assert_eq!(site.broker.received("jobs/results/a").len(), 1);
        }
    }
}

#[test]
fn many_short_steps_are_told_of_together() {
    let site = Site::start();
    let steps: Vec<_> = (0..120).map(|_| ":").collect();
    let worker = site.idle_worker(|_| {});
    let started = Instant::now();
    let finished = site.run_on(worker, "a", json!({ "steps": steps }));
    let tenths = started.elapsed().as_millis() / 100;
    let told = site.controller.heard("jobs/status/").len() as u128;
    let is_right = (1..=tenths + 1).contains(&told);
    assert!(is_right, "{told} in {tenths} tenths of a second");
    let (stored, published) = (finished.read("job.status.json"), finished.published.text());
    assert_eq!(stored, published, "it is on the drive without delay");
}

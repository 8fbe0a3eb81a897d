//! One job per process, whatever else comes in, and whatever the job does to its worker.

use crate::support;

use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;
use support::controller::{Controller, Message};
use support::mosquitto::Mosquitto;
use support::site::{Site, read, while_exists};
use support::wait;

fn speaking(version: &str) -> impl Fn(&mut Command) {
    let version = version.to_owned();
    move |command| {
        command.env("MQTT_PROTOCOL_VERSION", &version);
    }
}

fn count(dir: &Path, file: &str) -> usize {
    fs::read_to_string(dir.join(file)).map_or(0, |text| text.lines().count())
}

/// The most memory that a process has ever had, in KiB.
fn peak_memory(pid: u32) -> u64 {
    let status = read(Path::new(&format!("/proc/{pid}/status")));
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("a peak");
    peak.trim().trim_end_matches(" kB").parse().expect("KiB")
}

fn requests_at_qos_0_in_mid_job_are_rejected_at_once_and_not_kept(version: &str) {
    const FLOOD: usize = 2000;
    let broker = Mosquitto::start();
    // the flood itself is not worth hearing
    let controller = Controller::hearing("jobs/+/+", &broker, "controller");
    let site = Site::with(broker, controller);
    let rejections = Controller::hearing("jobs/rejected", &site.broker, "rejections");
    let mut worker = site.idle_worker(speaking(version));
    let step = format!("echo run >> runs; {}", while_exists("hold"));
    let dir = site.prepare("held", json!({ "steps": [step] }));
    fs::write(dir.join("hold"), "").unwrap();
    site.request(json!({ "id": "held", "workDir": dir }));
    wait::until("the job to run", || count(&dir, "runs") == 1);

    // one for the job that runs: its id must not get a result that is not its own
    let same = json!({ "id": "held", "workDir": dir, "steps": ["echo run >> runs"] });
    site.controller
        .publish_at_qos_0("jobs/pending", same.to_string());
    let rejected: Message = rejections.next("jobs/rejected");
    assert_eq!(rejected.json()["payload"], same.to_string());
    let error = rejected.json()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("QoS 0"), "{error}");

    let before = peak_memory(worker.pid());
    let other = site.directory("other");
    let padding = "x".repeat(100_000);
    for number in 0..FLOOD {
        let request = json!({
            "id": format!("flood-{number}"), "workDir": other, "steps": ["echo run >> runs"], "padding": padding,
        });
        site.controller
            .publish_at_qos_0("jobs/pending", request.to_string());
    }
    wait::until("the worker to have read all that", || {
        let request = json!({ "id": "marker", "workDir": other }).to_string();
        site.controller.publish_at_qos_0("jobs/pending", request);
        thread::sleep(Duration::from_millis(100));
        !site.controller.heard("jobs/results/marker").is_empty()
    });
    let after = peak_memory(worker.pid());
    assert!(
        after < before + 16 * 1024,
        "the peak grew from {before} to {after} KiB"
    );
    let next = site.submit("next", json!({ "steps": ["echo run >> runs"] }));
    fs::remove_file(dir.join("hold")).unwrap();
    assert_eq!(site.result("held").json()["status"], "success");
    worker.exits_with(0);
    for id in ["flood-", "marker"] {
        for result in site.controller.heard(&format!("jobs/results/{id}")) {
            assert_eq!(result.json()["reason"], "rejected", "{}", result.text());
        }
    }
    assert_eq!(site.controller.heard("jobs/results/held").len(), 1);
    assert_eq!((count(&dir, "runs"), count(&other, "runs")), (1, 0));

    // what came at QoS 1 is left to the next process
    assert_eq!(count(&next, "runs"), 0);
    let finished = site.finish(site.worker(speaking(version)), next, "next");
    assert_eq!(finished.result["status"], "success");
    assert_eq!(count(&finished.dir, "runs"), 1);
}

/// As `systemctl restart` of the worker, or `reboot`, would.
fn a_job_that_stops_its_own_worker_ends_after_ten_stops(version: &str) {
    const STOPS: usize = 10;
    let site = Site::start();
    site.open_queue(speaking(version));
    let step = "echo run >> runs; kill -TERM $PPID; sleep 30";
    let dir = site.submit("suicidal", json!({ "steps": [step], "maxAttempts": 1 }));
    let mut lives = 0;
    wait::until("an end of it", || {
        lives += 1;
        assert!(lives <= STOPS + 1, "{lives} processes, and no end");
        site.worker(speaking(version)).exits_with(0);
        !site.controller.heard("jobs/results/").is_empty()
    });
    let result = site.result("suicidal").json();
    assert_eq!(
        (&result["status"], &result["reason"]),
        (&json!("failed"), &json!("interrupted"))
    );
    let error = result["error"].as_str().unwrap_or_default();
    assert!(error.contains("stopped 10 times"), "{error}");
    assert_eq!(count(&dir, "runs"), STOPS);
    // the queue is free again
    let next = site.idle_worker(speaking(version));
    let finished = site.run_on(next, "next", json!({ "steps": ["true"] }));
    assert_eq!(finished.result["status"], "success");
}

fn a_message_on_an_old_topic_ends_both_old_subscriptions(version: &str) {
    for first in ["old/pending", "old/cancel/any"] {
        let site = Site::start();
        let below = |root: &'static str| {
            let speak = speaking(version);
            move |command: &mut Command| {
                speak(command);
                command.env("MQTT_TOPIC_ROOT", root);
            }
        };
        site.open_queue(below("old"));
        let mut worker = site.idle_worker(below("new"));
        let dir = site.prepare("late", json!({ "steps": ["echo run >> runs"] }));
        let request = json!({ "id": "late", "workDir": dir }).to_string();
        site.controller.publish(first, request.clone());
        if first == "old/pending" {
            let result = site.controller.next("new/results/late").json();
            assert_eq!(result["reason"], "rejected");
            let error = result["error"].as_str().unwrap_or_default();
            assert!(error.contains("publish it on new/pending"), "{error}");
        }
        let given_up = |filter: &str| {
            let line = format!("\t{filter}");
            let log = site.broker.log();
            let unsubscribed = log
                .split("Received UNSUBSCRIBE from node-worker-01")
                .skip(1);
            let mut next_lines = unsubscribed.filter_map(|rest| rest.lines().nth(1));
            next_lines.any(|text| text.ends_with(&line))
        };
        wait::until("both to be given up", || {
            given_up("old/pending") && given_up("old/cancel/+")
        });
        let sent = || {
            site.broker
                .log()
                .matches("Sending PUBLISH to node-worker-01")
                .count()
        };
        let before = sent();
        for topic in ["old/pending", "old/cancel/late"] {
            site.controller.publish(topic, request.clone());
        }
        assert_eq!(sent(), before, "nothing comes that way any more");
        assert_eq!(count(&dir, "runs"), 0);
        site.controller.publish("new/pending", request);
        let result = wait::until_some("the result", || {
            let results = site.controller.heard("new/results/late");
            results
                .into_iter()
                .find(|result| result.json()["status"] == "success")
        });
        assert_eq!(result.json()["attempt"], 1);
        worker.exits_with(0);
        assert_eq!(count(&dir, "runs"), 1);
    }
}

on_both_protocols!(
    requests_at_qos_0_in_mid_job_are_rejected_at_once_and_not_kept,
    a_job_that_stops_its_own_worker_ends_after_ten_stops,
    a_message_on_an_old_topic_ends_both_old_subscriptions,
);

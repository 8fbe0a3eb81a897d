//! A worker with another topic root or another role than before: its session still has the old subscriptions.

use crate::support;

use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;
use support::site::Site;
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
            assert!(
                error.contains("old/pending") && error.contains("publish it on new/pending"),
                "{error}"
            );
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

on_both_protocols!(a_message_on_an_old_topic_ends_both_old_subscriptions);

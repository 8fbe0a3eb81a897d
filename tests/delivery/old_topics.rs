//! A worker with another topic root than before: its session still has the old subscriptions.

use crate::support;

use serde_json::json;
use std::process::Command;
use support::site::{Site, runs};
use support::worker::with;

fn a_request_on_an_old_topic_is_rejected_by_the_name_of_that_topic(version: &str) {
    let site = Site::start();
    let below = |root: &'static str| {
        move |command: &mut Command| {
            with(&[
                ("MQTT_TOPIC_ROOT", root),
                ("MQTT_PROTOCOL_VERSION", version),
            ])(command);
        }
    };
    site.open_queue(below("old"));
    let mut worker = site.idle_worker(below("new"));
    let dir = site.prepare("late", json!({ "steps": ["echo run >> runs"] }));
    let request = json!({ "id": "late", "workDir": dir }).to_string();
    site.controller.publish_at_qos_0("old/cancel/late", "");
    site.controller.publish("old/pending", request.clone());
    let rejected = site.controller.next("new/rejected").json();
    let error = rejected["error"].as_str().unwrap_or_default();
    assert!(
        error.contains("old/pending") && error.contains("publish it on new/pending"),
        "{error}"
    );
    assert_eq!(rejected["payload"], request);
    site.controller.publish("new/pending", request);
    let result = site.controller.next("new/results/late").json();
    assert_eq!(
        (&result["status"], &result["attempt"]),
        (&json!("success"), &json!(1))
    );
    worker.exits_with(0);
    assert_eq!(runs(&dir).len(), 1);
}

on_both_protocols!(a_request_on_an_old_topic_is_rejected_by_the_name_of_that_topic);

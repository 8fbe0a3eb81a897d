//! A worker with another topic root than before: its session still has the old subscriptions.

use crate::support;

use serde_json::json;
use std::process::Command;
use support::site::{Site, runs};
use support::worker::speaking;

fn a_request_on_an_old_topic_is_rejected_by_the_name_of_that_topic(version: &str) {
    // what comes on the second old topic looks like a cancel
    for (old, new) in [("old", "new"), ("jobs/cancel", "jobs")] {
        let site = Site::start();
        let below = |root| {
            move |command: &mut Command| {
                speaking(version)(command);
                command.env("MQTT_TOPIC_ROOT", root);
            }
        };
        site.open_queue(below(old));
        let dir = site.prepare("late", json!({ "steps": ["echo run >> runs"] }));
        let request = json!({ "id": "late", "workDir": dir }).to_string();
        let controller = &site.controller;
        controller.publish(&format!("{old}/pending"), request.clone());
        let mut worker = site.worker(below(new));
        let rejected = controller.next(&format!("{new}/rejected")).json();
        let error = rejected["error"].as_str().unwrap_or_default();
        let words = [
            format!("on {old}/pending"),
            format!("publish it on {new}/pending"),
        ];
        assert!(words.iter().all(|words| error.contains(words)), "{error}");
        assert_eq!(rejected["payload"], request);
        controller.publish_at_qos_0(&format!("{old}/cancel/late"), "");
        controller.publish(&format!("{new}/pending"), request);
        let result = controller.next(&format!("{new}/results/late")).json();
        assert_eq!(
            (&result["status"], &result["attempt"]),
            (&json!("success"), &json!(1))
        );
        worker.exits_with(0);
        assert_eq!(runs(&dir).len(), 1);
    }
}

on_both_protocols!(a_request_on_an_old_topic_is_rejected_by_the_name_of_that_topic);

//! Requests that a broker does not keep (docs/reference.md, "Request").

use crate::support;

use serde_json::json;
use support::controller::Controller;
use support::mosquitto::Mosquitto;
use support::processes::peak_memory;
use support::site::{Site, release, runs};
use support::wait;
use support::worker::speaking;

fn requests_at_qos_0_in_mid_job_are_rejected_at_once_and_not_kept(version: &str) {
    const FLOOD: usize = 500;
    let broker = Mosquitto::start();
    // the flood itself is not worth hearing
    let controller = Controller::hearing("jobs/+/+", &broker, "controller");
    let site = Site::with(broker, controller);
    let rejections = Controller::hearing("jobs/rejected", &site.broker, "rejections");
    let mut worker = site.idle_worker(speaking(version));
    let dir = site.hold("held");

    // one for the job that runs: no rejection may be taken for its result
    let same = json!({ "id": "held", "workDir": dir, "steps": ["echo run >> runs"] }).to_string();
    site.controller
        .publish_at_qos_0("jobs/pending", same.clone());
    let rejected = rejections.next("jobs/rejected").json();
    assert_eq!(rejected["payload"], same);
    let error = rejected["error"].as_str().unwrap();
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
        let told = rejections.heard("jobs/rejected");
        told.iter().any(|notice| notice.text().contains("marker"))
    });
    let after = peak_memory(worker.pid());
    assert!(
        after < before + 16 * 1024,
        "the peak grew from {before} to {after} KiB"
    );
    let next = site.submit("next", json!({ "steps": ["echo run >> runs"] }));
    release(&dir);
    site.succeeds("held");
    worker.exits_with(0);
    assert_eq!(site.controller.heard("jobs/results/held").len(), 1);
    assert_eq!(
        (runs(&dir).len(), runs(&other).len()),
        (2, 0),
        "a start and an end"
    );

    // what came at QoS 1 is left to the next process
    assert_eq!(runs(&next).len(), 0);
    let finished = site.finish(site.worker(speaking(version)), next, "next");
    assert_eq!(finished.verdict(), ("success", "", 0));
    assert_eq!(runs(&finished.dir).len(), 1);
}

on_both_protocols!(requests_at_qos_0_in_mid_job_are_rejected_at_once_and_not_kept);

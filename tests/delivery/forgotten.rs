//! A broker that has forgotten the request of a job that runs: nobody will deliver it again, and whoever waits for its
//! result may have to subscribe again. The result reaches the controller all the same.

use super::delivery::forgetful;
use crate::support;

use serde_json::json;
use std::time::{Duration, Instant};
use support::controller::Controller;
use support::mosquitto::Mosquitto;
use support::site::{Site, await_final, read_json, release, runs};
use support::wait;
use support::worker::speaking;

/// Whether it has forgotten the request shows only when it is back; then the controller's time limit publishes it again.
fn a_stop_without_a_broker_leaves_the_job_interrupted(version: &str) {
    for remembers in [true, false] {
        let broker = if remembers {
            Mosquitto::start()
        } else {
            forgetful()
        };
        let mut site = Site::on(broker);
        let mut worker = site.idle_worker(speaking(version));
        let dir = site.hold("held");
        site.kill9_broker();
        worker.await_stderr("the connection is lost");
        worker.stop();
        let stored = read_json(&dir.join("job.status.json"));
        assert_eq!(stored["status"], "interrupted");
        site.restart_broker();
        release(&dir);
        if !remembers {
            site.open_queue(speaking(version));
            site.request(json!({ "id": "held", "workDir": dir }));
        }
        let finished = site.finish(site.worker(speaking(version)), dir, "held");
        assert_eq!(finished.verdict(), ("success", "", 0));
        assert_eq!(finished.result["attempt"], 1);
        assert_eq!(runs(&finished.dir), ["start 1", "start 1", "end 1"]);
        assert_eq!(site.controller.heard("jobs/results/held").len(), 1);
    }
}

/// A site at which nobody hears results.
fn deaf(broker: Mosquitto) -> Site {
    let controller = Controller::hearing("jobs/workers/#", &broker, "deaf");
    Site::with(broker, controller)
}

/// A job whose broker restarts in mid-run, and that ends before its controller has subscribed again, half a second after the worker.
fn result_reaches_a_late_controller(broker: Mosquitto, version: &str) {
    let mut site = deaf(broker);
    let mut worker = site.idle_worker(speaking(version));
    let dir = site.hold("held");
    site.broker.kill9();
    release(&dir);
    let document = await_final(&dir);
    site.broker.restart();
    wait::until("the worker to be back", || {
        site.broker.log().contains("as node-worker-01")
    });
    let a_while = Duration::from_millis(500);
    wait::throughout(a_while, "the worker waits for it", || {
        worker.ended().is_none()
    });
    let late = Controller::connect(&site.broker);
    assert_eq!(late.next("jobs/results/held").text(), document);
    worker.exits_with(0);
}

/// MQTT 5 tells the worker that nobody is subscribed. Over 3.1.1 it waits for 2 s.
fn the_result_reaches_a_controller_that_is_back_after_the_worker(version: &str) {
    result_reaches_a_late_controller(forgetful(), version);
}

/// The broker remembers the worker, and has no session of the controller.
#[test]
fn the_result_reaches_a_controller_that_the_broker_has_forgotten_alone() {
    result_reaches_a_late_controller(Mosquitto::start(), "5");
}

/// There are controllers that only read the drive.
fn a_result_that_nobody_subscribes_to_delays_nobody(version: &str) {
    let site = deaf(Mosquitto::start());
    let mut worker = site.idle_worker(speaking(version));
    let dir = site.hold("held");
    let released = Instant::now();
    release(&dir);
    worker.exits_with(0);
    assert!(released.elapsed() < Duration::from_secs(10));
    assert_eq!(read_json(&dir.join("job.status.json"))["status"], "success");
}

on_both_protocols!(
    a_stop_without_a_broker_leaves_the_job_interrupted,
    the_result_reaches_a_controller_that_is_back_after_the_worker,
    a_result_that_nobody_subscribes_to_delays_nobody,
);

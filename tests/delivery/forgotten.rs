//! A broker that has forgotten the request of a job that runs: nobody will deliver it again, and whoever waits for its
//! result may have to subscribe again. The result reaches the controller all the same.

use super::delivery::{await_final_status, await_starts, held_job, release};
use crate::support;

use serde_json::json;
use std::thread;
use std::time::{Duration, Instant};
use support::controller::Controller;
use support::mosquitto::Mosquitto;
use support::site::{Site, read_json};
use support::wait;
use support::worker::speaking;

fn forgetful_broker() -> Mosquitto {
    let mut broker = Mosquitto::prepare().without_persistence();
    broker.restart();
    broker
}

/// Two faults at once: the controller's time limit publishes it again.
fn a_stop_leaves_a_job_interrupted_whose_request_is_forgotten(version: &str) {
    let mut site = Site::on(forgetful_broker());
    let mut worker = site.idle_worker(speaking(version));
    let dir = held_job(&site, "held", json!({}));
    await_starts(&dir, 1);
    site.kill9_broker();
    let mark = site.controller.mark();
    site.restart_broker();
    site.await_state(&mut worker, mark, "busy");
    worker.sigterm();
    worker.exits_with(0);
    assert_eq!(
        read_json(&dir.join("job.status.json"))["status"],
        "interrupted"
    );
    release(&dir);
    site.request(json!({ "id": "held", "workDir": dir }));
    let result = site
        .finish(site.worker(speaking(version)), dir, "held")
        .result;
    assert_eq!(
        (&result["status"], &result["attempt"]),
        (&json!("success"), &json!(1))
    );
}

/// Whether it has forgotten the request shows only when it is back.
fn a_stop_without_a_broker_leaves_the_job_interrupted(version: &str) {
    for persistence in [true, false] {
        let broker = match persistence {
            true => Mosquitto::start(),
            false => forgetful_broker(),
        };
        let mut site = Site::on(broker);
        let mut worker = site.idle_worker(speaking(version));
        let dir = held_job(&site, "held", json!({}));
        await_starts(&dir, 1);
        site.kill9_broker();
        worker.await_stderr("the connection is lost");
        worker.sigterm();
        worker.exits_with(0);
        assert_eq!(
            read_json(&dir.join("job.status.json"))["status"],
            "interrupted"
        );
        site.restart_broker();
        release(&dir);
        if !persistence {
            site.open_queue(speaking(version));
            site.request(json!({ "id": "held", "workDir": dir }));
        }
        let finished = site.finish(site.worker(speaking(version)), dir.clone(), "held");
        assert_eq!(finished.result["status"], "success");
        await_starts(&dir, 2);
        assert_eq!(site.controller.heard("jobs/results/held").len(), 1);
    }
}

/// A site at which nobody hears results.
fn deaf(broker: Mosquitto) -> Site {
    let controller = Controller::hearing("jobs/workers/#", &broker, "deaf");
    Site::with(broker, controller)
}

/// A job whose broker restarts in mid-run, and that ends before its controller has subscribed again, a second after the worker.
fn result_reaches_a_late_controller(broker: Mosquitto, version: &str) {
    let mut site = deaf(broker);
    let mut worker = site.idle_worker(speaking(version));
    let dir = held_job(&site, "held", json!({}));
    await_starts(&dir, 1);
    site.broker.kill9();
    release(&dir);
    let document = await_final_status(&dir);
    site.broker.restart();
    wait::until("the worker to be back", || {
        site.broker.log().contains("as node-worker-01")
    });
    thread::sleep(Duration::from_secs(1));
    let late = Controller::connect(&site.broker);
    assert_eq!(late.next("jobs/results/held").text(), document);
    worker.exits_with(0);
}

/// MQTT 5 tells the worker that nobody is subscribed. Over 3.1.1 it waits for 2 s.
fn the_result_reaches_a_controller_that_is_back_after_the_worker(version: &str) {
    result_reaches_a_late_controller(forgetful_broker(), version);
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
    let dir = held_job(&site, "held", json!({}));
    await_starts(&dir, 1);
    let released = Instant::now();
    release(&dir);
    worker.exits_with(0);
    assert!(released.elapsed() < Duration::from_secs(10));
    assert_eq!(read_json(&dir.join("job.status.json"))["status"], "success");
}

on_both_protocols!(
    a_stop_leaves_a_job_interrupted_whose_request_is_forgotten,
    a_stop_without_a_broker_leaves_the_job_interrupted,
    the_result_reaches_a_controller_that_is_back_after_the_worker,
    a_result_that_nobody_subscribes_to_delays_nobody,
);

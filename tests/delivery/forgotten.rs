//! A broker that has forgotten the request of a job that runs: nobody will deliver it again, and whoever waits for its
//! result may have to subscribe again. The result reaches the controller all the same.

use crate::support;

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use support::controller::Controller;
use support::mosquitto::Mosquitto;
use support::site::{Site, read, while_exists};
use support::temp_dir::TempDir;
use support::wait;
use support::worker::{Worker, speaking};

const PRESENCE: &str = "jobs/workers/node-worker-01";

fn forgetful_broker() -> Mosquitto {
    let mut broker = Mosquitto::prepare().without_persistence();
    broker.restart();
    broker
}

/// A directory with a job that runs until it is [`release`]d.
fn held_job(drive: &Path, id: &str) -> PathBuf {
    let dir = drive.join(id);
    fs::create_dir_all(&dir).unwrap();
    let step = format!("echo start >> runs; {}", while_exists("hold"));
    fs::write(dir.join("job.json"), json!({ "steps": [step] }).to_string()).unwrap();
    fs::write(dir.join("hold"), "").unwrap();
    dir
}

fn release(dir: &Path) {
    fs::remove_file(dir.join("hold")).unwrap();
}

fn await_starts(dir: &Path, count: usize) {
    wait::until(&format!("start {count} of the step"), || {
        let runs = fs::read_to_string(dir.join("runs")).unwrap_or_default();
        runs.lines().count() == count
    });
}

fn await_final_status(dir: &Path) {
    wait::until("a final status on the drive", || {
        ["success", "failed"].contains(&status(dir)["status"].as_str().unwrap_or_default())
    });
}

fn status(dir: &Path) -> Value {
    serde_json::from_str(&read(&dir.join("job.status.json"))).expect("valid JSON at any moment")
}

/// Restarts the broker, which forgets all, while the worker runs its job, and waits until both are back.
fn forget_everything(site: &mut Site, worker: &mut Worker) {
    site.kill9_broker();
    let mark = site.controller.mark();
    site.restart_broker();
    site.await_state(worker, mark, "busy");
}

/// Two faults at once: the controller's time limit publishes it again.
fn a_stop_leaves_a_job_interrupted_whose_request_is_forgotten(version: &str) {
    let mut site = Site::on(forgetful_broker());
    let mut worker = site.idle_worker(speaking(version));
    let dir = held_job(site.drive.path(), "held");
    let request = json!({ "id": "held", "workDir": dir });
    site.request(request.clone());
    await_starts(&dir, 1);
    forget_everything(&mut site, &mut worker);
    worker.sigterm();
    worker.exits_with(0);
    assert_eq!(status(&dir)["status"], "interrupted");
    release(&dir);
    site.request(request);
    let finished = site.finish(site.worker(speaking(version)), dir.clone(), "held");
    assert_eq!(
        (&finished.result["status"], &finished.result["attempt"]),
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
        let dir = held_job(site.drive.path(), "held");
        site.request(json!({ "id": "held", "workDir": dir }));
        await_starts(&dir, 1);
        site.kill9_broker();
        wait::until("the worker to notice", || {
            worker.stderr().contains("the connection is lost")
        });
        worker.sigterm();
        worker.exits_with(0);
        assert_eq!(status(&dir)["status"], "interrupted");
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

/// A job whose broker restarts in mid-run, and that ends before its controller has subscribed again, a second after the worker.
fn result_reaches_a_late_controller(mut broker: Mosquitto, version: &str) {
    let drive = TempDir::new();
    // a controller without a persistent session: the broker does not keep a subscription to results
    let controller = Controller::hearing("jobs/workers/#", &broker, "before");
    let mut worker = Worker::spawn(&broker, speaking(version));
    wait::until("the worker to be idle", || {
        !controller.heard(PRESENCE).is_empty()
    });
    let dir = held_job(drive.path(), "held");
    let request = json!({ "id": "held", "workDir": dir });
    controller.publish("jobs/pending", request.to_string());
    await_starts(&dir, 1);
    controller.leave();
    broker.kill9();
    release(&dir);
    await_final_status(&dir);
    broker.restart();
    wait::until("the worker to be back", || {
        broker.log().contains("as node-worker-01")
    });
    thread::sleep(Duration::from_secs(1));
    let controller = Controller::connect(&broker);
    let result = controller.next("jobs/results/held").json();
    assert_eq!(result, status(&dir));
    assert_eq!(result["status"], "success");
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
    let (drive, broker) = (TempDir::new(), Mosquitto::start());
    let controller = Controller::hearing("jobs/workers/#", &broker, "controller");
    let mut worker = Worker::spawn(&broker, speaking(version));
    wait::until("the worker to be idle", || {
        !controller.heard(PRESENCE).is_empty()
    });
    let dir = held_job(drive.path(), "held");
    let request = json!({ "id": "held", "workDir": dir });
    controller.publish("jobs/pending", request.to_string());
    await_starts(&dir, 1);
    let released = Instant::now();
    release(&dir);
    worker.exits_with(0);
    assert!(released.elapsed() < Duration::from_secs(10));
    assert_eq!(status(&dir)["status"], "success");
}

on_both_protocols!(
    a_stop_leaves_a_job_interrupted_whose_request_is_forgotten,
    a_stop_without_a_broker_leaves_the_job_interrupted,
    the_result_reaches_a_controller_that_is_back_after_the_worker,
    a_result_that_nobody_subscribes_to_delays_nobody,
);

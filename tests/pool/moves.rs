//! docs/operators.md, "From a queue of its own to a pool, and back": no job is lost, and none runs twice.

use std::fs;

use serde_json::json;

use super::members::{await_queue, make_pool, supervised};
use super::support::pool::await_no_claims;
use super::support::site::{Site, await_file, read, while_exists};
use super::support::wait;
use super::support::worker::Worker;

on_both_protocols!(from_a_queue_of_its_own_to_a_pool_and_back_no_job_is_lost);

/// Publishes a request whose job leaves a line in the file `runs` each time that it runs to its end.
fn submit(site: &Site, id: &str) {
    site.submit(id, json!({ "steps": ["echo $WORKER_ID >> runs"] }));
}

fn from_a_queue_of_its_own_to_a_pool_and_back_no_job_is_lost(version: &str) {
    let site = Site::start();
    let own = || {
        site.worker(|command| {
            command
                .env("WORKER_ID", "the-pool")
                .env("MQTT_PROTOCOL_VERSION", version)
                .arg("supervise");
        })
    };
    // a queue of its own, with requests in it while nobody is there
    let mut worker = own();
    await_queue(&site);
    submit(&site, "own-1");
    site.result("own-1");
    worker.stop();
    submit(&site, "own-2");
    submit(&site, "own-3");

    // the pool takes them, and what comes now
    make_pool(&site);
    let mut members = ["m1", "m2"].map(|name| supervised(&site, name, version));
    for id in ["own-2", "own-3"] {
        assert_ne!(site.result(id).json()["worker"], "the-pool");
    }
    submit(&site, "pool-1");
    site.result("pool-1");
    // stopped in the middle of a job: its claim stays
    let gate = site.directory("held").join("gate");
    site.submit(
        "held",
        json!({ "steps": ["touch gate; echo >> begun", while_exists("gate"), "echo $WORKER_ID >> runs"] }),
    );
    await_file(&gate);
    submit(&site, "pool-2");
    site.result("pool-2");
    members.iter_mut().for_each(Worker::stop);
    assert_eq!(site.claims().len(), 1);
    // the member that stopped last may have had it, too
    let begun = || read(&gate.with_file_name("begun")).lines().count();
    let before = begun();
    // one member again, until no claim is left
    let mut member = supervised(&site, "m1", version);
    wait::until("the job to run again", || begun() > before);
    fs::remove_file(&gate).unwrap();
    site.result("held");
    await_no_claims(site.drive.path());
    member.stop();
    submit(&site, "back-1");
    submit(&site, "back-2");

    // and a queue of its own again
    let mut worker = own();
    for id in ["back-1", "back-2"] {
        assert_eq!(site.result(id).json()["worker"], "the-pool");
    }
    worker.stop();
    for id in [
        "own-1", "own-2", "own-3", "pool-1", "pool-2", "held", "back-1", "back-2",
    ] {
        let lines = read(&site.drive.path().join(id).join("runs"));
        assert_eq!(lines.lines().count(), 1, "{id} ran on {lines}");
    }
    assert!(site.controller.heard("jobs/rejected").is_empty());
}

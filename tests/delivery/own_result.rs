//! An old result is never the result of a new request, whoever made it; and a `key` says which requests are the same one.

use super::delivery::forgetful;
use crate::support;

use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;
use support::broker::Message;
use support::site::{Site, read_json, runs};
use support::wait;
use support::worker::{job_worker, with};

const STEP: &str = "echo run >> runs";

/// The worker `id` of the queue below `root`.
fn worker(id: &str, root: &str, version: &str) -> impl Fn(&mut Command) {
    move |command| {
        with(&[
            ("WORKER_ID", id),
            ("MQTT_TOPIC_ROOT", root),
            ("MQTT_PROTOCOL_VERSION", version),
        ])(command);
    }
}

fn results(site: &Site, topic: &str, count: usize) -> Vec<Message> {
    wait::until_some(&format!("{count} results on {topic}"), || {
        Some(site.controller.heard(topic)).filter(|results| results.len() >= count)
    })
}

/// Publishes a request for `dir` behind another job and lets the worker work both off. The worker that runs the first
/// leaves; Mosquitto pushes the second request to it all the same, and so the next worker gets it with DUP set.
fn run_behind_another_job(site: &Site, dir: &Path, worker: &impl Fn(&mut Command)) {
    site.submit("other", json!({ "steps": ["true"] }));
    site.request(json!({ "id": "again", "workDir": dir }));
    for _ in 0..2 {
        site.worker(worker).exits_with(0);
    }
}

fn a_job_that_another_worker_or_a_hand_ran_last_runs(version: &str) {
    let site = Site::start();
    let one = worker("one", "jobs", version);
    let two = worker("two", "second", version);
    site.open_queue(&one);
    site.open_queue(&two);
    let dir = site.prepare("again", json!({ "steps": [STEP] }));
    for round in 1..=4 {
        if round % 2 == 0 {
            let by_hand = job_worker().arg("run").arg(&dir).output().expect("it runs");
            assert!(by_hand.status.success(), "{by_hand:?}");
        } else {
            let request = json!({ "id": "again", "workDir": dir }).to_string();
            site.controller.publish("second/pending", request);
            site.worker(&two).exits_with(0);
        }
        assert_eq!(runs(&dir).len(), 2 * round - 1);
        run_behind_another_job(&site, &dir, &one);
        assert_eq!(runs(&dir).len(), 2 * round, "it runs");
        let results = results(&site, "jobs/results/again", round);
        assert_eq!(results[round - 1].json()["worker"], "one");
    }
}

/// Packet identifiers begin anew in each session.
fn a_job_of_a_session_that_the_broker_has_forgotten_runs(version: &str) {
    let mut site = Site::on(forgetful());
    let worker = worker("w", "jobs", version);
    let dir = site.prepare("again", json!({ "steps": [STEP] }));
    for session in 1..=3 {
        site.open_queue(&worker);
        run_behind_another_job(&site, &dir, &worker);
        assert_eq!(runs(&dir).len(), session, "it runs");
        // before the broker forgets them
        results(&site, "jobs/results/again", session);
        site.kill9_broker();
        site.restart_broker();
    }
}

/// It numbers a new request as one that it has forgotten. The first delivery is lost, so the second one has DUP set.
fn a_job_of_a_broker_that_went_back_to_an_older_save_runs(version: &str) {
    let mut site = Site::start();
    let worker = worker("w", "jobs", version);
    site.open_queue(&worker);
    // the first packet identifier tells nothing
    site.submit("other", json!({ "steps": ["true"] }));
    site.worker(&worker).exits_with(0);
    site.kill9_broker();
    let [store, save] = ["mosquitto.db", "older"].map(|name| site.broker.dir().join(name));
    fs::copy(&store, &save).expect("the broker has written its store");
    site.restart_broker();
    let dir = site.prepare("again", json!({ "steps": [STEP] }));
    let request = json!({ "id": "again", "workDir": dir });
    site.request(request.clone());
    site.worker(&worker).exits_with(0);
    assert_eq!(runs(&dir).len(), 1);

    site.kill9_broker();
    fs::copy(&save, &store).expect("the broker is gone");
    site.restart_broker();
    let mut idle = site.idle_worker(&worker);
    idle.freeze();
    site.request(request);
    wait::until("the broker to send the request", || {
        site.broker.log().contains("Sending PUBLISH to w ")
    });
    idle.kill9();
    site.worker(&worker).exits_with(0);
    assert_eq!(runs(&dir).len(), 2, "it runs");
}

fn a_key_that_has_a_result_is_answered_with_it_by_whichever_worker(version: &str) {
    let site = Site::start();
    let [one, two] =
        [("one", "jobs"), ("two", "second")].map(|(id, root)| worker(id, root, version));
    site.open_queue(&one);
    site.open_queue(&two);
    let dir = site.prepare("keyed", json!({ "steps": [STEP] }));
    let request = |root: &str, key: Option<&str>| {
        let request = json!({ "id": "keyed", "workDir": dir, "key": key });
        site.controller
            .publish(&format!("{root}/pending"), request.to_string());
    };
    let result = |root: &str, number: usize| {
        let topic = format!("{root}/results/keyed");
        results(&site, &topic, number)[number - 1].json()
    };

    request("jobs", Some("k"));
    site.worker(&one).exits_with(0);
    let first = result("jobs", 1);
    assert_eq!(
        (&first["status"], &first["key"]),
        (&json!("success"), &json!("k"))
    );

    // published afresh, so with DUP = 0: no worker has been there to push it to
    request("jobs", Some("k"));
    site.worker(&one).exits_with(0);
    assert_eq!(result("jobs", 2), first);
    // and behind another job, so with DUP = 1
    site.submit("other", json!({ "steps": ["true"] }));
    request("jobs", Some("k"));
    for _ in 0..2 {
        site.worker(&one).exits_with(0);
    }
    assert_eq!(result("jobs", 3), first);
    request("second", Some("k"));
    site.worker(&two).exits_with(0);
    assert_eq!(result("second", 1), first);
    assert_eq!(runs(&dir).len(), 1, "not run again");

    request("second", Some("l"));
    site.worker(&two).exits_with(0);
    let second = result("second", 2);
    assert_eq!(second["key"], "l");
    assert_ne!(second["startedAt"], first["startedAt"]);
    assert_eq!(runs(&dir).len(), 2, "another key is another request");

    request("jobs", None);
    site.worker(&one).exits_with(0);
    let third = result("jobs", 4);
    assert!(third.get("key").is_none(), "{third}");
    assert_eq!(
        runs(&dir).len(),
        3,
        "without a key each publication is a run"
    );
}

/// Also where nothing runs.
#[test]
fn every_status_document_repeats_the_key() {
    let site = Site::start();
    let mut worker = site.idle_worker(|_| {});
    let dir = site.directory("keyed");
    let steps = ["cat job.status.json > seen; exit 3"];
    for dir in [&dir.join("missing"), &dir] {
        site.request(json!({ "id": "keyed", "workDir": dir, "key": "clé 1", "steps": steps }));
    }
    let results = site.results("keyed", 2);
    worker.exits_with(0);
    let reasons = [&results[0]["reason"], &results[1]["reason"]];
    assert_eq!(reasons, ["rejected", "step"]);
    let states = site.controller.heard("jobs/status/keyed");
    assert!(!states.is_empty());
    let files = ["seen", "job.status.json"].map(|file| read_json(&dir.join(file)));
    let all = results.into_iter().chain(files);
    let mut all = all.chain(states.iter().map(Message::json));
    assert_eq!(all.find(|document| document["key"] != "clé 1"), None);
}

on_both_protocols!(
    a_job_that_another_worker_or_a_hand_ran_last_runs,
    a_job_of_a_session_that_the_broker_has_forgotten_runs,
    a_job_of_a_broker_that_went_back_to_an_older_save_runs,
    a_key_that_has_a_result_is_answered_with_it_by_whichever_worker,
);

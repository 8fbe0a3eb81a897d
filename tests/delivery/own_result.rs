//! An old result is never the result of a new request, whoever made it; and a `key` says which requests are the same one.

use crate::support;

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use support::broker::Message;
use support::mosquitto::Mosquitto;
use support::site::Site;
use support::wait;
use support::worker::job_worker;

const STEP: &str = "echo run >> runs";

/// The worker `id` of the queue below `root`.
fn worker(id: &str, root: &str, version: &str) -> impl Fn(&mut Command) {
    let settings = [
        ("WORKER_ID", id.to_owned()),
        ("MQTT_TOPIC_ROOT", root.to_owned()),
        ("MQTT_PROTOCOL_VERSION", version.to_owned()),
    ];
    move |command| {
        command.envs(settings.clone());
    }
}

fn runs(dir: &Path) -> usize {
    fs::read_to_string(dir.join("runs")).map_or(0, |text| text.lines().count())
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
        assert_eq!(runs(&dir), 2 * round - 1);
        run_behind_another_job(&site, &dir, &one);
        assert_eq!(runs(&dir), 2 * round, "it runs");
        let results = results(&site, "jobs/results/again", round);
        assert_eq!(results[round - 1].json()["worker"], "one");
    }
}

/// Packet identifiers begin anew in each session.
fn a_job_of_a_session_that_the_broker_has_forgotten_runs(version: &str) {
    let mut broker = Mosquitto::prepare().without_persistence();
    broker.restart();
    let mut site = Site::on(broker);
    let worker = worker("w", "jobs", version);
    let dir = site.prepare("again", json!({ "steps": [STEP] }));
    for session in 1..=3 {
        site.open_queue(&worker);
        run_behind_another_job(&site, &dir, &worker);
        assert_eq!(runs(&dir), session, "it runs");
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
    assert_eq!(runs(&dir), 1);

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
    assert_eq!(runs(&dir), 2, "it runs");
}

fn started(result: &Value) -> String {
    result["startedAt"]
        .as_str()
        .expect("a job that ran has a start")
        .to_owned()
}

fn a_key_that_has_a_result_is_answered_with_it_by_whichever_worker(version: &str) {
    let site = Site::start();
    let (one, two) = (
        worker("one", "jobs", version),
        worker("two", "second", version),
    );
    site.open_queue(&one);
    site.open_queue(&two);
    let dir = site.prepare("keyed", json!({ "steps": [STEP] }));
    let request = |key: &str| json!({ "id": "keyed", "workDir": dir, "key": key }).to_string();

    site.controller.publish("jobs/pending", request("k"));
    site.worker(&one).exits_with(0);
    let first = results(&site, "jobs/results/keyed", 1)[0].json();
    assert_eq!(
        (&first["status"], &first["key"], runs(&dir)),
        (&json!("success"), &json!("k"), 1)
    );

    // published afresh, so with DUP = 0: no worker has been there to push it to
    site.controller.publish("jobs/pending", request("k"));
    site.worker(&one).exits_with(0);
    assert_eq!(results(&site, "jobs/results/keyed", 2)[1].json(), first);
    // and behind another job, so with DUP = 1
    site.submit("other", json!({ "steps": ["true"] }));
    site.controller.publish("jobs/pending", request("k"));
    site.worker(&one).exits_with(0);
    site.worker(&one).exits_with(0);
    assert_eq!(results(&site, "jobs/results/keyed", 3)[2].json(), first);
    site.controller.publish("second/pending", request("k"));
    site.worker(&two).exits_with(0);
    assert_eq!(results(&site, "second/results/keyed", 1)[0].json(), first);
    assert_eq!(runs(&dir), 1, "not run again");

    site.controller.publish("second/pending", request("l"));
    site.worker(&two).exits_with(0);
    let second = results(&site, "second/results/keyed", 2)[1].json();
    assert_eq!(second["key"], "l");
    assert_ne!(started(&second), started(&first));
    assert_eq!(runs(&dir), 2, "another key is another request");

    let plain = json!({ "id": "keyed", "workDir": dir });
    site.controller.publish("jobs/pending", plain.to_string());
    site.worker(&one).exits_with(0);
    let third = results(&site, "jobs/results/keyed", 4)[3].json();
    assert!(third.get("key").is_none(), "{third}");
    assert_eq!(runs(&dir), 3, "without a key each publication is a run");
}

#[test]
fn every_status_document_repeats_the_key() {
    let site = Site::start();
    let idle = site.idle_worker(worker("w", "jobs", "5"));
    let steps = json!(["cat job.status.json > seen", "exit 3"]);
    let dir = site.prepare("keyed", json!({ "steps": steps }));
    let request = json!({ "id": "keyed", "workDir": dir, "key": "clé 1" });
    let finished = site.run_request(idle, dir, request);
    assert_eq!(finished.result["key"], "clé 1");
    let states = site.controller.heard("jobs/status/keyed");
    assert!(!states.is_empty());
    for state in states {
        assert_eq!(state.json()["key"], "clé 1", "{}", state.text());
    }
    for file in ["seen", "job.status.json"] {
        let document: Value = serde_json::from_str(&finished.read(file)).expect("JSON");
        assert_eq!(document["key"], "clé 1", "{file}");
    }

    // also where nothing runs
    let missing = site.drive.path().join("missing");
    let configure = worker("w", "jobs", "5");
    let mut rejecting = site.idle_worker(|command| {
        configure(command);
        command.env("JOB_DIR_WAIT", "0");
    });
    site.request(json!({ "id": "missing", "workDir": missing, "key": "k" }));
    let rejected = site.result("missing").json();
    assert_eq!(
        (&rejected["reason"], &rejected["key"]),
        (&json!("rejected"), &json!("k"))
    );
    rejecting.sigterm();
    rejecting.exits_with(0);
}

on_both_protocols!(
    a_job_that_another_worker_or_a_hand_ran_last_runs,
    a_job_of_a_session_that_the_broker_has_forgotten_runs,
    a_job_of_a_broker_that_went_back_to_an_older_save_runs,
    a_key_that_has_a_result_is_answered_with_it_by_whichever_worker,
);

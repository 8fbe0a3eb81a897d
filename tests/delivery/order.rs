//! Delivery seen from the broker: the order of the last packets, results that wait for a subscriber, another client under our id, and
//! a broker that denies us in mid-job.

use crate::support;

use serde_json::json;
use std::time::Duration;
use support::broker::{Entry, Packet, Step, Verdict};
use support::site::{Site, WORKER, read_json, release, runs};
use support::wait::{self, DEADLINE};
use support::worker::speaking;

/// In short; what goes to the worker starts with `<`.
fn short(entry: &Entry) -> Option<String> {
    let what = match &entry.packet {
        Packet::Publish { topic, .. } => format!("PUBLISH {topic}"),
        Packet::PubAck { .. } => "PUBACK".to_owned(),
        Packet::Disconnect { .. } => "DISCONNECT".to_owned(),
        _ => return None,
    };
    Some(format!(
        "{}{what}",
        if entry.from_client { '>' } else { '<' }
    ))
}

fn the_order_at_the_end(version: &str) {
    let site = Site::scripted();
    let mut worker = site.idle_worker(speaking(version));
    let dir = site.hold("a");
    site.submit("b", json!({ "steps": ["true"] }));
    release(&dir);
    worker.exits_with(0);
    site.broker.wait_for_connected(WORKER, false, DEADLINE);
    let mut expected = vec![
        ">PUBLISH jobs/results/a",
        "<PUBACK",
        ">PUBACK",
        ">PUBLISH jobs/workers/node-worker-01",
        ">DISCONNECT",
    ];
    if version == "5" {
        // one at a time: 3.1.1 has sent it before
        expected.insert(3, "<PUBLISH jobs/pending");
    }
    let log = site.broker.log();
    let told = log.iter().filter_map(short);
    let told: Vec<String> = told.skip_while(|line| line != expected[0]).collect();
    assert_eq!(told, expected);
    site.broker.wait_for_queued(WORKER, 1, DEADLINE);
    let presence = site.broker.retained("jobs/workers/node-worker-01");
    assert_eq!(presence.unwrap().json()["state"], "offline");
}

on_both_protocols!(the_order_at_the_end);

/// Says this of each result: 0x10 is *no matching subscribers*.
fn acknowledges(code: u8) -> impl Fn(&Step) -> Verdict {
    move |step| match *step.packet {
        Packet::PubAck { pkid, .. } if !step.from_client => {
            Verdict::Replace(Packet::PubAck { pkid, code })
        }
        _ => Verdict::Pass,
    }
}

/// A controller that went down with the worker is not back yet.
#[test]
fn the_result_of_a_later_attempt_and_a_stored_one_wait_for_a_subscriber() {
    for (is_stored, expected) in [(false, "start 2"), (true, "start 1")] {
        let site = Site::scripted();
        let mut first = site.idle_worker(|_| {});
        site.broker.set_script(|step| match step.packet {
            Packet::PubAck { .. } if !step.from_client => Verdict::Drop,
            _ => Verdict::Pass,
        });
        let dir = site.hold("a");
        if is_stored {
            release(&dir);
            site.results("a", 1);
        }
        first.kill9();
        site.broker.set_script(acknowledges(0x10));
        if !is_stored {
            release(&dir); // the step of the first attempt has the lock until it ends
        }
        let mut second = site.worker(|_| {});
        second.await_stderr("nobody is subscribed to the result");
        let heard = site.broker.received("jobs/results/a").len();
        site.broker.set_script(|_| Verdict::Pass);
        site.results("a", heard + 1);
        second.exits_with(0);
        site.broker.wait_for_queued(WORKER, 0, DEADLINE);
        let runs = runs(&dir);
        assert_eq!(runs[runs.len() - 2], expected, "stored: {is_stored}");
    }
}

#[test]
fn a_busy_worker_whose_id_is_taken_over_finishes_and_then_reports() {
    let site = Site::scripted();
    let mut first = site.idle_worker(|_| {});
    let dir = site.hold("a");
    // it finds the first at work by the lock, and must neither run the job nor answer for it
    let mut second = site.worker(|_| {});
    first.await_stderr("another client has connected with our id");
    assert!(first.ended().is_none());
    let mark = site.mark();
    release(&dir);
    assert_eq!(site.result("a").json()["status"], "success");
    first.exits_with(0);
    site.broker.wait_for_queued(WORKER, 0, DEADLINE);
    assert_eq!(runs(&dir), ["start 1", "end 1"]);
    wait::until("the second to leave or to be idle", || {
        second.ended().is_some() || site.states(mark).last().is_some_and(|it| it == "idle")
    });
}

/// Two workers under one id, each with a result, would otherwise kick each other as fast as the network takes it.
#[test]
fn a_worker_whose_id_is_taken_over_again_and_again_pauses_before_each_connection() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|_| {});
    let dir = site.hold("a");
    site.broker.set_script(|step| match step.packet {
        Packet::PubAck { .. } if !step.from_client => {
            Verdict::Replace(Packet::Raw(vec![0xe0, 2, 0x8e, 0])) // DISCONNECT, session taken over
        }
        _ => Verdict::Pass,
    });
    release(&dir);
    let connections = || {
        let is_connect = |packet: &&Packet| matches!(packet, Packet::Connect { .. });
        site.broker.sent().iter().filter(is_connect).count()
    };
    wait::until("two further connections", || connections() >= 3);
    // the pauses of 0.1, 0.2 and 0.4 s leave time for no more
    let few = || connections() <= 5;
    wait::throughout(Duration::from_millis(500), "few connections", few);
    site.broker.set_script(|_| Verdict::Pass);
    assert_eq!(site.result("a").json()["status"], "success");
    worker.exits_with(0);
}

#[test]
fn a_worker_that_is_denied_in_mid_job_finishes_it_first_and_a_later_one_answers() {
    // in 3.1.1 nothing tells the redelivery from a fresh request
    for (version, code, expected) in [("5", 0x87, 1), ("4", 5, 2)] {
        let site = Site::scripted();
        let mut worker = site.idle_worker(speaking(version));
        let dir = site.hold("a");
        site.broker.deny(code);
        site.broker.kick(WORKER);
        worker.await_stderr("the broker denies access without a user name");
        assert!(worker.ended().is_none());
        release(&dir);
        worker.exits_with(77);
        let stored = read_json(&dir.join("job.status.json"));
        assert_eq!(stored["status"], "success");
        site.broker.set_script(|_| Verdict::Pass);
        site.worker(speaking(version)).exits_with(0);
        assert_eq!(site.results("a", 1).len(), 1);
        assert_eq!(runs(&dir).len(), 2 * expected, "version {version}");
    }
}

#[test]
fn where_every_request_has_the_same_packet_identifier_a_new_one_runs() {
    let site = Site::scripted();
    // as HiveMQ does, which takes the lowest one that is free
    let mut in_flight = 0;
    site.broker.set_script(move |step| {
        let mut packet = step.packet.clone();
        match &mut packet {
            Packet::Publish { topic, pkid, .. } if !step.from_client && topic == "jobs/pending" => {
                in_flight = std::mem::replace(pkid, 1);
            }
            Packet::PubAck { pkid, .. } if step.from_client => *pkid = in_flight,
            _ => {}
        }
        Verdict::Replace(packet)
    });
    let mut first = site.idle_worker(|_| {});
    let dir = site.hold("a");
    // the broker pushes it to the worker that leaves
    site.request(json!({ "id": "a", "workDir": dir }));
    release(&dir);
    first.exits_with(0);
    site.worker(|_| {}).exits_with(0);
    assert_eq!(runs(&dir), ["start 1", "end 1", "start 1", "end 1"]);
}

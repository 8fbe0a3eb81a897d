//! A head that is cut off from the broker, and from nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::json;

use super::members::{member_of, supervised};
use super::support::broker::{Broker, Packet, Verdict};
use super::support::pool::await_no_claims;
use super::support::processes::peak_memory;
use super::support::site::{Site, read};
use super::support::wait;

#[test]
fn a_head_that_is_cut_off_frees_the_head() {
    let site = Site::scripted();
    let is_cut = Arc::new(AtomicBool::new(false));
    let (is_cut_now, mut its_own) = (Arc::clone(&is_cut), BTreeSet::new());
    site.broker.set_script(move |step| {
        let is_its = |packet: &Packet| matches!(packet, Packet::Connect { username, .. } if username == "cut-off");
        if is_its(step.packet) {
            its_own.insert(step.connection);
        }
        match is_cut_now.load(Relaxed) && its_own.contains(&step.connection) {
            true => Verdict::Drop,
            false => Verdict::Pass,
        }
    });
    let member = |name| {
        site.idle_worker(|command| {
            member_of(&site, name, "5")(command);
            command.env("MQTT_USERNAME", name);
        })
    };
    let [mut cut_off, mut other] = ["cut-off", "other"].map(member);
    is_cut.store(true, Relaxed);
    site.submit("a", json!({ "steps": ["true"] }));
    assert_eq!(site.result("a").json()["worker"], "other");
    other.exits_with(0);
    is_cut.store(false, Relaxed);
    site.submit("b", json!({ "steps": ["true"] }));
    assert_eq!(site.result("b").json()["worker"], "cut-off");
    cut_off.exits_with(0);
    await_no_claims(site.drive.path());
    let results = site.broker.received("jobs/results/+");
    assert_eq!(results.len(), 2, "each once");
}

#[test]
fn what_the_broker_says_to_the_head_is_told() {
    let disconnect = |code| Packet::Raw([&[0xe0, 9, code, 7, 0x1f, 0, 4][..], b"full"].concat());
    let granted = |pkid, code| Packet::SubAck {
        pkid,
        codes: vec![code],
    };
    for (version, code, told, status) in [
        (
            "5",
            Some(0x87),
            "as the head of the pool: the broker denies the subscription",
            Some(77),
        ),
        (
            "4",
            Some(0x80),
            "as the head of the pool: the broker denies the subscription",
            Some(77),
        ),
        (
            "5",
            Some(0),
            "as the head of the pool: the broker grants jobs/pending at QoS 0",
            Some(77),
        ),
        (
            "5",
            None,
            "the head has no connection to the broker: it disconnects us (ServerBusy: full)",
            None,
        ),
        (
            "5",
            None,
            "another client has connected with the client id of the pool",
            None,
        ),
    ] {
        let site = Site::scripted();
        let is_takeover = told.starts_with("another");
        site.broker
            .set_script(move |step| match (step.packet, code) {
                (Packet::SubAck { .. }, _) if step.client != "the-pool" => Verdict::Pass,
                (Packet::SubAck { pkid, .. }, Some(code)) => Verdict::Replace(granted(*pkid, code)),
                (Packet::SubAck { .. }, None) => {
                    Verdict::Replace(disconnect(if is_takeover { 0x8e } else { 0x89 }))
                }
                _ => Verdict::Pass,
            });
        let mut member = site.worker(member_of(&site, "a", version));
        member.await_stderr(told);
        match status {
            Some(status) => member.exits_with(status),
            None => member.stop(),
        }
    }
}

/// Only its answer to the subscription says so, and each head has to find out.
#[test]
fn a_pool_does_without_subscription_identifiers() {
    type Answer = fn(u16) -> Packet;
    let answers: [Answer; 2] = [
        |pkid| Packet::SubAck {
            pkid,
            codes: vec![0xa1],
        },
        |_| Packet::Disconnect { code: 0xa1 },
    ];
    for answer in answers {
        let site = Site::scripted();
        site.broker.set_script(move |step| match step.packet {
            Packet::Subscribe {
                pkid,
                identifier: Some(_),
                ..
            } => Verdict::Answer(answer(*pkid)),
            _ => Verdict::Pass,
        });
        for member in ["a", "b"] {
            let mut member = site.idle_worker(member_of(&site, member, "5"));
            site.runs_a_job(&mut member);
        }
    }
}

/// The broker grants the head's first SUBSCRIBE, and does not answer the one behind an acknowledgement.
fn confirm_no_acknowledgement(site: &Site<Broker>) {
    site.broker.set_script(|step| match step.packet {
        Packet::SubAck { pkid, .. } if step.client == "the-pool" && *pkid > 1 => Verdict::Drop,
        _ => Verdict::Pass,
    });
}

fn the_next_member_runs_it(site: &Site<Broker>) {
    site.broker.set_script(|_| Verdict::Pass);
    let mut next = site.worker(member_of(site, "b", "5"));
    site.succeeds("a");
    next.exits_with(0);
}

/// The claim is there already, and the broker does not say whether it has the acknowledgement.
#[test]
fn a_stop_of_a_head_that_has_just_made_a_claim_is_no_attempt() {
    let site = Site::scripted();
    confirm_no_acknowledgement(&site);
    let mut head = site.idle_worker(|command| {
        member_of(&site, "a", "5")(command);
        command.env("JOB_STOP_GRACE", "0");
    });
    site.submit("a", json!({ "steps": ["true"], "maxAttempts": 1 }));
    wait::until("a claim", || !site.claims().is_empty());
    head.stop();
    the_next_member_runs_it(&site);
}

/// It has a claim of its own by then, and the connection that the broker drops is the other one.
#[test]
fn a_head_whose_own_connection_is_dropped_gives_its_claim_back() {
    let site = Site::scripted();
    confirm_no_acknowledgement(&site);
    let mut head = site.idle_worker(member_of(&site, "a", "5"));
    let sent = site.broker.sent().into_iter();
    let mut clients = sent.filter_map(|packet| match packet {
        Packet::Connect { client_id, .. } => Some(client_id),
        _ => None,
    });
    let own = clients.find(|id| id.starts_with("a-")).unwrap();
    site.submit("a", json!({ "steps": ["true"], "maxAttempts": 1 }));
    wait::until("a claim", || !site.claims().is_empty());
    site.broker.set_script(|step| match step.packet {
        Packet::SubAck { .. } if step.client == "the-pool" => Verdict::Drop,
        Packet::SubAck { .. } => Verdict::CutAfter,
        _ => Verdict::Pass,
    });
    site.broker.kick(&own);
    head.exits_with(75);
    the_next_member_runs_it(&site);
}

#[test]
fn what_comes_at_qos_0_before_the_subscription_is_granted_fills_no_memory() {
    let site = Site::scripted();
    site.broker.set_script(|step| match step.packet {
        Packet::SubAck { .. } if step.client == "the-pool" => Verdict::Drop,
        _ => Verdict::Pass,
    });
    let head = site.worker(member_of(&site, "a", "5"));
    let subscribed = |step: &Packet| matches!(step, Packet::Subscribe { filters, .. } if filters[0].0 == "jobs/pending");
    wait::until("its SUBSCRIBE", || {
        site.broker.sent().iter().any(subscribed)
    });
    let before = peak_memory(head.pid());
    for _ in 0..300 {
        let flood = Packet::Publish {
            topic: "jobs/pending".into(),
            payload: vec![b'x'; 100_000],
            qos: 0,
            dup: false,
            retain: false,
            pkid: 0,
            subscription: None,
        };
        site.broker.send("the-pool", flood);
    }
    head.await_stderr("the broker does not answer within 5 s");
    let after = peak_memory(head.pid());
    assert!(after < before + 8 * 1024, "from {before} to {after} KiB");
}

on_both_protocols!(a_request_whose_acknowledgement_the_broker_does_not_live_to_read_runs_once);

/// The broker ends the connection as one does that is killed, which looks as if it had dealt with all.
fn a_request_whose_acknowledgement_the_broker_does_not_live_to_read_runs_once(version: &str) {
    let site = Site::scripted();
    let mut cuts = 1;
    site.broker.set_script(move |step| {
        let is_acknowledgement = matches!(step.packet, Packet::PubAck { pkid, .. } if *pkid > 1);
        if step.from_client && step.client == "the-pool" && is_acknowledgement && cuts > 0 {
            cuts -= 1;
            return Verdict::CutBefore;
        }
        Verdict::Pass
    });
    let mark = site.mark();
    let mut member = supervised(&site, "a", version);
    site.await_state(&mut member, mark, "idle");
    let dir = site.directory("job");
    for id in ["first", "cut", "last"] {
        site.request(json!({ "id": id, "workDir": dir, "steps": [format!("echo {id} >> runs")] }));
    }
    site.result("last");
    assert_eq!(read(&dir.join("runs")), "first\ncut\nlast\n");
}

//! What members say of themselves: *idle* is a promise that a request which is published now is kept.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use super::members::member_of;
use super::support::broker::{Broker, Entry, Packet, Verdict};
use super::support::site::Site;
use super::support::wait;

on_both_protocols!(a_member_is_idle_only_when_the_broker_has_granted_the_queue);

fn a_member_is_idle_only_when_the_broker_has_granted_the_queue(version: &str) {
    let site = Site::scripted();
    let mut cuts = 2;
    site.broker.set_script(move |step| {
        let is_granted = matches!(step.packet, Packet::SubAck { .. }) && step.client == "the-pool";
        if is_granted && cuts > 0 {
            cuts -= 1;
            return Verdict::CutBefore;
        }
        Verdict::Pass
    });
    let _members = ["a", "b"].map(|name| site.worker(member_of(&site, name, version)));
    wait::until("both to be idle", || idle(&site, 0) == 2);
    // it keeps nothing, the members have to notice, and their own connections are there again before the queue
    let (tell, withheld) = mpsc::channel();
    site.broker.set_script(move |step| match *step.packet {
        Packet::SubAck { pkid, .. } if step.client == "the-pool" => {
            tell.send(pkid).unwrap();
            Verdict::Drop
        }
        _ => Verdict::Pass,
    });
    let forgotten = site.broker.log().len();
    site.broker.forget_everything();
    let pkid = withheld.recv_timeout(wait::DEADLINE).unwrap();
    let is_granted = |entry: &&Entry| matches!(entry.told(), Some(Packet::SubAck { .. }));
    site.broker.wait_until(wait::DEADLINE, |log| {
        log[forgotten..].iter().filter(is_granted).count() == 2
    });
    let a_while = Duration::from_millis(300);
    wait::throughout(a_while, "none is idle", || idle(&site, forgotten) == 0);
    site.broker.set_script(|_| Verdict::Pass);
    let codes = vec![1];
    site.broker.send("the-pool", Packet::SubAck { pkid, codes });
    wait::until("both to be idle", || idle(&site, forgotten) == 2);
}

/// How many members have been idle since then. Asserts of each that it was not before the subscription.
fn idle(site: &Site<Broker>, from: usize) -> usize {
    let (mut heads, mut is_granted) = (BTreeSet::new(), false);
    let mut idle = BTreeSet::new();
    for (place, entry) in site.broker.log().into_iter().enumerate() {
        let Entry {
            connection,
            packet,
            passed: true,
            ..
        } = entry
        else {
            continue;
        };
        match packet {
            Packet::Connect { client_id, .. } if client_id == "the-pool" => {
                heads.insert(connection);
            }
            Packet::SubAck { .. } if place >= from && heads.contains(&connection) => {
                is_granted = true;
            }
            Packet::Publish { topic, payload, .. } if place >= from => {
                let said: Value = serde_json::from_slice(&payload).unwrap();
                if said["state"] == "idle" && said["waitingFor"].is_null() {
                    assert!(is_granted, "idle, and nothing is kept: {said}");
                    idle.insert(topic);
                }
            }
            _ => {}
        }
    }
    idle.len()
}

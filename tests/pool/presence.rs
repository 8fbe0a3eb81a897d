//! What members say of themselves: *idle* is a promise that a request which is published now is kept.

use std::collections::BTreeSet;

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
    await_idle(&site, 0);
    // it keeps nothing, and the members have to notice
    let forgotten = site.broker.log().len();
    site.broker.forget_everything();
    await_idle(&site, forgotten);
}

/// Waits until both members are idle, and asserts of each that it was not before the subscription.
fn await_idle(site: &Site<Broker>, from: usize) {
    wait::until("both to be idle", || {
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
        idle.len() == 2
    });
}

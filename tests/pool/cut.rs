//! A head that is cut off from the broker, and from nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::json;

use super::members::{member_of, supervised};
use super::support::broker::{Packet, Verdict};
use super::support::pool::await_no_claims;
use super::support::site::{Site, read};

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

//! A head that is cut off from the broker, and from nothing else.

use std::time::{Duration, Instant};

use serde_json::json;

use super::members::{await_no_claims, await_queue, member_of, supervised};
use super::support::broker::{Packet, Verdict};
use super::support::proxy::Proxy;
use super::support::site::{Site, read};

#[test]
fn a_head_that_is_cut_off_frees_the_head() {
    let site = Site::start();
    let way = Proxy::before(site.broker.port());
    let mut cut_off = site.idle_worker(|command| {
        member_of(&site, "cut-off", "5")(command);
        command.env("MQTT_URL", way.url());
    });
    await_queue(&site);
    let mut other = site.idle_worker(member_of(&site, "other", "5"));
    way.hold();
    let cut = Instant::now();
    site.submit("a", json!({ "steps": ["true"] }));
    assert_eq!(site.result("a").json()["worker"], "other");
    other.exits_with(0);
    let took = cut.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    way.release();
    site.submit("b", json!({ "steps": ["true"] }));
    assert_eq!(site.result("b").json()["worker"], "cut-off");
    cut_off.exits_with(0);
    await_no_claims(&site);
    assert_eq!(site.controller.heard("jobs/results/").len(), 2, "each once");
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

//! A head that is cut off from the broker, and from nothing else.

use std::time::{Duration, Instant};

use serde_json::json;

use super::members::{await_queue, claims, member_of};
use super::support::broker::{Packet, Verdict};
use super::support::proxy::Proxy;
use super::support::site::Site;
use super::support::wait;

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
    let result = site.result("a").json();
    eprintln!("taken by another {:?} after the cut", cut.elapsed());
    assert_eq!(result["worker"], "other");
    other.exits_with(0);
    assert!(
        cut.elapsed() < Duration::from_secs(20),
        "{:?}",
        cut.elapsed()
    );
    way.release();
    site.submit("b", json!({ "steps": ["true"] }));
    assert_eq!(site.result("b").json()["worker"], "cut-off");
    cut_off.exits_with(0);
    wait::until("no claim to be left", || claims(&site).is_empty());
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
    let mut member = site.worker(|command| {
        member_of(&site, "a", version)(command);
        command.arg("supervise");
    });
    site.await_state(&mut member, mark, "idle");
    let dir = site.directory("job");
    for id in ["first", "cut", "last"] {
        site.request(json!({ "id": id, "workDir": dir, "steps": [format!("echo {id} >> runs")] }));
    }
    site.result("last");
    let runs = std::fs::read_to_string(dir.join("runs")).unwrap();
    assert_eq!(runs, "first\ncut\nlast\n");
}

//! A head that is cut off from the broker, and from nothing else.

use std::time::{Duration, Instant};

use serde_json::json;

use super::members::{await_queue, claims, member_of};
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

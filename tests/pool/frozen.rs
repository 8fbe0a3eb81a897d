//! A drive that hangs while the head takes a request: the request waits for the drive, and runs once.

use std::fs;
use std::time::Duration;

use serde_json::json;

use super::members::{await_queue, member_of};
use super::support::cut_drive::{CutDrive, FILE_SYSTEMS};
use super::support::mount::Frozen;
use super::support::processes::peak_memory;
use super::support::site::{Site, read};
use super::support::wait;

#[test]
#[ignore = "needs root and loop devices"]
fn a_request_that_meets_a_drive_that_hangs_runs_once() {
    let Some(drive) = CutDrive::start_or_leave_out(FILE_SYSTEMS[0], "frozen") else {
        return;
    };
    let site = Site::start();
    let member = |name: &'static str| {
        site.idle_worker(|command| {
            member_of(&site, name, "5")(command);
            command
                .env("JOB_ROOT", drive.path())
                .env("MQTT_KEEP_ALIVE", "5");
        })
    };
    let mut earlier = member("earlier");
    await_queue(&site);
    // it has packet identifier 1, which tells nothing
    fs::create_dir(drive.path().join("earlier")).unwrap();
    site.request(json!({ "id": "earlier", "workDir": "earlier", "steps": ["true"] }));
    site.result("earlier");
    earlier.exits_with(0);
    let mut head = member("first");
    let count = |what: &str| site.broker.log().matches(what).count();
    let mut other = member("second");
    let dir = drive.path().join("a");
    fs::create_dir(&dir).unwrap();
    let frozen = Frozen::at(&drive.path());
    site.request(json!({ "id": "a", "workDir": dir, "steps": ["echo >> runs"] }));
    wait::until("the head to have the request", || {
        count("Sending PUBLISH to the-pool") == 2
    });
    // what comes at QoS 0 meanwhile may be lost, and fills no memory
    let before = peak_memory(head.pid());
    let flood = json!({ "padding": "x".repeat(100_000) }).to_string();
    for _ in 0..300 {
        let flood = flood.clone();
        site.controller.publish_at_qos_0("jobs/pending", flood);
    }
    wait::until("the head to have the flood", || {
        count("Sending PUBLISH to the-pool") >= 302
    });
    let after = peak_memory(head.pid());
    assert!(after < before + 8 * 1024, "from {before} to {after} KiB");
    let results = || site.controller.heard("jobs/results/a").len();
    wait::throughout(Duration::from_secs(1), "nothing runs", || results() == 0);
    drop(frozen);
    site.succeeds("a");
    wait::until("one of them to end", || {
        head.ended().is_some() || other.ended().is_some()
    });
    assert_eq!(read(&dir.join("runs")).lines().count(), 1);
    let a_while = Duration::from_secs(2);
    wait::throughout(a_while, "no second result", || results() == 1);
}

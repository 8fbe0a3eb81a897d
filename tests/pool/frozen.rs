//! A drive that hangs while the head takes a request: the request waits for the drive, and runs once.

use std::time::Duration;

use serde_json::json;

use super::members::{await_queue, head_of, member_of};
use super::support::cut_drive::{CutDrive, FILE_SYSTEMS};
use super::support::mount::Frozen;
use super::support::site::Site;
use super::support::wait;

#[test]
#[ignore = "needs root and loop devices"]
fn a_request_that_meets_a_drive_that_hangs_runs_once() {
    let drive = CutDrive::start(FILE_SYSTEMS[0], "frozen").unwrap();
    let site = Site::start();
    let member = |name: &'static str| {
        let mut worker = site.idle_worker(|command| {
            member_of(&site, name, "5")(command);
            command.env("JOB_ROOT", drive.path());
            command.env("MQTT_KEEP_ALIVE", "5");
        });
        wait::until("its presence", || {
            !site
                .controller
                .heard(&format!("jobs/workers/{name}"))
                .is_empty()
        });
        worker.ended();
        worker
    };
    let mut earlier = member("earlier");
    await_queue(&site);
    // it has packet identifier 1, which tells nothing
    std::fs::create_dir(drive.path().join("earlier")).unwrap();
    site.request(json!({ "id": "earlier", "workDir": "earlier", "steps": ["true"] }));
    site.result("earlier");
    earlier.exits_with(0);
    let mut head = member("first");
    wait::until("the first to be the head", || {
        head_of(&drive.path()).as_deref() == Some("first")
            && site.broker.log().matches("as the-pool").count() == 2
    });
    let mut other = member("second");
    let dir = drive.path().join("a");
    std::fs::create_dir(&dir).unwrap();
    let frozen = Frozen::at(&drive.path());
    let request = json!({ "id": "a", "workDir": dir, "steps": ["echo >> runs"] });
    site.request(request);
    wait::until("the head to have the request", || {
        let log = site.broker.log();
        log.matches("Sending PUBLISH to the-pool").count() == 2
    });
    wait::throughout(Duration::from_secs(1), "nothing runs", || {
        site.controller.heard("jobs/results/a").is_empty()
    });
    drop(frozen);
    assert_eq!(site.result("a").json()["status"], "success");
    wait::until("one of them to end", || {
        head.ended().is_some() || other.ended().is_some()
    });
    let runs = std::fs::read_to_string(dir.join("runs")).unwrap();
    assert_eq!(runs.lines().count(), 1);
    wait::throughout(Duration::from_secs(2), "no second result", || {
        site.controller.heard("jobs/results/a").len() == 1
    });
}

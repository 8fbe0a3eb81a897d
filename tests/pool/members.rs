//! Members: how a test starts them and sees what they have, and that one which waits stops at once.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::support::pool::Queue;
use super::support::site::{Hub, Site};
use super::support::wait;
use super::support::worker::Worker;

/// The environment of a member of the site's pool.
pub fn member_of<'a, B: Hub>(
    site: &'a Site<B>,
    name: &'a str,
    version: &'a str,
) -> impl Fn(&mut Command) + 'a {
    move |command| {
        Queue::Pool.serve(command, site.drive.path());
        command
            .env("WORKER_ID", name)
            .env("MQTT_PROTOCOL_VERSION", version)
            .env("JOB_STOP_GRACE", "1");
    }
}

/// A member that goes on after each job.
pub fn supervised<B: Hub>(site: &Site<B>, name: &str, version: &str) -> Worker {
    site.worker(|command| {
        member_of(site, name, version)(command);
        command.arg("supervise");
    })
}

pub fn await_queue(site: &Site) {
    wait::until("the pool's subscription", || {
        let log = site.broker.log();
        log.contains("Received SUBSCRIBE from the-pool")
    });
}

/// Makes the directory of the pool by hand, as the reference says it of a queue that was a worker's own.
pub fn make_pool(site: &Site) -> PathBuf {
    site.directory(".job-worker/the-pool")
}

#[test]
fn a_member_that_waits_stops_at_once() {
    let site = Site::start();
    let mut head = site.idle_worker(member_of(&site, "a", "5"));
    let mut standing = site.idle_worker(member_of(&site, "b", "5"));
    let started = Instant::now();
    for member in [&mut standing, &mut head] {
        member.stop();
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
}

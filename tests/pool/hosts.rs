//! Two hosts over one drive, each with a network and a name of its own. One of them is cut off from the broker, and from nothing else,
//! for a minute.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;

use super::members::{await_queue, claims, head_of, member_of};
use super::support::proxy::Proxy;
use super::support::site::Site;
use super::support::wait;
use super::support::worker::{Worker, binary};

/// The port of the broker, as a host sees it.
const PORT: u16 = 1883;

struct Host {
    /// Keeps the network.
    process: Child,
    way: Proxy,
}

impl Host {
    fn start(name: &str, broker: u16) -> Self {
        let script = format!("hostname {name} && ip link set lo up && exec sleep 600");
        let process = Command::new("unshare")
            .args(["--net", "--uts", "sh", "-c", &script])
            .spawn()
            .unwrap();
        let sleep = format!("/proc/{}/comm", process.id());
        wait::until("the network of a host", || {
            fs::read_to_string(&sleep).is_ok_and(|name| name == "sleep\n")
        });
        let network = File::open(format!("/proc/{}/ns/net", process.id())).unwrap();
        // the socket stays in the network of the thread that has made it
        let listener = std::thread::spawn(move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(network.as_fd(), kind).unwrap();
            TcpListener::bind(("127.0.0.1", PORT)).unwrap()
        });
        let way = Proxy::on(listener.join().unwrap(), broker, usize::MAX);
        Self { process, way }
    }

    /// A member on this host that goes on after each job.
    fn member(&self, site: &Site, name: &str, version: &str) -> Worker {
        let mut command = Command::new("nsenter");
        command
            .args(["--net", "--uts", "--target", &self.process.id().to_string()])
            .arg(binary())
            .arg("supervise");
        site.equip(&mut command);
        member_of(site, name, version)(&mut command);
        command.env("MQTT_URL", format!("mqtt://127.0.0.1:{PORT}"));
        site.start_as(command)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "needs network namespaces and 70 s"]
fn a_host_without_a_broker_for_a_minute_mqtt_5() {
    a_host_without_a_broker_for_a_minute("5");
}

#[test]
#[ignore = "needs network namespaces and 70 s"]
fn a_host_without_a_broker_for_a_minute_mqtt_3_1_1() {
    a_host_without_a_broker_for_a_minute("4");
}

fn a_host_without_a_broker_for_a_minute(version: &str) {
    let site = Site::start();
    let hosts = ["one", "two"].map(|name| Host::start(name, site.broker.port()));
    let _members = [
        hosts[0].member(&site, "on-one", version),
        hosts[1].member(&site, "on-two", version),
    ];
    await_queue(&site);
    let runs = site.drive.path().join("runs");
    let submit = |id: &str, then: &str| {
        let step = format!("echo {id} $(uname -n) >> {}; {then}", runs.display());
        site.submit(id, json!({ "steps": [step] }));
    };
    // both have one at the same time
    let both_work = |round: &str| {
        let ids = ["a", "b"].map(|name| format!("{round}-{name}"));
        for (id, other) in [(&ids[0], &ids[1]), (&ids[1], &ids[0])] {
            let runs = runs.display();
            submit(
                id,
                &format!("until grep -q '^{other} ' {runs}; do sleep 0.05; done"),
            );
        }
        let workers = ids.map(|id| site.result(&id).json()["worker"].to_string());
        let workers = BTreeSet::from(workers);
        assert_eq!(workers.len(), 2, "{workers:?}");
    };
    both_work("before");
    submit("first", "");
    site.result("first");
    // whoever has taken a request has disconnected before it runs its job
    wait::until("the next head to be connected", || {
        let log = site.broker.log();
        log.rfind(" as the-pool ") > log.rfind("Client the-pool ")
    });
    let head = head_of(site.drive.path()).expect("a head");
    let cut_off = usize::from(head == "on-two");
    hosts[cut_off].way.hold();
    let cut = Instant::now();
    for number in 0..5 {
        submit(&format!("early-{number}"), "");
    }
    let other = ["on-two", "on-one"][cut_off];
    for number in 0..5 {
        let result = site.result(&format!("early-{number}")).json();
        assert_eq!(result["worker"], other, "{head}");
    }
    eprintln!(
        "all taken by the other one {:?} after the cut",
        cut.elapsed()
    );
    wait::throughout(
        Duration::from_secs(60).saturating_sub(cut.elapsed()),
        "no result twice",
        || site.controller.heard("jobs/results/early-").len() == 5,
    );
    submit("late", "");
    assert_eq!(site.result("late").json()["worker"], other);
    hosts[cut_off].way.release();
    both_work("after");
    wait::until("no claim to be left", || claims(&site).is_empty());
    let lines = fs::read_to_string(&runs).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    let different: BTreeSet<&str> = lines.iter().filter_map(|l| l.split(' ').next()).collect();
    assert_eq!((lines.len(), different.len()), (11, 11), "{lines:?}");
    for host in ["one", "two"] {
        assert!(lines.iter().any(|line| line.ends_with(host)), "{lines:?}");
    }
}

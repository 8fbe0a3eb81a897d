//! The rights of `examples/mosquitto/acl`, and what a worker says that lacks one (docs/reference.md, "Topics" and
//! "Exit status").

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::controller::Controller;
use crate::support::mosquitto::Mosquitto;
use crate::support::site::{Site, read};
use crate::support::wait;
use crate::support::worker::{job_worker, said, with};
use serde_json::json;

const TOPICS: [&str; 6] = [
    "jobs/pending",
    "jobs/cancel/a",
    "jobs/results/a",
    "jobs/status/a",
    "jobs/workers/w",
    "jobs/rejected",
];

/// Everybody's password.
const PASSWORD: &str = "p@ss:w/rd %é";

fn example() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/mosquitto/acl");
    fs::read_to_string(file).expect("the ACL is in examples/mosquitto")
}

/// The broker lets nobody in without a password, with this ACL and a user `observer` who may do everything.
fn guarded(broker: Mosquitto, acl: &str) -> Mosquitto {
    let users = ["controller", "worker", "stranger", "observer"];
    let passwords = broker.passwords(&users, PASSWORD);
    let rights = broker.dir().join("acl");
    let for_the_test = "\nuser observer\ntopic readwrite #\n\npattern read marker/%u\n";
    fs::write(&rights, acl.to_owned() + for_the_test).unwrap();
    let mut broker = broker
        // with 0, Mosquitto before 2.0.22 closes the connection over each message that it denies
        .config("max_queued_messages 1000000")
        .config("allow_anonymous false")
        .config(&format!("password_file {}", passwords.display()))
        .config(&format!("acl_file {}", rights.display()));
    broker.restart();
    broker
}

fn site(acl: &str) -> Site {
    site_on(Mosquitto::prepare(), acl)
}

fn site_on(broker: Mosquitto, acl: &str) -> Site {
    let broker = guarded(broker, acl);
    let controller = connect(&broker, "controller");
    Site::with(broker, controller)
}

fn connect(broker: &Mosquitto, user: &str) -> Controller {
    Controller::connect_as(broker, user, Some((user, PASSWORD)))
}

fn as_worker(version: &str) -> impl Fn(&mut Command) {
    move |command| {
        command
            .env("MQTT_USERNAME", "worker")
            .env("MQTT_PASSWORD", PASSWORD)
            .env("MQTT_PROTOCOL_VERSION", version);
    }
}

fn controller_and_worker_can_do_all_that_they_need(version: &str) {
    let site = site(&example());
    let worker = site.idle_worker(as_worker(version));
    let job = site.run_on(worker, "a", json!({ "steps": ["true"] }));
    assert_eq!(job.result["status"], "success");
    for topic in ["jobs/status/a", "jobs/workers/node-worker-01"] {
        assert!(!site.controller.heard(topic).is_empty(), "{topic}");
    }
    let mut worker = site.idle_worker(as_worker(version));
    site.controller.publish("jobs/pending", "no JSON");
    site.controller.next("jobs/rejected");
    site.hold("b");
    site.controller.publish("jobs/cancel/b", "");
    let result = site.result("b").json();
    assert_eq!(result["reason"], "cancelled", "{result}");
    worker.exits_with(0);
}

on_both_protocols!(controller_and_worker_can_do_all_that_they_need);

#[test]
fn credentials_are_taken_from_each_of_their_places() {
    let site = site(&example());
    let at = format!("127.0.0.1:{}", site.broker.port());
    let secret_file = site.drive.path().join("secret");
    // with the mark at its beginning that an editor on Windows writes, and with the end that Docker has
    fs::write(&secret_file, format!("\u{feff}{PASSWORD}\n")).unwrap();
    let in_url = format!("mqtt://w%6frker:p%40ss%3Aw%2Frd%20%25%C3%A9@{at}");
    let of_another = format!("mqtt://nobody:nothing@{at}");
    let (user, password) = (("MQTT_USERNAME", "worker"), ("MQTT_PASSWORD", PASSWORD));
    let file = ("MQTT_PASSWORD_FILE", secret_file.to_str().unwrap());
    let places: [&[(&str, &str)]; 4] = [
        &[("MQTT_URL", &in_url)],
        &[user, password],
        &[user, password, ("MQTT_URL", &of_another)],
        &[user, file],
    ];
    for place in places {
        site.idle_worker(with(place)).stop();
    }
}

fn writable(broker: &Mosquitto, observer: &Controller, user: &str) -> Vec<&'static str> {
    let mark = observer.mark();
    let client = connect(broker, user);
    for topic in TOPICS {
        client.publish(topic, user);
    }
    // messages come in order, so when this one has come all before it have
    observer.publish(&format!("marker/writes-of-{user}"), "");
    observer.next(&format!("marker/writes-of-{user}"));
    let is_heard = |topic: &&str| !observer.heard_since(mark, topic).is_empty();
    TOPICS.into_iter().filter(is_heard).collect()
}

fn readable(broker: &Mosquitto, observer: &Controller, user: &str) -> Vec<&'static str> {
    let client = connect(broker, user);
    for topic in TOPICS {
        observer.publish(topic, "for whom it may concern");
    }
    observer.publish(&format!("marker/{user}"), "");
    client.next(&format!("marker/{user}"));
    let is_heard = |topic: &&str| !client.heard(topic).is_empty();
    TOPICS.into_iter().filter(is_heard).collect()
}

#[test]
fn nobody_can_do_more_than_that() {
    let broker = &guarded(Mosquitto::prepare(), &example());
    let observer = connect(broker, "observer");
    let [pending, cancel, results, status, workers, rejected] = TOPICS;
    let (of_controller, of_worker) = ([pending, cancel], [results, status, workers, rejected]);
    for (user, writes, reads) in [
        ("controller", &of_controller[..], &of_worker[..]),
        ("worker", &of_worker, &of_controller),
        ("stranger", &[], &[]),
    ] {
        assert_eq!(writable(broker, &observer, user), writes, "{user} writes");
        assert_eq!(readable(broker, &observer, user), reads, "{user} reads");
    }
}

/// The ACL without the worker's right to these topics.
fn without(topic: &str) -> String {
    let acl = example();
    let (start, rights) = acl.split_once("user worker\n").expect("it");
    let lines: Vec<_> = rights.lines().collect();
    let is_kept = |line: &&str| !line.ends_with(topic);
    let kept: Vec<_> = lines.iter().copied().filter(is_kept).collect();
    assert_ne!(kept.len(), lines.len(), "{topic}");
    format!("{start}user worker\n{}\n", kept.join("\n"))
}

/// Also as the head of a pool. Else its request would stay at the head of the queue, and nobody would hear of it.
#[test]
fn a_worker_that_may_not_write_rejections_says_so() {
    for pool in [None, Some("pool")] {
        let site = site(&without("jobs/rejected"));
        let mut worker = site.idle_worker(|command| {
            as_worker("5")(command);
            command.env("WORKER_ID", crate::support::site::WORKER);
            command.env("JOB_ROOT", site.drive.path());
            pool.map(|pool| command.env("JOB_POOL", pool));
        });
        wait::until("the worker to say so", || {
            site.controller.publish("jobs/pending", "no JSON"); // what comes before the pool has a session is lost
            worker.stderr().contains("we may not write to")
        });
        worker.exits_with(77);
        let said = worker.stderr();
        assert!(said.contains("jobs/rejected"), "{said}");
    }
}

#[test]
fn a_worker_that_may_not_write_results_says_so_and_the_next_one_that_may_does() {
    let mut site = site(&without("jobs/results/+"));
    let mut worker = site.idle_worker(as_worker("5"));
    site.request(json!({})); // it is rejected, and has packet identifier 1, which tells nothing
    let dir = site.submit("a", json!({ "steps": ["echo ran >> ran"] }));
    worker.exits_with(77);
    let said = worker.stderr();
    assert!(said.contains("jobs/results/"), "{said}");
    site.kill9_broker();
    let rights = site.broker.dir().join("acl");
    let right = "\nuser worker\ntopic write jobs/results/+\n";
    fs::write(&rights, read(&rights) + right).unwrap();
    site.restart_broker();
    let mut worker = site.worker(as_worker("5"));
    site.succeeds("a");
    worker.exits_with(0);
    assert_eq!(read(&dir.join("ran")), "ran\n", "once");
}

#[test]
fn a_worker_that_may_not_show_its_presence_still_works() {
    let site = site(&without("jobs/workers/+"));
    let mut worker = site.worker(as_worker("5"));
    worker.await_stderr("waiting for a job");
    site.submit("a", json!({ "steps": ["true"] }));
    site.succeeds("a");
    worker.exits_with(0);
}

fn check(broker: &Mosquitto, password: &str) -> (String, String, Option<i32>) {
    let mut command = job_worker();
    command.args(["check", "--connect"]);
    said(command.envs([
        ("MQTT_URL", &*broker.url()),
        ("MQTT_USERNAME", "worker"),
        ("MQTT_PASSWORD", password),
    ]))
}

#[test]
fn check_names_a_login_that_the_broker_denies() {
    let broker = &site(&example()).broker;
    let (good, wrong, status) = check(broker, PASSWORD);
    assert_eq!((status, &*wrong), (Some(0), ""), "{good}");
    let accepted = "login: accepted as user \"worker\"";
    assert!(good.contains(accepted), "{good}");

    let (good, wrong, status) = check(broker, "hunter2");
    assert_eq!(status, Some(78));
    let denied = "broker: login: the broker denies access with our user name";
    assert!(wrong.starts_with(denied), "{wrong}");
    let stops_there = good.contains("broker: TCP: ") && !good.contains("hunter2");
    assert!(stops_there, "{good}");
}

/// A broker that puts the user's name for every client id gives `check` the session of the worker.
#[test]
fn check_takes_nothing_from_a_worker_whose_client_id_it_is_given() {
    for version in ["5", "4"] {
        let broker = Mosquitto::prepare().config("use_username_as_clientid true");
        let site = site_on(broker, &example());
        site.idle_worker(as_worker(version)).stop();
        site.submit("a", json!({ "steps": ["true"] }));
        let (good, wrong, status) = check(&site.broker, PASSWORD);
        assert_eq!(status, Some(78), "{good}");
        let told = wrong.contains("session of another client id");
        assert!(told, "{wrong}");
        let mut worker = site.worker(as_worker(version));
        site.succeeds("a");
        worker.exits_with(0);
    }
}

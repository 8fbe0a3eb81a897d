//! Delivery and stopping seen from the broker: the order of the last packets, acknowledgements that do not come, requests
//! that come twice, another client under our id, refusals, and brokers without MQTT 5.

use crate::support;

use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::broker::{Broker, Entry, Packet, RefuseV5, Verdict};
use support::site::{Site, WORKER};
use support::wait::{self, DEADLINE};
use support::worker::Worker;

const STATE: &str = "jobs/workers/node-worker-01";

impl Site<Broker> {
    fn telling(&self, configure: impl FnOnce(&mut Command)) -> Worker {
        self.worker(|command| {
            command.env("RUST_LOG", "debug");
            configure(command);
        })
    }

    fn speaking(&self, version: &str) -> Worker {
        let worker = self.telling(|command| _ = command.env("MQTT_PROTOCOL_VERSION", version));
        self.broker.wait_for_message(STATE, 1, DEADLINE);
        worker
    }

    /// Publishes a request; the step appends the attempt to `runs` and lasts while `gate` exists.
    fn hand_out(&self, id: &str) {
        self.broker.publish("jobs/pending", self.job(id));
    }

    fn job(&self, id: &str) -> String {
        let step = "echo $JOB_ATTEMPT >> runs; while [ -e gate ]; do sleep 0.02; done";
        fs::create_dir_all(self.dir(id)).unwrap();
        json!({ "id": id, "workDir": self.dir(id), "steps": [step] }).to_string()
    }

    /// The same, with the gate closed, and waits until the step runs.
    fn hand_out_held(&self, id: &str) {
        fs::create_dir_all(self.dir(id)).unwrap();
        fs::write(self.dir(id).join("gate"), "").unwrap();
        self.hand_out(id);
        wait::until("the step to run", || self.runs(id) == "1\n");
    }

    fn release(&self, id: &str) {
        fs::remove_file(self.dir(id).join("gate")).unwrap();
    }

    fn dir(&self, id: &str) -> std::path::PathBuf {
        self.drive.path().join(id)
    }

    fn runs(&self, id: &str) -> String {
        read(&self.dir(id).join("runs"))
    }

    /// The packets from the first PUBLISH of `topic` on, in short: what goes to the worker starts with `<`.
    fn told_from(&self, topic: &str) -> Vec<String> {
        let told: Vec<String> = self.broker.log().iter().filter_map(short).collect();
        let start = told
            .iter()
            .position(|line| line.ends_with(topic))
            .expect("this topic");
        told[start..].to_vec()
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn short(entry: &Entry) -> Option<String> {
    let Entry::Packet {
        packet,
        from_client,
        ..
    } = entry
    else {
        return None;
    };
    let what = match packet {
        Packet::Publish { topic, .. } => format!("PUBLISH {topic}"),
        Packet::PubAck { .. } => "PUBACK".to_owned(),
        Packet::Disconnect { .. } => "DISCONNECT".to_owned(),
        _ => return None,
    };
    Some(format!("{}{what}", if *from_client { '>' } else { '<' }))
}

fn sent(entry: &Entry) -> Option<&Packet> {
    match entry {
        Entry::Packet {
            from_client: true,
            packet,
            ..
        } => Some(packet),
        _ => None,
    }
}

fn acknowledgements(broker: &Broker) -> usize {
    broker
        .log()
        .iter()
        .filter(|entry| matches!(sent(entry), Some(Packet::PubAck { .. })))
        .count()
}

/// The protocol versions of all CONNECTs.
fn greetings(broker: &Broker) -> Vec<u8> {
    let version = |entry: &Entry| match sent(entry) {
        Some(Packet::Connect { version, .. }) => Some(*version),
        _ => None,
    };
    broker.log().iter().filter_map(version).collect()
}

fn the_order_at_the_end(version: &str) {
    let site = Site::scripted();
    let mut worker = site.speaking(version);
    site.hand_out_held("a");
    site.hand_out("b");
    site.release("a");
    worker.exits_with(0);
    site.broker.wait_for_connected(WORKER, false, DEADLINE);
    let mut expected = vec![
        ">PUBLISH jobs/results/a",
        "<PUBACK",
        ">PUBACK",
        ">PUBLISH jobs/workers/node-worker-01",
        ">DISCONNECT",
    ];
    if version == "5" {
        // one at a time: 3.1.1 has sent it before
        expected.insert(3, "<PUBLISH jobs/pending");
    }
    assert_eq!(site.told_from("jobs/results/a"), expected);
    site.broker.wait_for_queued(WORKER, 1, DEADLINE);
    let presence = site.broker.retained(STATE).unwrap().text();
    assert!(presence.contains(r#""state":"offline""#), "{presence}");
}

fn a_request_is_not_acknowledged_while_the_broker_does_not_acknowledge_the_result(version: &str) {
    let site = Site::scripted();
    site.broker.set_script(|step| match step.packet {
        Packet::PubAck { .. } if !step.from_client => Verdict::Drop,
        _ => Verdict::Pass,
    });
    let mut worker = site.speaking(version);
    site.hand_out("a");
    site.broker.wait_for_message("jobs/results/a", 1, DEADLINE);
    let quiet = Duration::from_millis(500);
    wait::throughout(quiet, "the request waits", || {
        acknowledgements(&site.broker) == 0 && worker.ended().is_none()
    });
    // also on the next connection, where the broker redelivers the request and hears the result once more
    site.broker.kick(WORKER);
    site.broker.wait_for_message("jobs/results/a", 2, DEADLINE);
    assert_eq!(
        (acknowledgements(&site.broker), site.broker.queued(WORKER)),
        (0, 1)
    );
    site.broker.set_script(|_| Verdict::Pass);
    site.broker.kick(WORKER);
    worker.exits_with(0);
    site.broker.wait_for_queued(WORKER, 0, DEADLINE);
    assert_eq!(site.runs("a"), "1\n");
}

/// 0x10, no matching subscribers: a controller that went down with the worker is not back yet.
#[test]
fn the_result_of_a_later_attempt_waits_for_a_subscriber() {
    let site = Site::scripted();
    let mut first = site.speaking("5");
    site.hand_out_held("a");
    first.kill9();
    nobody_is_subscribed(&site, true);
    let mut second = site.speaking("5");
    site.release("a"); // the step of the first attempt has the lock until it ends
    waits_for_a_subscriber(&site, &mut second);
    assert_eq!(site.runs("a"), "1\n2\n");
}

#[test]
fn a_stored_result_waits_for_a_subscriber() {
    let site = Site::scripted();
    site.broker.set_script(|step| match step.packet {
        Packet::PubAck { .. } if !step.from_client => Verdict::Drop,
        _ => Verdict::Pass,
    });
    let mut first = site.speaking("5");
    site.hand_out("a");
    site.broker.wait_for_message("jobs/results/a", 1, DEADLINE);
    first.kill9();
    site.broker.set_script(|_| Verdict::Pass);
    nobody_is_subscribed(&site, true);
    let mut second = site.speaking("5");
    waits_for_a_subscriber(&site, &mut second);
    assert_eq!(site.runs("a"), "1\n");
}

fn nobody_is_subscribed(site: &Site<Broker>, nobody: bool) {
    let answers = [("jobs/results/+".into(), 0x10)];
    let answers = answers.into_iter().take(usize::from(nobody)).collect();
    site.broker
        .configure(|knobs| knobs.puback_failures = answers);
}

fn waits_for_a_subscriber(site: &Site<Broker>, worker: &mut Worker) {
    wait::until("the warning", || {
        worker
            .stderr()
            .contains("nobody is subscribed to the result")
    });
    let heard = site.broker.received("jobs/results/a").len();
    nobody_is_subscribed(site, false);
    site.broker
        .wait_for_message("jobs/results/a", heard + 1, DEADLINE);
    worker.exits_with(0);
    site.broker.wait_for_queued(WORKER, 0, DEADLINE);
}

on_both_protocols!(
    the_order_at_the_end,
    a_request_is_not_acknowledged_while_the_broker_does_not_acknowledge_the_result,
);

#[test]
fn a_busy_worker_whose_id_is_taken_over_finishes_and_then_reports() {
    let site = Site::scripted();
    let mut first = site.speaking("5");
    site.hand_out_held("a");
    // it finds the first at work by the lock, and must neither run the job nor answer for it
    let mut second = site.telling(|_| {});
    wait::until("the first to notice", || {
        first
            .stderr()
            .contains("another client has connected with our id")
    });
    assert!(first.ended().is_none());
    site.release("a");
    let results = site.broker.wait_for_message("jobs/results/a", 1, DEADLINE);
    assert!(
        results[0].text().contains(r#""status":"success""#),
        "{}",
        results[0].text()
    );
    first.exits_with(0);
    site.broker.wait_for_queued(WORKER, 0, DEADLINE);
    assert_eq!(site.runs("a"), "1\n");
    wait::until("the second to leave or to be idle", || {
        second.ended().is_some()
            || site
                .broker
                .received(STATE)
                .last()
                .is_some_and(|m| m.text().contains("idle"))
    });
}

/// Starts a worker against a broker that refuses something, and returns what it says of it.
fn refused(version: &str, configure: impl FnOnce(&Site<Broker>)) -> String {
    let site = Site::scripted();
    configure(&site);
    let mut worker = site.telling(|command| {
        command
            .env("MQTT_PROTOCOL_VERSION", version)
            .env("MQTT_USERNAME", "alice")
            .env("MQTT_PASSWORD", "open sesame");
    });
    worker.exits_with(77);
    let said = worker.stderr();
    assert!(!said.contains("open sesame"), "{said}");
    said
}

#[test]
fn a_refused_greeting_is_exit_77_and_says_what_was_refused() {
    // MQTT 5, table 3-1; MQTT 3.1.1, table 3.1
    for (version, code, what) in [
        ("5", 0x86, "user name and password"),
        ("5", 0x87, "user name and password"),
        ("5", 0x8A, "user name and password"),
        ("5", 0x85, "client id"),
        ("4", 4, "user name and password"),
        ("4", 5, "user name and password"),
        ("4", 2, "client id"),
    ] {
        let said = refused(version, |site| {
            site.broker
                .configure(|knobs| knobs.connack_code = Some(code))
        });
        assert!(
            said.contains(what),
            "version {version}, code {code}: {said}"
        );
    }
}

#[test]
fn a_broker_in_trouble_is_waited_for() {
    for (version, code) in [("5", 0x88), ("5", 0x89), ("5", 0x97), ("4", 3)] {
        let site = Site::scripted();
        site.broker
            .configure(|knobs| knobs.connack_code = Some(code));
        let mut worker = site.telling(|command| _ = command.env("MQTT_PROTOCOL_VERSION", version));
        wait::until("another try", || greetings(&site.broker).len() >= 2);
        assert!(worker.ended().is_none());
        site.broker.configure(|knobs| knobs.connack_code = None);
        site.broker.wait_for_message(STATE, 1, DEADLINE);
        site.hand_out("a");
        worker.exits_with(0);
    }
}

#[test]
fn a_refused_subscription_is_exit_77_and_names_the_filter() {
    for (version, filter, code) in [
        ("5", "jobs/pending", 0x87),
        ("5", "jobs/cancel/+", 0x87),
        ("4", "jobs/pending", 0x80),
        ("4", "jobs/cancel/+", 0x80),
    ] {
        let said = refused(version, |site| {
            site.broker
                .configure(|knobs| knobs.suback_failures = vec![(filter.into(), code)]);
        });
        assert!(
            said.contains("denies the subscription") && said.contains(filter),
            "{said}"
        );
    }
}

#[test]
fn a_worker_that_is_refused_in_mid_job_finishes_it_first_and_a_later_one_answers() {
    for (version, code) in [("5", 0x87), ("4", 5)] {
        let site = Site::scripted();
        let mut worker = site.speaking(version);
        site.hand_out_held("a");
        site.broker
            .configure(|knobs| knobs.connack_code = Some(code));
        site.broker.kick(WORKER);
        wait::until("the refusal", || {
            worker
                .stderr()
                .contains("the broker denies access without a user name")
        });
        assert!(worker.ended().is_none());
        site.release("a");
        worker.exits_with(77);
        let status = read(&site.dir("a").join("job.status.json"));
        assert!(status.contains(r#""status":"success""#), "{status}");
        site.broker.configure(|knobs| knobs.connack_code = None);
        let mut later = site.speaking(version);
        later.exits_with(0);
        assert_eq!(site.broker.received("jobs/results/a").len(), 1);
        // in 3.1.1 nothing tells the redelivery from a fresh request
        let runs = if version == "5" { "1\n" } else { "1\n1\n" };
        assert_eq!(site.runs("a"), runs);
    }
}

#[test]
fn a_broker_without_mqtt_5_is_spoken_to_in_3_1_1_with_a_notice() {
    for how in [RefuseV5::Close, RefuseV5::Answer] {
        let site = Site::scripted();
        site.broker.configure(|knobs| knobs.refuse_v5 = Some(how));
        let mut worker = site.speaking("auto");
        site.hand_out("a");
        worker.exits_with(0);
        site.broker.wait_for_queued(WORKER, 0, DEADLINE);
        assert_eq!(greetings(&site.broker), [5, 5, 4]);
        assert!(worker.stderr().contains("3.1.1"), "{}", worker.stderr());
    }
}

#[test]
fn the_version_that_a_broker_has_taken_is_kept() {
    let site = Site::scripted();
    let _worker = site.speaking("auto");
    site.broker
        .configure(|knobs| knobs.refuse_v5 = Some(RefuseV5::Close));
    site.broker.kick(WORKER);
    wait::until("two more tries", || greetings(&site.broker).len() >= 3);
    assert!(
        greetings(&site.broker).iter().all(|version| *version == 5),
        "{:?}",
        greetings(&site.broker)
    );
}

#[test]
fn a_version_that_is_asked_for_is_the_only_one() {
    for how in [RefuseV5::Close, RefuseV5::Answer] {
        let site = Site::scripted();
        site.broker.configure(|knobs| knobs.refuse_v5 = Some(how));
        let mut worker = site.telling(|command| _ = command.env("MQTT_PROTOCOL_VERSION", "5"));
        wait::until("another try", || greetings(&site.broker).len() >= 3);
        assert!(worker.ended().is_none(), "losing the broker is no exit");
        assert!(greetings(&site.broker).iter().all(|version| *version == 5));
    }
    let site = Site::scripted();
    let mut worker = site.speaking("4");
    site.hand_out("a");
    worker.exits_with(0);
    assert_eq!(greetings(&site.broker), [4]);
}

#[test]
fn where_every_request_has_the_same_packet_identifier_a_new_one_runs() {
    let site = Site::scripted();
    // as HiveMQ does, which takes the lowest one that is free
    let mut in_flight = 0;
    site.broker
        .set_script(move |step| match step.packet.clone() {
            Packet::Publish { topic, pkid, .. } if !step.from_client && topic == "jobs/pending" => {
                in_flight = pkid;
                let mut packet = step.packet.clone();
                if let Packet::Publish { pkid, .. } = &mut packet {
                    *pkid = 1;
                }
                Verdict::Replace(packet)
            }
            Packet::PubAck { code, .. } if step.from_client => Verdict::Replace(Packet::PubAck {
                pkid: in_flight,
                code,
            }),
            _ => Verdict::Pass,
        });
    let mut first = site.idle_worker(|_| {});
    fs::create_dir_all(site.dir("a")).unwrap();
    fs::write(site.dir("a").join("gate"), "").unwrap();
    site.hand_out("a");
    wait::until("the step to run", || site.runs("a") == "1\n");
    site.hand_out("a"); // the broker pushes it to the worker that leaves
    site.release("a");
    first.exits_with(0);
    site.worker(|_| {}).exits_with(0);
    assert_eq!(site.runs("a"), "1\n1\n");
}

#[test]
fn a_server_keep_alive_of_0_is_no_reason_to_ping_without_a_pause() {
    let site = Site::scripted();
    site.broker
        .configure(|knobs| knobs.server_keep_alive = Some(0));
    let mut worker = site.telling(|command| _ = command.env("MQTT_KEEP_ALIVE", "5"));
    site.broker.wait_for_message(STATE, 1, DEADLINE);
    let is_ping = |entry: &Entry| matches!(sent(entry), Some(Packet::PingReq));
    // rumqttc has set its clock by then, so that one goes out
    let pings = || {
        site.broker
            .log()
            .iter()
            .filter(|entry| is_ping(entry))
            .count()
    };
    wait::throughout(Duration::from_millis(500), "one PINGREQ at most", || {
        pings() <= 1
    });
    site.hand_out("a");
    worker.exits_with(0);
}

#[test]
fn a_server_keep_alive_is_heeded() {
    let site = Site::scripted();
    site.broker
        .configure(|knobs| knobs.server_keep_alive = Some(2));
    let _worker = site.speaking("5"); // by itself it would say nothing for 30 s
    let is_ping = |entry: &Entry| matches!(sent(entry), Some(Packet::PingReq));
    site.broker
        .wait_until(DEADLINE, |log| log.iter().any(is_ping));
}

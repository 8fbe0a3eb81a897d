//! The connection to the broker when it dies without a word, is taken away, or is not answered.

use crate::support;

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;
use support::broker::{Broker, Entry, Message, Packet, Verdict};
use support::cases;
use support::pool::Queue;
use support::site::{Hub, Site, WORKER, read_json, release, until_exists};
use support::wait::{self, DEADLINE};
use support::worker::{binary, speaking};

/// The smallest that is taken, in seconds.
const KEEP_ALIVE: &str = "5";

/// 1.5 times that, and what a loaded machine takes to connect again; twice the keep-alive would be too late.
const NOTICED: Duration = Duration::from_secs(9);

/// While the worker is idle, behind an answered ping; and in a result of some 7 MB, which is more than the socket buffers hold.
#[test]
fn a_connection_that_dies_is_noticed_within_one_and_a_half_keep_alives() {
    for (version, is_large) in [("5", false), ("4", true)] {
        let site = Site::start();
        let mut worker = site.idle_worker(|command| {
            speaking(version)(command);
            command.env("MQTT_KEEP_ALIVE", KEEP_ALIVE);
        });
        if is_large {
            let mut steps = vec!["touch up; until [ -e gate ]; do sleep 0.02; done; false"];
            steps.resize(330_000, ""); // skipped
            site.begin("large", json!({ "steps": steps }));
        } else {
            wait::until("an answered ping", || {
                site.broker
                    .log()
                    .contains("Sending PINGRESP to node-worker-01")
            });
        }
        site.broker.freeze();
        let died = Instant::now();
        if is_large {
            release(&site.drive.path().join("large"));
        }
        worker.await_stderr("the connection is lost");
        assert!(died.elapsed() < NOTICED, "{:?}", died.elapsed());
        site.broker.thaw();
        if is_large {
            let result = site.result("large");
            assert!(result.payload.len() > 6 << 20, "{}", result.payload.len());
            worker.exits_with(0);
        } else {
            site.runs_a_job(&mut worker);
        }
    }
}

fn one_of_two_idle_workers_under_one_id_leaves(version: &str) {
    one_leaves(&Site::start(), version);
}

/// Mosquitto 2.1 says "session taken over" in the short form (MQTT 5, section 3.14.2.1).
#[test]
fn a_takeover_said_in_the_short_form_is_one_too() {
    let site = Site::scripted();
    site.broker.set_script(|step| match step.packet {
        Packet::Disconnect { .. } if !step.from_client => {
            Verdict::Replace(Packet::Raw(vec![0xe0, 0x01, 0x8e]))
        }
        _ => Verdict::Pass,
    });
    one_leaves(&site, "5");
}

fn one_leaves<B: Hub>(site: &Site<B>, version: &str) {
    let first = site.idle_worker(speaking(version));
    let mut workers = [first, site.worker(speaking(version))];
    let gone = wait::until_some("one of them to leave", || {
        let mut workers = workers.iter_mut();
        workers.position(|worker| worker.ended().is_some())
    });
    workers[gone].exits_with(75);
    let said = workers[gone].stderr().to_lowercase();
    for named in ["worker_id", "node-worker-01", "jobs/workers/node-worker-01"] {
        assert!(said.contains(named), "{named}: {said}");
    }
    site.runs_a_job(&mut workers[1 - gone]);
}

fn an_acknowledgement_of_something_else_is_none_of_the_result(version: &str) {
    let site = Site::scripted();
    let mut lies = 1;
    site.broker.set_script(move |step| match *step.packet {
        Packet::PubAck { pkid, code } if !step.from_client && lies > 0 => {
            lies -= 1;
            let pkid = pkid + 1;
            Verdict::Replace(Packet::PubAck { pkid, code })
        }
        _ => Verdict::Pass,
    });
    let mut worker = site.idle_worker(speaking(version));
    site.submit("a", json!({ "steps": ["true"] }));
    let results = site.results("a", 2);
    assert_eq!(
        results[0], results[1],
        "it is published until it has arrived"
    );
    worker.exits_with(0);
}

on_both_protocols!(
    one_of_two_idle_workers_under_one_id_leaves,
    an_acknowledgement_of_something_else_is_none_of_the_result,
    a_worker_says_idle_when_its_queue_is_there_and_not_before,
);

#[test]
fn a_broker_that_drops_an_idle_worker_three_times_is_left() {
    let site = Site::scripted();
    // as some brokers do where a client may not write to a topic
    site.broker.set_script(|step| match step.packet {
        Packet::Publish { topic, .. } if topic.starts_with("jobs/workers/") => Verdict::CutBefore,
        _ => Verdict::Pass,
    });
    let mut worker = site.worker(|_| {});
    worker.exits_with(75);
    let said = worker.stderr();
    assert!(said.contains("dropped three connections"), "{said}");
    let causes = [
        "WORKER_ID",
        &format!("we may not write to jobs/workers/{WORKER}"),
    ];
    assert!(causes.iter().all(|cause| said.contains(cause)), "{said}");
}

#[test]
fn a_worker_with_a_job_is_dropped_as_often_as_it_takes() {
    let site = Site::scripted();
    let mut worker = site.idle_worker(|_| {});
    let dir = site.submit("a", json!({ "steps": [until_exists("open")] }));
    for _ in 0..5 {
        site.broker.wait_for_connected(WORKER, true, DEADLINE);
        site.broker.kick(WORKER);
    }
    worker.await_stderr("connections in a row");
    assert!(worker.ended().is_none());
    fs::write(dir.join("open"), "").unwrap();
    assert_eq!(site.result("a").json()["status"], "success");
    worker.exits_with(0);
    site.broker.wait_for_queued(WORKER, 0, DEADLINE);
}

#[test]
fn the_brokers_of_a_url_are_tried_in_turn() {
    let site = Site::scripted();
    let other = Broker::start();
    // takes connections, and never says a word
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap();
    let [first, second] = [other.port(), site.broker.port()];
    let url = format!("mqtt://127.0.0.1:1,{silent},127.0.0.1:{first},127.0.0.1:{second}");
    let mut worker = site.worker(|command| _ = command.env("MQTT_URL", &url));
    worker.await_stderr(&format!("connected to the broker at 127.0.0.1:{first}"));
    let said = worker.stderr();
    assert!(
        said.contains("broker 127.0.0.1:1: no connection: "),
        "{said}"
    );
    other.stop_listening();
    worker.await_stderr(&format!("connected to the broker at 127.0.0.1:{second}"));
    site.broker.wait_for_message("jobs/workers/+", 1, DEADLINE);
    site.runs_a_job(&mut worker);
}

#[test]
fn the_password_file_is_read_for_each_connection() {
    let site = Site::scripted();
    let file = site.drive.path().join("password");
    fs::write(&file, "first\n").unwrap();
    let _worker = site.idle_worker(|command| {
        command
            .env("MQTT_USERNAME", "alice")
            .env("MQTT_PASSWORD_FILE", &file);
    });
    fs::write(&file, "\u{feff}second\r\n").unwrap();
    site.broker.kick(WORKER);
    wait::until("the second password", || {
        let is_second = |packet: &Packet| matches!(packet, Packet::Connect { password, .. } if password == "second");
        site.broker.sent().iter().any(is_second)
    });
}

/// Whatever a broker does with a greeting, the worker comes through, and says that it speaks the older version where it does. The
/// greetings are in their order, each with its version and what becomes of it.
#[test]
fn the_version_that_is_spoken_follows_from_what_becomes_of_the_greetings() {
    let older = "speaking 3.1.1";
    let cases: [(&str, &str, &[&str]); 9] = [
        ("auto", "5 cut, 5 cut, 4 pass", &[older]),
        ("auto", "5 no, 5 no, 4 pass", &[older]),
        ("auto", "5 drop, 5 drop, 4 pass", &[older]),
        ("auto", "5 cut, 5 cut, 4 cut, 5 pass", &[]),
        // the version that a broker has taken is kept
        ("auto", "5 pass, 5 cut, 5 cut, 5 pass", &[]),
        ("5", "5 cut, 5 cut, 5 pass", &[]),
        ("5", "5 no, 5 no, 5 pass", &[]),
        // a greeting gets more time at each try
        (
            "5",
            "5 drop, 5 drop, 5 pass",
            &["within 5 s", "within 7.5 s"],
        ),
        ("4", "4 pass", &[]),
    ];
    cases::try_all(cases.len(), &cases, |(version, greetings, said)| {
        let site = Site::scripted();
        let mut left = greetings.split(", ");
        site.broker.set_script(move |step| match *step.packet {
            Packet::Connect { version, .. } => {
                let greeting = left.next().expect("one more greeting");
                let (expected, verdict) = greeting.split_once(' ').expect("two words");
                assert_eq!(version.to_string(), expected);
                match verdict {
                    "cut" => Verdict::CutBefore,
                    "drop" => Verdict::Drop,
                    // as a broker of 3.1.1 may say that it has no version 5
                    "no" => Verdict::Answer(Packet::Raw(vec![0x20, 2, 0, 1])),
                    _ => Verdict::Pass,
                }
            }
            _ => Verdict::Pass,
        });
        let mut worker = site.idle_worker(|command| {
            speaking(version)(command);
            command.env("MQTT_KEEP_ALIVE", KEEP_ALIVE);
        });
        if greetings.starts_with("5 pass") {
            site.broker.kick(WORKER);
        }
        wait::until("all greetings", || {
            let is_greeting = |packet: &&Packet| matches!(packet, Packet::Connect { .. });
            let sent = site.broker.sent();
            sent.iter().filter(is_greeting).count() == greetings.split(", ").count()
        });
        site.runs_a_job(&mut worker);
        let log = worker.stderr();
        assert!(said.iter().all(|words| log.contains(words)), "{log}");
        assert_eq!(log.contains(older), said.contains(&older), "{log}");
    });
}

#[test]
fn a_server_keep_alive_is_heeded_and_one_of_0_is_no_reason_to_ping_without_a_pause() {
    for (properties, own, least, most) in [(&[0x13, 0, 0], "5", 0, 1), (&[0x13, 0, 2], "30", 1, 2)]
    {
        let site = Site::scripted();
        site.broker.offer(properties);
        let mut worker = site.idle_worker(|command| _ = command.env("MQTT_KEEP_ALIVE", own));
        let is_ping = |packet: &&Packet| **packet == Packet::PingReq;
        let pings = || site.broker.sent().iter().filter(is_ping).count();
        wait::until("a PINGREQ where one is due", || pings() >= least);
        // rumqttc has set its clock before it hears of 0, so that one goes out
        let quiet = Duration::from_millis(500);
        wait::throughout(quiet, "few PINGREQ", || pings() <= most);
        site.runs_a_job(&mut worker);
    }
}

fn a_worker_says_idle_when_its_queue_is_there_and_not_before(version: &str) {
    let site = Site::scripted();
    let (tell, subscribed) = mpsc::channel();
    let mut is_withheld = false;
    site.broker.set_script(move |step| match *step.packet {
        Packet::SubAck { pkid, .. } if step.connection == 1 && !is_withheld => {
            is_withheld = true;
            tell.send(pkid).unwrap();
            Verdict::Drop
        }
        _ => Verdict::Pass,
    });
    let mut worker = site.idle_worker(speaking(version));
    site.broker.forget_session(WORKER);
    let pkid = subscribed.recv_timeout(DEADLINE).unwrap();
    let codes = vec![1, 0];
    site.broker.send(WORKER, Packet::SubAck { pkid, codes });
    site.runs_a_job(&mut worker);
    let log = site.broker.log();
    let first = |is_it: &dyn Fn(&Packet) -> bool| {
        let is_first =
            |entry: &Entry| entry.connection == 1 && entry.passed && is_it(&entry.packet);
        log.iter().position(is_first)
    };
    let granted = first(&|packet| matches!(packet, Packet::SubAck { .. }));
    let is_presence = |topic: &str| topic.starts_with("jobs/workers/");
    let said =
        first(&|packet| matches!(packet, Packet::Publish { topic, .. } if is_presence(topic)));
    assert!(granted.is_some() && said > granted, "{granted:?} {said:?}");
}

/// With each few descriptors that it may have, in an own queue and in a pool, whose head has a connection of its own.
#[test]
fn too_few_descriptors_are_waited_for() {
    let site = Site::scripted();
    let own = (6..=9).map(|few| (few, Queue::Own));
    for (few, queue) in own.chain((8..=15).map(|few| (few, Queue::Pool))) {
        let id = format!("{few}-{queue:?}");
        let mark = site.mark();
        let mut command = Command::new("sh");
        let limited = format!("ulimit -Sn {few}; exec \"$0\"");
        command.args(["-c", &limited]).arg(binary());
        site.equip(&mut command);
        queue.serve(&mut command, site.drive.path());
        command.env("WORKER_ID", &id);
        let mut worker = site.start_as(command);
        wait::until("it to meet the limit", || {
            let said = worker.stderr();
            ["Too many open files", "no connection to the broker"]
                .iter()
                .any(|text| said.contains(text))
        });
        let pid = Pid::from_raw(worker.pid() as i32).expect("a process");
        let limit = Rlimit {
            current: Some(1024),
            maximum: Some(1024),
        };
        prlimit(Some(pid), Resource::Nofile, limit).expect("it is our child");
        site.await_state(&mut worker, mark, "idle");
    }
}

/// A job whose result has some 2 KB, and a rejection that is as large.
#[test]
fn what_the_broker_says_that_it_does_not_take_is_published_short() {
    let site = Site::scripted();
    site.broker.offer(&[0x27, 0, 0, 2, 88]); // Maximum Packet Size 600
    let mut worker = site.idle_worker(speaking("5"));
    site.broker.publish("jobs/pending", "x".repeat(2000));
    let notices = site.broker.wait_for_message("jobs/rejected", 1, DEADLINE);
    assert!(notices[0].text().contains("\"truncated\":true"));
    let mut steps = vec!["exit 3"];
    steps.resize(100, "true");
    let dir = site.submit("a", json!({ "steps": steps }));
    let result = site.result("a").json();
    assert_eq!(result["truncated"], true, "{result}");
    assert_eq!(
        (&result["exitCode"], &result["steps"]),
        (&json!(3), &json!(null))
    );
    worker.exits_with(0);
    let stored = read_json(&dir.join("job.status.json"));
    assert_eq!(stored["steps"].as_array().unwrap().len(), 100);
    assert_eq!(stored.get("truncated"), None);
    site.broker.wait_for_queued(WORKER, 0, DEADLINE);
    let is_too_large = |it: &Message| it.topic.len() + it.payload.len() > 590;
    assert!(!site.broker.received("#").iter().any(is_too_large));
}

//! What a broker says that it does not do: the worker goes on without it, or ends with 77 and the broker's reason.

use crate::support;

use serde_json::json;
use support::broker::{Broker, Packet, Verdict};
use support::site::{Site, WORKER};
use support::wait::DEADLINE;
use support::worker::{Worker, speaking};

type Pair = (Site<Broker>, Worker);

/// A site whose broker says this in place of the first packet that it fits, or of each; and a worker with a login.
fn saying_in(
    version: &str,
    always: bool,
    says: impl Fn(&Packet) -> Option<Packet> + Send + 'static,
) -> Pair {
    let site = Site::scripted();
    let mut said = false;
    site.broker.set_script(move |step| {
        let packet = (!step.from_client && (always || !said)).then(|| says(step.packet));
        match packet.flatten() {
            Some(packet) => {
                said = true;
                Verdict::Replace(packet)
            }
            None => Verdict::Pass,
        }
    });
    let worker = site.worker(|command| {
        speaking(version)(command);
        command.envs([("MQTT_USERNAME", "alice"), ("MQTT_PASSWORD", "open sesame")]);
    });
    (site, worker)
}

fn saying(always: bool, says: impl Fn(&Packet) -> Option<Packet> + Send + 'static) -> Pair {
    saying_in("5", always, says)
}

/// In place of a CONNACK, with this code and these properties.
fn greeting(code: u8, properties: &'static [u8]) -> impl Fn(&Packet) -> Option<Packet> {
    move |packet| match packet {
        Packet::ConnAck {
            session_present, ..
        } => Some(Packet::ConnAck {
            session_present: *session_present,
            code,
            properties: properties.to_vec(),
        }),
        _ => None,
    }
}

/// In place of a SUBACK, with these codes for the requests and the cancels.
fn granting(codes: [u8; 2]) -> impl Fn(&Packet) -> Option<Packet> {
    move |packet| match *packet {
        Packet::SubAck { pkid, .. } => Some(Packet::SubAck {
            pkid,
            codes: codes.to_vec(),
        }),
        _ => None,
    }
}

/// In place of a PUBACK, with a Reason String.
fn puback(code: u8) -> impl Fn(&Packet) -> Option<Packet> {
    move |packet| match *packet {
        Packet::PubAck { pkid, .. } => {
            let [high, low] = pkid.to_be_bytes();
            let reason = [&[0x40, 11, high, low, code, 7, 0x1f, 0, 4][..], b"full"].concat();
            Some(Packet::Raw(reason))
        }
        _ => None,
    }
}

/// In place of a SUBACK, a DISCONNECT with this code, a Reason String and a Server Reference.
fn disconnecting(code: u8) -> impl Fn(&Packet) -> Option<Packet> {
    move |packet| match packet {
        Packet::SubAck { .. } => {
            let body = [&[code, 14, 0x1f, 0, 4][..], b"full", &[0x1c, 0, 4], b"moon"].concat();
            Some(Packet::Raw([&[0xe0, body.len() as u8][..], &body].concat()))
        }
        _ => None,
    }
}

/// Ends with 77, and says this.
#[track_caller]
fn gives_up(pair: Pair, said: &str) {
    let (_site, mut worker) = pair;
    worker.exits_with(77);
    let log = worker.stderr();
    assert!(log.contains(said), "{said:?} is not in:\n{log}");
    assert!(!log.contains("open sesame"), "{log}");
}

/// Says this, and does its job all the same. Returns what it has sent.
#[track_caller]
fn goes_on(pair: Pair, said: &str) -> Vec<Packet> {
    let (site, mut worker) = pair;
    worker.await_stderr(said);
    worker.await_stderr("waiting for a job");
    site.runs_a_job(&mut worker);
    let count = worker.stderr().matches(said).count();
    assert_eq!(count, 1, "{said:?} is said once");
    site.broker.sent()
}

/// MQTT 5, section 2.4, table 3-1 and the properties of section 3.2.2.3; MQTT 3.1.1, table 3.1.
#[test]
fn what_no_retry_mends_is_exit_77() {
    gives_up(saying(true, greeting(0, &[0x24, 0])), "Maximum QoS 0");
    gives_up(
        saying(true, greeting(0, &[0x21, 0, 0])),
        "Receive Maximum 0",
    );
    for (version, code, said) in [
        ("5", 0x90, "denies access (TopicNameInvalid)"),
        ("5", 0x9b, "denies access (QoSNotSupported)"),
        ("5", 0x9d, "denies access (ServerMoved)"),
        ("5", 0x84, "denies access (UnsupportedProtocolVersion)"),
        ("5", 0x86, "user name and password"),
        ("5", 0x87, "user name and password"),
        ("5", 0x8a, "user name and password"),
        ("5", 0x85, "client id"),
        ("4", 4, "user name and password"),
        ("4", 5, "user name and password"),
        ("4", 2, "client id"),
    ] {
        gives_up(saying_in(version, true, greeting(code, &[])), said);
    }
    for (version, codes, said) in [
        ("5", [0, 0], "grants jobs/pending at QoS 0"),
        ("5", [0x87, 0], "denies the subscription to jobs/pending"),
        ("5", [1, 0x8f], "jobs/cancel/+ (TopicFilterInvalid)"),
        (
            "5",
            [0x9e, 0],
            "jobs/pending (SharedSubscriptionsNotSupported)",
        ),
        ("4", [0x80, 0], "denies the subscription to jobs/pending"),
        ("4", [1, 0x80], "denies the subscription to jobs/cancel/+"),
    ] {
        gives_up(saying_in(version, true, granting(codes)), said);
    }
    for (code, name) in [
        (0x87, "NotAuthorized"),
        (0x8f, "TopicFilterInvalid"),
        (0x9d, "ServerMoved"),
    ] {
        let said = format!("the broker disconnects us ({name}: full; it names the server moon)");
        gives_up(saying(true, disconnecting(code)), &said);
    }
    let denied = saying(true, puback(0x90));
    denied.1.await_stderr("waiting for a job");
    denied.0.submit("a", json!({ "steps": ["true"] }));
    gives_up(denied, "may not write to jobs/results/+");
}

#[test]
fn a_broker_that_retains_nothing_does_without_retained_presence() {
    let offers = saying(true, greeting(0, &[0x25, 0]));
    let refuses = saying(false, greeting(0x9a, &[]));
    let disconnects = saying(false, disconnecting(0x9a));
    for broker in [offers, refuses, disconnects] {
        let sent = goes_on(broker, "the broker retains no message");
        let presence = sent.iter().rev().find_map(|packet| match packet {
            Packet::Publish { topic, retain, .. } if topic.starts_with("jobs/workers/") => {
                Some(*retain)
            }
            _ => None,
        });
        assert_eq!(presence, Some(false));
    }
}

#[test]
fn a_broker_without_wildcards_does_without_cancels() {
    let offers = saying(true, greeting(0, &[0x28, 0]));
    let denies = saying(false, granting([1, 0xa2]));
    for broker in [offers, denies] {
        let sent = goes_on(broker, "the broker has no wildcard subscriptions");
        let filters = sent.iter().rev().find_map(|packet| match packet {
            Packet::Subscribe { filters, .. } => Some(filters.len()),
            _ => None,
        });
        assert_eq!(filters, Some(1));
    }
}

#[test]
fn a_broker_without_subscription_identifiers_gets_none() {
    let offers = saying(true, greeting(0, &[0x29, 0]));
    let denies = saying(false, granting([0xa1, 0xa1]));
    let disconnects = saying(false, disconnecting(0xa1));
    for broker in [offers, denies, disconnects] {
        let sent = goes_on(broker, "waiting for a job");
        let identifier = sent.iter().rev().find_map(|packet| match packet {
            Packet::Subscribe { identifier, .. } => Some(*identifier),
            _ => None,
        });
        assert_eq!(identifier, Some(None));
    }
}

#[test]
fn what_may_pass_is_tried_again_with_the_words_of_the_broker() {
    for (version, code, said) in [
        ("5", 0x88, "ServerUnavailable"),
        ("5", 0x89, "ServerBusy"),
        ("5", 0x97, "QuotaExceeded"),
        ("4", 3, "ServiceUnavailable"),
    ] {
        goes_on(saying_in(version, false, greeting(code, &[])), said);
    }
    for (code, name) in [
        (0x8b, "ServerShuttingDown"),
        (0x9c, "UseAnotherServer"),
        (0x97, "QuotaExceeded"),
    ] {
        let said = format!("it disconnects us ({name}: full; it names the server moon)");
        goes_on(saying(false, disconnecting(code)), &said);
    }
    let (site, mut worker) = saying(false, puback(0x97));
    worker.await_stderr("waiting for a job");
    site.submit("a", json!({ "steps": ["true"] }));
    worker.exits_with(0);
    let log = worker.stderr();
    assert!(log.contains("(QuotaExceeded: full)"), "{log}");
    let results = site.broker.received("jobs/results/a");
    assert_eq!((results.len(), &results[0]), (2, &results[1]));
    site.broker.wait_for_queued(WORKER, 0, DEADLINE);
}

//! What a broker says that it does not do: the worker goes on without it, or ends with 77 and the broker's reason.

use crate::support;

use Says::{Confirms, Disconnects, Grants, Greets};
use support::broker::{Broker, Packet, Verdict};
use support::cases::{AT_ONCE, try_all};
use support::site::Site;
use support::worker::{Worker, speaking};

/// What a broker says in place of a packet.
#[derive(Clone, Copy, Debug)]
enum Says {
    /// A CONNACK with this code and these properties.
    Greets(u8, &'static [u8]),
    /// A SUBACK with these codes for the requests and the cancels.
    Grants([u8; 2]),
    /// A PUBACK with this code and a Reason String.
    Confirms(u8),
    /// In place of a SUBACK, a DISCONNECT with this code, a Reason String and a Server Reference.
    Disconnects(u8),
}

impl Says {
    fn instead_of(self, packet: &Packet) -> Option<Packet> {
        Some(match (self, packet) {
            (
                Greets(code, properties),
                &Packet::ConnAck {
                    session_present, ..
                },
            ) => Packet::ConnAck {
                session_present,
                code,
                properties: properties.to_vec(),
            },
            (Grants(codes), &Packet::SubAck { pkid, .. }) => Packet::SubAck {
                pkid,
                codes: codes.to_vec(),
            },
            (Confirms(code), Packet::PubAck { pkid, .. }) => {
                let [high, low] = pkid.to_be_bytes();
                let reason = [&[0x40, 11, high, low, code, 7, 0x1f, 0, 4][..], b"full"].concat();
                Packet::Raw(reason)
            }
            (Disconnects(code), Packet::SubAck { .. }) => {
                let body = [&[code, 14, 0x1f, 0, 4][..], b"full", &[0x1c, 0, 4], b"moon"].concat();
                Packet::Raw([&[0xe0, body.len() as u8][..], &body].concat())
            }
            _ => return None,
        })
    }

    /// What the worker says of it, with all that the broker has said.
    fn told(self, reason: &str) -> String {
        match self {
            Disconnects(_) => format!("disconnects us ({reason}: full; it names the server moon)"),
            _ => reason.to_owned(),
        }
    }

    /// Over this version, `always` or once; and a worker with a login.
    fn to_a_worker(self, version: &str, always: bool) -> (Site<Broker>, Worker) {
        let site = Site::scripted();
        let mut said = false;
        site.broker.set_script(move |step| {
            let packet = (!step.from_client && (always || !said)).then_some(step.packet);
            match packet.and_then(|packet| self.instead_of(packet)) {
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
}

/// MQTT 5, section 2.4, table 3-1 and the properties of section 3.2.2.3; MQTT 3.1.1, table 3.1.
#[test]
fn what_no_retry_mends_is_exit_77() {
    let cases = [
        ("5", Greets(0, &[0x24, 0]), "Maximum QoS 0"),
        ("5", Greets(0, &[0x21, 0, 0]), "Receive Maximum 0"),
        ("5", Greets(0x90, &[]), "(TopicNameInvalid)"),
        ("5", Greets(0x9b, &[]), "(QoSNotSupported)"),
        ("5", Greets(0x9d, &[]), "(ServerMoved)"),
        ("5", Greets(0x84, &[]), "(UnsupportedProtocolVersion)"),
        ("5", Greets(0x86, &[]), "user name and password"),
        ("5", Greets(0x87, &[]), "user name and password"),
        ("5", Greets(0x8a, &[]), "user name and password"),
        ("5", Greets(0x85, &[]), "client id"),
        ("4", Greets(4, &[]), "user name and password"),
        ("4", Greets(5, &[]), "user name and password"),
        ("4", Greets(2, &[]), "client id"),
        ("5", Grants([0, 0]), "grants jobs/pending at QoS 0"),
        ("5", Grants([0x87, 0]), "subscription to jobs/pending"),
        ("5", Grants([1, 0x8f]), "jobs/cancel/+ (TopicFilterInvalid)"),
        ("5", Grants([0x9e, 0]), "(SharedSubscriptionsNotSupported)"),
        ("4", Grants([0x80, 0]), "subscription to jobs/pending"),
        ("4", Grants([1, 0x80]), "subscription to jobs/cancel/+"),
        ("5", Disconnects(0x87), "NotAuthorized"),
        ("5", Disconnects(0x8f), "TopicFilterInvalid"),
        ("5", Disconnects(0x9d), "ServerMoved"),
        ("5", Confirms(0x90), "may not write to jobs/results/+"),
    ];
    try_all(AT_ONCE, &cases, |(version, says, said)| {
        let (site, mut worker) = says.to_a_worker(version, true);
        if matches!(says, Confirms(_)) {
            worker.await_stderr("waiting for a job");
            site.submit("a", serde_json::json!({ "steps": ["true"] }));
        }
        worker.exits_with(77);
        let (log, said) = (worker.stderr(), says.told(said));
        assert!(log.contains(&said), "{said:?} is not in:\n{log}");
        assert!(!log.contains("open sesame"), "{log}");
    });
}

/// The worker says this once, and does its job all the same.
#[track_caller]
fn goes_on(version: &str, says: Says, always: bool, said: &str) -> Site<Broker> {
    let (site, mut worker) = says.to_a_worker(version, always);
    worker.await_stderr("waiting for a job");
    site.runs_a_job(&mut worker);
    let log = worker.stderr();
    assert_eq!(
        log.matches(&said).count(),
        1,
        "{said:?} is said once: {log}"
    );
    site
}

/// As the broker offers it, or as it denies it: then the worker tries again without.
#[test]
fn a_worker_does_without_what_a_broker_does_not_have() {
    type Finding = fn(&Packet) -> Option<bool>;
    let retains: Finding = |packet| match packet {
        Packet::Publish { topic, retain, .. } => {
            topic.starts_with("jobs/workers/").then_some(*retain)
        }
        _ => None,
    };
    let hears_cancels: Finding = |packet| match packet {
        Packet::Subscribe { filters, .. } => Some(filters.len() > 1),
        _ => None,
    };
    let has_identifier: Finding = |packet| match packet {
        Packet::Subscribe { identifier, .. } => Some(identifier.is_some()),
        _ => None,
    };
    let retained = "the broker retains no message";
    let wildcards = "the broker has no wildcard subscriptions";
    let cases = [
        (Greets(0, &[0x25, 0]), true, retained, retains),
        (Greets(0x9a, &[]), false, retained, retains),
        (Disconnects(0x9a), false, retained, retains),
        (Greets(0, &[0x28, 0]), true, wildcards, hears_cancels),
        (Grants([1, 0xa2]), false, wildcards, hears_cancels),
        (Greets(0, &[0x29, 0]), true, "", has_identifier),
        (Grants([0xa1, 0xa1]), false, "", has_identifier),
        (Disconnects(0xa1), false, "", has_identifier),
    ];
    try_all(AT_ONCE, &cases, |(says, always, said, finding)| {
        let said = if said.is_empty() {
            "waiting for a job"
        } else {
            said
        };
        let sent = goes_on("5", *says, *always, said).broker.sent();
        assert_eq!(sent.iter().rev().find_map(finding), Some(false));
    });
}

#[test]
fn what_may_pass_is_tried_again_with_the_words_of_the_broker() {
    let cases = [
        ("5", Greets(0x88, &[]), "ServerUnavailable"),
        ("5", Greets(0x89, &[]), "ServerBusy"),
        ("5", Greets(0x97, &[]), "QuotaExceeded"),
        ("4", Greets(3, &[]), "ServiceUnavailable"),
        ("5", Disconnects(0x8b), "ServerShuttingDown"),
        ("5", Disconnects(0x9c), "UseAnotherServer"),
        ("5", Disconnects(0x97), "QuotaExceeded"),
        ("5", Confirms(0x97), "(QuotaExceeded: full)"),
    ];
    try_all(AT_ONCE, &cases, |(version, says, said)| {
        let site = goes_on(version, *says, false, &says.told(said));
        let results = site.broker.received("jobs/results/a-job");
        let tries = if matches!(says, Confirms(_)) { 2 } else { 1 };
        assert_eq!(results.len(), tries);
        assert!(results.iter().all(|result| *result == results[0]));
    });
}

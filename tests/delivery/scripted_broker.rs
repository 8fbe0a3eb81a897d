//! The scripted broker of the other tests, held against rumqttc's clients and, byte by byte, against the specification.

use crate::support;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5 as codec;
use rumqttc::{mqttbytes::v4, v5};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use support::broker::{Broker, Entry, Message, Packet, RefuseV5, Step, Verdict};
use support::wait;

const SOON: Duration = Duration::from_secs(20);
const QOS1: QoS = QoS::AtLeastOnce;

/// A client with manual acknowledgements; MQTT 5 unless it is a [`Client4`].
struct Client {
    client: v5::Client,
    connection: v5::Connection,
}

fn options(broker: &Broker, id: &str) -> v5::MqttOptions {
    let mut options = v5::MqttOptions::new(id, "127.0.0.1", broker.port());
    options
        .set_clean_start(false)
        .set_session_expiry_interval(Some(3600));
    options
        .set_manual_acks(true)
        .set_outgoing_inflight_upper_limit(10);
    options
}

impl Client {
    fn new(options: v5::MqttOptions) -> Self {
        let (client, connection) = v5::Client::new(options, 100);
        Self { client, connection }
    }

    /// Connects with a persistent session and subscribes to `filter` with QoS 1.
    fn subscribed(broker: &Broker, id: &str, filter: &str) -> Self {
        let mut client = Self::new(options(broker, id));
        client.connack();
        client.client.subscribe(filter, QOS1).unwrap();
        client.wait(|packet| matches!(packet, codec::Packet::SubAck(_)).then_some(()));
        client
    }

    /// Polls, reconnecting where needed, until an incoming packet is the one looked for.
    #[track_caller]
    fn wait<T>(&mut self, mut found: impl FnMut(&codec::Packet) -> Option<T>) -> T {
        let deadline = Instant::now() + SOON;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            if let Ok(Ok(v5::Event::Incoming(packet))) = self.connection.recv_timeout(left)
                && let Some(value) = found(&packet)
            {
                return value;
            }
        }
        panic!("the packet did not come within {SOON:?}");
    }

    #[track_caller]
    fn connack(&mut self) -> codec::ConnAck {
        self.wait(|packet| {
            if let codec::Packet::ConnAck(ack) = packet {
                Some(ack.clone())
            } else {
                None
            }
        })
    }

    #[track_caller]
    fn publish(&mut self) -> codec::Publish {
        self.wait(|packet| {
            if let codec::Packet::Publish(p) = packet {
                Some(p.clone())
            } else {
                None
            }
        })
    }

    #[track_caller]
    fn puback(&mut self) -> codec::PubAck {
        self.wait(|packet| {
            if let codec::Packet::PubAck(ack) = packet {
                Some(ack.clone())
            } else {
                None
            }
        })
    }

    /// Polls until the connection fails.
    #[track_caller]
    fn error(&mut self) -> v5::ConnectionError {
        let deadline = Instant::now() + SOON;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            if let Ok(Err(error)) = self.connection.recv_timeout(left) {
                return error;
            }
        }
        panic!("the connection did not fail within {SOON:?}");
    }

    /// Sends a DISCONNECT and polls until the broker has closed.
    fn disconnect(mut self) {
        self.client.disconnect().unwrap();
        self.error();
    }
}

struct Client4 {
    client: rumqttc::Client,
    connection: rumqttc::Connection,
}

impl Client4 {
    fn new(broker: &Broker, id: &str) -> Self {
        let mut options = rumqttc::MqttOptions::new(id, "127.0.0.1", broker.port());
        options.set_clean_session(false).set_manual_acks(true);
        let (client, connection) = rumqttc::Client::new(options, 100);
        Self { client, connection }
    }

    #[track_caller]
    fn wait<T>(&mut self, found: impl Fn(&v4::Packet) -> Option<T>) -> T {
        let deadline = Instant::now() + SOON;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            if let Ok(Ok(rumqttc::Event::Incoming(packet))) = self.connection.recv_timeout(left)
                && let Some(value) = found(&packet)
            {
                return value;
            }
        }
        panic!("the packet did not come within {SOON:?}");
    }

    #[track_caller]
    fn session_present(&mut self) -> bool {
        self.wait(|packet| {
            if let v4::Packet::ConnAck(ack) = packet {
                Some(ack.session_present)
            } else {
                None
            }
        })
    }

    #[track_caller]
    fn publish(&mut self) -> v4::Publish {
        self.wait(|packet| {
            if let v4::Packet::Publish(p) = packet {
                Some(p.clone())
            } else {
                None
            }
        })
    }

    fn subscribe(&mut self, filter: &str) {
        self.client
            .subscribe(filter, rumqttc::QoS::AtLeastOnce)
            .unwrap();
        self.wait(|packet| matches!(packet, v4::Packet::SubAck(_)).then_some(()));
    }
}

/// The payloads of all messages sent to a connection, with DUP and packet id.
fn sent_to(broker: &Broker, wanted: usize) -> Vec<(String, bool, u16)> {
    let publish = |entry| match entry {
        Entry::Packet {
            connection,
            from_client: false,
            packet: Packet::Publish {
                payload, dup, pkid, ..
            },
            ..
        } if connection == wanted => Some((String::from_utf8(payload).unwrap(), dup, pkid)),
        _ => None,
    };
    broker.log().into_iter().filter_map(publish).collect()
}

fn is_publish_to(step: &Step, wanted: &str) -> bool {
    matches!(step.packet, Packet::Publish { topic, .. } if topic == wanted)
}

#[test]
fn a_persistent_session_keeps_messages_while_its_client_is_away() {
    let broker = Broker::start();
    let client = Client::subscribed(&broker, "worker", "jobs/pending");
    client.disconnect();
    broker.wait_for_connected("worker", false, SOON);
    broker.publish("jobs/pending", "one");
    broker.publish("jobs/other", "not subscribed");
    assert_eq!(broker.queued("worker"), 1);

    let mut client = Client::new(options(&broker, "worker"));
    assert!(client.connack().session_present);
    let message = client.publish();
    assert_eq!((&message.payload[..], message.dup), (&b"one"[..], false));
    client.client.ack(&message).unwrap();
    client.client.disconnect().unwrap();
    client.error();
    broker.wait_for_queued("worker", 0, SOON);
}

#[test]
fn a_session_of_3_1_1_persists_too() {
    let broker = Broker::start();
    let mut client = Client4::new(&broker, "worker");
    assert!(!client.session_present());
    client.subscribe("jobs/+");
    drop(client);
    broker.wait_for_connected("worker", false, SOON);
    broker.publish("jobs/pending", "one");
    let mut client = Client4::new(&broker, "worker");
    assert!(client.session_present());
    assert_eq!(client.publish().payload, "one");
}

#[test]
fn a_session_without_expiry_ends_with_its_connection_and_a_clean_start_ends_an_old_one() {
    let broker = Broker::start();
    let mut short = options(&broker, "worker");
    short.set_session_expiry_interval(None);
    let mut client = Client::new(short.clone());
    assert!(!client.connack().session_present);
    broker.kick("worker");
    assert!(!broker.has_session("worker"));
    assert!(!client.connack().session_present);

    Client::subscribed(&broker, "other", "jobs/pending").disconnect();
    assert!(broker.has_session("other"));
    let mut clean = options(&broker, "other");
    clean.set_clean_start(true);
    let mut client = Client::new(clean);
    assert!(!client.connack().session_present);
    broker.publish("jobs/pending", "nobody is subscribed");
    assert_eq!(broker.queued("other"), 0);
}

#[test]
fn unacknowledged_messages_come_again_first_with_dup_and_their_old_packet_id() {
    let broker = Broker::start();
    let mut limited = options(&broker, "worker");
    limited.set_receive_maximum(Some(2));
    Client::subscribed(&broker, "worker", "jobs/pending").disconnect();
    for payload in ["a", "b", "c", "d"] {
        broker.publish("jobs/pending", payload);
    }
    let mut client = Client::new(limited.clone());
    client.publish();
    let second = client.publish();
    assert_eq!(second.payload, "b");
    client.client.ack(&second).unwrap();
    let third = client.publish();
    assert_eq!((&third.payload[..], third.dup), (&b"c"[..], false));
    broker.kick("worker");
    client.connack();
    let again = [client.publish(), client.publish()];
    for message in &again {
        client.client.ack(message).unwrap();
    }
    let last = client.publish();
    client.client.ack(&last).unwrap();
    client.disconnect();

    let first = sent_to(&broker, 1);
    let second = sent_to(&broker, 2);
    assert_eq!(
        first
            .iter()
            .map(|(payload, ..)| payload.as_str())
            .collect::<String>(),
        "abc"
    );
    assert_eq!(second[0], ("a".into(), true, first[0].2));
    assert_eq!(second[1], ("c".into(), true, first[2].2));
    assert_eq!((second[2].0.as_str(), second[2].1), ("d", false));
    assert_eq!(broker.queued("worker"), 0);
}

#[test]
fn the_window_is_receive_maximum_and_20_in_3_1_1() {
    let broker = Broker::start();
    let mut options = options(&broker, "five");
    options.set_receive_maximum(Some(1));
    let mut five = Client::new(options);
    five.connack();
    five.client.subscribe("t", QOS1).unwrap();
    five.wait(|packet| matches!(packet, codec::Packet::SubAck(_)).then_some(()));
    let mut four = Client4::new(&broker, "four");
    four.session_present();
    four.subscribe("t");
    for n in 0..25 {
        broker.publish("t", n.to_string());
    }
    assert_eq!(sent_to(&broker, 0).len(), 1);
    assert_eq!(sent_to(&broker, 1).len(), 20);
    let first = five.publish();
    five.client.ack(&first).unwrap();
    assert_eq!(five.publish().payload, "1");
    assert_eq!(sent_to(&broker, 0).len(), 2);
}

#[test]
fn a_retained_message_is_delivered_at_subscribe_time_as_the_options_say() {
    let broker = Broker::start();
    broker.publish_retained("state/a", "old");
    broker.publish_retained("state/b", "gone");
    broker.publish_retained("state/b", "");
    assert_eq!(broker.retained("state/b"), None);
    let mut client = Client::new(options(&broker, "reader"));
    client.connack();
    let mut filter = codec::Filter::new("state/#", QoS::AtMostOnce);
    filter.retain_forward_rule = codec::RetainForwardRule::OnNewSubscribe;
    client.client.subscribe_many([filter.clone()]).unwrap();
    let message = client.publish();
    assert_eq!(
        (&message.payload[..], message.retain, message.qos),
        (&b"old"[..], true, QoS::AtMostOnce)
    );

    // Not new any more: no retained message; and what is published now comes without the flag.
    client.client.subscribe_many([filter.clone()]).unwrap();
    client.wait(|packet| matches!(packet, codec::Packet::SubAck(_)).then_some(()));
    broker.publish_retained("state/a", "new");
    let message = client.publish();
    assert_eq!((&message.payload[..], message.retain), (&b"new"[..], false));

    filter.preserve_retain = true;
    filter.retain_forward_rule = codec::RetainForwardRule::Never;
    client.client.subscribe_many([filter]).unwrap();
    client.wait(|packet| matches!(packet, codec::Packet::SubAck(_)).then_some(()));
    broker.publish_retained("state/a", "newer");
    let message = client.publish();
    assert_eq!(
        (&message.payload[..], message.retain),
        (&b"newer"[..], true)
    );
}

#[test]
fn the_last_will_is_published_after_a_loss_and_dropped_at_a_disconnect() {
    let broker = Broker::start();
    for (id, clean) in [("lost", false), ("tidy", true)] {
        let mut with_will = options(&broker, id);
        with_will.set_last_will(codec::LastWill::new(
            format!("state/{id}"),
            "offline",
            QOS1,
            true,
            None,
        ));
        let mut client = Client::new(with_will);
        client.connack();
        if clean {
            client.disconnect();
        } else {
            drop(client);
        }
        broker.wait_for_connected(id, false, SOON);
    }
    let wills = broker.wait_for_message("state/+", 1, SOON);
    assert_eq!(wills.len(), 1);
    assert_eq!(
        (wills[0].client.as_str(), wills[0].topic.as_str()),
        ("lost", "state/lost")
    );
    assert_eq!(broker.retained("state/lost").unwrap().text(), "offline");
}

#[test]
fn a_second_client_with_the_same_id_takes_over() {
    let broker = Broker::start();
    let mut first = Client::subscribed(&broker, "worker", "t");
    let mut second = Client::new(options(&broker, "worker"));
    assert!(second.connack().session_present);
    let error = first.error();
    assert!(
        format!("{error:?}").contains("SessionTakenOver"),
        "{error:?}"
    );

    let mut third = Client4::new(&broker, "worker");
    assert!(third.session_present());
    let mut fourth = Client4::new(&broker, "worker");
    assert!(fourth.session_present());
    // 3.1.1 has no DISCONNECT from the broker.
    assert!(matches!(third.connection.recv_timeout(SOON), Ok(Err(_))));
    assert!(broker.log().contains(&Entry::Closed {
        connection: 2,
        why: "taken over"
    }));
    assert!(!broker.log().iter().any(|entry| matches!(
        entry,
        Entry::Packet {
            connection: 2,
            packet: Packet::Disconnect { .. },
            ..
        }
    )));
}

#[test]
fn a_withheld_acknowledgement_makes_the_client_publish_again() {
    let mut withheld = false;
    let broker = Broker::scripted(move |step| {
        let withhold = matches!(step.packet, Packet::PubAck { .. }) && !withheld;
        withheld |= withhold;
        if withhold {
            Verdict::Drop
        } else {
            Verdict::Pass
        }
    });
    let mut client = Client::new(options(&broker, "worker"));
    client.connack();
    client
        .client
        .publish("results/1", QOS1, false, "done")
        .unwrap();
    // The answer to a later packet shows that the acknowledgement was passed over.
    client.client.subscribe("t", QOS1).unwrap();
    client.wait(|packet| match packet {
        codec::Packet::PubAck(_) => panic!("was to be withheld"),
        packet => matches!(packet, codec::Packet::SubAck(_)).then_some(()),
    });
    broker.kick("worker");
    client.puback();
    let results = broker.received("results/1");
    // Repeated without DUP (MQTT 5, 3.3.1.1 demands it): rumqttc 0.25.1 never sets it.
    assert_eq!(
        results.iter().map(Message::text).collect::<Vec<_>>(),
        ["done", "done"]
    );
}

#[test]
fn the_link_can_be_cut_before_or_after_a_packet() {
    for (verdict, arrived, present) in [
        (Verdict::CutBefore, 0, true),
        (Verdict::CutAfter, 1, true),
        (Verdict::ForgetAndCut, 0, false),
    ] {
        let mut first = true;
        let script_verdict = verdict.clone();
        let broker = Broker::scripted(move |step| {
            let hit =
                step.from_client && is_publish_to(step, "results/1") && std::mem::take(&mut first);
            if hit {
                script_verdict.clone()
            } else {
                Verdict::Pass
            }
        });
        let mut client = Client::new(options(&broker, "worker"));
        client.connack();
        client
            .client
            .publish("results/1", QOS1, false, "done")
            .unwrap();
        client.wait(|packet| match (&verdict, packet) {
            // Processed with all that follows from it: the acknowledgement has been sent too.
            (Verdict::CutAfter, codec::Packet::PubAck(_)) => Some(()),
            (Verdict::CutBefore | Verdict::ForgetAndCut, codec::Packet::ConnAck(ack)) => {
                assert_eq!(ack.session_present, present);
                Some(())
            }
            _ => None,
        });
        broker.wait_until(SOON, |log| {
            log.contains(&Entry::Closed {
                connection: 0,
                why: "cut by the script",
            }) || log.contains(&Entry::Closed {
                connection: 0,
                why: "session forgotten",
            })
        });
        let processed = broker.log().iter().any(|entry| {
            matches!(
                entry,
                Entry::Packet {
                    connection: 0,
                    packet: Packet::Publish { .. },
                    passed: true,
                    ..
                }
            )
        });
        assert_eq!(usize::from(processed), arrived, "{verdict:?}");
    }
}

#[test]
fn nothing_is_lost_wherever_the_link_is_cut() {
    for verdict in [Verdict::CutBefore, Verdict::CutAfter, Verdict::ForgetAndCut] {
        // Each round cuts one packet later, until a round ends before its cut.
        for cut_at in 0.. {
            let cut = verdict.clone();
            let broker = Broker::scripted(move |step| {
                if step.index == cut_at {
                    cut.clone()
                } else {
                    Verdict::Pass
                }
            });
            one_job(&broker);
            assert_eq!(broker.received("results/1")[0].text(), "done");
            if !broker
                .log()
                .iter()
                .any(|entry| matches!(entry, Entry::Closed { .. }))
            {
                assert!(cut_at >= 7, "cut only at {cut_at} packets");
                break;
            }
        }
    }
}

/// Subscribes, takes a job, publishes its result: as often as it takes until the result is acknowledged.
fn one_job(broker: &Broker) {
    let mut client = Client::new(options(broker, "worker"));
    let mut done = false;
    let sender = client.client.clone();
    client.wait(|packet| {
        match packet {
            // rumqttc repeats unacknowledged publishes on a session that is still there, but never a subscription.
            codec::Packet::ConnAck(ack) => {
                sender.subscribe("jobs/pending", QOS1).unwrap();
                if done && !ack.session_present {
                    sender.publish("results/1", QOS1, false, "done").unwrap();
                }
            }
            codec::Packet::SubAck(_) => broker.publish("jobs/pending", "one"),
            codec::Packet::Publish(job) if !done => {
                assert_eq!(job.payload, "one");
                done = true;
                sender.publish("results/1", QOS1, false, "done").unwrap();
            }
            _ => {}
        }
        matches!(packet, codec::Packet::PubAck(_)).then_some(())
    });
}

#[test]
#[should_panic(expected = "earlier panic")]
fn a_panic_in_a_script_fails_the_test_that_waits() {
    let broker = Broker::scripted(|step| panic!("unexpected: {:?}", step.packet));
    Raw::new(&broker).connect(5, "worker", 0);
    broker.wait_until(10 * SOON, |_| false);
}

#[test]
fn a_packet_can_be_replaced_by_any_other() {
    let broker = Broker::scripted(|step| match step.packet {
        Packet::SubAck { pkid, .. } => Verdict::Replace(Packet::SubAck {
            pkid: *pkid,
            codes: vec![0x87],
        }),
        Packet::PingResp => Verdict::Replace(Packet::Raw(vec![0xE0, 0x02, 0x8B, 0x00])),
        _ => Verdict::Pass,
    });
    let mut client = Client::new(options(&broker, "worker"));
    client.client.subscribe("t", QOS1).unwrap();
    let codes = client.wait(|packet| match packet {
        codec::Packet::SubAck(ack) => Some(ack.return_codes.clone()),
        _ => None,
    });
    assert_eq!(codes, [codec::SubscribeReasonCode::NotAuthorized]);
}

#[test]
fn a_broker_without_mqtt_5_serves_3_1_1() {
    let broker = Broker::start();
    for how in [RefuseV5::Close, RefuseV5::Answer] {
        broker.configure(|knobs| knobs.refuse_v5 = Some(how));
        // rumqttc sees a closed connection both times: it takes the short CONNACK for an incomplete one.
        let error = Client::new(options(&broker, "worker")).error();
        assert!(
            format!("{error:?}").contains("ConnectionAborted"),
            "{error:?}"
        );
    }
    assert!(!Client4::new(&broker, "worker").session_present());
    let mut raw = Raw::new(&broker);
    raw.connect(5, "raw", 0);
    assert_eq!(raw.rest(), [0x20, 0x02, 0x00, 0x01]);
}

#[test]
fn refusals_have_the_code_that_was_asked_for() {
    let broker = Broker::start();
    broker.configure(|knobs| {
        knobs.suback_failures = vec![("denied".into(), 0x87)];
        knobs.puback_failures = vec![("full/#".into(), 0x97)];
    });
    let mut client = Client::new(options(&broker, "worker"));
    let filters = ["denied", "granted"].map(|topic| codec::Filter::new(topic, QOS1));
    client.client.subscribe_many(filters).unwrap();
    let codes = client.wait(|packet| match packet {
        codec::Packet::SubAck(ack) => Some(ack.return_codes.clone()),
        _ => None,
    });
    use codec::SubscribeReasonCode::{NotAuthorized, Success};
    assert_eq!(codes, [NotAuthorized, Success(QOS1)]);
    client.client.publish("full/1", QOS1, false, "x").unwrap();
    let ack = client.wait(|packet| {
        if let codec::Packet::PubAck(ack) = packet {
            Some(ack.reason)
        } else {
            None
        }
    });
    assert_eq!(ack, codec::PubAckReason::QuotaExceeded);
    assert!(broker.received("#").is_empty());

    broker.configure(|knobs| knobs.connack_code = Some(0x86));
    let error = Client::new(options(&broker, "other")).error();
    assert!(
        format!("{error:?}").contains("BadUserNamePassword"),
        "{error:?}"
    );
}

#[test]
fn a_shared_subscription_gives_each_message_to_one_member_in_turn() {
    let broker = Broker::start();
    let clients =
        ["a", "b"].map(|id| Client::subscribed(&broker, id, "$share/workers/jobs/pending"));
    let _all = Client::subscribed(&broker, "all", "#");
    for n in 0..4 {
        broker.publish("jobs/pending", n.to_string());
    }
    assert_eq!(["a", "b", "all"].map(|id| broker.queued(id)), [2, 2, 4]);
    let [a, b] = clients;
    a.disconnect();
    broker.publish("jobs/pending", "only b is there");
    assert_eq!(["a", "b"].map(|id| broker.queued(id)), [2, 3]);
    drop(b);
}

#[test]
fn filters_match_as_the_specification_says() {
    let broker = Broker::start();
    let mut client = Client::new(options(&broker, "worker"));
    for topic in ["a", "a/b", "a/b/c", "/a", "ä/b", "$sys/b"] {
        client.client.publish(topic, QOS1, false, "").unwrap();
        client.puback();
    }
    for (filter, topics) in [
        ("#", "a a/b a/b/c /a ä/b"),
        ("a/#", "a a/b a/b/c"),
        ("+/b", "a/b ä/b"),
        ("+/+", "a/b /a ä/b"),
        ("a/+/c", "a/b/c"),
        ("$sys/#", "$sys/b"),
        ("b", ""),
    ] {
        let found: Vec<_> = broker
            .received(filter)
            .into_iter()
            .map(|message| message.topic)
            .collect();
        assert_eq!(found.join(" "), topics, "{filter}");
    }
}

#[test]
fn a_broker_that_was_away_comes_back_with_its_sessions() {
    let broker = Broker::start();
    let mut client = Client::subscribed(&broker, "worker", "t");
    broker.stop_listening();
    client.error();
    // somebody else's outgoing connection may have the port for a moment, and even be our own one to it
    wait::until("nobody to listen on its port", || {
        TcpStream::connect(("127.0.0.1", broker.port())).is_err()
    });
    broker.publish("t", "meanwhile");
    broker.listen_again();
    assert!(client.connack().session_present);
    assert_eq!(client.publish().payload, "meanwhile");

    broker.forget_session("worker");
    assert!(!client.connack().session_present);
    assert_eq!(broker.queued("worker"), 0);
}

/// A client of bare bytes.
struct Raw(TcpStream);

impl Raw {
    fn new(broker: &Broker) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", broker.port())).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self(stream)
    }

    /// Clean start, no properties.
    fn connect(&mut self, version: u8, id: &str, keep_alive: u8) {
        let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', version, 2, 0, keep_alive];
        body.extend(if version == 5 { &[0][..] } else { &[] });
        body.extend([0, id.len() as u8]);
        body.extend(id.as_bytes());
        self.send(&[&[0x10, body.len() as u8][..], &body].concat());
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    #[track_caller]
    fn expect(&mut self, bytes: &[u8]) {
        let mut answer = vec![0; bytes.len()];
        self.0.read_exact(&mut answer).unwrap();
        assert_eq!(answer, bytes);
    }

    /// Everything up to the end of the connection.
    #[track_caller]
    fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes).unwrap();
        bytes
    }
}

#[test]
fn the_bytes_on_the_wire_are_those_of_the_specification() {
    let broker = Broker::start();
    broker.configure(|knobs| {
        knobs.server_keep_alive = Some(1);
        knobs.max_packet_size = Some(100);
    });
    let mut five = Raw::new(&broker);
    five.connect(5, "five", 0);
    five.expect(&[0x20, 13, 0, 0, 10, 0x24, 1, 0x27, 0, 0, 0, 100, 0x13, 0, 1]);
    // SUBSCRIBE in two pieces, PINGREQ right behind it.
    five.send(&[0x82, 7, 0, 1, 0]);
    five.send(&[0, 1, b't', 1, 0xC0, 0]);
    five.expect(&[0x90, 4, 0, 1, 0, 1, 0xD0, 0]);
    broker.publish("t", "x");
    five.expect(&[0x32, 7, 0, 1, b't', 0, 2, 0, b'x']);
    // PUBACK with a reason, then UNSUBSCRIBE.
    five.send(&[0x40, 3, 0, 2, 0x10, 0xA2, 6, 0, 2, 0, 0, 1, b't']);
    five.expect(&[0xB0, 4, 0, 2, 0, 0]);
    // A DISCONNECT of MQTT 5 in its shortest form.
    five.send(&[0xE0, 0]);
    assert!(five.rest().is_empty());
    assert!(broker.log().contains(&Entry::Closed {
        connection: 0,
        why: "disconnected"
    }));

    let mut large = Raw::new(&broker);
    large.connect(5, "large", 0);
    large.expect(&[0x20, 13]);
    large.send(&[&[0x30, 127, 0, 1, b't', 0][..], &[b'x'; 123]].concat());
    assert!(large.rest().ends_with(&[0xE0, 2, 0x95, 0]));

    let mut four = Raw::new(&broker);
    four.connect(4, "", 60);
    four.expect(&[0x20, 2, 0, 0]);
    four.send(&[0x32, 6, 0, 1, b't', 0, 7, b'x', 0xC0, 0]);
    four.expect(&[0x40, 2, 0, 7, 0xD0, 0]);

    // Server Keep Alive is 1 second: silence for half as long again ends the connection.
    let mut silent = Raw::new(&broker);
    silent.connect(5, "silent", 60);
    assert_eq!(silent.rest().len(), 15);
    assert!(broker.log().contains(&Entry::Closed {
        connection: 3,
        why: "keep-alive passed"
    }));
}

#[test]
fn a_message_larger_than_the_client_takes_is_dropped_in_silence() {
    let broker = Broker::start();
    let mut small = options(&broker, "worker");
    small.set_max_packet_size(Some(50));
    let mut client = Client::new(small);
    client.connack();
    client.client.subscribe("t", QOS1).unwrap();
    client.wait(|packet| matches!(packet, codec::Packet::SubAck(_)).then_some(()));
    broker.publish("t", [b'x'; 100]);
    broker.publish("t", "fits");
    assert_eq!(client.publish().payload, "fits");
    assert_eq!(broker.queued("worker"), 1);
}

//! The scripted broker of the other tests, held against rumqttc's clients and, byte by byte, against the specification.

use crate::support;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5 as codec;
use rumqttc::{mqttbytes::v4, v5};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use support::broker::{Broker, Entry, Packet};

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

//! Each packet of the specification, from the broker, at moments at which it makes no sense.

use crate::support;

use support::broker::{Packet, Verdict};
use support::cases;
use support::site::{Site, WORKER};
use support::worker::speaking;

/// The packets by name. Those of MQTT 5 have empty properties unless they say otherwise.
fn packets(version: &str) -> Vec<(&'static str, Vec<u8>)> {
    let is_5 = version == "5";
    let level = if is_5 { 5 } else { 4 };
    let properties: &[u8] = if is_5 { &[0] } else { &[] };
    let packet = |first: u8, before: &[u8], after: &[u8]| {
        let body = [before, properties, after].concat();
        [&[first, body.len() as u8][..], &body].concat()
    };
    let connack = packet(0x20, &[0, 0], &[]);
    let topic = [0, 1, b't'];
    let publish = |first, packet_id: &[u8]| packet(first, &[&topic, packet_id].concat(), b"x");
    let connect = [&[0, 4][..], b"MQTT", &[level, 2, 0, 30]].concat();
    let mut packets = vec![
        ("CONNECT", packet(0x10, &connect, &[0, 0])),
        ("CONNACK", connack.clone()),
        ("2,000 CONNACK", connack.repeat(2000)),
        ("PUBLISH without a topic", packet(0x30, &[0, 0], b"x")),
        ("PUBLISH with packet identifier 0", publish(0x32, &[0, 0])),
        ("PUBLISH at QoS 2", publish(0x34, &[0, 7])),
        ("PUBLISH at QoS 3", publish(0x36, &[0, 7])),
        ("PUBACK", vec![0x40, 2, 0, 1]),
        ("PUBACK beyond all identifiers", vec![0x40, 2, 0xff, 0xff]),
        ("PUBREC", vec![0x50, 2, 0, 1]),
        ("PUBREL", vec![0x62, 2, 0, 1]),
        ("PUBCOMP", vec![0x70, 2, 0, 1]),
        ("SUBSCRIBE", packet(0x82, &[0, 1], &[0, 1, b't', 1])),
        ("SUBACK", packet(0x90, &[0, 99], &[1])),
        ("UNSUBSCRIBE", packet(0xa2, &[0, 1], &[0, 1, b't'])),
        ("UNSUBACK", packet(0xb0, &[0, 99], &[])),
        ("PINGREQ", vec![0xc0, 0]),
        ("PINGRESP", vec![0xd0, 0]),
        ("DISCONNECT", vec![0xe0, 0]),
        ("a packet of type 0", vec![0, 0]),
        (
            "a length without an end",
            vec![0x30, 0xff, 0xff, 0xff, 0xff],
        ),
    ];
    if is_5 {
        packets.extend([
            (
                "PUBLISH with an unknown topic alias",
                vec![0x30, 7, 0, 0, 3, 0x23, 0, 7, b'x'],
            ),
            (
                "PUBLISH at QoS 1 with an unknown topic alias",
                vec![0x32, 9, 0, 0, 0, 7, 3, 0x23, 0, 7, b'x'],
            ),
            ("DISCONNECT, normal", vec![0xe0, 2, 0, 0]),
            ("AUTH", vec![0xf0, 2, 0x18, 0]),
        ]);
    }
    packets
}

/// It comes before the CONNACK, while the worker is idle, and before the acknowledgement of the result. The worker goes on,
/// on this connection or the next one.
fn the_worker_goes_on(version: &str, nonsense: &[u8]) {
    let site = Site::scripted();
    let (mut greeting, mut result) = (Some(nonsense.to_vec()), Some(nonsense.to_vec()));
    site.broker.set_script(move |step| {
        let nonsense = match *step.packet {
            Packet::ConnAck { .. } => greeting.take(),
            Packet::PubAck { pkid, .. } if !step.from_client => result.take().map(|nonsense| {
                let [high, low] = pkid.to_be_bytes();
                [&nonsense[..], &[0x40, 2, high, low]].concat()
            }),
            _ => None,
        };
        nonsense.map_or(Verdict::Pass, |it| Verdict::Replace(Packet::Raw(it)))
    });
    let mut worker = site.idle_worker(speaking(version));
    site.broker.send(WORKER, Packet::Raw(nonsense.to_vec()));
    site.runs_a_job(&mut worker);
}

fn nonsense_ends_a_connection_and_no_worker(version: &str) {
    let packets = packets(version);
    cases::try_all(packets.len(), &packets, |(_, bytes)| {
        the_worker_goes_on(version, bytes);
    });
}

on_both_protocols!(nonsense_ends_a_connection_and_no_worker);

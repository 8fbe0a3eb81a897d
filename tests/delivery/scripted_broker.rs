//! The bytes that the scripted broker of the other tests puts on the wire, held against the specification.

use crate::support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use support::broker::{Broker, Entry, Packet};

const SOON: Duration = Duration::from_secs(20);

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
    let mut five = Raw::new(&broker);
    five.connect(5, "five", 0);
    five.expect(&[0x20, 5, 0, 0, 2, 0x24, 1]);
    // SUBSCRIBE in two pieces, PINGREQ right behind it.
    five.send(&[0x82, 7, 0, 1, 0]);
    five.send(&[0, 1, b't', 1, 0xC0, 0]);
    five.expect(&[0x90, 4, 0, 1, 0, 1, 0xD0, 0]);
    broker.publish("t", "x");
    five.expect(&[0x32, 7, 0, 1, b't', 0, 2, 0, b'x']);
    // PUBACK with a reason.
    five.send(&[0x40, 3, 0, 2, 0x10, 0xC0, 0]);
    five.expect(&[0xD0, 0]);
    // A DISCONNECT of MQTT 5 in its shortest form.
    five.send(&[0xE0, 0]);
    assert!(five.rest().is_empty());
    let is_disconnected = |entry: &Entry| entry.packet == Packet::Closed("disconnected");
    assert!(broker.log().iter().any(is_disconnected));

    let mut four = Raw::new(&broker);
    four.connect(4, "", 60);
    four.expect(&[0x20, 2, 0, 0]);
    four.send(&[0x32, 6, 0, 1, b't', 0, 7, b'x', 0xC0, 0]);
    four.expect(&[0x40, 2, 0, 7, 0xD0, 0]);

    // Silence for half as long again as the keep-alive ends the connection.
    let mut silent = Raw::new(&broker);
    silent.connect(5, "silent", 1);
    assert_eq!(silent.rest().len(), 7);
    let is_over = |entry: &Entry| entry.packet == Packet::Closed("keep-alive passed");
    assert!(broker.log().iter().any(is_over));
}

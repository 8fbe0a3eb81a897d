//! A broker for the benchmark, and the smallest client that can publish, subscribe and wait for acknowledgements. It speaks
//! MQTT 3.1.1, one packet a time over a socket of its own: nothing of the worker is in it.

use crate::scratch::Scratch;
use crate::support::mosquitto::{free_port, tool};
use std::fs;
use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Mosquitto without persistence, which would make the disk's cost a part of every figure.
pub struct Broker {
    process: Child,
    pub port: u16,
}

impl Broker {
    pub fn start(scratch: &Scratch) -> Self {
        let port = free_port();
        let config = scratch.dir("broker").join("mosquitto.conf");
        let lines = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 1000000\n\
             persistence false\nlog_dest none\n"
        );
        fs::write(&config, lines).expect("a configuration");
        let mut command = Command::new(tool("mosquitto"));
        let process = command
            .arg("-c")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let broker = Self {
            process: process.expect("mosquitto"),
            port,
        };
        let end = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "mosquitto does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
        broker
    }

    pub fn client(&self, id: &str) -> Client {
        // clean session, keep-alive off
        self.connect(&connect(id, 4, 0x02, &[]))
    }

    /// How long the broker takes to take a worker in and hand out its first request, which is left unacknowledged.
    pub fn hand_out(&self, worker: &str) -> Duration {
        let started = Instant::now();
        // version 5, the session goes on and never expires, Receive Maximum 1
        let mut client = self.connect(&connect(
            worker,
            5,
            0,
            &[8, 0x11, 0xff, 0xff, 0xff, 0xff, 0x21, 0, 1],
        ));
        while client.read().0 >> 4 != 3 {}
        let time = started.elapsed();
        client.write(0xe0, &[]);
        time
    }

    fn connect(&self, packet: &[u8]) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the broker listens");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("a timeout");
        let mut client = Client {
            stream: BufReader::new(stream),
            packet_id: 0,
        };
        client.write(0x10, packet);
        let (kind, connack) = client.read();
        assert_eq!((kind, connack[1]), (0x20, 0), "the broker takes us");
        client
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn connect(id: &str, version: u8, flags: u8, properties: &[u8]) -> Vec<u8> {
    [
        &text("MQTT")[..],
        &[version, flags, 0, 0],
        properties,
        &text(id),
    ]
    .concat()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

pub struct Client {
    stream: BufReader<TcpStream>,
    packet_id: u16,
}

impl Client {
    /// Publishes at QoS 1 and waits for the acknowledgement: one round trip.
    pub fn publish(&mut self, topic: &str, payload: &[u8]) -> Duration {
        self.packet_id = self.packet_id % 60_000 + 1;
        let packet = [&text(topic)[..], &self.packet_id.to_be_bytes(), payload].concat();
        let started = Instant::now();
        self.write(0x32, &packet);
        let (kind, _) = self.read();
        let time = started.elapsed();
        assert_eq!(kind, 0x40, "PUBACK");
        time
    }

    /// At QoS 0.
    pub fn subscribe(&mut self, filter: &str) {
        self.write(0x82, &[&[0, 1][..], &text(filter), &[0]].concat());
        assert_eq!(self.read().0, 0x90, "SUBACK");
    }

    /// The payload of the next message.
    pub fn message(&mut self) -> Vec<u8> {
        loop {
            let (kind, body) = self.read();
            if kind >> 4 == 3 {
                let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
                return body[2 + topic..].to_vec();
            }
        }
    }

    fn write(&mut self, kind: u8, body: &[u8]) {
        write_packet(self.stream.get_mut(), kind, body).expect("the broker reads");
    }

    fn read(&mut self) -> (u8, Vec<u8>) {
        read_packet(&mut self.stream).expect("the broker answers")
    }
}

/// Sends a packet: its first byte, its length, and the rest of it.
///
/// # Errors
/// The connection is gone.
pub fn write_packet(stream: &mut impl Write, kind: u8, body: &[u8]) -> io::Result<()> {
    let mut packet = vec![kind];
    let mut rest = body.len();
    loop {
        packet.push((rest % 128) as u8 | if rest >= 128 { 128 } else { 0 });
        rest /= 128;
        if rest == 0 {
            break;
        }
    }
    packet.extend(body);
    stream.write_all(&packet)
}

/// Waits for a packet: its first byte, and what follows its length.
///
/// # Errors
/// The connection is gone.
pub fn read_packet(stream: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut byte = || {
        let mut one = [0];
        stream.read_exact(&mut one).map(|()| one[0])
    };
    let kind = byte()?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let part = byte()?;
        length |= usize::from(part & 127) << shift;
        shift += 7;
        if part < 128 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((kind, body))
}

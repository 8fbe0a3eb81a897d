//! A broker for the benchmark, and the smallest client that can publish, subscribe and wait for acknowledgements. It speaks
//! one packet a time over a socket of its own: nothing of the worker is in it.

use crate::machine::Scratch;
use crate::support::mosquitto::{free_port, tool};
use crate::worker::milliseconds;
use std::fs;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
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
             persistence false\nset_tcp_nodelay true\nlog_dest topic\nlog_type notice\n"
        );
        fs::write(&config, lines).expect("a configuration");
        let mut command = Command::new(tool("mosquitto"));
        command.arg("-c").arg(&config);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("mosquitto");
        let end = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "mosquitto does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { process, port }
    }

    /// A client of version 3.1.1 with a clean session and without keep-alive.
    pub fn client(&self, id: &str) -> Client {
        self.connect(&[&text("MQTT")[..], &[4, 2, 0, 0], &text(id)])
    }

    /// A client with a worker's session: version 5, it never expires, Receive Maximum 1.
    fn worker(&self, id: &str) -> Client {
        let properties = [8, 0x11, 0xff, 0xff, 0xff, 0xff, 0x21, 0, 1];
        self.connect(&[&text("MQTT")[..], &[5, 0, 0, 0], &properties, &text(id)])
    }

    /// Makes the session that keeps requests for this worker until it comes.
    pub fn open_queue(&self, id: &str) {
        let mut client = self.worker(id);
        let filter = text(&format!("{id}/pending"));
        client.write(0x82, &[&[0, 1, 0][..], &filter, &[1]].concat());
        while client.read().0 != 0x90 {}
        client.write(0xe0, &[]);
        while client.stream.read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
    }

    /// How many milliseconds the broker takes to take a worker in and hand out its first request, which is left unacknowledged.
    pub fn hand_out(&self, id: &str) -> f64 {
        let started = Instant::now();
        let mut client = self.worker(id);
        while client.read().0 >> 4 != 3 {}
        let time = milliseconds(started);
        client.write(0xe0, &[]);
        time
    }

    fn connect(&self, packet: &[&[u8]]) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the broker listens");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let patience = Some(Duration::from_secs(600));
        stream.set_read_timeout(patience).expect("a timeout");
        let mut client = Client {
            stream: BufReader::new(stream),
            packet_id: 0,
        };
        client.write(0x10, &packet.concat());
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

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

pub struct Client {
    stream: BufReader<TcpStream>,
    packet_id: u16,
}

impl Client {
    /// Publishes at QoS 1 and waits for the acknowledgement: one round trip, in milliseconds.
    pub fn publish(&mut self, topic: &str, payload: &[u8]) -> f64 {
        self.packet_id = self.packet_id % 60_000 + 1;
        let packet = [&text(topic)[..], &self.packet_id.to_be_bytes(), payload].concat();
        let started = Instant::now();
        self.write(0x32, &packet);
        let (kind, _) = self.read();
        let time = milliseconds(started);
        assert_eq!(kind, 0x40, "PUBACK");
        time
    }

    /// Asks the worker or pool `queue` for a job in `dir`.
    pub fn submit(&mut self, queue: &str, dir: &Path, step: &str) {
        let dir = dir.display();
        let request = format!(r#"{{"id":"a","workDir":"{dir}","steps":["{step}"]}}"#);
        self.publish(&format!("{queue}/pending"), request.as_bytes());
    }

    /// At QoS 0.
    pub fn subscribe(&mut self, filter: &str) {
        self.write(0x82, &[&[0, 1][..], &text(filter), &[0]].concat());
        assert_eq!(self.read().0, 0x90, "SUBACK");
    }

    /// The payload of the next message.
    pub fn message(&mut self) -> String {
        self.next_message().expect("the broker answers")
    }

    /// `None` where the broker is gone.
    fn next_message(&mut self) -> Option<String> {
        loop {
            let (kind, body) = self.next()?;
            if kind >> 4 == 3 {
                let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
                return Some(String::from_utf8_lossy(&body[2 + topic..]).into_owned());
            }
        }
    }

    /// Waits for so many results.
    pub fn await_successes(&mut self, count: usize) {
        for _ in 0..count {
            let result = self.message();
            assert!(result.contains("\"success\""), "{result}");
        }
    }

    fn write(&mut self, kind: u8, body: &[u8]) {
        let mut packet = vec![kind];
        let mut rest = body.len();
        while rest >= 128 {
            packet.push(rest as u8 | 128);
            rest /= 128;
        }
        packet.push(rest as u8);
        packet.extend(body);
        let written = self.stream.get_mut().write_all(&packet);
        written.expect("the broker reads");
    }

    fn read(&mut self) -> (u8, Vec<u8>) {
        self.next().expect("the broker answers")
    }

    /// The first byte of the next packet, and what follows its length.
    fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut byte = || {
            let mut one = [0];
            self.stream.read_exact(&mut one).ok().map(|()| one[0])
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
        self.stream.read_exact(&mut body).ok()?;
        Some((kind, body))
    }
}

/// When clients come and leave, as the broker logs it.
pub struct Watch(Arc<Mutex<Vec<(Instant, String)>>>);

impl Watch {
    /// It watches until the benchmark ends.
    pub fn start(broker: &Broker) -> Self {
        let mut client = broker.client("watch");
        client.subscribe("$SYS/broker/log/N");
        let seen = Arc::default();
        let watch = Self(Arc::clone(&seen));
        std::thread::spawn(move || {
            while let Some(line) = client.next_message() {
                let mut seen = seen.lock().expect("no thread panics");
                seen.push((Instant::now(), line));
            }
        });
        watch
    }

    /// From the end of each connection of this client id to the beginning of the next, in milliseconds.
    pub fn gaps(&self, client: &str) -> Vec<f64> {
        let (mut gaps, mut left) = (Vec::new(), None);
        for (at, line) in self.0.lock().expect("no thread panics").iter() {
            if line.contains(&format!("Client {client} disconnected")) {
                left = Some(*at);
            } else if line.contains(&format!(" as {client} ")) {
                gaps.extend(left.take().map(|left| (*at - left).as_secs_f64() * 1e3));
            }
        }
        gaps
    }
}

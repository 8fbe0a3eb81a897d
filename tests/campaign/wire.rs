//! A TCP proxy between one worker and its broker that can be cut, and that reads along: which request each process was
//! given, which results it published and what was acknowledged, in the order in which it went over the wire.

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Instant;

/// Something that matters for the delivery of requests and results.
#[expect(dead_code, reason = "some fields are there to be read by a person")]
#[derive(Clone, Debug)]
pub enum Packet {
    /// CONNECT, with the level of the protocol: 4 is MQTT 3.1.1.
    Connect { level: u8 },
    /// A request on its way to the worker.
    Request {
        packet_id: u16,
        dup: bool,
        token: String,
    },
    /// The worker acknowledges a request.
    RequestAck { packet_id: u16 },
    /// A result on its way to the broker.
    Result { topic: String, document: Value },
    /// The broker acknowledges a result, or something else that the worker has published at QoS 1.
    ResultAck { reason: u8 },
    /// The connection is over.
    End,
}

/// A packet, and where it was seen.
#[derive(Clone, Debug)]
pub struct Event {
    pub at: Instant,
    pub connection: usize,
    /// The process of the worker, which says it in its user name.
    pub life: usize,
    pub packet: Packet,
}

pub type Log = Arc<Mutex<Vec<Event>>>;

pub struct Proxy {
    pub port: u16,
    /// The two ends of the newest connection.
    link: Arc<Mutex<Option<[TcpStream; 2]>>>,
}

impl Proxy {
    /// Starts a proxy in front of the broker on this port. It ends with the process.
    pub fn start(broker: u16, log: &Log) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free loopback port");
        let port = listener.local_addr().expect("the port just bound").port();
        let link = Arc::new(Mutex::new(None));
        let (newest, log) = (link.clone(), log.clone());
        thread::spawn(move || {
            for worker in listener.incoming() {
                let worker = worker.expect("accept");
                // a connection that is closed at once looks like a broker that is away
                let Ok(broker) = TcpStream::connect(("127.0.0.1", broker)) else {
                    continue;
                };
                let clone = |stream: &TcpStream| {
                    stream.set_nodelay(true).expect("TCP_NODELAY");
                    stream.try_clone().expect("a second handle")
                };
                *lock(&newest) = Some([clone(&worker), clone(&broker)]);
                let reader = Arc::new(Mutex::new(Reader::new(log.clone())));
                pump(clone(&worker), clone(&broker), Side::Worker, reader.clone());
                pump(broker, worker, Side::Broker, reader);
            }
        });
        Self { port, link }
    }

    /// Cuts the newest connection, if it stands.
    pub fn cut(&self) -> bool {
        let link = lock(&self.link).take();
        link.is_some_and(|ends| {
            ends.iter()
                .filter(|end| end.shutdown(Shutdown::Both).is_ok())
                .count()
                == 2
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds this")
}

/// Who sends.
#[derive(Clone, Copy)]
enum Side {
    Worker,
    Broker,
}

fn pump(mut from: TcpStream, mut to: TcpStream, side: Side, reader: Arc<Mutex<Reader>>) {
    thread::spawn(move || {
        let mut chunk = [0; 16 << 10];
        let mut pending = Vec::new();
        // however it ends, the other end hears of it
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            pending.extend_from_slice(&chunk[..length]);
            // noted before it is passed on, so that the log has causes before their effects
            while let Some(packet) = take_packet(&mut pending) {
                lock(&reader).read(side, &packet);
            }
            if to.write_all(&chunk[..length]).is_err() {
                break;
            }
        }
        lock(&reader).note(Packet::End);
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
}

/// The first whole packet: its first byte, and what stands behind the length.
fn take_packet(pending: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let mut rest = Fields(pending.get(1..)?);
    let length = rest.variable_length()?;
    let body = rest.take(length)?.to_vec();
    let (first, whole) = (pending[0], pending.len() - rest.0.len());
    pending.drain(..whole);
    Some((first, body))
}

/// Reads the packets of one connection.
struct Reader {
    log: Log,
    connection: usize,
    life: usize,
    /// MQTT 5, so that there are properties.
    five: bool,
}

impl Reader {
    fn new(log: Log) -> Self {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self {
            log,
            connection: NEXT.fetch_add(1, Ordering::Relaxed),
            life: usize::MAX,
            five: false,
        }
    }

    fn note(&self, packet: Packet) {
        lock(&self.log).push(Event {
            at: Instant::now(),
            connection: self.connection,
            life: self.life,
            packet,
        });
    }

    fn read(&mut self, side: Side, (first, body): &(u8, Vec<u8>)) {
        let mut fields = Fields(body);
        let packet = match (first >> 4, side) {
            (1, Side::Worker) => self.connect(&mut fields),
            (3, _) if first & 6 != 0 => self.publish(first & 8 != 0, &mut fields),
            (4, Side::Worker) => fields
                .number()
                .map(|packet_id| Packet::RequestAck { packet_id }),
            (4, Side::Broker) => fields.number().map(|_| Packet::ResultAck {
                reason: fields.0.first().copied().unwrap_or(0),
            }),
            _ => None,
        };
        if let Some(packet) = packet {
            self.note(packet);
        }
    }

    fn connect(&mut self, fields: &mut Fields) -> Option<Packet> {
        fields.text()?;
        let [level, flags, _, _] = *fields.take(4)? else {
            return None;
        };
        self.five = level == 5;
        self.skip_properties(fields);
        fields.text()?;
        if flags & 4 != 0 {
            self.skip_properties(fields);
            fields.text()?;
            fields.text()?;
        }
        let user = fields.text()?;
        self.life = std::str::from_utf8(user).ok()?.parse().ok()?;
        Some(Packet::Connect { level })
    }

    fn publish(&self, dup: bool, fields: &mut Fields) -> Option<Packet> {
        let topic = String::from_utf8(fields.text()?.to_vec()).ok()?;
        let packet_id = fields.number()?;
        self.skip_properties(fields);
        let document: Value = serde_json::from_slice(fields.0).ok()?;
        match topic.split('/').nth(1)? {
            "pending" => Some(Packet::Request {
                packet_id,
                dup,
                token: document["env"]["TOKEN"].as_str()?.to_owned(),
            }),
            "results" => Some(Packet::Result { topic, document }),
            _ => None,
        }
    }

    fn skip_properties(&self, fields: &mut Fields) {
        if self.five
            && let Some(length) = fields.variable_length()
        {
            fields.take(length);
        }
    }
}

/// What is left to read of a packet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length.into())
    }

    fn variable_length(&mut self) -> Option<usize> {
        let mut length = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.take(1)?[0];
            length |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(length);
            }
        }
        None
    }
}

//! A TCP proxy between one worker and its broker that can be cut, and that reads along: which request each process was
//! given, which results it published and what was acknowledged, in the order in which it went over the wire. Of a pool it
//! also notes what lies on the drive at that very moment, before it passes the packet on.

use super::claims::Claim;
use serde_json::Value;
use std::collections::BTreeMap;
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
    /// The worker acknowledges a request; `claim`: of a pool, that of the request.
    RequestAck {
        packet_id: u16,
        claim: Option<Claim>,
    },
    /// A result on its way to the broker; `claim`: of a pool, the one that has this very document.
    Result {
        topic: String,
        document: Value,
        claim: Option<Claim>,
    },
    /// The broker acknowledges a result, or something else that the worker has published at QoS 1; `claim`: of a pool, that of
    /// the result.
    ResultAck {
        reason: u8,
        of_result: Option<Value>,
        claim: Option<Claim>,
    },
    /// The broker confirms a subscription for requests.
    Subscribed,
    /// A fault was waiting for the packet before this.
    Trapped(Trap),
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

/// What the drive holds at this moment.
pub type Look = Arc<dyn Fn() -> Vec<Claim> + Send + Sync>;

/// Kills the process of a worker.
pub type Kill = Arc<dyn Fn(usize) + Send + Sync>;

/// A kind of packet that a trap waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Request,
    RequestAck,
    Result,
    ResultAck,
}

pub const KINDS: [Kind; 4] = [
    Kind::Request,
    Kind::RequestAck,
    Kind::Result,
    Kind::ResultAck,
];

/// A fault that waits for a packet: the link is cut, or the worker is killed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Trap {
    pub kind: Kind,
    /// The packet still gets through.
    pub passes: bool,
    pub kills: bool,
}

pub struct Proxy {
    pub port: u16,
    /// The two ends of each connection, the newest last.
    links: Arc<Mutex<Vec<[TcpStream; 2]>>>,
    trap: Arc<Mutex<Option<Trap>>>,
}

/// What a proxy knows of the world beside its connections.
#[derive(Clone)]
pub struct World {
    pub log: Log,
    pub look: Look,
    pub kill: Kill,
}

impl World {
    /// One in which nothing but the wire matters.
    pub fn of_wires(log: &Log) -> Self {
        Self {
            log: log.clone(),
            look: Arc::new(Vec::new),
            kill: Arc::new(|_| {}),
        }
    }
}

impl Proxy {
    /// Starts a proxy in front of the broker on this port. It ends with the process.
    pub fn start(broker: u16, world: World) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free loopback port");
        let port = listener.local_addr().expect("the port just bound").port();
        let (links, trap) = (Arc::new(Mutex::new(Vec::new())), Arc::default());
        let (standing, set) = (links.clone(), Arc::clone(&trap));
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
                let mut links = lock(&standing);
                links.push([clone(&worker), clone(&broker)]);
                let superfluous = links.len().saturating_sub(LINKS);
                links.drain(..superfluous);
                let reader = Arc::new(Mutex::new(Reader::new(&world, &set)));
                pump(clone(&worker), clone(&broker), Side::Worker, reader.clone());
                pump(broker, worker, Side::Broker, reader);
            }
        });
        Self { port, links, trap }
    }

    /// Cuts the newest connection, if it stands, or with 1 the one before.
    pub fn cut(&self, older: usize) -> bool {
        let mut links = lock(&self.links);
        let Some(index) = links.len().checked_sub(1 + older) else {
            return false;
        };
        let ends = links.remove(index);
        ends.iter()
            .filter(|end| end.shutdown(Shutdown::Both).is_ok())
            .count()
            == 2
    }

    /// Sets a trap in the place of the one that is set, or takes that away.
    pub fn set(&self, trap: Option<Trap>) {
        *lock(&self.trap) = trap;
    }
}

/// How many connections a worker has.
const LINKS: usize = 2;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
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
        let is_cut = loop {
            let length = match from.read(&mut chunk) {
                Ok(0) => break false,
                Ok(length) => length,
                Err(_) => break true,
            };
            pending.extend_from_slice(&chunk[..length]);
            // noted before it is passed on, so that the log has causes before their effects
            let mut trapped = None;
            while let Some(packet) = take_packet(&mut pending) {
                let trap = lock(&reader).read(side, &packet);
                trapped = trapped.or(trap);
            }
            let passes = trapped.is_none_or(|trap: Trap| trap.passes);
            if passes && to.write_all(&chunk[..length]).is_err() {
                break true;
            }
            if let Some(trap) = trapped {
                lock(&reader).spring(trap);
                break true;
            }
        };
        lock(&reader).note(Packet::End);
        if is_cut {
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        } else {
            // a worker that has said all waits for the end that the broker makes: then the broker has processed it
            let _ = to.shutdown(Shutdown::Write);
        }
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
    world: World,
    trap: Arc<Mutex<Option<Trap>>>,
    connection: usize,
    life: usize,
    /// MQTT 5, so that there are properties.
    five: bool,
    /// The requests by their packet identifiers, and the results.
    requests: BTreeMap<u16, String>,
    results: BTreeMap<u16, Value>,
    /// As a worker does whose session is the queue.
    subscribes_for_requests: bool,
}

impl Reader {
    fn new(world: &World, trap: &Arc<Mutex<Option<Trap>>>) -> Self {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self {
            world: world.clone(),
            trap: trap.clone(),
            connection: NEXT.fetch_add(1, Ordering::Relaxed),
            life: usize::MAX,
            five: false,
            requests: BTreeMap::new(),
            results: BTreeMap::new(),
            subscribes_for_requests: false,
        }
    }

    fn note(&self, packet: Packet) {
        lock(&self.world.log).push(Event {
            at: Instant::now(),
            connection: self.connection,
            life: self.life,
            packet,
        });
    }

    fn spring(&self, trap: Trap) {
        self.note(Packet::Trapped(trap));
        if trap.kills {
            (self.world.kill)(self.life);
        }
    }

    /// Notes a packet, and tells whether a trap has waited for it.
    fn read(&mut self, side: Side, (first, body): &(u8, Vec<u8>)) -> Option<Trap> {
        let mut fields = Fields(body);
        let packet = match (first >> 4, side) {
            (1, Side::Worker) => self.connect(&mut fields),
            (3, _) if first & 6 != 0 => self.publish(first & 8 != 0, &mut fields),
            (4, Side::Worker) => fields.number().map(|packet_id| {
                let token = self.requests.get(&packet_id);
                Packet::RequestAck {
                    packet_id,
                    claim: token.and_then(|token| self.claim(|claim| claim.token == *token)),
                }
            }),
            (4, Side::Broker) => fields.number().map(|packet_id| {
                let result = self.results.remove(&packet_id);
                Packet::ResultAck {
                    reason: fields.0.first().copied().unwrap_or(0),
                    claim: result.as_ref().and_then(|result| self.claim_with(result)),
                    of_result: result,
                }
            }),
            (8, Side::Worker) => {
                self.subscribes_for_requests |= contains(body, b"/pending");
                None
            }
            (9, Side::Broker) if self.subscribes_for_requests => Some(Packet::Subscribed),
            _ => None,
        }?;
        let kind = match &packet {
            Packet::Request { .. } => Some(Kind::Request),
            Packet::RequestAck { .. } => Some(Kind::RequestAck),
            Packet::Result { .. } => Some(Kind::Result),
            Packet::ResultAck { .. } => Some(Kind::ResultAck),
            _ => None,
        };
        self.note(packet);
        lock(&self.trap).take_if(|trap| Some(trap.kind) == kind)
    }

    fn claim(&self, is_it: impl Fn(&Claim) -> bool) -> Option<Claim> {
        (self.world.look)().into_iter().find(is_it)
    }

    fn claim_with(&self, result: &Value) -> Option<Claim> {
        self.claim(|claim| claim.document.as_ref() == Some(result))
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

    fn publish(&mut self, dup: bool, fields: &mut Fields) -> Option<Packet> {
        let topic = String::from_utf8(fields.text()?.to_vec()).ok()?;
        let packet_id = fields.number()?;
        self.skip_properties(fields);
        let document: Value = serde_json::from_slice(fields.0).ok()?;
        match topic.split('/').nth(1)? {
            "pending" => {
                let token = document["env"]["TOKEN"].as_str()?.to_owned();
                self.requests.insert(packet_id, token.clone());
                Some(Packet::Request {
                    packet_id,
                    dup,
                    token,
                })
            }
            "results" => {
                let claim = self.claim_with(&document);
                self.results.insert(packet_id, document.clone());
                Some(Packet::Result {
                    topic,
                    document,
                    claim,
                })
            }
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

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

//! A TCP proxy between one worker and its broker that can be cut, and that reads along: which request each process was
//! given, which results it published and what was acknowledged, in the order in which it went over the wire. Of a pool it
//! also notes what lies on the drive at that very moment, before it passes the packet on.

use super::Running;
use super::claims::{Claim, claims};
use super::support::broker::packet::{Packet as Mqtt, decode, take_packet};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
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
    RequestAck { token: String, claim: Option<Claim> },
    /// A result on its way to the broker; `claim`: of a pool, the one that has this very document.
    Result {
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
#[derive(Clone, Default)]
pub struct World {
    pub log: Log,
    pub running: Running,
    /// The drive with the pool's directory, if there is one.
    pub drive: Option<PathBuf>,
}

impl World {
    fn kill(&self, life: usize) {
        let mut running = lock(&self.running);
        if let Some(life) = running.get_mut(&life)
            && let Some(pid) = Pid::from_raw(life.pid as i32)
        {
            life.killed = kill_process(pid, Signal::KILL).is_ok();
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
        let cut = ends.map(|end| end.shutdown(Shutdown::Both).is_ok());
        cut == [true, true]
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
#[derive(Clone, Copy, PartialEq)]
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

/// Reads the packets of one connection.
struct Reader {
    world: World,
    trap: Arc<Mutex<Option<Trap>>>,
    connection: usize,
    life: usize,
    version: u8,
    /// The requests by their packet identifiers, and the results.
    requests: BTreeMap<u16, String>,
    results: BTreeMap<u16, Value>,
    /// As a worker does whose session is the queue.
    subscribes_for_requests: bool,
}

impl Reader {
    fn new(world: &World, trap: &Arc<Mutex<Option<Trap>>>) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self {
            world: world.clone(),
            trap: trap.clone(),
            connection: NEXT.fetch_add(1, Relaxed),
            life: usize::MAX,
            version: 4,
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
            self.world.kill(self.life);
        }
    }

    /// Notes a packet, and tells whether a trap has waited for it.
    fn read(&mut self, side: Side, bytes: &[u8]) -> Option<Trap> {
        let (packet, kind) = match decode(self.version, bytes)? {
            Mqtt::Connect {
                version, username, ..
            } => {
                (self.version, self.life) = (version, username.parse().ok()?);
                (Packet::Connect { level: version }, None)
            }
            Mqtt::Publish {
                topic,
                payload,
                qos: 1,
                dup,
                pkid,
                ..
            } => {
                let document: Value = serde_json::from_slice(&payload).ok()?;
                match topic.split('/').nth(1)? {
                    "pending" => {
                        let token = document["env"]["TOKEN"].as_str()?.to_owned();
                        self.requests.insert(pkid, token.clone());
                        let packet_id = pkid;
                        (
                            Packet::Request {
                                packet_id,
                                dup,
                                token,
                            },
                            Some(Kind::Request),
                        )
                    }
                    "results" => {
                        let claim = self.claim_with(&document);
                        self.results.insert(pkid, document.clone());
                        (Packet::Result { document, claim }, Some(Kind::Result))
                    }
                    _ => return None,
                }
            }
            Mqtt::PubAck { pkid, .. } if side == Side::Worker => {
                let token = self.requests.get(&pkid).cloned().unwrap_or_default();
                let claim = self.claim(|claim| claim.token == token);
                (Packet::RequestAck { token, claim }, Some(Kind::RequestAck))
            }
            Mqtt::PubAck { pkid, code: reason } => {
                let of_result = self.results.remove(&pkid);
                let claim = of_result.as_ref().and_then(|it| self.claim_with(it));
                let packet = Packet::ResultAck {
                    reason,
                    of_result,
                    claim,
                };
                (packet, Some(Kind::ResultAck))
            }
            Mqtt::Subscribe { filters, .. } => {
                let is_queue = |(filter, _): &(String, u8)| filter.ends_with("/pending");
                self.subscribes_for_requests |= filters.iter().any(is_queue);
                return None;
            }
            Mqtt::SubAck { .. } if self.subscribes_for_requests => (Packet::Subscribed, None),
            _ => return None,
        };
        self.note(packet);
        lock(&self.trap).take_if(|trap| Some(trap.kind) == kind)
    }

    fn claim(&self, is_it: impl Fn(&Claim) -> bool) -> Option<Claim> {
        claims(self.world.drive.as_ref()?).into_iter().find(is_it)
    }

    fn claim_with(&self, result: &Value) -> Option<Claim> {
        self.claim(|claim| claim.document.as_ref() == Some(result))
    }
}

//! The link to the broker: what the worker may ask of it, and what it hears from it.
//!
//! One thread drives one network connection after the other, each with a client of its own. So whatever was asked of a
//! connection that broke is gone with it, and nothing of it can reach the next one: an acknowledgement sent late would
//! acknowledge somebody else's message there. What must survive a connection is asked for again by the worker.

#[cfg(feature = "tls")]
pub mod tls;
mod v3;
mod v5;

use crate::backoff::Backoff;
use crate::contract::identity;
use bytes::Bytes;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

/// First and last pause between two tries to connect; it doubles in between.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// A connection that lasted this long was a good one: the next pause is the first again. Two workers that kick each other
/// with one client id never get there, so they slow down, and one of them gives up.
const GOOD_CONNECTION: Duration = LAST_PAUSE;

/// How many connections in a row the broker has to drop early before [`Event::DroppedEarly`] says so.
pub const EARLY_DROPS: u32 = 3;

/// A peer that was not heard for this many keep-alives is dead, as it is for a broker (MQTT 5, section 3.1.2.10). A
/// living one answers a ping at each keep-alive.
const SILENT_KEEP_ALIVES: f64 = 1.5;

/// How long to look for what has arrived while this process itself did not run (SIGSTOP, a busy machine).
const LAST_LOOK: Duration = Duration::from_millis(10);

/// The largest packet that MQTT knows, in bytes (MQTT 5, section 2.1.4). Telling a broker less makes it drop what is
/// larger in silence, which is a lost job.
const MAX_PACKET_BYTES: u32 = 268_435_460;

/// How many requests to a connection may wait for its thread.
const REQUEST_CAPACITY: usize = 100;

/// How many of them may be announcements: what must be said always finds room, so it never waits for a broker that has
/// stopped reading.
const ANNOUNCEMENTS: usize = REQUEST_CAPACITY / 2;

/// Slots for unacknowledged messages of ours. There is one at a time; a packet identifier is not used again too soon.
const IN_FLIGHT: u16 = 16;

/// How to reach the broker.
#[derive(Clone, Debug)]
pub struct Broker {
    /// Host name or address; an IPv6 address is in brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Who we are; `None` to connect without a name.
    pub credentials: Option<Credentials>,
    /// How to be sure of the broker; `None` for a plain connection.
    #[cfg(feature = "tls")]
    pub tls: Option<tls::Tls>,
    /// The protocol version to speak; `None` for 5 with a fallback to 3.1.1 where the broker has no 5.
    pub protocol: Option<Protocol>,
    /// The longest silence before a ping is sent.
    pub keep_alive: Duration,
}

/// User name and password for the broker.
#[derive(Clone)]
pub struct Credentials {
    /// The user name, shown in messages.
    pub username: String,
    /// The password, never shown.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} with a password", self.username)
    }
}

/// A version of MQTT.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// Version 5.
    V5,
    /// Version 3.1.1.
    V3,
}

/// What a link is to be.
#[derive(Clone, Debug)]
pub struct Settings {
    pub broker: Broker,
    pub client_id: String,
    /// Subscribed at QoS 1.
    pub requests: String,
    /// Subscribed at QoS 0: a cancel counts now or never, and must not wait behind an unacknowledged request.
    pub cancels: String,
    /// Topic and payload that the broker publishes, retained, when we are gone without a word.
    pub last_will: (String, Vec<u8>),
}

/// A message from the broker.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    pub topic: String,
    pub payload: Bytes,
    /// What to acknowledge; `None` at QoS 0.
    pub packet_id: Option<u16>,
    /// MQTT DUP: the broker has sent it before, to whomever.
    pub redelivered: bool,
    /// MQTT 5: the Subscription Identifier under which the broker has queued it.
    pub subscription: Option<u32>,
    pub retained: bool,
}

impl Message {
    /// What no other request has in common with this one: see [`identity`]. `None` where the broker does not tell enough.
    pub fn identity(&self, client_id: &str) -> Option<String> {
        let (subscription, packet_id) = (self.subscription?, self.packet_id?);
        Some(identity(client_id, subscription, packet_id, &self.payload))
    }
}

/// What a connection may be asked for. Requests to a connection that broke vanish.
pub trait Connection: Send + Sync {
    /// Subscribes to requests and cancels; [`Event::Ready`] tells when the broker has agreed.
    fn subscribe(&self, settings: &Settings);
    /// Publishes at QoS 1; [`Event::Published`] tells when the broker has it.
    fn publish(&self, topic: &str, payload: Vec<u8>);
    /// Publishes at QoS 0 unless many such messages are still waiting to be sent, or the broker does not take it.
    fn announce(&self, topic: &str, payload: Vec<u8>, retain: bool);
    /// Acknowledges a message of this connection.
    fn acknowledge(&self, packet_id: u16);
    /// Gives up a subscription.
    fn unsubscribe(&self, filter: &str);
    /// The largest payload that the broker takes on a topic, in bytes, as far as it has said.
    fn payload_limit(&self, topic: &str) -> usize;
    /// Whether [`Event::Published`] tells if anybody is subscribed.
    fn tells_subscribers(&self) -> bool;
    /// Ends the connection in order; [`Event::Closed`] tells when that is sent.
    fn disconnect(&self);
}

/// What the worker hears.
pub enum Event {
    /// A connection stands. `resumed`: the broker kept our session.
    Connected {
        connection: Arc<dyn Connection>,
        resumed: bool,
    },
    /// The subscriptions stand.
    Ready,
    Message(Message),
    /// The broker has our message, or says why it does not take it.
    Published(Result<Subscribers, Unpublished>),
    /// Our DISCONNECT is sent, and all that was asked for before it.
    Closed,
    /// The connection is gone; another is being made.
    Lost,
    /// Another client has taken our session. No other connection is made until [`Link::resume`].
    TakenOver,
    /// The broker has dropped this many connections in a row soon after they stood, and gave no reason. Another one is
    /// being made.
    DroppedEarly(u32),
    /// The broker does not want us, and trying again would not help.
    Denied(String),
}

/// Whether a message of ours that the broker has taken goes to anybody.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Subscribers {
    Some,
    /// Nobody has subscribed to it (MQTT 5, reason code 0x10).
    None,
    /// MQTT 3.1.1 does not tell.
    Unknown,
}

/// Why a broker does not take a message of ours.
#[derive(Debug)]
pub enum Unpublished {
    NotAuthorized,
    /// Something that may pass: a quota, a broker's internal trouble.
    ForNow(String),
}

/// The running link.
pub struct Link {
    resume: Sender<()>,
}

impl Link {
    /// Makes another connection although a client took ours over.
    pub fn resume(&self) {
        let _ = self.resume.send(()); // the thread has ended: it was refused, which the worker has heard
    }
}

/// Starts the thread that keeps a connection to the broker and tells `sink` of it.
///
/// # Errors
/// What the system said, when there can be no thread.
pub fn open(settings: Settings, sink: impl Fn(Event) + Send + 'static) -> io::Result<Link> {
    let (resume, resumed) = mpsc::channel();
    std::thread::Builder::new()
        .name("mqtt".into())
        .spawn(move || Driver::new(settings, resumed, sink).run())?;
    Ok(Link { resume })
}

/// The announcements of one connection that wait for its thread.
#[derive(Clone, Default)]
struct Announcements(Arc<AtomicUsize>);

impl Announcements {
    fn has_room(&self) -> bool {
        self.0
            .fetch_update(Relaxed, Relaxed, |waiting| {
                (waiting < ANNOUNCEMENTS).then_some(waiting + 1)
            })
            .is_ok()
    }

    /// One has been written to the connection.
    fn sent(&self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One network connection, of either protocol version.
trait Wire {
    fn next(&mut self) -> Result<Heard, Failure>;
}

/// What an adapter hears on its connection.
enum Heard {
    Connected {
        resumed: bool,
    },
    /// For each of our subscriptions in order, what the broker says against it.
    Subscribed(Vec<Option<String>>),
    Message(Message),
    Published(Result<Subscribers, Unpublished>),
    Closed,
    /// Nothing that concerns the worker.
    Other,
}

/// A host name or address as resolvers and certificates know it: an IPv6 address without its brackets.
fn bare(host: &str) -> &str {
    host.trim_matches(['[', ']'])
}

/// An address as it stands before a port: an IPv6 address in brackets, and with its scope.
fn without_port(address: SocketAddr) -> Option<String> {
    Some(address.to_string().rsplit_once(':')?.0.to_owned())
}

/// Why a connection ended.
enum Failure {
    Denied(String),
    /// The two sides do not accept each other's certificates.
    #[cfg_attr(not(feature = "tls"), expect(dead_code))]
    Untrusted(String),
    TakenOver,
    /// The greeting is closed upon or never answered, as happens with brokers that know nothing of our protocol version.
    NotGreeted(String),
    /// The broker has closed a connection that stood, and gave no reason.
    Dropped(String),
    Lost(String),
}

impl Failure {
    fn silent(keep_alive: Duration) -> Self {
        let seconds = keep_alive.mul_f64(SILENT_KEEP_ALIVES).as_secs_f64();
        Self::Lost(format!(
            "nothing was heard from it for {seconds} s, 1.5 times the keep-alive"
        ))
    }
}

/// For how much longer a connection may be silent that was last heard `since`.
fn patience(since: Instant, keep_alive: Duration) -> Duration {
    let silence = keep_alive.mul_f64(SILENT_KEEP_ALIVES);
    silence.saturating_sub(since.elapsed()).max(LAST_LOOK)
}

struct Driver<F> {
    settings: Settings,
    resumed: Receiver<()>,
    sink: F,
    /// Our subscriptions are known to be part of the session.
    subscribed: bool,
    /// The protocol version is settled: configured, or proved by a broker that took it.
    settled: bool,
    version: Protocol,
    /// Addresses of the broker that have not been tried yet.
    untried: VecDeque<String>,
}

impl<F: Fn(Event)> Driver<F> {
    fn new(settings: Settings, resumed: Receiver<()>, sink: F) -> Self {
        let version = settings.broker.protocol.unwrap_or(Protocol::V5);
        let settled = settings.broker.protocol.is_some();
        Self {
            settings,
            resumed,
            sink,
            subscribed: false,
            settled,
            version,
            untried: VecDeque::new(),
        }
    }

    fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
        let mut early_drops = 0;
        let mut told = String::new();
        loop {
            let mut connected = None;
            let (host, failure) = match self.next_host() {
                Ok(host) => {
                    let failure = self.drive_connection(&host, &mut connected);
                    (host, failure)
                }
                Err(error) => (String::new(), Failure::Lost(error.to_string())),
            };
            if connected.is_some() {
                (self.sink)(Event::Lost);
                told.clear();
                self.untried.clear();
            }
            let dropped = matches!(failure, Failure::Dropped(_));
            let reason = match failure {
                Failure::Denied(reason) => return (self.sink)(Event::Denied(reason)),
                // such a thing does not pass by itself, unless it came while we were here: certificates are renewed
                Failure::Untrusted(reason) if !self.subscribed => {
                    return (self.sink)(Event::Denied(reason));
                }
                Failure::TakenOver => {
                    (self.sink)(Event::TakenOver);
                    if self.resumed.recv().is_err() {
                        return;
                    }
                    continue;
                }
                Failure::NotGreeted(_) if !self.settled && self.version == Protocol::V5 => {
                    self.version = Protocol::V3;
                    self.untried.push_front(host);
                    continue;
                }
                Failure::Untrusted(reason)
                | Failure::NotGreeted(reason)
                | Failure::Dropped(reason)
                | Failure::Lost(reason) => reason,
            };
            if !self.settled {
                self.version = Protocol::V5; // 3.1.1 did not help: the broker has another trouble
            }
            if !self.untried.is_empty() {
                continue; // its name has another address
            }
            // once for each trouble: a broker can be away for days
            if told != reason {
                let Broker { host, port, .. } = &self.settings.broker;
                let what = match connected {
                    Some(_) => "the connection is lost",
                    None => "no connection",
                };
                log::warn!("broker {host}:{port}: {what}: {reason}; trying again until it is back");
                told = reason;
            }
            if connected.is_some_and(|since: Instant| since.elapsed() >= GOOD_CONNECTION) {
                backoff.reset();
                early_drops = 0;
            } else if dropped {
                early_drops += 1;
                if early_drops >= EARLY_DROPS {
                    (self.sink)(Event::DroppedEarly(early_drops));
                }
            }
            std::thread::sleep(backoff.next_pause());
        }
    }

    /// What to connect to: each address of the broker's name in its turn. rumqttc would start a thread to resolve the name,
    /// which takes longer than all the rest of connecting.
    fn next_host(&mut self) -> io::Result<String> {
        let broker = &self.settings.broker;
        let host = bare(&broker.host);
        #[cfg(feature = "tls")]
        if self.untried.is_empty() && broker.tls.is_some() {
            return Ok(host.to_owned()); // it is in the certificate
        }
        if self.untried.is_empty() {
            self.untried = (host, broker.port)
                .to_socket_addrs()?
                .filter_map(without_port)
                .collect();
        }
        self.untried
            .pop_front()
            .ok_or_else(|| io::Error::other("its name has no address"))
    }

    /// Makes one connection and passes on what it says, until it ends.
    fn drive_connection(&mut self, host: &str, connected: &mut Option<Instant>) -> Failure {
        let (connection, mut wire): (Arc<dyn Connection>, Box<dyn Wire>) = match self.version {
            Protocol::V3 => v3::open(&self.settings, host),
            Protocol::V5 => v5::open(&self.settings, host),
        };
        loop {
            let heard = match wire.next() {
                Ok(heard) => heard,
                Err(failure) => return failure,
            };
            match heard {
                Heard::Connected { resumed } => {
                    *connected = Some(Instant::now());
                    self.settle_version();
                    log::info!(
                        "connected to the broker at {}:{}",
                        self.settings.broker.host,
                        self.settings.broker.port
                    );
                    (self.sink)(Event::Connected {
                        connection: connection.clone(),
                        resumed,
                    });
                    if resumed && self.subscribed {
                        (self.sink)(Event::Ready);
                    } else {
                        connection.subscribe(&self.settings);
                    }
                }
                Heard::Subscribed(faults) => {
                    let filters = [&self.settings.requests, &self.settings.cancels];
                    for (filter, fault) in filters.into_iter().zip(faults) {
                        if let Some(fault) = fault {
                            return Failure::Denied(format!(
                                "the broker refuses the subscription to {filter}: {fault}"
                            ));
                        }
                    }
                    self.subscribed = true;
                    (self.sink)(Event::Ready);
                }
                Heard::Message(delivery) => (self.sink)(Event::Message(delivery)),
                Heard::Published(outcome) => (self.sink)(Event::Published(outcome)),
                Heard::Closed => {
                    (self.sink)(Event::Closed);
                    // the process ends now: taking the client apart, page by page, would only delay that
                    loop {
                        std::thread::park();
                    }
                }
                Heard::Other => {}
            }
        }
    }

    fn settle_version(&mut self) {
        if !self.settled && self.version == Protocol::V3 {
            log::info!(
                "the broker has no MQTT 5: speaking 3.1.1 (MQTT_PROTOCOL_VERSION=4 skips the try)"
            );
        }
        self.settled = true;
    }
}

#[cfg(test)]
mod tests;

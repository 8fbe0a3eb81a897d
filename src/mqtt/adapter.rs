//! One network connection over rumqttc, in either protocol version.
//!
//! rumqttc has the same types twice, once for each version. [`v3`] and [`v5`] give them one shape: what is asked of the
//! broker goes through a [`Sender`], and what comes is told in the words of MQTT 5, which has all of those of 3.1.1.

use super::reasons::{Lack, Reason};
use super::{Event, Protocol, Retention, Settings, Subscription, v3, v5};
use crate::contract::seconds;
use crate::{mqtt, random};
use rumqttc::Outgoing;
use rumqttc::v5::Event as Heard;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnAck, Packet, Publish, SubAck, SubscribeReasonCode};
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How many of our messages may be unacknowledged. There is one at a time. More slots keep its packet identifier from being
/// used again too soon.
pub const IN_FLIGHT: u16 = 16;

/// The largest packet that MQTT knows, in bytes (MQTT 5, section 2.1.4). A broker that is told a smaller limit drops larger
/// requests in silence, which loses jobs.
pub const MAX_PACKET_BYTES: u32 = 268_435_460;

/// What a PUBLISH holds besides topic and payload, in bytes: its type, its length, the lengths of topic and properties, and
/// the packet identifier (MQTT 5, section 3.3).
const PUBLISH_HEADER_BYTES: usize = 1 + 4 + 2 + 1 + 2;

/// How much that is asked of a connection may wait for its thread: more than there ever is, as a worker has one job. It never
/// waits for a broker that has stopped reading.
pub const MAX_WAITING: usize = 1000;

/// How much of it may be announcements. The others are dropped.
const MAX_ANNOUNCEMENTS: usize = 50;

const CLOSED: &str = "it closed the connection";

/// How many descriptors rumqttc opens for an event loop. It panics where there is no room for them.
const EVENT_LOOP_DESCRIPTORS: usize = 3;

/// How long to look for what arrived while this process itself did not run (SIGSTOP, a busy machine).
const LAST_LOOK: Duration = Duration::from_millis(10);

/// What is asked of the broker.
pub enum Ask<'a> {
    Subscribe(Vec<&'a Subscription>, Option<u32>),
    Publish(&'a str, Vec<u8>, QoS, Retention),
    Acknowledge(u16),
    Disconnect,
}

/// The way to the broker, in one protocol version. It never waits; where the connection is gone, so is what is asked.
pub type Sender = Box<dyn Fn(Ask) + Send + Sync>;

/// What comes from the broker, in one protocol version.
pub trait Receiver {
    /// The next that comes; `None` where nothing comes for so long.
    fn next(&mut self, patience: Duration) -> Option<Result<Heard, Broken>>;
    /// What has come before the connection broke.
    fn unread(&mut self) -> VecDeque<Heard>;
    /// The keep-alive in force.
    fn keep_alive(&mut self) -> Duration;
}

/// Why a connection broke, as rumqttc says it.
pub enum Broken {
    /// The CONNACK says no.
    Refused(Reason),
    /// There is no TLS.
    #[cfg(feature = "tls")]
    Handshake(io::Error),
    /// The network, or TLS.
    Io(io::Error),
    /// The broker has closed it.
    Closed,
    /// The broker has sent what makes no sense at this moment, or ever.
    Nonsense(String),
}

/// Why there is no connection, or none any more: what follows, and a sentence.
pub struct Failure(pub End, pub String);

/// What follows for the link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// The broker does not let us in, and will not the next time.
    Denied,
    /// The two sides do not accept each other's certificates.
    Untrusted,
    /// There is no TLS with the other side, which may pass.
    NoTls,
    /// Another client has taken our session.
    TakenOver,
    /// The broker does not have this, and was asked for it.
    Lacks(Lack),
    /// The broker has not our protocol version, as it says.
    NoVersion,
    /// It closes the connection upon our greeting, as brokers do that have not our protocol version.
    NotGreeted,
    /// It does not answer our greeting.
    Unanswered,
    /// The broker has ended an established connection, and gave no reason.
    Dropped,
    /// Anything else, which may pass.
    Lost,
    /// We have closed it, or the link is gone.
    Closed,
}

impl End {
    pub fn because(self, why: impl Into<String>) -> Failure {
        Failure(self, why.into())
    }
}

fn nonsense(what: &str) -> Failure {
    End::Lost.because(format!("what it sent makes no sense: {what}"))
}

/// What the worker may ask of an established connection. What it asks of one that broke vanishes.
pub struct Connection {
    send: Sender,
    subscriptions: Vec<Subscription>,
    /// The version that it speaks. With MQTT 5, [`Event::Published`] tells whether a client is subscribed.
    pub version: Protocol,
    /// What the broker does not have.
    pub(super) lacks: Vec<Lack>,
    packet_bytes: usize,
    /// Announcements that wait to be sent.
    announcements: AtomicUsize,
    /// We have asked to disconnect.
    is_leaving: AtomicBool,
}

impl Connection {
    /// What it subscribes to.
    pub(super) fn subscriptions(&self) -> Vec<&Subscription> {
        let without_wildcards = self.lacks.contains(&Lack::Wildcards);
        let can_be = |to: &&Subscription| !(without_wildcards && to.filter().contains(['+', '#']));
        self.subscriptions.iter().filter(can_be).collect()
    }

    /// Subscribes, where the link has one connection; [`Event::Ready`] tells when the broker has agreed.
    pub fn subscribe(&self) {
        let can_mark = !self.lacks.contains(&Lack::Identifiers);
        let identifier = can_mark.then(new_identifier);
        (self.send)(Ask::Subscribe(self.subscriptions(), identifier));
    }

    /// Publishes at QoS 1; [`Event::Published`] tells when the broker has it.
    pub fn publish(&self, topic: &str, payload: Vec<u8>) {
        let qos = QoS::AtLeastOnce;
        (self.send)(Ask::Publish(topic, payload, qos, Retention::None));
    }

    /// Publishes at QoS 0, unless many such messages still wait to be sent or this one is larger than the broker takes.
    pub fn announce(&self, topic: &str, payload: Vec<u8>, retention: Retention) {
        let fits = payload.len() <= self.payload_limit(topic);
        let one_more = |waiting| (fits && waiting < MAX_ANNOUNCEMENTS).then_some(waiting + 1);
        let counted = self.announcements.fetch_update(Relaxed, Relaxed, one_more);
        if counted.is_ok() {
            let retention = match self.lacks.contains(&Lack::Retain) {
                true => Retention::None,
                false => retention,
            };
            (self.send)(Ask::Publish(topic, payload, QoS::AtMostOnce, retention));
        }
    }

    /// Acknowledges a message of this connection.
    pub fn acknowledge(&self, packet_id: u16) {
        (self.send)(Ask::Acknowledge(packet_id));
    }

    /// The largest payload that the broker takes on a topic, in bytes, as far as it has said.
    pub fn payload_limit(&self, topic: &str) -> usize {
        let rest = PUBLISH_HEADER_BYTES + topic.len();
        self.packet_bytes.saturating_sub(rest)
    }

    /// Ends the connection in order; [`Event::Closed`] tells when that is sent.
    pub fn disconnect(&self) {
        self.is_leaving.store(true, Relaxed);
        (self.send)(Ask::Disconnect);
    }
}

/// A Subscription Identifier that no other SUBSCRIBE has had: the broker marks what it queues for a subscription with it, so
/// it tells the sessions of one client id apart. It has 28 bits and is not 0 (MQTT 5, section 3.8.2.1.2).
fn new_identifier() -> u32 {
    (random() % 0x0fff_ffff) as u32 + 1
}

/// A network connection, for the thread that drives it.
pub struct Adapter {
    settings: Arc<Settings>,
    version: Protocol,
    receiver: Box<dyn Receiver>,
    /// Until the broker has greeted us.
    sender: Option<Sender>,
    lacks: Vec<Lack>,
    /// From then on.
    pub connection: Option<Arc<Connection>>,
    last_heard: Instant,
    /// A peer that is silent for so long is dead.
    silence: Duration,
    /// The packet identifier of our SUBSCRIBE, and since when the broker owes the answer.
    subscribing: Option<(u16, Instant)>,
    /// The packet identifier of the result that the broker is to acknowledge.
    publishing: Option<u16>,
    unread: VecDeque<Heard>,
    broken: Option<Broken>,
}

impl Adapter {
    /// Starts to connect to an address of the broker, or to its name, which has `patience` to greet us.
    pub fn open(
        settings: &Arc<Settings>,
        address: (&str, u16),
        version: Protocol,
        lacks: &[Lack],
        patience: Duration,
    ) -> Result<Self, String> {
        let broker = &settings.broker;
        let transport = broker.transport()?;
        let login = match &broker.credentials {
            Some(us) => Some((us.username.clone(), us.password.read()?)),
            None => None,
        };
        let mut will = settings.last_will.clone();
        if let Some(will) = will.as_mut().filter(|_| lacks.contains(&Lack::Retain)) {
            will.retention = Retention::None;
        }
        let room = (0..EVENT_LOOP_DESCRIPTORS).map(|_| io::stderr().as_fd().try_clone_to_owned());
        let room: io::Result<Vec<_>> = room.collect();
        drop(room.map_err(|error| error.to_string())?);
        if broker.is_secure() && address.0.parse::<IpAddr>().is_err() {
            // rumqttc resolves the broker's name in a thread, and panics where there is no room for one
            let room = std::thread::Builder::new().spawn(|| {});
            let _ = room.map_err(|error| format!("no thread: {error}"))?.join();
        }
        let (sender, receiver) = match version {
            Protocol::V3 => v3::open(settings, address, transport, login, will),
            Protocol::V5 => v5::open(settings, address, transport, login, will),
        };
        Ok(Self {
            settings: settings.clone(),
            version,
            receiver,
            sender: Some(sender),
            lacks: lacks.to_vec(),
            connection: None,
            last_heard: Instant::now(),
            silence: patience,
            subscribing: None,
            publishing: None,
            unread: VecDeque::new(),
            broken: None,
        })
    }

    /// Waits for the next event that concerns the worker.
    pub fn next(&mut self) -> Result<Event, Failure> {
        loop {
            let heard = self.receive()?;
            if let Some(event) = self.hear(heard)? {
                return Ok(event);
            }
        }
    }

    /// Waits for what comes next. rumqttc neither pings nor notices that no ping is answered while it sends, so the whole wait
    /// is bounded.
    fn receive(&mut self) -> Result<Heard, Failure> {
        loop {
            if let Some(heard) = self.unread.pop_front() {
                return Ok(heard);
            }
            if let Some(broken) = self.broken.take() {
                return Err(self.failure(broken));
            }
            let since = self.subscribing.map_or(self.last_heard, |(_, since)| since);
            let patience = self.silence.saturating_sub(since.elapsed());
            match self.receiver.next(patience.max(LAST_LOOK)) {
                Some(Ok(heard)) => return Ok(heard),
                Some(Err(broken)) => {
                    (self.unread, self.broken) = (self.receiver.unread(), Some(broken));
                }
                None => {
                    let seconds = seconds(self.silence);
                    let end = match self.connection {
                        None => End::Unanswered,
                        Some(_) => End::Lost,
                    };
                    return Err(end.because(format!("it did not answer within {seconds} s")));
                }
            }
        }
    }

    /// What it means to the worker, if it means anything.
    fn hear(&mut self, heard: Heard) -> Result<Option<Event>, Failure> {
        if matches!(heard, Heard::Incoming(_)) {
            self.last_heard = Instant::now();
        }
        Ok(Some(match heard {
            Heard::Incoming(Packet::ConnAck(ack)) => self.greeted(ack)?,
            Heard::Incoming(Packet::SubAck(ack)) => self.granted(ack)?,
            Heard::Incoming(Packet::Publish(publish)) => Event::Message(message(publish)?),
            // rumqttc tells of an acknowledgement before it finds that nothing waits for it
            Heard::Incoming(Packet::PubAck(ack)) if self.publishing == Some(ack.pkid) => {
                self.publishing = None;
                let said = ack
                    .properties
                    .and_then(|properties| properties.reason_string);
                Reason::new(ack.reason, said, None).of_publishing()
            }
            Heard::Incoming(Packet::Disconnect(packet)) => {
                return Err(Reason::of_disconnect(packet).failure("disconnects us"));
            }
            Heard::Incoming(Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_)) => {
                return Err(nonsense("a packet of QoS 2"));
            }
            Heard::Outgoing(sent) => match (sent, &self.connection) {
                (Outgoing::Subscribe(packet_id), _) => {
                    self.subscribing = Some((packet_id, Instant::now()));
                    return Ok(None);
                }
                (Outgoing::Publish(0), Some(connection)) => {
                    connection.announcements.fetch_sub(1, Relaxed);
                    return Ok(None);
                }
                (Outgoing::Publish(packet_id), _) => {
                    self.publishing = Some(packet_id);
                    return Ok(None);
                }
                (Outgoing::Disconnect, Some(connection)) if connection.is_leaving.load(Relaxed) => {
                    Event::Closed
                }
                // rumqttc says it for us where the broker breaks the protocol
                (Outgoing::Disconnect, _) => return Err(nonsense("it breaks the protocol")),
                _ => return Ok(None),
            },
            Heard::Incoming(_) => return Ok(None),
        }))
    }

    /// Heeds what a broker may dictate in its greeting (MQTT 5, section 3.2.2.3).
    fn greeted(&mut self, ack: ConnAck) -> Result<Event, Failure> {
        let send = self
            .sender
            .take()
            .ok_or_else(|| nonsense("a second greeting"))?;
        let mut lacks = std::mem::take(&mut self.lacks);
        let mut packet_bytes = MAX_PACKET_BYTES;
        if let Some(offer) = ack.properties {
            if offer.max_qos == Some(0) || offer.receive_max == Some(0) {
                return Err(End::Denied.because(
                    "the broker takes nothing at QoS 1 (Maximum QoS 0, or Receive Maximum 0), and so keeps no request",
                ));
            }
            let is_kept = self.settings.keeps_session;
            let expiry = offer.session_expiry_interval;
            let expiry = expiry.filter(|seconds| is_kept && *seconds < u32::MAX);
            lacks.extend(expiry.map(Lack::Session));
            for (available, lack) in [
                (offer.retain_available, Lack::Retain),
                (offer.subscription_identifiers_available, Lack::Identifiers),
                (offer.wildcard_subscription_available, Lack::Wildcards),
            ] {
                lacks.extend((available == Some(0)).then_some(lack));
            }
            packet_bytes = offer.max_packet_size.unwrap_or(packet_bytes);
        }
        self.silence = self.receiver.keep_alive().mul_f64(1.5);
        let connection = Arc::new(Connection {
            send,
            subscriptions: self.settings.subscriptions.clone(),
            version: self.version,
            lacks,
            packet_bytes: packet_bytes as usize,
            announcements: 0.into(),
            is_leaving: false.into(),
        });
        self.connection = Some(connection.clone());
        Ok(Event::Connected {
            connection,
            resumed: ack.session_present,
        })
    }

    fn granted(&mut self, ack: SubAck) -> Result<Event, Failure> {
        let asked = self
            .subscribing
            .take()
            .is_some_and(|(id, _)| id == ack.pkid);
        let connection = self.connection.as_ref().filter(|_| asked);
        let subscriptions = connection.map(|connection| connection.subscriptions());
        let subscriptions = subscriptions.filter(|to| to.len() == ack.return_codes.len());
        let subscriptions =
            subscriptions.ok_or_else(|| nonsense("a SUBACK to no SUBSCRIBE of ours"))?;
        let said = ack
            .properties
            .and_then(|properties| properties.reason_string);
        for (to, code) in subscriptions.into_iter().zip(ack.return_codes) {
            let filter = to.filter();
            match (to, code) {
                (Subscription::Requests(_), SubscribeReasonCode::Success(QoS::AtMostOnce)) => {
                    return Err(End::Denied.because(format!(
                        "the broker grants {filter} at QoS 0 alone, and so keeps no request"
                    )));
                }
                (_, SubscribeReasonCode::Success(_)) => {}
                (_, code) => {
                    let reason = Reason::new(code, said, None);
                    return Err(reason.failure(&format!("denies the subscription to {filter}")));
                }
            }
        }
        Ok(Event::Ready)
    }

    /// What it means that the connection broke.
    fn failure(&self, broken: Broken) -> Failure {
        #[cfg(feature = "tls")]
        if let (Broken::Handshake(error) | Broken::Io(error), Some(tls)) =
            (&broken, &self.settings.broker.tls)
            && let Some(failure) = mqtt::tls::failure(error, tls)
        {
            return failure;
        }
        let hint = match self.settings.broker.is_secure() {
            true => "",
            false => "; a port with TLS wants mqtts://",
        };
        match (broken, self.connection.is_some()) {
            (Broken::Refused(reason), _) => reason.failure(&self.denial(&reason)),
            #[cfg(feature = "tls")]
            (Broken::Handshake(error), _) => mqtt::tls::no_tls(error),
            (Broken::Io(error), _) if !is_end(&error) => End::Lost.because(error.to_string()),
            (Broken::Closed | Broken::Io(_), true) => End::Dropped.because(CLOSED),
            (Broken::Closed | Broken::Io(_), false) => {
                End::NotGreeted.because(format!("{CLOSED} upon our greeting{hint}"))
            }
            (Broken::Nonsense(what), true) => nonsense(&what),
            (Broken::Nonsense(what), false) => End::NotGreeted.because(format!(
                "its answer to our greeting makes no sense ({what}){hint}"
            )),
        }
    }

    /// What a broker does that does not let us in.
    fn denial(&self, reason: &Reason) -> String {
        let id = &self.settings.client_id;
        match &self.settings.broker.credentials {
            _ if reason.is_about_client_id() => format!("does not take our client id {id:?}"),
            _ if !reason.is_about_login() => "denies access".to_owned(),
            None => "denies access without a user name and password".to_owned(),
            Some(_) => "denies access with our user name and password".to_owned(),
        }
    }
}

/// Whether the other side has ended the connection.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    [
        BrokenPipe,
        ConnectionAborted,
        ConnectionReset,
        UnexpectedEof,
    ]
    .contains(&error.kind())
}

/// A message in our words.
fn message(publish: Publish) -> Result<mqtt::Message, Failure> {
    // we allow the broker neither topic aliases nor QoS 2
    if publish.topic.is_empty() || publish.qos == QoS::ExactlyOnce {
        return Err(nonsense("a message without a topic, or at QoS 2"));
    }
    // with several identifiers, nothing tells which is that of the requests
    let subscription = match publish.properties.map(|p| p.subscription_identifiers) {
        Some(ids) if ids.len() == 1 => ids[0].try_into().ok(),
        _ => None,
    };
    Ok(mqtt::Message {
        topic: String::from_utf8_lossy(&publish.topic).into_owned(),
        payload: publish.payload,
        packet_id: (publish.qos == QoS::AtLeastOnce).then_some(publish.pkid),
        redelivered: publish.dup,
        subscription,
        retained: publish.retain,
    })
}

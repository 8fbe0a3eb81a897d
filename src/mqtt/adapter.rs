//! One network connection over rumqttc, in either protocol version.
//!
//! rumqttc has the same types twice, once for each version. [`v3`] and [`v5`] give them one shape: what is asked of the
//! broker goes through a [`Sender`], and what comes is told in the words of MQTT 5, which has all of those of 3.1.1.

use super::reasons::{Lack, Reason};
use super::{Event, LastWill, Protocol, Retention, Session, Settings, Subscription, v3, v5};
use crate::mqtt;
use rumqttc::v5::Event as Heard;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnAck, Packet, PubAck, Publish, SubAck, SubscribeReasonCode};
use rumqttc::{Outgoing, Transport};
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io;
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

/// How long to look for what arrived while this process itself did not run (SIGSTOP, a busy machine).
const LAST_LOOK: Duration = Duration::from_millis(10);

/// What is asked of the broker.
pub enum Ask<'a> {
    Subscribe(Vec<&'a Subscription>, Option<u32>),
    Publish(&'a str, Vec<u8>, QoS, Retention),
    Acknowledge(u16),
    Unsubscribe(&'a str),
    Disconnect,
}

/// How to connect.
pub struct Way<'a> {
    /// An address of the broker, or its name.
    pub host: &'a str,
    pub port: u16,
    pub transport: Transport,
    pub login: Option<(String, String)>,
    pub will: Option<LastWill>,
}

/// The way to the broker, in one protocol version. Nothing waits on it; where the connection is gone, so is what is asked.
pub trait Sender: Send + Sync {
    fn send(&self, ask: Ask);
}

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
    #[cfg_attr(not(feature = "tls"), expect(dead_code))]
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
    #[cfg_attr(not(feature = "tls"), expect(dead_code))]
    Untrusted,
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
    /// The broker has ended an established connection in order, and gave no reason.
    Ended,
    /// An established connection broke.
    Dropped,
    /// Anything else, which may pass.
    Lost,
    /// We have closed it, or nobody wants to hear of it any more.
    Closed,
}

fn nonsense(what: &str) -> Failure {
    Failure(End::Lost, format!("what it sent makes no sense: {what}"))
}

/// An established connection, for the worker.
pub struct Connection {
    sender: Box<dyn Sender>,
    subscriptions: Vec<Subscription>,
    version: Protocol,
    /// What the broker does not have.
    pub lacks: Vec<Lack>,
    packet_bytes: usize,
    /// Announcements that wait to be sent.
    announcements: AtomicUsize,
    /// We have asked to disconnect.
    is_leaving: AtomicBool,
}

impl Connection {
    fn retention(&self, retention: Retention) -> Retention {
        match self.lacks.contains(&Lack::Retain) {
            true => Retention::None,
            false => retention,
        }
    }

    /// What it subscribes to.
    fn subscriptions(&self) -> Vec<&Subscription> {
        let without_wildcards = self.lacks.contains(&Lack::Wildcards);
        let can_be = |to: &&Subscription| !(without_wildcards && to.filter().contains(['+', '#']));
        self.subscriptions.iter().filter(can_be).collect()
    }
}

impl mqtt::Connection for Connection {
    fn subscribe(&self) {
        let can_mark = !self.lacks.contains(&Lack::Identifiers);
        let identifier = can_mark.then(new_identifier);
        self.sender
            .send(Ask::Subscribe(self.subscriptions(), identifier));
    }

    fn publish(&self, topic: &str, payload: Vec<u8>, retention: Retention) {
        let retention = self.retention(retention);
        self.sender
            .send(Ask::Publish(topic, payload, QoS::AtLeastOnce, retention));
    }

    fn announce(&self, topic: &str, payload: Vec<u8>, retention: Retention) {
        let fits = payload.len() <= self.payload_limit(topic);
        let one_more = |waiting| (fits && waiting < MAX_ANNOUNCEMENTS).then_some(waiting + 1);
        if self
            .announcements
            .fetch_update(Relaxed, Relaxed, one_more)
            .is_ok()
        {
            let retention = self.retention(retention);
            self.sender
                .send(Ask::Publish(topic, payload, QoS::AtMostOnce, retention));
        }
    }

    fn acknowledge(&self, packet_id: u16) {
        self.sender.send(Ask::Acknowledge(packet_id));
    }

    fn unsubscribe(&self, filter: &str) {
        self.sender.send(Ask::Unsubscribe(filter));
    }

    fn payload_limit(&self, topic: &str) -> usize {
        self.packet_bytes
            .saturating_sub(PUBLISH_HEADER_BYTES + topic.len())
    }

    fn tells_subscribers(&self) -> bool {
        self.version == Protocol::V5
    }

    fn disconnect(&self) {
        self.is_leaving.store(true, Relaxed);
        self.sender.send(Ask::Disconnect);
    }
}

/// A Subscription Identifier that no other SUBSCRIBE has had: the broker marks what it queues for a subscription with it, so
/// it tells the sessions of one client id apart. It has 28 bits and is not 0 (MQTT 5, section 3.8.2.1.2).
fn new_identifier() -> u32 {
    // each of these is seeded with what the system calls random
    (RandomState::new().hash_one(()) % 0x0fff_ffff) as u32 + 1
}

/// A network connection, for the thread that drives it.
pub struct Adapter {
    settings: Arc<Settings>,
    version: Protocol,
    receiver: Box<dyn Receiver>,
    /// Until the broker has greeted us.
    sender: Option<Box<dyn Sender>>,
    lacks: Vec<Lack>,
    /// From then on.
    connection: Option<Arc<Connection>>,
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
    /// Starts to connect to `host`, an address of the broker or its name, which has `patience` to greet us.
    pub fn open(
        settings: &Arc<Settings>,
        (host, port): (&str, u16),
        version: Protocol,
        lacks: &[Lack],
        patience: Duration,
    ) -> Result<Self, String> {
        let will = settings.last_will.clone().map(|will| LastWill {
            retention: match lacks.contains(&Lack::Retain) {
                true => Retention::None,
                false => will.retention,
            },
            ..will
        });
        let way = Way {
            host,
            port,
            transport: settings.broker.transport()?,
            login: match &settings.broker.credentials {
                Some(credentials) => {
                    Some((credentials.username.clone(), credentials.password.read()?))
                }
                None => None,
            },
            will,
        };
        let (sender, receiver): (Box<dyn Sender>, Box<dyn Receiver>) = match version {
            Protocol::V3 => v3::open(settings, way),
            Protocol::V5 => v5::open(settings, way),
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

    /// What the broker has said that it does not have.
    pub fn lacks(&self) -> Vec<Lack> {
        let connection = self.connection.as_ref();
        connection.map(|c| c.lacks.clone()).unwrap_or_default()
    }

    /// Subscribes, and says whether there is anything to subscribe to; [`Event::Ready`] tells when the broker has agreed.
    pub fn subscribe(&self) -> bool {
        let connection = self.connection.as_ref();
        let connection = connection.filter(|connection| !connection.subscriptions().is_empty());
        connection
            .map(|c| mqtt::Connection::subscribe(&**c))
            .is_some()
    }

    /// Waits for the next event that concerns the worker.
    pub fn next(&mut self) -> Result<Event, Failure> {
        loop {
            let heard = self.receive()?;
            if let Some((_, since)) = self.subscribing
                && since.elapsed() > self.silence
            {
                let seconds = self.silence.as_secs_f64();
                return Err(Failure(
                    End::Lost,
                    format!("it has not answered our SUBSCRIBE for {seconds} s"),
                ));
            }
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
            let patience = self.silence.saturating_sub(self.last_heard.elapsed());
            match self.receiver.next(patience.max(LAST_LOOK)) {
                Some(Ok(heard)) => return Ok(heard),
                Some(Err(broken)) => {
                    (self.unread, self.broken) = (self.receiver.unread(), Some(broken));
                }
                None => return Err(self.silent()),
            }
        }
    }

    fn silent(&self) -> Failure {
        let seconds = self.silence.as_secs_f64();
        match self.connection {
            None => Failure(
                End::Unanswered,
                format!("it did not answer within {seconds} s"),
            ),
            Some(_) => Failure(
                End::Lost,
                format!("it was silent for {seconds} s, 1.5 times the keep-alive"),
            ),
        }
    }

    /// What it means to the worker, if it means anything.
    fn hear(&mut self, heard: Heard) -> Result<Option<Event>, Failure> {
        if matches!(heard, Heard::Incoming(_)) {
            self.last_heard = Instant::now();
        }
        Ok(Some(match heard {
            Heard::Incoming(Packet::ConnAck(ack)) => self.greeted(&ack)?,
            Heard::Incoming(Packet::SubAck(ack)) => self.granted(&ack)?,
            Heard::Incoming(Packet::Publish(publish)) => Event::Message(message(publish)?),
            // rumqttc tells of an acknowledgement before it finds that nothing waits for it
            Heard::Incoming(Packet::PubAck(ack)) if self.publishing == Some(ack.pkid) => {
                self.publishing = None;
                Event::Published(self.published(&ack))
            }
            Heard::Incoming(Packet::Disconnect(packet)) => {
                return Err(Reason::of_disconnect(packet).failure("disconnects us"));
            }
            Heard::Incoming(Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_)) => {
                return Err(nonsense("a packet of QoS 2"));
            }
            Heard::Outgoing(Outgoing::Subscribe(packet_id)) => {
                self.subscribing = Some((packet_id, Instant::now()));
                return Ok(None);
            }
            Heard::Outgoing(Outgoing::Publish(0)) => {
                if let Some(connection) = &self.connection {
                    connection.announcements.fetch_sub(1, Relaxed);
                }
                return Ok(None);
            }
            Heard::Outgoing(Outgoing::Publish(packet_id)) => {
                self.publishing = Some(packet_id);
                return Ok(None);
            }
            Heard::Outgoing(Outgoing::Disconnect) => match &self.connection {
                Some(connection) if connection.is_leaving.load(Relaxed) => Event::Closed,
                // rumqttc says it for us where the broker breaks the protocol
                _ => return Err(nonsense("it breaks the protocol")),
            },
            _ => return Ok(None),
        }))
    }

    /// Heeds what a broker may dictate in its greeting (MQTT 5, section 3.2.2.3).
    fn greeted(&mut self, ack: &ConnAck) -> Result<Event, Failure> {
        let Some(sender) = self.sender.take() else {
            return Err(nonsense("a second greeting"));
        };
        let mut lacks = std::mem::take(&mut self.lacks);
        let mut packet_bytes = MAX_PACKET_BYTES;
        if let Some(offer) = &ack.properties {
            let impossible = match offer {
                _ if offer.max_qos == Some(0) => {
                    "has QoS 0 alone (Maximum QoS 0), which keeps no request and no result"
                }
                _ if offer.receive_max == Some(0) => {
                    "takes no message at QoS 1 (Receive Maximum 0)"
                }
                _ => "",
            };
            if !impossible.is_empty() {
                return Err(Failure(End::Denied, format!("the broker {impossible}")));
            }
            let is_kept = self.settings.session == Session::Kept;
            let found = [
                (offer.retain_available == Some(0)).then_some(Lack::Retain),
                (offer.subscription_identifiers_available == Some(0)).then_some(Lack::Identifiers),
                (offer.wildcard_subscription_available == Some(0)).then_some(Lack::Wildcards),
                offer
                    .session_expiry_interval
                    .filter(|seconds| is_kept && *seconds < u32::MAX)
                    .map(Lack::Session),
            ];
            for lack in found.into_iter().flatten() {
                if !lacks.contains(&lack) {
                    lacks.push(lack);
                }
            }
            packet_bytes = offer.max_packet_size.unwrap_or(packet_bytes);
        }
        self.silence = self.receiver.keep_alive().mul_f64(1.5);
        let connection = Arc::new(Connection {
            sender,
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

    fn granted(&mut self, ack: &SubAck) -> Result<Event, Failure> {
        let subscriptions = match (&self.connection, self.subscribing.take()) {
            (Some(connection), Some((packet_id, _))) if packet_id == ack.pkid => {
                connection.subscriptions()
            }
            _ => {
                return Err(nonsense("an answer to a SUBSCRIBE that is not ours"));
            }
        };
        if subscriptions.len() != ack.return_codes.len() {
            return Err(nonsense("an answer to another SUBSCRIBE"));
        }
        for (to, code) in subscriptions.into_iter().zip(&ack.return_codes) {
            let filter = to.filter();
            match (to, code) {
                (Subscription::Requests(_), SubscribeReasonCode::Success(QoS::AtMostOnce)) => {
                    return Err(Failure(
                        End::Denied,
                        format!(
                            "the broker grants {filter} at QoS 0 alone, which keeps no request"
                        ),
                    ));
                }
                (_, SubscribeReasonCode::Success(_)) => {}
                (_, code) => {
                    let said = ack
                        .properties
                        .as_ref()
                        .and_then(|p| p.reason_string.clone());
                    let reason = Reason::new(code, said, None);
                    return Err(reason.failure(&format!("denies the subscription to {filter}")));
                }
            }
        }
        Ok(Event::Ready)
    }

    fn published(&self, ack: &PubAck) -> Result<mqtt::Subscribers, mqtt::Unpublished> {
        let said = ack
            .properties
            .as_ref()
            .and_then(|p| p.reason_string.clone());
        Reason::new(ack.reason, said, None).of_publishing(self.version)
    }

    /// What it means that the connection broke.
    fn failure(&self, broken: Broken) -> Failure {
        let is_greeted = self.connection.is_some();
        match broken {
            Broken::Refused(reason) => reason.failure(&self.denial(&reason)),
            #[cfg(feature = "tls")]
            Broken::Handshake(error) => self.tls_failure(&error).unwrap_or_else(|| {
                Failure(
                    End::Lost,
                    format!("no TLS with it: {error}; mqtt:// is for a port without TLS"),
                )
            }),
            #[cfg(not(feature = "tls"))]
            Broken::Handshake(error) => Failure(End::Lost, error.to_string()),
            #[cfg(feature = "tls")]
            Broken::Io(error) if let Some(failure) = self.tls_failure(&error) => failure,
            Broken::Io(error) if !is_end(&error) => Failure(End::Lost, error.to_string()),
            Broken::Closed if is_greeted => {
                Failure(End::Ended, "it closed the connection".to_owned())
            }
            Broken::Io(_) if is_greeted => {
                Failure(End::Dropped, "it closed the connection".to_owned())
            }
            Broken::Closed | Broken::Io(_) => Failure(
                End::NotGreeted,
                format!(
                    "it closes the connection upon our greeting{}",
                    self.port_hint()
                ),
            ),
            Broken::Nonsense(what) if is_greeted => nonsense(&what),
            Broken::Nonsense(what) => Failure(
                End::NotGreeted,
                format!(
                    "its answer to our greeting makes no sense ({what}){}",
                    self.port_hint()
                ),
            ),
        }
    }

    /// What a broker does that does not let us in.
    fn denial(&self, reason: &Reason) -> String {
        let credentials = &self.settings.broker.credentials;
        match (
            reason.is_about_client_id(),
            reason.is_about_login(),
            credentials,
        ) {
            (true, ..) => format!("does not take our client id {:?}", self.settings.client_id),
            (_, true, None) => "denies access without a user name and password".to_owned(),
            (_, true, Some(_)) => "denies access with our user name and password".to_owned(),
            _ => "denies access".to_owned(),
        }
    }

    /// What a port may be that has an answer of its own to our greeting.
    fn port_hint(&self) -> &'static str {
        #[cfg(feature = "tls")]
        if self.settings.broker.tls.is_some() {
            return "";
        }
        "; a port with TLS wants mqtts://"
    }

    #[cfg(feature = "tls")]
    fn tls_failure(&self, error: &io::Error) -> Option<Failure> {
        mqtt::tls::failure(error, self.settings.broker.tls.as_ref()?)
    }
}

/// Whether the other side has ended the connection.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
    )
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

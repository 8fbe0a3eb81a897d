//! MQTT 5 over rumqttc.

use super::{
    Announcements, Connection, Failure, Heard, IN_FLIGHT, MAX_PACKET_BYTES, Message,
    REQUEST_CAPACITY,
};
use super::{Settings, Subscribers, Unpublished, Wire, patience};
use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectProperties, ConnectReturnCode as Code, DisconnectReasonCode, Filter, LastWill,
    Packet, PubAck, PubAckReason, Publish, RetainForwardRule, SubscribeProperties,
    SubscribeReasonCode,
};
use rumqttc::v5::{Client, ConnectionError, Event, MqttOptions, RecvTimeoutError, StateError};
#[cfg(feature = "tls")]
use rumqttc::{TlsError, v5::mqttbytes::Error as CodecError};
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The session outlives our absence for as long as the broker allows.
const SESSION_NEVER_EXPIRES: u32 = u32::MAX;

/// What a PUBLISH holds besides topic and payload, in bytes: its type, its length, the lengths of topic and properties, and the
/// packet identifier (MQTT 5, section 3.3).
const PUBLISH_HEADER_BYTES: usize = 1 + 4 + 2 + 1 + 2;

/// Starts to connect to `host`, an address of the broker or its name.
pub fn open(settings: &Settings, host: &str) -> (Arc<dyn Connection>, Box<dyn Wire>) {
    let (client, connection) = Client::new(options(settings, host), REQUEST_CAPACITY);
    let announcements = Announcements::default();
    let identifies = Arc::new(AtomicBool::new(true));
    let largest_packet = Arc::new(AtomicU32::new(MAX_PACKET_BYTES));
    let wire = V5Wire {
        connection,
        identifies: identifies.clone(),
        largest_packet: largest_packet.clone(),
        announcements: announcements.clone(),
        heard: None,
        last_words: VecDeque::new(),
        failure: None,
    };
    let connection = V5 {
        client,
        announcements,
        identifies,
        largest_packet,
    };
    (Arc::new(connection), Box::new(wire))
}

fn options(settings: &Settings, host: &str) -> MqttOptions {
    let broker = &settings.broker;
    let mut options = MqttOptions::new(&settings.client_id, host, broker.port);
    let (topic, payload) = &settings.last_will;
    options
        .set_clean_start(false)
        .set_connect_properties(ConnectProperties {
            session_expiry_interval: Some(SESSION_NEVER_EXPIRES),
            // one unacknowledged request at a time: those behind it stay with the broker, for other workers too
            receive_maximum: Some(1),
            max_packet_size: Some(MAX_PACKET_BYTES),
            ..ConnectProperties::new()
        })
        .set_manual_acks(true)
        .set_keep_alive(broker.keep_alive)
        .set_outgoing_inflight_upper_limit(IN_FLIGHT)
        .set_last_will(LastWill::new(
            topic,
            payload.clone(),
            QoS::AtMostOnce,
            true,
            None,
        ));
    let mut network = options.network_options();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    #[cfg(feature = "tls")]
    if let Some(tls) = &broker.tls {
        options.set_transport(tls.transport());
    }
    if let Some(credentials) = &broker.credentials {
        options.set_credentials(&credentials.username, &credentials.password);
    }
    options
}

struct V5 {
    client: Client,
    announcements: Announcements,
    /// The broker takes Subscription Identifiers, as far as it has said.
    identifies: Arc<AtomicBool>,
    /// Maximum Packet Size of the broker, in bytes.
    largest_packet: Arc<AtomicU32>,
}

// The errors that are dropped here all say one thing: the connection is gone. The worker hears that as an event.
impl Connection for V5 {
    fn subscribe(&self, settings: &Settings) {
        let requests = Filter {
            // a retained request is told apart even when it comes live, and is answered once and not at every start
            preserve_retain: true,
            retain_forward_rule: RetainForwardRule::OnNewSubscribe,
            ..Filter::new(&settings.requests, QoS::AtLeastOnce)
        };
        let cancels = Filter {
            retain_forward_rule: RetainForwardRule::Never,
            ..Filter::new(&settings.cancels, QoS::AtMostOnce)
        };
        let filters = [requests, cancels];
        let _ = match self.identifies.load(Relaxed) {
            true => self
                .client
                .subscribe_many_with_properties(filters, session_mark()),
            false => self.client.subscribe_many(filters),
        };
    }

    fn publish(&self, topic: &str, payload: Vec<u8>) {
        let _ = self.client.publish(topic, QoS::AtLeastOnce, false, payload);
    }

    fn announce(&self, topic: &str, payload: Vec<u8>, retain: bool) {
        if payload.len() <= self.payload_limit(topic) && self.announcements.has_room() {
            let _ = self
                .client
                .try_publish(topic, QoS::AtMostOnce, retain, payload);
        }
    }

    fn acknowledge(&self, packet_id: u16) {
        let message = Publish {
            qos: QoS::AtLeastOnce,
            pkid: packet_id,
            ..Publish::default()
        };
        let _ = self.client.ack(&message);
    }

    fn unsubscribe(&self, filter: &str) {
        let _ = self.client.unsubscribe(filter);
    }

    fn payload_limit(&self, topic: &str) -> usize {
        let packet = self.largest_packet.load(Relaxed) as usize;
        packet.saturating_sub(PUBLISH_HEADER_BYTES + topic.len())
    }

    fn tells_subscribers(&self) -> bool {
        true
    }

    fn disconnect(&self) {
        let _ = self.client.disconnect();
    }
}

struct V5Wire {
    connection: rumqttc::v5::Connection,
    identifies: Arc<AtomicBool>,
    largest_packet: Arc<AtomicU32>,
    announcements: Announcements,
    /// When the broker was last heard; `None` until CONNACK has come.
    heard: Option<Instant>,
    /// What was heard before the connection broke, and is still to be told.
    last_words: VecDeque<Event>,
    failure: Option<Failure>,
}

impl Wire for V5Wire {
    fn next(&mut self) -> Result<Heard, Failure> {
        if let Some(event) = self.last_words.pop_front() {
            return Ok(self.hear(event));
        }
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        match self.poll() {
            Ok(event) => Ok(self.hear(event)),
            Err(failure) => {
                self.failure = Some(failure);
                self.last_words = std::mem::take(&mut self.connection.eventloop.state.events);
                self.next()
            }
        }
    }
}

impl V5Wire {
    /// Waits for the next event. rumqttc bounds only its greeting: while it sends, it neither pings nor notices that no ping
    /// is answered. So the whole wait is bounded. The connection is given up then, which closes its socket.
    fn poll(&mut self) -> Result<Event, Failure> {
        let Some(heard) = self.heard else {
            return match self.connection.recv() {
                Ok(event) => event.map_err(|error| failure(error, false)),
                Err(_) => Err(given_up()),
            };
        };
        let keep_alive = self.connection.eventloop.options.keep_alive();
        match self.connection.recv_timeout(patience(heard, keep_alive)) {
            Ok(event) => event.map_err(|error| failure(error, true)),
            Err(RecvTimeoutError::Timeout) => Err(Failure::silent(keep_alive)),
            Err(RecvTimeoutError::Disconnected) => Err(given_up()),
        }
    }

    fn hear(&mut self, event: Event) -> Heard {
        if matches!(event, Event::Incoming(_)) {
            self.heard = Some(Instant::now());
        }
        match event {
            Event::Incoming(Packet::ConnAck(ack)) => {
                self.heed_broker(&ack);
                Heard::Connected {
                    resumed: ack.session_present,
                }
            }
            Event::Incoming(Packet::SubAck(ack)) => {
                Heard::Subscribed(ack.return_codes.iter().map(fault).collect())
            }
            Event::Incoming(Packet::Publish(message)) => Heard::Message(Message {
                subscription: subscription(&message),
                topic: String::from_utf8_lossy(&message.topic).into_owned(),
                payload: message.payload,
                packet_id: (message.qos != QoS::AtMostOnce).then_some(message.pkid),
                redelivered: message.dup,
                retained: message.retain,
            }),
            Event::Incoming(Packet::PubAck(ack)) => Heard::Published(published(&ack)),
            Event::Outgoing(Outgoing::Disconnect) => Heard::Closed,
            // packet identifier 0 is QoS 0
            Event::Outgoing(Outgoing::Publish(0)) => {
                self.announcements.sent();
                Heard::Other
            }
            _ => Heard::Other,
        }
    }

    /// What a broker may dictate in its greeting (MQTT 5, section 3.2.2.3).
    fn heed_broker(&mut self, ack: &ConnAck) {
        let Some(properties) = &ack.properties else {
            return;
        };
        if let Some(bytes) = properties.max_packet_size {
            self.largest_packet.store(bytes, Relaxed);
        }
        if properties.subscription_identifiers_available == Some(0) {
            self.identifies.store(false, Relaxed);
        }
        if let Some(seconds) = properties
            .session_expiry_interval
            .filter(|s| *s < SESSION_NEVER_EXPIRES)
        {
            log::warn!(
                "the broker keeps our session for {seconds} s only: requests are lost when no worker is there for longer"
            );
        }
        // rumqttc takes 0, "no keep-alive", for "ping without a pause"
        if properties.server_keep_alive == Some(0) {
            self.connection
                .eventloop
                .options
                .set_keep_alive(Duration::from_secs(u16::MAX.into()));
        }
    }
}

/// A Subscription Identifier that no other SUBSCRIBE has had: the broker marks what it queues for a subscription with it, so
/// it tells the sessions of one client id apart. It has 28 bits and is not 0 (MQTT 5, section 3.8.2.1.2).
fn session_mark() -> SubscribeProperties {
    // each of these is seeded with what the system calls random
    let random = RandomState::new().hash_one(());
    SubscribeProperties {
        id: Some((random % 0x0fff_ffff) as usize + 1),
        user_properties: Vec::new(),
    }
}

/// The one Subscription Identifier of a message; with several, nothing tells which is that of the requests.
fn subscription(message: &Publish) -> Option<u32> {
    match *message.properties.as_ref()?.subscription_identifiers {
        [id] => u32::try_from(id).ok(),
        _ => None,
    }
}

fn fault(code: &SubscribeReasonCode) -> Option<String> {
    match code {
        SubscribeReasonCode::Success(_) => None,
        code => Some(format!("{code:?}")),
    }
}

fn published(ack: &PubAck) -> Result<Subscribers, Unpublished> {
    match ack.reason {
        PubAckReason::Success => Ok(Subscribers::Some),
        PubAckReason::NoMatchingSubscribers => Ok(Subscribers::None),
        PubAckReason::NotAuthorized => Err(Unpublished::NotAuthorized),
        reason => Err(Unpublished::ForNow(format!("{reason:?}"))),
    }
}

/// What TLS says of the connection, wherever rumqttc has put it.
#[cfg(feature = "tls")]
fn tls_failure(error: &ConnectionError) -> Option<Failure> {
    match error {
        ConnectionError::Tls(TlsError::Io(error))
        | ConnectionError::Io(error)
        | ConnectionError::MqttState(
            StateError::Io(error) | StateError::Deserialization(CodecError::Io(error)),
        ) => super::tls::failure(error),
        _ => None,
    }
}

fn failure(error: ConnectionError, greeted: bool) -> Failure {
    #[cfg(feature = "tls")]
    if let Some(failure) = tls_failure(&error) {
        return failure;
    }
    match error {
        ConnectionError::ConnectionRefused(code) => match code {
            Code::BadUserNamePassword
            | Code::NotAuthorized
            | Code::Banned
            | Code::BadAuthenticationMethod => Failure::Denied(format!(
                "the broker refuses our user name or password ({code:?})"
            )),
            Code::ClientIdentifierNotValid => {
                Failure::Denied("the broker refuses our client id, WORKER_ID".into())
            }
            Code::UnsupportedProtocolVersion => Failure::NotGreeted("it has no MQTT 5".into()),
            code => Failure::Lost(format!("it refuses the connection for now ({code:?})")),
        },
        ConnectionError::MqttState(StateError::ServerDisconnect {
            reason_code,
            reason_string,
        }) => match reason_code {
            DisconnectReasonCode::SessionTakenOver => Failure::TakenOver,
            DisconnectReasonCode::NotAuthorized => {
                Failure::Denied("the broker says that we are not authorised".into())
            }
            code => Failure::Lost(format!(
                "it disconnected us ({code:?}) {}",
                reason_string.unwrap_or_default()
            )),
        },
        ConnectionError::MqttState(error) if !greeted => {
            Failure::NotGreeted(format!("it did not answer our greeting ({error})"))
        }
        ConnectionError::Timeout(_) if !greeted => {
            Failure::NotGreeted("it did not answer our greeting in time".into())
        }
        ConnectionError::MqttState(
            error @ (StateError::Io(_)
            | StateError::Deserialization(_)
            | StateError::ConnectionAborted),
        ) => Failure::Dropped(error.to_string()),
        error => Failure::Lost(error.to_string()),
    }
}

fn given_up() -> Failure {
    Failure::Lost("the connection was given up".into())
}

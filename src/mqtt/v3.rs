//! MQTT 3.1.1 over rumqttc. It has no Receive Maximum: a broker sends several requests at once, and those behind the
//! first stay unacknowledged, so that they come again. Nor does it give reasons for a disconnect.

use super::{
    Announcements, Connection, Failure, Heard, IN_FLIGHT, MAX_PACKET_BYTES, Message,
    REQUEST_CAPACITY,
};
use super::{Settings, Subscribers, Wire, patience};
use rumqttc::{
    Client, ConnectReturnCode as Code, ConnectionError, Event, LastWill, MqttOptions, Outgoing,
    Packet, Publish, QoS, RecvTimeoutError, StateError, SubscribeFilter, SubscribeReasonCode,
};
#[cfg(feature = "tls")]
use rumqttc::{TlsError, mqttbytes::Error as CodecError};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Starts to connect to `host`, an address of the broker or its name.
pub fn open(settings: &Settings, host: &str) -> (Arc<dyn Connection>, Box<dyn Wire>) {
    let (client, mut connection) = Client::new(options(settings, host), REQUEST_CAPACITY);
    let mut network = connection.eventloop.network_options();
    network.set_tcp_nodelay(true);
    connection.eventloop.set_network_options(network);
    let announcements = Announcements::default();
    let wire = V3Wire {
        connection,
        announcements: announcements.clone(),
        heard: None,
        last_words: VecDeque::new(),
        failure: None,
    };
    (Arc::new(V3(client, announcements)), Box::new(wire))
}

fn options(settings: &Settings, host: &str) -> MqttOptions {
    let broker = &settings.broker;
    let mut options = MqttOptions::new(&settings.client_id, host, broker.port);
    let (topic, payload) = &settings.last_will;
    options
        .set_clean_session(false)
        .set_max_packet_size(MAX_PACKET_BYTES as usize, MAX_PACKET_BYTES as usize)
        .set_manual_acks(true)
        .set_keep_alive(broker.keep_alive)
        .set_inflight(IN_FLIGHT)
        .set_last_will(LastWill::new(topic, payload.clone(), QoS::AtMostOnce, true));
    #[cfg(feature = "tls")]
    if let Some(tls) = &broker.tls {
        options.set_transport(tls.transport());
    }
    if let Some(credentials) = &broker.credentials {
        options.set_credentials(&credentials.username, &credentials.password);
    }
    options
}

struct V3(Client, Announcements);

// The errors that are dropped here all say one thing: the connection is gone. The worker hears that as an event.
impl Connection for V3 {
    fn subscribe(&self, settings: &Settings) {
        let requests = SubscribeFilter::new(settings.requests.clone(), QoS::AtLeastOnce);
        let cancels = SubscribeFilter::new(settings.cancels.clone(), QoS::AtMostOnce);
        let _ = self.0.subscribe_many([requests, cancels]);
    }

    fn publish(&self, topic: &str, payload: Vec<u8>) {
        let _ = self.0.publish(topic, QoS::AtLeastOnce, false, payload);
    }

    fn announce(&self, topic: &str, payload: Vec<u8>, retain: bool) {
        if self.1.has_room() {
            let _ = self.0.try_publish(topic, QoS::AtMostOnce, retain, payload);
        }
    }

    fn acknowledge(&self, packet_id: u16) {
        let mut message = Publish::new("", QoS::AtLeastOnce, Vec::new());
        message.pkid = packet_id;
        let _ = self.0.ack(&message);
    }

    fn unsubscribe(&self, filter: &str) {
        let _ = self.0.unsubscribe(filter);
    }

    fn payload_limit(&self, _: &str) -> usize {
        MAX_PACKET_BYTES as usize
    }

    fn tells_subscribers(&self) -> bool {
        false
    }

    fn disconnect(&self) {
        let _ = self.0.disconnect();
    }
}

struct V3Wire {
    connection: rumqttc::Connection,
    announcements: Announcements,
    /// When the broker was last heard; `None` until CONNACK has come.
    heard: Option<Instant>,
    /// What was heard before the connection broke, and is still to be told.
    last_words: VecDeque<Event>,
    failure: Option<Failure>,
}

impl Wire for V3Wire {
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

impl V3Wire {
    /// Waits for the next event. rumqttc bounds only its greeting: while it sends, it neither pings nor notices that no ping
    /// is answered. So the whole wait is bounded. The connection is given up then, which closes its socket.
    fn poll(&mut self) -> Result<Event, Failure> {
        let Some(heard) = self.heard else {
            return match self.connection.recv() {
                Ok(event) => event.map_err(|error| failure(error, false)),
                Err(_) => Err(given_up()),
            };
        };
        let keep_alive = self.connection.eventloop.mqtt_options.keep_alive();
        match self.connection.recv_timeout(patience(heard, keep_alive)) {
            Ok(event) => event.map_err(|error| failure(error, true)),
            Err(RecvTimeoutError::Timeout) => Err(Failure::silent(keep_alive)),
            Err(RecvTimeoutError::Disconnected) => Err(given_up()),
        }
    }

    /// rumqttc ends a flush that takes longer than its patience with a greeting. A slow network is not a dead one: from now
    /// on the broker's silence decides.
    fn lengthen_flush(&mut self) {
        let eventloop = &mut self.connection.eventloop;
        let mut network = eventloop.network_options();
        network.set_connection_timeout(u16::MAX.into());
        eventloop.set_network_options(network);
    }

    fn hear(&mut self, event: Event) -> Heard {
        if matches!(event, Event::Incoming(_)) {
            self.heard = Some(Instant::now());
        }
        match event {
            Event::Incoming(Packet::ConnAck(ack)) => {
                self.lengthen_flush();
                Heard::Connected {
                    resumed: ack.session_present,
                }
            }
            Event::Incoming(Packet::SubAck(ack)) => {
                Heard::Subscribed(ack.return_codes.iter().map(fault).collect())
            }
            Event::Incoming(Packet::Publish(message)) => Heard::Message(Message {
                topic: message.topic,
                payload: message.payload,
                packet_id: (message.qos != QoS::AtMostOnce).then_some(message.pkid),
                redelivered: message.dup,
                subscription: None,
                retained: message.retain,
            }),
            Event::Incoming(Packet::PubAck(_)) => Heard::Published(Ok(Subscribers::Unknown)),
            Event::Outgoing(Outgoing::Disconnect) => Heard::Closed,
            // packet identifier 0 is QoS 0
            Event::Outgoing(Outgoing::Publish(0)) => {
                self.announcements.sent();
                Heard::Other
            }
            _ => Heard::Other,
        }
    }
}

fn fault(code: &SubscribeReasonCode) -> Option<String> {
    match code {
        SubscribeReasonCode::Success(_) => None,
        SubscribeReasonCode::Failure => Some("it gives no reason (MQTT 3.1.1)".to_owned()),
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
            Code::BadUserNamePassword | Code::NotAuthorized => Failure::Denied(format!(
                "the broker refuses our user name or password ({code:?})"
            )),
            Code::BadClientId => {
                Failure::Denied("the broker refuses our client id, WORKER_ID".into())
            }
            code => Failure::Lost(format!("it refuses the connection for now ({code:?})")),
        },
        ConnectionError::MqttState(error) if !greeted => {
            Failure::NotGreeted(format!("it did not answer our greeting ({error})"))
        }
        ConnectionError::NetworkTimeout => {
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

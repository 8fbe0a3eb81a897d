//! One network connection over rumqttc, in either protocol version.
//!
//! rumqttc has the same types twice, once for each version, with the same names and nothing in common. So the adapter is a
//! macro: [`v3`](super::v3) and [`v5`](super::v5) expand it over the types of their version, and hold only what differs.

use super::Event;
use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How many of our messages may be unacknowledged. There is one at a time. More slots keep its packet identifier from being
/// used again too soon.
pub const IN_FLIGHT: u16 = 16;

/// How often the broker is nudged for its answer to one message. Each nudge takes a packet identifier.
pub const MAX_NUDGES: u16 = IN_FLIGHT / 2;

/// How long the broker is silent before each of the second half. Mosquitto delivers hundreds of requests at once over 3.1.1.
pub const SILENCE: Duration = Duration::from_millis(1);

/// A filter to which nobody subscribes.
pub const NO_SUBSCRIPTION: &str = "job-worker/no-subscription";

/// A peer that is silent for this many keep-alives is dead, as it is for a broker (MQTT 5, section 3.1.2.10). A living one
/// answers a ping at each keep-alive.
const SILENT_KEEP_ALIVES: f64 = 1.5;

/// How long to look for what arrived while this process itself did not run (SIGSTOP, a busy machine).
const LAST_LOOK: Duration = Duration::from_millis(10);

/// One network connection, as the driver sees it.
pub trait Adapter {
    /// Waits for the next event that concerns the worker.
    fn next(&mut self) -> Result<Event, Failure>;

    /// Subscribes; [`Event::Ready`] tells when the broker has agreed.
    fn subscribe(&self);
}

/// Why a connection ended.
pub enum Failure {
    /// The broker does not let us in, and will not the next time.
    Denied(String),
    /// The two sides do not accept each other's certificates.
    #[cfg_attr(not(feature = "tls"), expect(dead_code))]
    Untrusted(String),
    /// Another client has taken our session.
    TakenOver,
    /// The broker closes the connection upon our greeting or never answers it, as brokers do that do not have our protocol
    /// version.
    NotGreeted(String),
    /// The broker has closed an established connection and gave no reason.
    Dropped(String),
    /// Anything else, which may pass.
    Lost(String),
    /// Whoever has the link is stuck: nobody would do what the broker asks.
    OwnerStuck,
    /// We have closed it, or nobody wants to hear of it any more.
    Closed,
}

impl Failure {
    pub fn login_denied(code: impl Debug) -> Self {
        Self::Denied(format!(
            "the broker denies access with our user name and password ({code:?})"
        ))
    }

    pub fn client_id_denied(code: impl Debug) -> Self {
        Self::Denied(format!(
            "the broker denies access with our client id, WORKER_ID ({code:?})"
        ))
    }

    pub fn denied_for_now(code: impl Debug) -> Self {
        Self::Lost(format!("it denies access for now ({code:?})"))
    }

    pub fn silent(keep_alive: Duration) -> Self {
        let seconds = keep_alive.mul_f64(SILENT_KEEP_ALIVES).as_secs_f64();
        Self::Lost(format!(
            "it was silent for {seconds} s, 1.5 times the keep-alive"
        ))
    }
}

/// For how much longer a connection may be silent that was last heard at `last_heard`.
pub fn patience(last_heard: Instant, keep_alive: Duration) -> Duration {
    let silence = keep_alive.mul_f64(SILENT_KEEP_ALIVES);
    silence.saturating_sub(last_heard.elapsed()).max(LAST_LOOK)
}

/// Defines `open` for the protocol version whose module expands it. The module brings into scope rumqttc's types of its
/// version, and these functions:
///
/// - `connect`: sets the options of the version, and starts to connect
/// - `keep_alive`: the keep-alive in force
/// - `greeted`: heeds what the broker says in its CONNACK
/// - `subscribe`, `publish`, `announce`, `acknowledgement`, `message`, `published`: our words in those of the version, and the other way round
/// - `denial`: why the broker denies a subscription
/// - `given_reason`: what a broker means that says why it ends the connection
///
/// `$timeout` is the error of a broker that does not answer in time.
macro_rules! define_open {
    (timeout: $timeout:pat) => {
        /// Starts to connect to `host`, an address of the broker or its name.
        pub fn open(settings: &Arc<Settings>, host: &str) -> Box<dyn Adapter> {
            let (client, connection) = connect(options(settings, host), settings);
            let limits = Limits::default();
            Box::new(Incoming {
                connection,
                sender: Arc::new(Sender {
                    client,
                    limits,
                    settings: settings.clone(),
                }),
                last_heard: None,
                published: None,
                owes_acknowledgement: false,
                nudges: 0,
                unread: VecDeque::new(),
                failure: None,
            })
        }

        fn options(settings: &Settings, host: &str) -> MqttOptions {
            let broker = &settings.broker;
            let mut options = MqttOptions::new(&settings.client_id, host, broker.port);
            options
                .set_manual_acks(true)
                .set_keep_alive(broker.keep_alive);
            #[cfg(feature = "tls")]
            if let Some(tls) = &broker.tls {
                options.set_transport(tls.transport());
            }
            if let Some(credentials) = &broker.credentials {
                options.set_credentials(&credentials.username, &credentials.password);
            }
            options
        }

        struct Sender {
            client: Client,
            limits: Limits,
            settings: Arc<Settings>,
        }

        // The errors that are dropped here all say that the connection is gone. The worker hears that as an event.
        impl mqtt::Connection for Sender {
            fn subscribe(&self) {
                subscribe(&self.client, &self.settings.subscriptions, &self.limits);
            }

            fn publish(&self, topic: &str, payload: Vec<u8>, retention: Retention) {
                publish(&self.client, topic, payload, retention);
            }

            fn announce(&self, topic: &str, payload: Vec<u8>, retention: Retention) {
                if payload.len() <= self.payload_limit(topic) && self.limits.admit_announcement() {
                    announce(&self.client, topic, payload, retention);
                }
            }

            fn acknowledge(&self, packet_id: u16) {
                let _ = self.client.ack(&acknowledgement(packet_id));
            }

            fn unsubscribe(&self, filter: &str) {
                let _ = self.client.unsubscribe(filter);
            }

            fn payload_limit(&self, topic: &str) -> usize {
                self.limits.payload_bytes(topic)
            }

            fn tells_subscribers(&self) -> bool {
                TELLS_SUBSCRIBERS
            }

            fn disconnect(&self) {
                let _ = self.client.disconnect();
            }
        }

        struct Incoming {
            connection: Connection,
            sender: Arc<Sender>,
            /// When the broker was last heard; `None` until its CONNACK has come.
            last_heard: Option<Instant>,
            /// The packet identifier of the result that the broker is to acknowledge.
            published: Option<u16>,
            /// Something has come, and nothing was sent since.
            owes_acknowledgement: bool,
            /// How often the broker was nudged since the result was sent.
            nudges: u16,
            /// What came before the connection broke and is still to be heard.
            unread: VecDeque<Event>,
            /// Why it broke.
            failure: Option<Failure>,
        }

        impl Adapter for Incoming {
            fn next(&mut self) -> Result<mqtt::Event, Failure> {
                loop {
                    let event = self.receive()?;
                    // a ping is an event, too
                    if self.sender.settings.owner_is_stuck() {
                        return Err(Failure::OwnerStuck);
                    }
                    if let Some(event) = self.hear(event)? {
                        return Ok(event);
                    }
                }
            }

            fn subscribe(&self) {
                mqtt::Connection::subscribe(&*self.sender);
            }
        }

        impl Incoming {
            fn receive(&mut self) -> Result<Event, Failure> {
                if let Some(event) = self.unread.pop_front() {
                    return Ok(event);
                }
                if let Some(failure) = self.failure.take() {
                    return Err(failure);
                }
                self.poll().or_else(|failure| {
                    self.unread = std::mem::take(&mut self.connection.eventloop.state.events);
                    self.failure = Some(failure);
                    self.receive()
                })
            }

            /// Waits for the next event. rumqttc bounds only its greeting: while it sends, it neither pings nor notices that
            /// no ping is answered. So the whole wait is bounded. The connection is given up then, which closes its socket.
            fn poll(&mut self) -> Result<Event, Failure> {
                // A broker may hold back its answer until it has our TCP acknowledgement of what it has sent before. Mosquitto
                // does, as it leaves Nagle's algorithm on, and Linux delays that acknowledgement by 40 ms.
                if self.owes_acknowledgement && self.published.is_some() {
                    let more = match self.nudges < MAX_NUDGES / 2 {
                        true => self.connection.try_recv().ok(),
                        false => self.connection.recv_timeout(SILENCE).ok(),
                    };
                    match more {
                        Some(event) => return event.map_err(|error| failure(error, true)),
                        None => self.nudge(),
                    }
                }
                let keep_alive = keep_alive(&self.connection);
                let received = match self.last_heard {
                    None => {
                        let received = self.connection.recv();
                        received.map_err(|_| RecvTimeoutError::Disconnected)
                    }
                    Some(at) => self.connection.recv_timeout(patience(at, keep_alive)),
                };
                match received {
                    Ok(event) => event.map_err(|error| failure(error, self.last_heard.is_some())),
                    Err(RecvTimeoutError::Timeout) => Err(Failure::silent(keep_alive)),
                    Err(RecvTimeoutError::Disconnected) => {
                        Err(Failure::Lost("the connection was given up".into()))
                    }
                }
            }

            /// Sends something that changes nothing: our TCP acknowledgement goes with it.
            fn nudge(&mut self) {
                self.owes_acknowledgement = false;
                let client = &self.sender.client;
                if self.nudges < MAX_NUDGES && client.try_unsubscribe(NO_SUBSCRIPTION).is_ok() {
                    self.nudges += 1;
                }
            }

            /// What an event means to the worker, if it means anything.
            fn hear(&mut self, event: Event) -> Result<Option<mqtt::Event>, Failure> {
                let is_incoming = matches!(event, Event::Incoming(_));
                if is_incoming {
                    self.last_heard = Some(Instant::now());
                }
                // the answer to a nudge comes behind whatever was held back
                self.owes_acknowledgement =
                    is_incoming && !matches!(event, Event::Incoming(Packet::UnsubAck(_)));
                Ok(Some(match event {
                    Event::Incoming(Packet::ConnAck(ack)) => {
                        greeted(&mut self.connection, &ack, &self.sender.limits);
                        mqtt::Event::Connected {
                            connection: self.sender.clone(),
                            resumed: ack.session_present,
                        }
                    }
                    Event::Incoming(Packet::SubAck(ack)) => {
                        let subscriptions = &self.sender.settings.subscriptions;
                        let filters = subscriptions.iter().map(Subscription::filter);
                        let denied = |(filter, code)| Some((filter, denial(code)?));
                        if let Some((filter, reason)) =
                            filters.zip(&ack.return_codes).find_map(denied)
                        {
                            return Err(Failure::Denied(format!(
                                "the broker denies the subscription to {filter}: {reason}"
                            )));
                        }
                        mqtt::Event::Ready
                    }
                    Event::Incoming(Packet::Publish(publish)) => {
                        mqtt::Event::Message(message(publish))
                    }
                    // rumqttc tells of an acknowledgement before it finds that nothing waits for it
                    Event::Incoming(Packet::PubAck(ack)) if self.published == Some(ack.pkid) => {
                        self.published = None;
                        mqtt::Event::Published(published(&ack))
                    }
                    Event::Outgoing(Outgoing::Disconnect) => mqtt::Event::Closed,
                    // packet identifier 0 is QoS 0
                    Event::Outgoing(Outgoing::Publish(0)) => {
                        self.sender.limits.announcement_sent();
                        return Ok(None);
                    }
                    Event::Outgoing(Outgoing::Publish(packet_id)) => {
                        (self.published, self.nudges) = (Some(packet_id), 0);
                        return Ok(None);
                    }
                    _ => return Ok(None),
                }))
            }
        }

        fn failure(error: ConnectionError, is_greeted: bool) -> Failure {
            #[cfg(feature = "tls")]
            if let Some(failure) = tls_error(&error).and_then(mqtt::tls::failure) {
                return failure;
            }
            if let Some(failure) = given_reason(&error) {
                return failure;
            }
            match error {
                $timeout if !is_greeted => {
                    Failure::NotGreeted("it did not answer our greeting in time".into())
                }
                ConnectionError::MqttState(error) if !is_greeted => {
                    Failure::NotGreeted(format!("it did not answer our greeting ({error})"))
                }
                ConnectionError::MqttState(
                    error @ (StateError::Io(_)
                    | StateError::Deserialization(_)
                    | StateError::ConnectionAborted),
                ) => Failure::Dropped(error.to_string()),
                error => Failure::Lost(error.to_string()),
            }
        }

        /// The error that TLS may have caused, wherever rumqttc has put it.
        #[cfg(feature = "tls")]
        fn tls_error(error: &ConnectionError) -> Option<&std::io::Error> {
            match error {
                ConnectionError::Tls(rumqttc::TlsError::Io(error))
                | ConnectionError::Io(error)
                | ConnectionError::MqttState(
                    StateError::Io(error) | StateError::Deserialization(CodecError::Io(error)),
                ) => Some(error),
                _ => None,
            }
        }
    };
}

pub(super) use define_open;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_peer_is_given_its_time_and_one_last_look() {
        let (keep_alive, now) = (Duration::from_secs(10), Instant::now());
        assert!(patience(now, keep_alive) > Duration::from_secs(14));
        assert!(patience(now, keep_alive) <= Duration::from_secs(15));
        let long_ago = now.checked_sub(Duration::from_secs(20));
        assert_eq!(long_ago.map(|at| patience(at, keep_alive)), Some(LAST_LOOK));
    }
}

//! MQTT 5: one unacknowledged request at a time, limits that the broker states, a mark on what it has queued for a
//! subscription, and reasons.

use super::adapter::{Ask, Broken, IN_FLIGHT, MAX_PACKET_BYTES, MAX_WAITING, Receiver, Sender};
use super::reasons::Reason;
use super::{LastWill, Settings, Subscription};
use rumqttc::Transport;
use rumqttc::v5::mqttbytes::v5::{
    ConnectProperties, Filter, LastWillProperties, Publish, PublishProperties, RetainForwardRule,
    SubscribeProperties,
};
use rumqttc::v5::mqttbytes::{Error as CodecError, QoS, v5 as packets};
use rumqttc::v5::{
    Client, Connection, ConnectionError, Event, MqttOptions, RecvTimeoutError, StateError,
};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

/// Starts to connect.
pub fn open(
    settings: &Settings,
    (host, port): (&str, u16),
    transport: Transport,
    login: Option<(String, String)>,
    will: Option<LastWill>,
) -> (Sender, Box<dyn Receiver>) {
    let is_kept = settings.keeps_session;
    let mut options = MqttOptions::new(&settings.client_id, host, port);
    options
        .set_keep_alive(settings.broker.keep_alive)
        .set_clean_start(!is_kept)
        .set_connect_properties(ConnectProperties {
            // it outlives our absence for as long as the broker allows
            session_expiry_interval: is_kept.then_some(u32::MAX),
            // one unacknowledged request at a time: those behind it stay with the broker
            receive_maximum: Some(1),
            max_packet_size: Some(MAX_PACKET_BYTES),
            ..ConnectProperties::new()
        })
        .set_outgoing_inflight_upper_limit(IN_FLIGHT)
        .set_transport(transport)
        .set_manual_acks(true)
        // the adapter bounds every wait
        .set_connection_timeout(u32::MAX.into());
    if let Some((username, password)) = login {
        options.set_credentials(username, password);
    }
    if let Some(will) = will {
        let properties = will.retention.seconds().map(|seconds| LastWillProperties {
            delay_interval: None,
            payload_format_indicator: None,
            message_expiry_interval: Some(seconds),
            content_type: None,
            response_topic: None,
            correlation_data: None,
            user_properties: Vec::new(),
        });
        let (qos, retain) = (QoS::AtMostOnce, will.retention.is_kept());
        let (topic, payload) = (will.topic, will.payload);
        options.set_last_will(packets::LastWill::new(
            topic, payload, qos, retain, properties,
        ));
    }
    let mut network = options.network_options();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    let (client, connection) = Client::new(options, MAX_WAITING);
    (
        Box::new(move |ask| send(&client, ask)),
        Box::new(connection),
    )
}

fn send(client: &Client, ask: Ask) {
    let _ = match ask {
        Ask::Subscribe(to, identifier) => {
            let properties = SubscribeProperties {
                id: identifier.map(|id| id as usize),
                user_properties: Vec::new(),
            };
            let filters = to.into_iter().map(|to| Filter {
                // shows a retained request as one even when it comes live, and delivers it once and not at every start
                preserve_retain: matches!(to, Subscription::Requests(_)),
                retain_forward_rule: match to {
                    Subscription::Requests(_) => RetainForwardRule::OnNewSubscribe,
                    Subscription::Cancels(_) => RetainForwardRule::Never,
                },
                ..Filter::new(to.filter(), to.qos())
            });
            client.try_subscribe_many_with_properties(filters, properties)
        }
        Ask::Publish(topic, payload, qos, retention) => {
            let properties = PublishProperties {
                message_expiry_interval: retention.seconds(),
                ..PublishProperties::default()
            };
            let retain = retention.is_kept();
            client.try_publish_with_properties(topic, qos, retain, payload, properties)
        }
        Ask::Acknowledge(packet_id) => client.try_ack(&Publish {
            qos: QoS::AtLeastOnce,
            pkid: packet_id,
            ..Publish::default()
        }),
        Ask::Disconnect => client.try_disconnect(),
    };
}

impl Receiver for Connection {
    fn next(&mut self, patience: Duration) -> Option<Result<Event, Broken>> {
        match self.recv_timeout(patience) {
            Ok(event) => Some(event.map_err(broken)),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(Broken::Closed)),
        }
    }

    fn unread(&mut self) -> VecDeque<Event> {
        std::mem::take(&mut self.eventloop.state.events)
    }

    fn keep_alive(&mut self) -> Duration {
        let options = &mut self.eventloop.options;
        // rumqttc takes 0, "no keep-alive", for "ping without a pause"
        if options.keep_alive().is_zero() {
            options.set_keep_alive(Duration::from_secs(u16::MAX.into()));
        }
        options.keep_alive()
    }
}

fn broken(error: ConnectionError) -> Broken {
    match error {
        ConnectionError::ConnectionRefused(code) => Broken::Refused(Reason::new(code, None, None)),
        #[cfg(feature = "tls")]
        ConnectionError::Tls(rumqttc::TlsError::Io(error)) => Broken::Handshake(error),
        ConnectionError::Io(error)
        | ConnectionError::MqttState(
            StateError::Io(error) | StateError::Deserialization(CodecError::Io(error)),
        ) => Broken::Io(error),
        ConnectionError::MqttState(StateError::ConnectionAborted) => Broken::Closed,
        ConnectionError::MqttState(StateError::AwaitPingResp) => Broken::Io(io::Error::new(
            io::ErrorKind::TimedOut,
            "it answers no ping",
        )),
        ConnectionError::NotConnAck(_) => Broken::Nonsense("no CONNACK".to_owned()),
        error => Broken::Nonsense(error.to_string()),
    }
}

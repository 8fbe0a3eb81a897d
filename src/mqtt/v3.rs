//! MQTT 3.1.1. It has no Receive Maximum: a broker sends several requests at once, and those behind the first stay
//! unacknowledged, so that they come again. Nor does it give reasons.

use super::adapter::{Ask, Broken, IN_FLIGHT, MAX_PACKET_BYTES, MAX_WAITING, Receiver, Sender};
use super::reasons::Reason;
use super::{LastWill, Settings};
use rumqttc::mqttbytes::Error as CodecError;
use rumqttc::v5;
use rumqttc::v5::mqttbytes::{QoS as QoS5, v5 as packets};
use rumqttc::{
    Client, Connection, ConnectionError, Event, MqttOptions, Packet, Publish, QoS,
    RecvTimeoutError, StateError, SubscribeFilter, SubscribeReasonCode, Transport,
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
    let mut options = MqttOptions::new(&settings.client_id, host, port);
    options
        .set_keep_alive(settings.broker.keep_alive)
        .set_clean_session(!settings.keeps_session)
        .set_max_packet_size(MAX_PACKET_BYTES as usize, MAX_PACKET_BYTES as usize)
        .set_inflight(IN_FLIGHT)
        .set_transport(transport)
        .set_manual_acks(true);
    if let Some((username, password)) = login {
        options.set_credentials(username, password);
    }
    if let Some(will) = will {
        let retain = will.retention.is_kept();
        let will = rumqttc::LastWill::new(will.topic, will.payload, QoS::AtMostOnce, retain);
        options.set_last_will(will);
    }
    let (client, mut connection) = Client::new(options, MAX_WAITING);
    let mut network = connection.eventloop.network_options();
    // the adapter bounds every wait; this one would end a flush that is only slow
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(u32::MAX.into());
    connection.eventloop.set_network_options(network);
    (
        Box::new(move |ask| send(&client, ask)),
        Box::new(connection),
    )
}

fn send(client: &Client, ask: Ask) {
    let _ = match ask {
        Ask::Subscribe(to, _) => client.try_subscribe_many(
            to.into_iter()
                .map(|to| SubscribeFilter::new(to.filter().to_owned(), to_3(to.qos()))),
        ),
        Ask::Publish(topic, payload, qos, retention) => {
            client.try_publish(topic, to_3(qos), retention.is_kept(), payload)
        }
        Ask::Acknowledge(packet_id) => client.try_ack(&Publish {
            pkid: packet_id,
            ..Publish::new("", QoS::AtLeastOnce, Vec::new())
        }),
        Ask::Disconnect => client.try_disconnect(),
    };
}

fn to_3(qos: QoS5) -> QoS {
    match qos {
        QoS5::AtMostOnce => QoS::AtMostOnce,
        _ => QoS::AtLeastOnce,
    }
}

impl Receiver for Connection {
    fn next(&mut self, patience: Duration) -> Option<Result<v5::Event, Broken>> {
        match self.recv_timeout(patience) {
            Ok(event) => Some(event.map(in_words_of_5).map_err(broken)),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(Broken::Closed)),
        }
    }

    fn unread(&mut self) -> VecDeque<v5::Event> {
        self.eventloop
            .state
            .events
            .drain(..)
            .map(in_words_of_5)
            .collect()
    }

    fn keep_alive(&mut self) -> Duration {
        self.eventloop.mqtt_options.keep_alive()
    }
}

fn in_words_of_5(event: Event) -> v5::Event {
    let packet = match event {
        Event::Outgoing(outgoing) => return v5::Event::Outgoing(outgoing),
        Event::Incoming(packet) => packet,
    };
    v5::Event::Incoming(match packet {
        Packet::ConnAck(ack) => packets::Packet::ConnAck(packets::ConnAck {
            session_present: ack.session_present,
            code: packets::ConnectReturnCode::Success,
            properties: None,
        }),
        Packet::SubAck(ack) => packets::Packet::SubAck(packets::SubAck {
            pkid: ack.pkid,
            return_codes: ack.return_codes.into_iter().map(granted).collect(),
            properties: None,
        }),
        Packet::PubAck(ack) => packets::Packet::PubAck(packets::PubAck::new(ack.pkid, None)),
        Packet::Publish(publish) => packets::Packet::Publish(packets::Publish {
            dup: publish.dup,
            qos: qos_of_5(publish.qos),
            retain: publish.retain,
            topic: publish.topic.into(),
            pkid: publish.pkid,
            payload: publish.payload,
            properties: None,
        }),
        Packet::PubRec(ack) => packets::Packet::PubRec(packets::PubRec::new(ack.pkid, None)),
        _ => packets::Packet::PingResp(packets::PingResp),
    })
}

fn granted(code: SubscribeReasonCode) -> packets::SubscribeReasonCode {
    match code {
        SubscribeReasonCode::Success(qos) => packets::SubscribeReasonCode::Success(qos_of_5(qos)),
        SubscribeReasonCode::Failure => packets::SubscribeReasonCode::Failure,
    }
}

fn qos_of_5(qos: QoS) -> QoS5 {
    match qos {
        QoS::AtMostOnce => QoS5::AtMostOnce,
        QoS::AtLeastOnce => QoS5::AtLeastOnce,
        QoS::ExactlyOnce => QoS5::ExactlyOnce,
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

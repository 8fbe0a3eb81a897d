//! What is peculiar to MQTT 3.1.1. It has no Receive Maximum: a broker sends several requests at once, and those behind the
//! first stay unacknowledged, so that they come again. Nor does it give reasons for a disconnect.

use super::adapter::{
    Adapter, Failure, IN_FLIGHT, MAX_NUDGES, NO_SUBSCRIPTION, SILENCE, define_open, patience,
};
use super::limits::{Limits, MAX_PACKET_BYTES, SEND_QUEUE_LENGTH};
use super::{Message, Retention, Session, Settings, Subscribers, Subscription, Unpublished};
use crate::mqtt;
#[cfg(feature = "tls")]
use rumqttc::mqttbytes::Error as CodecError;
use rumqttc::{
    Client, ConnAck, ConnectReturnCode as Code, Connection, ConnectionError, Event, LastWill,
    MqttOptions, NetworkOptions, Outgoing, Packet, PubAck, Publish, QoS, RecvTimeoutError,
    StateError, SubscribeFilter, SubscribeReasonCode,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

define_open!(timeout: ConnectionError::NetworkTimeout);

const TELLS_SUBSCRIBERS: bool = false;

fn connect(mut options: MqttOptions, settings: &Settings) -> (Client, Connection) {
    options
        .set_clean_session(settings.session == Session::Fleeting)
        .set_max_packet_size(MAX_PACKET_BYTES as usize, MAX_PACKET_BYTES as usize)
        .set_inflight(IN_FLIGHT);
    if let Some(will) = &settings.last_will {
        let (payload, retain) = (will.payload.clone(), will.retention.is_kept());
        options.set_last_will(LastWill::new(&will.topic, payload, QoS::AtMostOnce, retain));
    }
    let (client, mut connection) = Client::new(options, SEND_QUEUE_LENGTH);
    set_network(&mut connection, |network| network.set_tcp_nodelay(true));
    (client, connection)
}

fn set_network(connection: &mut Connection, set: impl FnOnce(&mut NetworkOptions)) {
    let mut network = connection.eventloop.network_options();
    set(&mut network);
    connection.eventloop.set_network_options(network);
}

fn keep_alive(connection: &Connection) -> Duration {
    connection.eventloop.mqtt_options.keep_alive()
}

/// rumqttc ends a flush that takes longer than a greeting may. A slow network is not a dead one: from now on only the
/// broker's silence ends the connection.
fn greeted(connection: &mut Connection, _: &ConnAck, _: &Limits) {
    set_network(connection, |network| {
        network.set_connection_timeout(u16::MAX.into());
    });
}

fn subscribe(client: &Client, subscriptions: &[Subscription], _: &Limits) {
    let _ = client.subscribe_many(subscriptions.iter().map(|to| {
        let qos = match to {
            Subscription::Requests(_) => QoS::AtLeastOnce,
            Subscription::Cancels(_) | Subscription::Presence(_) => QoS::AtMostOnce,
        };
        SubscribeFilter::new(to.filter().to_owned(), qos)
    }));
}

fn publish(client: &Client, topic: &str, payload: Vec<u8>, retention: Retention) {
    let _ = client.publish(topic, QoS::AtLeastOnce, retention.is_kept(), payload);
}

fn announce(client: &Client, topic: &str, payload: Vec<u8>, retention: Retention) {
    let _ = client.try_publish(topic, QoS::AtMostOnce, retention.is_kept(), payload);
}

fn denial(code: &SubscribeReasonCode) -> Option<String> {
    match code {
        SubscribeReasonCode::Success(_) => None,
        SubscribeReasonCode::Failure => Some("it gives no reason (MQTT 3.1.1)".to_owned()),
    }
}

fn message(publish: Publish) -> Message {
    Message {
        topic: publish.topic,
        payload: publish.payload,
        packet_id: (publish.qos != QoS::AtMostOnce).then_some(publish.pkid),
        redelivered: publish.dup,
        subscription: None,
        retained: publish.retain,
    }
}

fn acknowledgement(packet_id: u16) -> Publish {
    let mut publish = Publish::new("", QoS::AtLeastOnce, Vec::new());
    publish.pkid = packet_id;
    publish
}

fn published(_: &PubAck) -> Result<Subscribers, Unpublished> {
    Ok(Subscribers::Unknown)
}

fn given_reason(error: &ConnectionError) -> Option<Failure> {
    let ConnectionError::ConnectionRefused(code) = error else {
        return None;
    };
    Some(match code {
        Code::BadUserNamePassword | Code::NotAuthorized => Failure::login_denied(code),
        Code::BadClientId => Failure::client_id_denied(code),
        code => Failure::denied_for_now(code),
    })
}

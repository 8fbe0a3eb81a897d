//! What is peculiar to MQTT 5: one unacknowledged request at a time, limits that the broker states, a mark on what it has
//! queued for a subscription, and reasons.

use super::adapter::{
    Adapter, Failure, IN_FLIGHT, MAX_NUDGES, NO_SUBSCRIPTION, SILENCE, define_open, patience,
};
use super::limits::{Limits, MAX_PACKET_BYTES, SEND_QUEUE_LENGTH};
use super::{Message, Retention, Session, Settings, Subscribers, Subscription, Unpublished};
use crate::mqtt;
use rumqttc::Outgoing;
#[cfg(feature = "tls")]
use rumqttc::v5::mqttbytes::Error as CodecError;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectProperties, ConnectReturnCode as Code, DisconnectReasonCode, Filter, LastWill,
    LastWillProperties, Packet, PubAck, PubAckReason, Publish, PublishProperties,
    RetainForwardRule, SubscribeProperties, SubscribeReasonCode,
};
use rumqttc::v5::{
    Client, Connection, ConnectionError, Event, MqttOptions, RecvTimeoutError, StateError,
};
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

define_open!(timeout: ConnectionError::Timeout(_));

const TELLS_SUBSCRIBERS: bool = true;

/// The session outlives our absence for as long as the broker allows.
const SESSION_NEVER_EXPIRES: u32 = u32::MAX;

fn connect(mut options: MqttOptions, settings: &Settings) -> (Client, Connection) {
    let is_kept = settings.session == Session::Kept;
    options
        .set_clean_start(!is_kept)
        .set_connect_properties(ConnectProperties {
            session_expiry_interval: is_kept.then_some(SESSION_NEVER_EXPIRES),
            // one unacknowledged request at a time: those behind it stay with the broker
            receive_maximum: Some(1),
            max_packet_size: Some(MAX_PACKET_BYTES),
            ..ConnectProperties::new()
        })
        .set_outgoing_inflight_upper_limit(IN_FLIGHT);
    if let Some(will) = &settings.last_will {
        let properties = expiry(will.retention).map(|seconds| LastWillProperties {
            delay_interval: None,
            payload_format_indicator: None,
            message_expiry_interval: Some(seconds),
            content_type: None,
            response_topic: None,
            correlation_data: None,
            user_properties: Vec::new(),
        });
        let (payload, retain) = (will.payload.clone(), will.retention.is_kept());
        let qos = QoS::AtMostOnce;
        options.set_last_will(LastWill::new(&will.topic, payload, qos, retain, properties));
    }
    let mut network = options.network_options();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    Client::new(options, SEND_QUEUE_LENGTH)
}

fn keep_alive(connection: &Connection) -> Duration {
    connection.eventloop.options.keep_alive()
}

/// Heeds what a broker may dictate in its greeting (MQTT 5, section 3.2.2.3).
fn greeted(connection: &mut Connection, ack: &ConnAck, limits: &Limits) {
    let Some(properties) = &ack.properties else {
        return;
    };
    if let Some(bytes) = properties.max_packet_size {
        limits.packet_bytes.store(bytes, Relaxed);
    }
    if properties.subscription_identifiers_available == Some(0) {
        limits.subscription_identifiers.store(false, Relaxed);
    }
    if let Some(seconds) = properties.session_expiry_interval
        && seconds < SESSION_NEVER_EXPIRES
    {
        log::warn!(
            "the broker keeps our session for {seconds} s only: requests are lost when no worker is there for longer"
        );
    }
    // rumqttc takes 0, "no keep-alive", for "ping without a pause"
    if properties.server_keep_alive == Some(0) {
        let longest = Duration::from_secs(u16::MAX.into());
        connection.eventloop.options.set_keep_alive(longest);
    }
}

fn subscribe(client: &Client, subscriptions: &[Subscription], limits: &Limits) {
    let filters = subscriptions.iter().map(|to| match to {
        Subscription::Requests(topic) => Filter {
            // shows a retained request as one even when it comes live, and delivers it once and not at every start
            preserve_retain: true,
            retain_forward_rule: RetainForwardRule::OnNewSubscribe,
            ..Filter::new(topic, QoS::AtLeastOnce)
        },
        Subscription::Cancels(filter) => Filter {
            retain_forward_rule: RetainForwardRule::Never,
            ..Filter::new(filter, QoS::AtMostOnce)
        },
        Subscription::Presence(filter) => Filter::new(filter, QoS::AtMostOnce),
    });
    let _ = match limits.subscription_identifiers.load(Relaxed) {
        true => client.subscribe_many_with_properties(filters, new_identifier()),
        false => client.subscribe_many(filters),
    };
}

fn publish(client: &Client, topic: &str, payload: Vec<u8>, retention: Retention) {
    let (qos, retain, properties) = (QoS::AtLeastOnce, retention.is_kept(), properties(retention));
    let _ = client.publish_with_properties(topic, qos, retain, payload, properties);
}

fn announce(client: &Client, topic: &str, payload: Vec<u8>, retention: Retention) {
    let (qos, retain, properties) = (QoS::AtMostOnce, retention.is_kept(), properties(retention));
    let _ = client.try_publish_with_properties(topic, qos, retain, payload, properties);
}

fn properties(retention: Retention) -> PublishProperties {
    PublishProperties {
        message_expiry_interval: expiry(retention),
        ..PublishProperties::default()
    }
}

/// After how many seconds the broker forgets a message.
fn expiry(retention: Retention) -> Option<u32> {
    match retention {
        Retention::None | Retention::Kept => None,
        Retention::KeptFor(seconds) => Some(seconds),
    }
}

/// A Subscription Identifier that no other SUBSCRIBE has had: the broker marks what it queues for a subscription with it, so
/// it tells the sessions of one client id apart. It has 28 bits and is not 0 (MQTT 5, section 3.8.2.1.2).
fn new_identifier() -> SubscribeProperties {
    // each of these is seeded with what the system calls random
    let random = RandomState::new().hash_one(());
    SubscribeProperties {
        id: Some((random % 0x0fff_ffff) as usize + 1),
        user_properties: Vec::new(),
    }
}

fn denial(code: &SubscribeReasonCode) -> Option<String> {
    match code {
        SubscribeReasonCode::Success(_) => None,
        code => Some(format!("{code:?}")),
    }
}

fn message(publish: Publish) -> Message {
    Message {
        subscription: subscription(&publish),
        topic: String::from_utf8_lossy(&publish.topic).into_owned(),
        payload: publish.payload,
        packet_id: (publish.qos != QoS::AtMostOnce).then_some(publish.pkid),
        redelivered: publish.dup,
        retained: publish.retain,
    }
}

/// The one Subscription Identifier of a message; with several, nothing tells which is that of the requests.
fn subscription(publish: &Publish) -> Option<u32> {
    match *publish.properties.as_ref()?.subscription_identifiers {
        [id] => u32::try_from(id).ok(),
        _ => None,
    }
}

fn acknowledgement(packet_id: u16) -> Publish {
    Publish {
        qos: QoS::AtLeastOnce,
        pkid: packet_id,
        ..Publish::default()
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

fn given_reason(error: &ConnectionError) -> Option<Failure> {
    match error {
        ConnectionError::ConnectionRefused(code) => Some(match code {
            Code::BadUserNamePassword
            | Code::NotAuthorized
            | Code::Banned
            | Code::BadAuthenticationMethod => Failure::login_denied(code),
            Code::ClientIdentifierNotValid => Failure::client_id_denied(code),
            Code::UnsupportedProtocolVersion => Failure::NotGreeted("it has no MQTT 5".into()),
            code => Failure::denied_for_now(code),
        }),
        ConnectionError::MqttState(StateError::ServerDisconnect {
            reason_code,
            reason_string,
        }) => Some(match reason_code {
            DisconnectReasonCode::SessionTakenOver => Failure::TakenOver,
            DisconnectReasonCode::NotAuthorized => {
                Failure::Denied("the broker denies access: we are not authorised".into())
            }
            code => {
                let reason = reason_string.as_deref().unwrap_or_default();
                Failure::Lost(format!("it disconnected us ({code:?}) {reason}"))
            }
        }),
        _ => None,
    }
}

//! MQTT packets of both versions in one type, and their bytes.
//!
//! Packets from clients are read with rumqttc's codec. Packets to clients are encoded here: a broker of the tests must be
//! able to send any reason code, also a wrong one, and a fault of the codec must not cancel itself out.

use bytes::BytesMut;
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::v5;

/// One MQTT packet of either version.
#[derive(Clone, Debug, PartialEq)]
pub enum Packet {
    Connect {
        client_id: String,
        clean: bool,
        will: Option<Message>,
        username: String,
        password: String,
        /// Seconds.
        keep_alive: u16,
        receive_maximum: Option<u16>,
        /// Seconds; 0 in 3.1.1, where `clean` alone decides.
        session_expiry: u32,
        max_packet_size: Option<u32>,
        /// 5, or 4 for 3.1.1.
        version: u8,
    },
    /// `properties` are the encoded properties of MQTT 5 without their length; not sent in 3.1.1.
    ConnAck {
        session_present: bool,
        code: u8,
        properties: Vec<u8>,
    },
    Publish {
        topic: String,
        payload: Vec<u8>,
        qos: u8,
        dup: bool,
        retain: bool,
        pkid: u16,
        /// The Subscription Identifier of MQTT 5, to clients only.
        subscription: Option<u32>,
    },
    PubAck {
        pkid: u16,
        code: u8,
    },
    /// Filters with their options byte (MQTT 5, 3.8.3.1); in 3.1.1 that is the QoS.
    Subscribe {
        pkid: u16,
        filters: Vec<(String, u8)>,
        /// The Subscription Identifier of MQTT 5.
        identifier: Option<u32>,
    },
    SubAck {
        pkid: u16,
        codes: Vec<u8>,
    },
    Unsubscribe {
        pkid: u16,
        filters: Vec<String>,
    },
    UnsubAck {
        pkid: u16,
        codes: Vec<u8>,
    },
    PingReq,
    PingResp,
    Disconnect {
        code: u8,
    },
    /// Bytes to send as they are, for what no correct broker sends.
    Raw(Vec<u8>),
}

/// A message as it was published: by a client, by its last will, or (with an empty `client`) by [`Broker::publish`].
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub client: String,
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    pub dup: bool,
    /// The Subscription Identifier under which it was queued.
    pub subscription: Option<u32>,
}

impl Message {
    /// The payload as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

impl Message {
    pub(super) fn packet(&self, pkid: u16, dup: bool) -> Packet {
        let (topic, payload) = (self.topic.clone(), self.payload.clone());
        Packet::Publish {
            topic,
            payload,
            qos: self.qos,
            dup,
            retain: self.retain,
            pkid,
            subscription: self.subscription,
        }
    }
}

/// Lengths of the fixed header and of the whole packet at the start of `bytes`, once its length can be read.
pub(super) fn frame_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let last = bytes
        .iter()
        .skip(1)
        .take(4)
        .position(|byte| byte & 0x80 == 0)?;
    let remaining = bytes[1..=last + 1]
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 7 | usize::from(byte & 0x7F));
    Some((last + 2, last + 2 + remaining))
}

/// A packet from a client; `None` if it is malformed or not served.
pub(super) fn decode(version: u8, header: usize, mut frame: BytesMut) -> Option<Packet> {
    // Two packets that rumqttc's codec for MQTT 5 does not read in all their valid forms: a DISCONNECT without
    // properties (or without anything), and a PUBACK with a reason that it does not know.
    match frame[0] {
        0xE0 => {
            return Some(Packet::Disconnect {
                code: frame.get(header).copied().unwrap_or(0),
            });
        }
        0x40 => {
            let pkid = u16::from_be_bytes([*frame.get(header)?, *frame.get(header + 1)?]);
            return Some(Packet::PubAck {
                pkid,
                code: frame.get(header + 2).copied().unwrap_or(0),
            });
        }
        _ => {}
    }
    match version {
        4 => decode_v4(v4::Packet::read(&mut frame, usize::MAX).ok()?),
        5 => decode_v5(v5::Packet::read(&mut frame, None).ok()?),
        _ => None,
    }
}

fn decode_v4(packet: v4::Packet) -> Option<Packet> {
    Some(match packet {
        v4::Packet::Connect(connect) => {
            let (username, password) = connect
                .login
                .map(|l| (l.username, l.password))
                .unwrap_or_default();
            Packet::Connect {
                client_id: connect.client_id,
                clean: connect.clean_session,
                will: connect
                    .last_will
                    .map(|w| will(w.topic, &w.message, w.qos as u8, w.retain)),
                username,
                password,
                keep_alive: connect.keep_alive,
                receive_maximum: None,
                session_expiry: 0,
                max_packet_size: None,
                version: 4,
            }
        }
        v4::Packet::Publish(p) => Packet::Publish {
            topic: p.topic,
            payload: p.payload.to_vec(),
            qos: p.qos as u8,
            dup: p.dup,
            retain: p.retain,
            pkid: p.pkid,
            subscription: None,
        },
        v4::Packet::Subscribe(s) => {
            let filters = s
                .filters
                .into_iter()
                .map(|filter| (filter.path, filter.qos as u8));
            Packet::Subscribe {
                pkid: s.pkid,
                filters: filters.collect(),
                identifier: None,
            }
        }
        v4::Packet::Unsubscribe(u) => Packet::Unsubscribe {
            pkid: u.pkid,
            filters: u.topics,
        },
        v4::Packet::PingReq => Packet::PingReq,
        _ => return None,
    })
}

fn decode_v5(packet: v5::Packet) -> Option<Packet> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    Some(match packet {
        v5::Packet::Connect(connect, last_will, login) => {
            let (username, password) = login.map(|l| (l.username, l.password)).unwrap_or_default();
            let properties = connect.properties.unwrap_or_default();
            Packet::Connect {
                client_id: connect.client_id,
                clean: connect.clean_start,
                will: match last_will {
                    Some(w) => Some(will(text(&w.topic)?, &w.message, w.qos as u8, w.retain)),
                    None => None,
                },
                username,
                password,
                keep_alive: connect.keep_alive,
                receive_maximum: properties.receive_maximum,
                session_expiry: properties.session_expiry_interval.unwrap_or(0),
                max_packet_size: properties.max_packet_size,
                version: 5,
            }
        }
        v5::Packet::Publish(p) => Packet::Publish {
            topic: text(&p.topic)?,
            payload: p.payload.to_vec(),
            qos: p.qos as u8,
            dup: p.dup,
            retain: p.retain,
            pkid: p.pkid,
            subscription: None,
        },
        v5::Packet::Subscribe(s) => {
            let options = |filter: &v5::Filter| {
                let mut bytes = BytesMut::new();
                filter.write(&mut bytes);
                bytes[bytes.len() - 1]
            };
            let filters = s
                .filters
                .iter()
                .map(|filter| (filter.path.clone(), options(filter)));
            Packet::Subscribe {
                pkid: s.pkid,
                filters: filters.collect(),
                identifier: s
                    .properties
                    .and_then(|properties| u32::try_from(properties.id?).ok()),
            }
        }
        v5::Packet::Unsubscribe(u) => Packet::Unsubscribe {
            pkid: u.pkid,
            filters: u.filters,
        },
        v5::Packet::PingReq(_) => Packet::PingReq,
        _ => return None,
    })
}

fn will(topic: String, payload: &[u8], qos: u8, retain: bool) -> Message {
    Message {
        client: String::new(),
        topic,
        payload: payload.to_vec(),
        qos,
        retain,
        dup: false,
        subscription: None,
    }
}

/// The bytes of a packet to a client.
pub(super) fn encode(version: u8, packet: &Packet) -> Vec<u8> {
    let v5 = version == 5;
    let mut body = Vec::new();
    let first = match packet {
        Packet::ConnAck {
            session_present,
            code,
            properties,
        } => {
            body.extend([u8::from(*session_present), *code]);
            if v5 {
                put_length(&mut body, properties.len());
                body.extend(properties);
            }
            0x20
        }
        Packet::Publish {
            topic,
            payload,
            qos,
            dup,
            retain,
            pkid,
            subscription,
        } => {
            put_string(&mut body, topic);
            if *qos > 0 {
                body.extend(pkid.to_be_bytes());
            }
            if v5 {
                let mut properties = Vec::new();
                if let Some(identifier) = subscription {
                    properties.push(0x0B);
                    put_length(&mut properties, *identifier as usize);
                }
                put_length(&mut body, properties.len());
                body.extend(properties);
            }
            body.extend(payload);
            0x30 | u8::from(*dup) << 3 | qos << 1 | u8::from(*retain)
        }
        Packet::PubAck { pkid, code } => {
            body.extend(pkid.to_be_bytes());
            if v5 && *code != 0 {
                body.push(*code);
            }
            0x40
        }
        Packet::SubAck { pkid, codes } | Packet::UnsubAck { pkid, codes } => {
            let subscribed = matches!(packet, Packet::SubAck { .. });
            body.extend(pkid.to_be_bytes());
            if v5 {
                body.push(0);
            }
            if v5 || subscribed {
                body.extend(codes);
            }
            if subscribed { 0x90 } else { 0xB0 }
        }
        Packet::PingResp => 0xD0,
        Packet::Disconnect { code } => {
            if v5 {
                // The length of the properties could be left out, but then rumqttc loses the packet.
                body.extend([*code, 0]);
            }
            0xE0
        }
        Packet::Raw(bytes) => return bytes.clone(),
        _ => panic!("a broker does not send {packet:?}"),
    };
    let mut bytes = vec![first];
    put_length(&mut bytes, body.len());
    bytes.extend(body);
    bytes
}

pub(super) fn put_string(bytes: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).expect("a string of at most 65,535 bytes");
    bytes.extend(length.to_be_bytes());
    bytes.extend(text.as_bytes());
}

/// A variable byte integer (MQTT 5, 1.5.5).
fn put_length(bytes: &mut Vec<u8>, mut length: usize) {
    while length > 0x7F {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
}

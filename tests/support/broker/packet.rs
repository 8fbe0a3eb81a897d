//! MQTT packets of both versions in one type, and their bytes.
//!
//! Written after the specification, without rumqttc's codec: a broker of the tests must be able to send any reason code, also a wrong one,
//! and a fault of that codec must not cancel itself out. The proxies of the campaigns read with it, too.

use std::collections::BTreeMap;

/// One MQTT packet of either version.
#[derive(Clone, Debug, PartialEq)]
pub enum Packet {
    Connect {
        client_id: String,
        clean: bool,
        will: Option<Message>,
        username: String,
        password: String,
        receive_maximum: Option<u16>,
        /// Seconds; 0 in 3.1.1, where `clean` alone decides.
        session_expiry: u32,
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
    PingReq,
    PingResp,
    Disconnect {
        code: u8,
    },
    /// The end of the connection, and why; not a packet, but a line of the transcript.
    Closed(&'static str),
    /// Bytes to send as they are, for what no correct broker sends.
    Raw(Vec<u8>),
}

/// A message as it was published: by a client, by its last will, or (with an empty `client`) by the broker itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    pub client: String,
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    /// The Subscription Identifier under which it was queued.
    pub subscription: Option<u32>,
}

impl Message {
    /// The payload as text.
    #[track_caller]
    pub fn text(&self) -> String {
        String::from_utf8(self.payload.clone()).expect("what a worker publishes is UTF-8")
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let json = serde_json::from_slice(&self.payload);
        json.unwrap_or_else(|error| panic!("{} has no JSON ({error})", self.topic))
    }

    pub(super) fn packet(&self, pkid: u16, dup: bool) -> Packet {
        let message = self.clone();
        Packet::Publish {
            topic: message.topic,
            payload: message.payload,
            qos: self.qos,
            dup,
            retain: self.retain,
            pkid,
            subscription: self.subscription,
        }
    }
}

/// Takes the first packet, once it is whole.
pub fn take_packet(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut rest = Fields(bytes.get(1..)?);
    let length = rest.length()?;
    rest.take(length)?;
    let length = bytes.len() - rest.0.len();
    Some(bytes.drain(..length).collect())
}

/// Reads a packet; `None` if it is malformed or not served.
pub fn decode(version: u8, bytes: &[u8]) -> Option<Packet> {
    let mut fields = Fields(&bytes[1..]);
    fields.length()?;
    let flags = bytes[0] & 0xF;
    Some(match bytes[0] >> 4 {
        1 => connect(&mut fields)?,
        3 => {
            let (topic, qos) = (fields.text()?, flags >> 1 & 3);
            let pkid = if qos > 0 { fields.number()? } else { 0 };
            Packet::Publish {
                topic,
                qos,
                dup: flags & 8 != 0,
                retain: flags & 1 != 0,
                pkid,
                subscription: fields.properties(version)?.get(&0x0B).copied(),
                payload: fields.0.to_vec(),
            }
        }
        4 => Packet::PubAck {
            pkid: fields.number()?,
            code: fields.byte().unwrap_or(0),
        },
        8 => {
            let pkid = fields.number()?;
            let identifier = fields.properties(version)?.get(&0x0B).copied();
            let mut filters = Vec::new();
            while !fields.0.is_empty() {
                filters.push((fields.text()?, fields.byte()?));
            }
            Packet::Subscribe {
                pkid,
                filters,
                identifier,
            }
        }
        9 => {
            let pkid = fields.number()?;
            fields.properties(version)?;
            let codes = fields.0.to_vec();
            Packet::SubAck { pkid, codes }
        }
        12 => Packet::PingReq,
        14 => Packet::Disconnect {
            code: fields.byte().unwrap_or(0),
        },
        _ => return None,
    })
}

fn connect(fields: &mut Fields) -> Option<Packet> {
    if fields.text()? != "MQTT" {
        return None;
    }
    let (version, flags, _keep_alive) = (fields.byte()?, fields.byte()?, fields.number()?);
    let properties = fields.properties(version)?;
    let client_id = fields.text()?;
    let has = |flag: u8| flags & flag != 0;
    let will = match has(4) {
        false => None,
        true => {
            fields.properties(version)?;
            let topic = fields.text()?;
            let length = fields.number()?;
            Some(Message {
                client: client_id.clone(),
                topic,
                payload: fields.take(length.into())?.to_vec(),
                qos: flags >> 3 & 3,
                retain: has(0x20),
                subscription: None,
            })
        }
    };
    let mut login = |flag| match has(flag) {
        true => fields.text(),
        false => Some(String::new()),
    };
    Some(Packet::Connect {
        client_id,
        clean: has(2),
        will,
        username: login(0x80)?,
        password: login(0x40)?,
        receive_maximum: properties.get(&0x21).map(|maximum| *maximum as u16),
        session_expiry: properties.get(&0x11).copied().unwrap_or(0),
        version,
    })
}

/// What is left to read of a packet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn number(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    fn text(&mut self) -> Option<String> {
        let length = self.number()?;
        String::from_utf8(self.take(length.into())?.to_vec()).ok()
    }

    /// A variable byte integer (MQTT 5, 1.5.5).
    fn length(&mut self) -> Option<usize> {
        let mut length = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            length |= usize::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(length);
            }
        }
        None
    }

    /// The properties of MQTT 5 that are numbers, by their identifiers (MQTT 5, 2.2.2.2).
    fn properties(&mut self, version: u8) -> Option<BTreeMap<u8, u32>> {
        let mut numbers = BTreeMap::new();
        let length = if version == 5 { self.length()? } else { 0 };
        let mut rest = Fields(self.take(length)?);
        while let Some(identifier) = rest.byte() {
            let number = match identifier {
                0x0B => rest.length()? as u32,
                0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2A => rest.byte()?.into(),
                0x13 | 0x21..=0x23 => rest.number()?.into(),
                0x02 | 0x11 | 0x18 | 0x27 => {
                    u32::from(rest.number()?) << 16 | u32::from(rest.number()?)
                }
                _ => {
                    rest.text()?;
                    continue;
                }
            };
            numbers.insert(identifier, number);
        }
        Some(numbers)
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
        Packet::SubAck { pkid, codes } => {
            body.extend(pkid.to_be_bytes());
            if v5 {
                body.push(0);
            }
            body.extend(codes);
            0x90
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

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).expect("a string of at most 65,535 bytes");
    bytes.extend(length.to_be_bytes());
    bytes.extend(text.as_bytes());
}

fn put_length(bytes: &mut Vec<u8>, mut length: usize) {
    while length > 0x7F {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
}

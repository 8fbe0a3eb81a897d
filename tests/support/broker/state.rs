//! What the broker knows, and what each packet does to it.

use super::packet::{self, Message, Packet};
use super::{Entry, Knobs, RefuseV5, Step, Verdict};
use bytes::BytesMut;
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

/// In-flight window of 3.1.1, which has no Receive Maximum: Mosquitto's `max_inflight_messages`.
const WINDOW_OF_3_1_1: usize = 20;

pub(super) type Script = Box<dyn FnMut(&Step) -> Verdict + Send>;

#[derive(Default)]
pub(super) struct State {
    pub(super) knobs: Knobs,
    pub(super) script: Option<Script>,
    pub(super) log: Vec<Entry>,
    /// Packets asked about so far.
    pub(super) packets: usize,
    /// Connections accepted so far.
    pub(super) connections: usize,
    /// The connections in use; one that was cut is not among them, even if its client has not noticed.
    pub(super) links: BTreeMap<usize, Link>,
    /// The sockets that a reader thread still reads.
    pub(super) sockets: BTreeMap<usize, TcpStream>,
    pub(super) readers: Vec<JoinHandle<()>>,
    pub(super) sessions: BTreeMap<String, Session>,
    pub(super) retained: BTreeMap<String, Message>,
    pub(super) received: Vec<Message>,
    pub(super) away: bool,
}

pub(super) struct Link {
    pub(super) stream: TcpStream,
    pub(super) version: u8,
    /// Empty until CONNECT.
    pub(super) client: String,
    pub(super) will: Option<Message>,
}

/// Options byte and Subscription Identifier.
type Subscription = (u8, Option<u32>);

#[derive(Default)]
pub(super) struct Session {
    connection: Option<usize>,
    /// Outlives its connection.
    persistent: bool,
    /// Receive Maximum.
    window: usize,
    max_packet_size: Option<u32>,
    subscriptions: BTreeMap<String, Subscription>,
    in_flight: Vec<InFlight>,
    queue: VecDeque<Message>,
    last_pkid: u16,
}

struct InFlight {
    pkid: u16,
    message: Message,
    /// On the present connection.
    sent: bool,
}

#[derive(PartialEq)]
pub(super) enum Will {
    Publish,
    Drop,
}

impl Session {
    /// The next message that the window admits: first what was in flight on the connection before, with DUP and its
    /// old packet id, then the queue.
    fn next_to_send(&mut self) -> Option<Packet> {
        if self.in_flight.iter().filter(|message| message.sent).count() >= self.window {
            return None;
        }
        let again = self.in_flight.iter().position(|message| !message.sent);
        let position = match again {
            Some(position) => position,
            None => {
                let message = self.queue.pop_front()?;
                // 1 is what brokers give that use one identifier for all: see `Message::telling_packet_id`
                self.last_pkid = (1..=u16::MAX)
                    .map(|step| self.last_pkid.wrapping_add(step))
                    .find(|&id| id > 1 && self.in_flight.iter().all(|other| other.pkid != id))
                    .expect("the window is smaller than the number of packet ids");
                self.in_flight.push(InFlight {
                    pkid: self.last_pkid,
                    message,
                    sent: false,
                });
                self.in_flight.len() - 1
            }
        };
        let next = &mut self.in_flight[position];
        next.sent = true;
        Some(next.message.packet(next.pkid, again.is_some()))
    }
}

impl State {
    pub(super) fn received(&self, filter: &str) -> Vec<Message> {
        self.received
            .iter()
            .filter(|message| matches(filter, &message.topic))
            .cloned()
            .collect()
    }

    pub(super) fn queued(&self, client: &str) -> usize {
        self.sessions
            .get(client)
            .map_or(0, |session| session.in_flight.len() + session.queue.len())
    }

    pub(super) fn connection_of(&self, client: &str) -> Option<usize> {
        self.sessions.get(client)?.connection
    }

    /// Asks the script and writes the transcript. Returns what is to be processed or sent, and whether to cut after it.
    fn ask(
        &mut self,
        connection: usize,
        from_client: bool,
        packet: Packet,
    ) -> Option<(Packet, bool)> {
        let client = self.links.get(&connection)?.client.clone();
        let step = Step {
            connection,
            index: self.packets,
            from_client,
            client: &client,
            packet: &packet,
        };
        let verdict = self
            .script
            .as_mut()
            .map_or(Verdict::Pass, |script| script(&step));
        self.packets += 1;
        let passed = !matches!(
            verdict,
            Verdict::CutBefore | Verdict::Drop | Verdict::ForgetAndCut
        );
        let cut_after = verdict == Verdict::CutAfter;
        let forget = verdict == Verdict::ForgetAndCut;
        let cut_before = forget || verdict == Verdict::CutBefore;
        let packet = if let Verdict::Replace(other) = verdict {
            other
        } else {
            packet
        };
        self.log.push(Entry::Packet {
            connection,
            from_client,
            packet: packet.clone(),
            passed,
        });
        if forget {
            // At its CONNECT the connection has no name yet.
            let named = if let Packet::Connect { client_id, .. } = &packet {
                client_id
            } else {
                &client
            };
            self.forget(named);
        }
        if cut_before {
            self.close(connection, "cut by the script", Will::Publish);
        }
        passed.then_some((packet, cut_after))
    }

    pub(super) fn send(&mut self, connection: usize, packet: Packet) {
        let Some((packet, cut_after)) = self.ask(connection, false, packet) else {
            return;
        };
        let Some(link) = self.links.get_mut(&connection) else {
            return;
        };
        if link
            .stream
            .write_all(&packet::encode(link.version, &packet))
            .is_err()
        {
            self.close(connection, "write failed", Will::Publish);
        } else if cut_after {
            self.close(connection, "cut by the script", Will::Publish);
        }
    }

    pub(super) fn receive(&mut self, connection: usize, header: usize, frame: BytesMut) {
        // A connection that was cut is read, but not heard.
        let Some(link) = self.links.get_mut(&connection) else {
            return;
        };
        if frame[0] >> 4 == 1 {
            // The protocol level follows the protocol name "MQTT".
            link.version = frame.get(header + 6).copied().unwrap_or(0);
        }
        let version = link.version;
        if version == 5
            && self
                .knobs
                .max_packet_size
                .is_some_and(|limit| frame.len() > limit as usize)
        {
            return self.refuse(connection, 0x95, "packet too large");
        }
        let Some(packet) = packet::decode(version, header, frame) else {
            return self.close(connection, "malformed packet", Will::Publish);
        };
        if let Some((packet, cut_after)) = self.ask(connection, true, packet) {
            self.process(connection, version, packet);
            if cut_after {
                self.close(connection, "cut by the script", Will::Publish);
            }
        }
    }

    fn process(&mut self, connection: usize, version: u8, packet: Packet) {
        let Some(client) = self.links.get(&connection).map(|link| link.client.clone()) else {
            return;
        };
        if client.is_empty() != matches!(packet, Packet::Connect { .. }) {
            return self.close(connection, "CONNECT not first, or twice", Will::Publish);
        }
        match packet {
            Packet::Connect { .. } => self.connect(connection, packet),
            Packet::Publish { qos: 2.., .. } => {
                self.refuse(connection, 0x9B, "QoS 2 is not served")
            }
            Packet::Publish {
                topic,
                payload,
                qos,
                dup,
                retain,
                pkid,
                ..
            } => {
                let failure = self
                    .knobs
                    .puback_failures
                    .iter()
                    .find(|(filter, _)| matches(filter, &topic));
                let failure = failure.map(|(_, code)| *code);
                if failure.is_none() {
                    self.publish(Message {
                        client,
                        topic,
                        payload,
                        qos,
                        retain,
                        dup,
                        subscription: None,
                    });
                }
                if qos == 1 {
                    let code = failure.filter(|_| version == 5).unwrap_or(0);
                    self.send(connection, Packet::PubAck { pkid, code });
                }
            }
            Packet::PubAck { pkid, .. } => {
                if let Some(session) = self.sessions.get_mut(&client) {
                    session.in_flight.retain(|message| message.pkid != pkid);
                }
                self.pump(&client);
            }
            Packet::Subscribe {
                pkid,
                filters,
                identifier,
            } => self.subscribe(connection, &client, pkid, filters, identifier),
            Packet::Unsubscribe { pkid, filters } => {
                let Some(session) = self.sessions.get_mut(&client) else {
                    return;
                };
                let remove = |filter| {
                    if session.subscriptions.remove(filter).is_some() {
                        0
                    } else {
                        0x11
                    }
                };
                let codes = filters.iter().map(remove).collect();
                self.send(connection, Packet::UnsubAck { pkid, codes });
            }
            Packet::PingReq => self.send(connection, Packet::PingResp),
            Packet::Disconnect { code } => {
                let will = if code == 0x04 {
                    Will::Publish
                } else {
                    Will::Drop
                };
                self.close(connection, "disconnected", will);
            }
            _ => self.close(connection, "a packet that only brokers send", Will::Publish),
        }
    }

    fn connect(&mut self, connection: usize, packet: Packet) {
        let Packet::Connect {
            mut client_id,
            clean,
            will,
            keep_alive,
            receive_maximum,
            session_expiry,
            max_packet_size,
            version,
            ..
        } = packet
        else {
            unreachable!("called for CONNECT only")
        };
        let v5 = version == 5;
        if let Some(how) = self.knobs.refuse_v5.filter(|_| v5) {
            if how == RefuseV5::Answer {
                self.send(connection, Packet::Raw(vec![0x20, 0x02, 0x00, 0x01]));
            }
            return self.close(connection, "no MQTT 5 here", Will::Drop);
        }
        if let Some(code) = self.knobs.connack_code {
            self.send(
                connection,
                Packet::ConnAck {
                    session_present: false,
                    code,
                    properties: Vec::new(),
                },
            );
            return self.close(connection, "refused", Will::Drop);
        }
        let mut properties = Vec::new();
        if v5 {
            properties.extend([0x24, 1]); // Maximum QoS
            if let Some(size) = self.knobs.max_packet_size {
                properties.push(0x27);
                properties.extend(size.to_be_bytes());
            }
            if let Some(seconds) = self.knobs.server_keep_alive {
                properties.push(0x13);
                properties.extend(seconds.to_be_bytes());
            }
        }
        if client_id.is_empty() {
            client_id = format!("auto-{connection}");
            if v5 {
                properties.push(0x12); // Assigned Client Identifier
                packet::put_string(&mut properties, &client_id);
            }
        }
        if let Some(old) = self.connection_of(&client_id) {
            self.refuse(old, 0x8E, "taken over");
        }
        if clean {
            self.sessions.remove(&client_id);
        }
        let session_present = self.sessions.contains_key(&client_id);
        let session = self.sessions.entry(client_id.clone()).or_default();
        session.connection = Some(connection);
        session.persistent = if v5 { session_expiry > 0 } else { !clean };
        session.window = if v5 {
            receive_maximum.unwrap_or(u16::MAX).into()
        } else {
            WINDOW_OF_3_1_1
        };
        session.max_packet_size = max_packet_size;
        session
            .in_flight
            .iter_mut()
            .for_each(|message| message.sent = false);

        let link = self
            .links
            .get_mut(&connection)
            .expect("the connection whose CONNECT is being processed");
        let keep_alive = self
            .knobs
            .server_keep_alive
            .filter(|_| v5)
            .unwrap_or(keep_alive);
        let silence = (keep_alive > 0).then(|| Duration::from_secs(keep_alive.into()) * 3 / 2);
        link.stream
            .set_read_timeout(silence)
            .expect("a read timeout");
        link.will = will.map(|message| Message {
            client: client_id.clone(),
            ..message
        });
        link.client.clone_from(&client_id);
        self.send(
            connection,
            Packet::ConnAck {
                session_present,
                code: 0,
                properties,
            },
        );
        self.pump(&client_id);
    }

    fn subscribe(
        &mut self,
        connection: usize,
        client: &str,
        pkid: u16,
        filters: Vec<(String, u8)>,
        identifier: Option<u32>,
    ) {
        let Some(session) = self.sessions.get_mut(client) else {
            return;
        };
        let mut codes = Vec::new();
        let mut retained = Vec::new();
        for (filter, options) in filters {
            if let Some((_, code)) = self
                .knobs
                .suback_failures
                .iter()
                .find(|(refused, _)| *refused == filter)
            {
                codes.push(*code);
                continue;
            }
            let qos = (options & 3).min(1);
            codes.push(qos);
            let new = session
                .subscriptions
                .insert(filter.clone(), (options, identifier))
                .is_none();
            let wanted = match options >> 4 & 3 {
                0 => true,
                1 => new,
                _ => false,
            };
            if wanted {
                let matching = self
                    .retained
                    .values()
                    .filter(|message| matches(&filter, &message.topic));
                retained.extend(matching.map(|message| Message {
                    qos: message.qos.min(qos),
                    subscription: identifier,
                    ..message.clone()
                }));
            }
        }
        self.send(connection, Packet::SubAck { pkid, codes });
        for message in retained {
            self.enqueue(client, message);
        }
    }

    /// Keeps the message if it is retained, records it if it is a client's, and hands it to the subscribers.
    pub(super) fn publish(&mut self, message: Message) {
        if message.retain && message.payload.is_empty() {
            self.retained.remove(&message.topic);
        } else if message.retain {
            self.retained.insert(message.topic.clone(), message.clone());
        }
        if !message.client.is_empty() {
            self.received.push(message.clone());
        }
        // Per subscriber once, with the options of the subscription that has the highest QoS.
        let mut direct: BTreeMap<String, Subscription> = BTreeMap::new();
        for (client, session) in &self.sessions {
            for (filter, &subscribed) in &session.subscriptions {
                let (options, _) = subscribed;
                let no_local = options & 4 != 0 && *client == message.client;
                if !matches(filter, &message.topic) || no_local {
                    continue;
                }
                let best = direct.entry(client.clone()).or_insert(subscribed);
                if options & 3 > best.0 & 3 {
                    *best = subscribed;
                }
            }
        }
        for (client, (options, subscription)) in direct {
            let qos = message.qos.min(options & 3).min(1);
            let retain = message.retain && options & 8 != 0; // Retain As Published
            self.enqueue(
                &client,
                Message {
                    qos,
                    retain,
                    subscription,
                    ..message.clone()
                },
            );
        }
    }

    fn enqueue(&mut self, client: &str, message: Message) {
        let Some(session) = self.sessions.get_mut(client) else {
            return;
        };
        if message.qos > 0 {
            session.queue.push_back(message);
            self.pump(client);
        } else if let Some(connection) = session.connection {
            self.send(connection, message.packet(0, false));
        }
    }

    /// Sends what the client's window admits.
    fn pump(&mut self, client: &str) {
        while let Some(session) = self.sessions.get_mut(client)
            && let Some(connection) = session.connection
            && let Some(packet) = session.next_to_send()
        {
            let version = self.links.get(&connection).map_or(4, |link| link.version);
            let too_large = |limit: u32| packet::encode(version, &packet).len() > limit as usize;
            if session.max_packet_size.is_some_and(too_large) {
                // MQTT 5, 3.1.2.11.4: discarded in silence, as if it had been acknowledged.
                let Packet::Publish { pkid, .. } = packet else {
                    unreachable!("only PUBLISH is queued")
                };
                session.in_flight.retain(|message| message.pkid != pkid);
                continue;
            }
            self.send(connection, packet);
        }
    }

    /// Ends a connection for the broker's reasons; an MQTT 5 client is told the code.
    fn refuse(&mut self, connection: usize, code: u8, why: &'static str) {
        if self
            .links
            .get(&connection)
            .is_some_and(|link| link.version == 5)
        {
            self.send(connection, Packet::Disconnect { code });
        }
        self.close(connection, why, Will::Publish);
    }

    pub(super) fn forget(&mut self, client: &str) {
        let connection = self
            .sessions
            .remove(client)
            .and_then(|session| session.connection);
        if let Some(connection) = connection {
            self.close(connection, "session forgotten", Will::Publish);
        }
    }

    pub(super) fn close(&mut self, connection: usize, why: &'static str, will: Will) {
        let Some(link) = self.links.remove(&connection) else {
            return;
        };
        // Fails only if the client was faster. The reading side stays open, see `read`.
        drop(link.stream.shutdown(Shutdown::Write));
        self.log.push(Entry::Closed { connection, why });
        if let Some(session) = self.sessions.get_mut(&link.client)
            && session.connection == Some(connection)
        {
            session.connection = None;
            if !session.persistent {
                self.sessions.remove(&link.client);
            }
        }
        if let Some(message) = link.will.filter(|_| will == Will::Publish) {
            self.publish(message);
        }
    }
}

/// Whether the topic matches the filter. rumqttc's own function panics if the topic starts with a character beyond
/// ASCII, and finds no match for a topic that starts with `$`.
fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        match (wanted, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

//! What the broker knows, and what each packet does to it.

use super::packet::{self, Message, Packet};
use super::{Entry, Step, Verdict};
use rumqttc::matches;
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::net::{Shutdown, TcpStream};

/// In-flight window of 3.1.1, which has no Receive Maximum: Mosquitto's `max_inflight_messages`.
const WINDOW_OF_3_1_1: usize = 20;

/// Why a connection ended, in the transcript.
const CUT: &str = "cut by the script";

pub(super) type Script = Box<dyn FnMut(&Step) -> Verdict + Send>;

#[derive(Default)]
pub(super) struct State {
    pub(super) script: Option<Script>,
    pub(super) log: Vec<Entry>,
    /// Connections accepted so far.
    pub(super) connections: usize,
    /// The connections in use; one that was cut is not among them, even if its client has not noticed.
    pub(super) links: BTreeMap<usize, Link>,
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
            .filter(|message| matches(&message.topic, filter))
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
        mut packet: Packet,
    ) -> Option<(Packet, bool)> {
        let client = self.links.get(&connection)?.client.clone();
        let step = Step {
            connection,
            from_client,
            client: &client,
            packet: &packet,
        };
        let script = self.script.as_mut();
        let verdict = script.map_or(Verdict::Pass, |script| script(&step));
        let cut_after = verdict == Verdict::CutAfter;
        let passed = cut_after || matches!(verdict, Verdict::Pass | Verdict::Replace(_));
        if let Verdict::Replace(other) = &verdict {
            packet = other.clone();
        }
        self.log.push(Entry {
            connection,
            from_client,
            packet: packet.clone(),
            passed,
        });
        match &verdict {
            Verdict::ForgetAndCut => match &packet {
                // At its CONNECT the connection has no name yet.
                Packet::Connect { client_id, .. } => self.forget(client_id),
                _ => self.forget(&client),
            },
            Verdict::Answer(answer) => self.write(connection, answer),
            _ => {}
        }
        if !passed && verdict != Verdict::Drop {
            self.close(connection, CUT, Will::Publish);
        }
        passed.then_some((packet, cut_after))
    }

    pub(super) fn send(&mut self, connection: usize, packet: Packet) {
        if let Some((packet, cut_after)) = self.ask(connection, false, packet) {
            self.write(connection, &packet);
            if cut_after {
                self.close(connection, CUT, Will::Publish);
            }
        }
    }

    fn write(&mut self, connection: usize, packet: &Packet) {
        let Some(link) = self.links.get_mut(&connection) else {
            return;
        };
        let bytes = packet::encode(link.version, packet);
        if link.stream.write_all(&bytes).is_err() {
            self.close(connection, "write failed", Will::Publish);
        }
    }

    pub(super) fn receive(&mut self, connection: usize, bytes: &[u8]) {
        // A connection that was cut is read, but not heard.
        let Some(link) = self.links.get_mut(&connection) else {
            return;
        };
        let Some(packet) = packet::decode(link.version, bytes) else {
            return self.close(connection, "malformed packet", Will::Publish);
        };
        if let Packet::Connect { version, .. } = packet {
            link.version = version;
        }
        if let Some((packet, cut_after)) = self.ask(connection, true, packet) {
            self.process(connection, packet);
            if cut_after {
                self.close(connection, CUT, Will::Publish);
            }
        }
    }

    fn process(&mut self, connection: usize, packet: Packet) {
        let Some(client) = self.links.get(&connection).map(|link| link.client.clone()) else {
            return;
        };
        if client.is_empty() != matches!(packet, Packet::Connect { .. }) {
            return self.close(connection, "CONNECT not first, or twice", Will::Publish);
        }
        match packet {
            Packet::Connect { .. } => self.connect(connection, packet),
            Packet::Publish {
                topic,
                payload,
                qos,
                retain,
                pkid,
                ..
            } => {
                self.publish(Message {
                    client,
                    topic,
                    payload,
                    qos,
                    retain,
                    subscription: None,
                });
                if qos == 1 {
                    self.send(connection, Packet::PubAck { pkid, code: 0 });
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
            Packet::PingReq => self.send(connection, Packet::PingResp),
            Packet::Disconnect { code } => {
                let says_will = code == 0x04;
                let will = if says_will { Will::Publish } else { Will::Drop };
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
            receive_maximum,
            session_expiry,
            version,
            ..
        } = packet
        else {
            unreachable!("called for CONNECT only")
        };
        let v5 = version == 5;
        if client_id.is_empty() {
            client_id = format!("auto-{connection}"); // mosquitto_pub over 3.1.1 leaves it to us
        }
        if let Some(old) = self.connection_of(&client_id) {
            if self.links.get(&old).is_some_and(|link| link.version == 5) {
                self.send(old, Packet::Disconnect { code: 0x8E });
            }
            self.close(old, "taken over", Will::Publish);
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
        for message in &mut session.in_flight {
            message.sent = false;
        }
        let link = self.links.get_mut(&connection);
        let link = link.expect("the connection whose CONNECT is being processed");
        link.will = will;
        link.client.clone_from(&client_id);
        let greeting = Packet::ConnAck {
            session_present,
            code: 0,
            properties: vec![0x24, 1], // Maximum QoS
        };
        self.send(connection, greeting);
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
            let qos = (options & 3).min(1);
            codes.push(qos);
            let subscribed = (options, identifier);
            let before = session.subscriptions.insert(filter.clone(), subscribed);
            let wanted = match options >> 4 & 3 {
                0 => true,
                1 => before.is_none(),
                _ => false,
            };
            if wanted {
                let matching = self.retained.values();
                let matching = matching.filter(|message| matches(&message.topic, &filter));
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
        let mut direct = Vec::new();
        for (client, session) in &self.sessions {
            let matching = session.subscriptions.iter();
            let matching = matching.filter(|(filter, _)| matches(&message.topic, filter));
            let best = matching.max_by_key(|(_, (options, _))| options & 3);
            direct.extend(best.map(|(_, subscribed)| (client.clone(), *subscribed)));
        }
        for (client, (options, subscription)) in direct {
            let copy = Message {
                qos: message.qos.min(options & 3).min(1),
                retain: message.retain && options & 8 != 0, // Retain As Published
                subscription,
                ..message.clone()
            };
            self.enqueue(&client, copy);
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
            self.send(connection, packet);
        }
    }

    pub(super) fn forget(&mut self, client: &str) {
        let session = self.sessions.remove(client);
        if let Some(connection) = session.and_then(|session| session.connection) {
            self.close(connection, "session forgotten", Will::Publish);
        }
    }

    pub(super) fn close(&mut self, connection: usize, why: &'static str, will: Will) {
        let Some(link) = self.links.remove(&connection) else {
            return;
        };
        // Fails only if the client was faster. The reading side stays open, see `read`.
        drop(link.stream.shutdown(Shutdown::Write));
        self.log.push(Entry {
            connection,
            from_client: false,
            packet: Packet::Closed(why),
            passed: true,
        });
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

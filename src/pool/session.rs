//! The head's connection, with the session that is the pool's queue.

use super::{Event, Happening, Head, claim::Name, mark_newest, place, place::Place, unusable};
use crate::Exit;
use crate::contract::rejection_notice;
use crate::messages::RETAINED;
use crate::mqtt::{self, Connection, Link, Message, Settings, Subscription};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the broker may take to let the head in, and to grant its subscription.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// How long it may take to answer what comes behind the acknowledgement.
const CONFIRM_WAIT: Duration = Duration::from_secs(2);

/// The same for a head that is asked to stop. It ends before a second stop may come, which would leave the claim as that of a dead member.
const STOP_WAIT: Duration = Duration::from_millis(500);

/// The longest silence of a waiting head before it asks the broker whether it is there: others wait for the head.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The connection of the head.
pub struct Session {
    /// Ends with it: nothing more is heard of it.
    _link: Link,
    /// The latest one that stands.
    connection: Option<Arc<Connection>>,
    /// What the broker had for us at QoS 1 before it granted the subscription.
    early: VecDeque<Message>,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.disconnect();
        }
    }
}

impl Head {
    /// Connects with the pool's session, and subscribes: a head that dies between the two leaves a session without a subscription, so
    /// every turn does.
    pub(super) fn connect(&mut self, place: &Place, names: &mut Vec<Name>) -> Result<(), Event> {
        let mut broker = self.config.broker.clone();
        broker.keep_alive = broker.keep_alive.min(KEEP_ALIVE);
        broker.protocol = broker.protocol.or(self.protocol);
        let settings = Settings {
            broker,
            client_id: self.pool.name.clone(),
            keeps_session: true,
            is_lasting: false,
            subscriptions: vec![Subscription::Requests(self.config.topics.pending.clone())],
            last_will: None,
        };
        self.sessions += 1;
        let (number, sender) = (self.sessions, self.sender.clone());
        let sink = move |event| {
            let _ = sender.send(Happening::Broker(number, event)); // fails where the turn is over
        };
        let link = mqtt::open(settings, self.unread.clone(), sink)
            .map_err(|error| Event::Trouble(format!("no thread for the connection: {error}")))?;
        let deadline = Instant::now() + ANSWER_WAIT;
        let slow = || {
            let seconds = ANSWER_WAIT.as_secs();
            Event::Trouble(format!("the broker does not answer within {seconds} s"))
        };
        self.session = Some(Session {
            _link: link,
            connection: None,
            early: VecDeque::new(),
        });
        loop {
            let event = self.next_event(deadline)?.ok_or_else(slow)?;
            match (event, &mut self.session) {
                (
                    mqtt::Event::Connected {
                        connection,
                        resumed,
                    },
                    Some(session),
                ) => {
                    // once more where the link has learned what the broker does not have
                    session.connection = Some(connection.clone());
                    session.early.clear();
                    self.greeted(place, names, resumed)?;
                    connection.subscribe();
                }
                (mqtt::Event::Ready, _) => return Ok(()),
                // no broker sends many at QoS 1 that are not acknowledged
                (mqtt::Event::Message(message), Some(session)) if message.packet_id.is_some() => {
                    session.early.push_back(message)
                }
                _ => {}
            }
        }
    }

    /// The broker has let us in.
    fn greeted(&self, place: &Place, names: &mut Vec<Name>, resumed: bool) -> Result<(), Event> {
        if resumed && names.is_empty() && place.touched().is_none() {
            return Err(self.another_drive(place));
        }
        self.write_agreement(place)?;
        if !resumed {
            log::info!(
                "the broker has no session for the pool {}: the queue begins now, and is empty",
                self.pool.name
            );
        }
        // from now on the next members see that a directory made by hand is in use
        if !resumed || names.is_empty() {
            let marked = mark_newest(place, names);
            names.push(marked.map_err(|error| place::end(&place.path, &error))?);
        }
        Ok(())
    }

    /// The queue is there, and its directory was not: that is on another drive, with the claims.
    fn another_drive(&self, place: &Place) -> Event {
        place.remove_new();
        let path = place.path.display();
        unusable(format!(
            "the broker has the queue {}, and this drive has no directory for it: is the right drive at JOB_ROOT? If it is, make the \
             directory by hand: mkdir -p {path}",
            self.pool.name
        ))
    }

    /// What the broker says next; `None` when the time is over, or the worker asks for something.
    fn next_event(&mut self, until: Instant) -> Result<Option<mqtt::Event>, Event> {
        loop {
            let event = match self.receive(until) {
                Some(Happening::Broker(number, event)) if number == self.sessions => event,
                Some(Happening::Stop) => return Err(Event::Left),
                // the broker may have died: whether the queue stands is told behind the next SUBSCRIBE, or the next look
                Some(Happening::Reconnected) => {
                    self.watch.stands = false;
                    continue;
                }
                Some(Happening::Broker(..) | Happening::Locked(_)) => continue,
                None => return Ok(None),
            };
            return match event {
                mqtt::Event::Denied(reason) => {
                    let reason = format!("as the head of the pool: {reason}");
                    Err(Event::Ended(Exit::Denied, reason))
                }
                mqtt::Event::TakenOver => Err(Event::Trouble(format!(
                    "another client has connected with the client id of the pool, {:?}, while this worker is its head",
                    self.pool.name
                ))),
                mqtt::Event::Lost(reason) => Err(Event::Trouble(format!(
                    "the head has no connection to the broker: {reason}"
                ))),
                event => Ok(Some(event)),
            };
        }
    }

    /// The next request of the queue, if one comes in this time.
    pub(super) fn next_request(&mut self, patience: Duration) -> Result<Option<Message>, Event> {
        let deadline = Instant::now() + patience;
        loop {
            let early = self.session.as_mut().and_then(|s| s.early.pop_front());
            let message = match early {
                Some(message) => message,
                None => match self.next_event(deadline)? {
                    Some(mqtt::Event::Message(message)) => message,
                    Some(_) => continue,
                    None => return Ok(None),
                },
            };
            let is_pending = message.topic == self.config.topics.pending;
            match message.packet_id {
                // what clears a retained request; a cancel, of a session that was a worker's own
                None if message.payload.is_empty() || !is_pending => {}
                _ if message.retained => self.reject_retained(&message),
                _ => return Ok(Some(message)),
            }
        }
    }

    fn connection(&self) -> Option<Arc<Connection>> {
        self.session.as_ref()?.connection.clone()
    }

    /// A retained request comes at each SUBSCRIBE over MQTT 3.1.1: as a claim, it would come for ever.
    fn reject_retained(&self, message: &Message) {
        log::warn!("request rejected: {RETAINED}");
        let notice = rejection_notice(&self.config.worker_id, RETAINED, &message.payload);
        if let Some(connection) = self.connection() {
            connection.publish(&self.config.topics.rejected, notice);
            if let Some(packet_id) = message.packet_id {
                connection.acknowledge(packet_id);
            }
        }
    }

    /// Acknowledges a request and ends the connection. Whether the broker has answered what came behind: then it has the acknowledgement.
    /// That the connection ends does not say so, since that of a broker that dies at this moment does, too.
    pub(super) fn acknowledge(&mut self, packet_id: Option<u16>) -> bool {
        let Some(connection) = self.connection() else {
            return false;
        };
        if let Some(packet_id) = packet_id {
            connection.acknowledge(packet_id);
        }
        connection.subscribe();
        let mut deadline = Instant::now() + CONFIRM_WAIT;
        let is_confirmed = loop {
            match self.next_event(deadline) {
                Ok(Some(mqtt::Event::Ready)) => break true,
                Ok(Some(_)) => {}
                Err(Event::Left) => {
                    self.stopping = true;
                    deadline = deadline.min(Instant::now() + STOP_WAIT);
                }
                Ok(None) | Err(_) => break false,
            }
        };
        self.session = None;
        is_confirmed
    }
}

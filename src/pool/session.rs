//! The head's connection, with the session that is the pool's queue.

use super::{Event, Happening, Head, claim::Name, mark_newest, place, place::Place, unusable};
use crate::Exit;
use crate::mqtt::{
    self, Connection, Life, Link, Message, Retention, Session as Kept, Settings, Subscription,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the broker may take to let the head in, and to grant its subscription.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// How long it may take to end the connection after our DISCONNECT.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// The longest silence of a waiting head before it asks the broker whether it is there: others wait for the head.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The connection of the head.
pub struct Session {
    number: u64,
    /// Ends with it: nothing more is heard of it.
    _link: Link,
    connection: Option<Arc<Connection>>,
    /// What the broker had for us before it granted the subscription.
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
            session: Kept::Kept,
            life: Life::Once,
            subscriptions: vec![Subscription::Requests(self.config.topics.pending.clone())],
            last_will: None,
        };
        self.sessions += 1;
        let (number, sender) = (self.sessions, self.sender.clone());
        let sink = move |event| {
            let _ = sender.send(Happening::Broker(number, event)); // fails where the turn is over
        };
        let link = mqtt::open(settings, sink)
            .map_err(|error| Event::Trouble(format!("no thread for the connection: {error}")))?;
        self.session = Some(Session {
            number,
            _link: link,
            connection: None,
            early: VecDeque::new(),
        });
        let deadline = Instant::now() + ANSWER_WAIT;
        let slow = || {
            let seconds = ANSWER_WAIT.as_secs();
            Event::Trouble(format!("the broker does not answer within {seconds} s"))
        };
        loop {
            match self.next_event(deadline)?.ok_or_else(slow)? {
                mqtt::Event::Connected {
                    connection,
                    resumed,
                } => {
                    match resumed {
                        false => {
                            log::info!(
                                "the broker has no session for the pool {}: the queue begins now, and is empty",
                                self.pool.name
                            );
                            let marked = mark_newest(place, names);
                            names.push(marked.map_err(|error| place::end(&place.path, &error))?);
                        }
                        true if self.is_new => return Err(self.another_drive(place)),
                        // made by hand: from now on the next members see that it is in use
                        true if names.is_empty() => {
                            let marked = mark_newest(place, names);
                            names.push(marked.map_err(|error| place::end(&place.path, &error))?);
                        }
                        true => {}
                    }
                    self.is_new = false;
                    connection.subscribe();
                    if let Some(session) = &mut self.session {
                        session.connection = Some(connection);
                    }
                }
                mqtt::Event::Ready => return Ok(()),
                mqtt::Event::Message(message) => {
                    if let Some(session) = &mut self.session {
                        session.early.push_back(message);
                    }
                }
                _ => {}
            }
        }
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
        let name = &self.pool.name;
        loop {
            let event = match self.receive(until) {
                Some(Happening::Broker(number, event)) => match &self.session {
                    Some(session) if session.number == number => event,
                    _ => continue,
                },
                Some(Happening::Stop) => return Err(Event::Left),
                Some(Happening::Reconnected) => {
                    if self.watch.stands {
                        self.tell(Event::Stands);
                    }
                    continue;
                }
                Some(Happening::Locked(_)) => continue,
                None => return Ok(None),
            };
            return match event {
                mqtt::Event::Denied(reason) => {
                    let reason = format!("as the head of the pool: {reason}");
                    Err(Event::Ended(Exit::Denied, reason))
                }
                mqtt::Event::TakenOver => Err(Event::Trouble(format!(
                    "another client has connected with the client id of the pool, {name:?}, while this worker is its head"
                ))),
                mqtt::Event::Lost | mqtt::Event::DroppedEarly(_) => Err(Event::Trouble(
                    "the head has no connection to the broker".to_owned(),
                )),
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

    /// A retained request comes at each SUBSCRIBE over MQTT 3.1.1: as a claim, it would come for ever.
    fn reject_retained(&self, message: &Message) {
        let rejection = crate::messages::retained();
        log::warn!("request rejected: {}", rejection.error);
        let (topics, worker) = (&self.config.topics, &self.config.worker_id);
        let (topic, payload) = crate::messages::rejection(topics, worker, rejection, message);
        if let Some(connection) = self.session.as_ref().and_then(|s| s.connection.as_ref()) {
            connection.publish(&topic, payload, Retention::None);
            if let Some(packet_id) = message.packet_id {
                connection.acknowledge(packet_id);
            }
        }
    }

    /// Acknowledges a request and ends the connection. Whether the broker has answered what came behind, and has then ended it in order:
    /// then it has the acknowledgement. One that dies at this moment ends it just as well.
    pub(super) fn acknowledge(&mut self, packet_id: Option<u16>) -> bool {
        let Some(connection) = self.session.as_ref().and_then(|s| s.connection.clone()) else {
            return false;
        };
        if let Some(packet_id) = packet_id {
            connection.acknowledge(packet_id);
        }
        connection.subscribe();
        connection.disconnect();
        let deadline = Instant::now() + CLOSE_WAIT;
        let mut is_answered = false;
        let is_confirmed = loop {
            match self.next_event(deadline) {
                Ok(Some(mqtt::Event::Ready)) => is_answered = true,
                Ok(Some(mqtt::Event::Closed)) => break is_answered,
                Ok(Some(_)) => {}
                Err(Event::Left) => self.stopping = true,
                Ok(None) | Err(_) => break false,
            }
        };
        self.session = None;
        is_confirmed
    }
}

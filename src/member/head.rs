//! A member's turn as the head of the pool: its connection, and the request that it takes.

use super::{LONG_GONE, Member, drive_failed};
use crate::config::Config;
use crate::contract::subscribed_for;
use crate::intake::{clears_a_retained_request, read_request};
use crate::links::{Heard, head_link};
use crate::mqtt::{self, Message, Retention};
use crate::outgoing::rejection;
use crate::queue::Action;
use crate::queue::pool::{self, Took, Tried};
use crate::queue::spool::{Holder, Taking, Try};
use std::io;
use std::sync::Arc;
use std::time::Instant;

impl Member {
    /// Takes what came on the connection of the head.
    pub fn hear_head(&mut self, turn: u64, event: mqtt::Event, now: Instant) -> Vec<Action> {
        self.unread.was_read(&event);
        if turn != self.turn || self.link.is_none() {
            return Vec::new();
        }
        let input = match event {
            mqtt::Event::Connected {
                connection,
                resumed,
            } => {
                self.connection = Some(connection);
                pool::Input::HeadConnected { resumed }
            }
            mqtt::Event::Ready => pool::Input::HeadReady,
            mqtt::Event::Message(message) => match self.is_request(&message) {
                true => pool::Input::Request(message),
                false => return Vec::new(),
            },
            mqtt::Event::Published(Ok(_)) => pool::Input::HeadPublished,
            mqtt::Event::Published(Err(reason)) => {
                log::warn!("the broker does not take what the head publishes ({reason:?})");
                pool::Input::HeadNotPublished
            }
            mqtt::Event::Closed => pool::Input::HeadClosed,
            mqtt::Event::TakenOver => {
                log::warn!(
                    "another client has connected with the client id of the pool, {:?}, while this worker is its head",
                    self.pool.name
                );
                pool::Input::HeadLost
            }
            mqtt::Event::Lost | mqtt::Event::DroppedEarly(_) | mqtt::Event::Denied(_) => {
                pool::Input::HeadLost
            }
        };
        self.feed(input, now)
    }

    /// Whether a message is a request. The session may still have the subscriptions of a worker whose own queue it was, or of another
    /// `MQTT_TOPIC_ROOT`: they are given up.
    fn is_request(&self, message: &Message) -> bool {
        let pending = &self.config.topics.pending;
        if message.topic == *pending {
            return !clears_a_retained_request(message);
        }
        let subscribed = subscribed_for(&message.topic);
        if let Some(connection) = &self.connection {
            for filter in subscribed.iter().filter(|filter| *filter != pending) {
                connection.unsubscribe(filter);
            }
        }
        subscribed.first() == Some(&message.topic)
    }

    /// Sends something that the broker answers, on the connection of the head.
    pub fn confirm(&self, topic: &str, payload: Vec<u8>) {
        if let Some(connection) = &self.connection {
            connection.publish(topic, payload, Retention::Kept);
        }
    }

    pub(super) fn try_head(&mut self) -> pool::Input {
        if self.spool.is_removed() {
            self.watch = None;
            if let Err(error) = self.spool.restore() {
                return drive_failed("it was removed", &io::Error::other(error));
            }
        }
        let mut tried = self.spool.try_head();
        if matches!(tried, Ok(Try::Held(_))) && self.watch.is_none() {
            let outbox = self.outbox.clone();
            let watch = self.spool.watch(move || outbox.send(Heard::HeadFree));
            self.watch = watch.inspect_err(|error| log::debug!("{error}")).ok();
            // it may have become free before that
            tried = self.spool.try_head();
        }
        match tried {
            Ok(Try::Ours) => {
                self.watch = None;
                pool::Input::Tried(Tried::Ours)
            }
            Ok(Try::Held(Holder { worker: holder, .. })) => {
                // its next process may be the head before it says that it is there
                let is_long = |(_, since): &(_, Instant)| since.elapsed() >= LONG_GONE;
                if self.is_gone(&holder) && self.gone.as_ref().is_some_and(is_long) {
                    self.gone = None; // once
                    log::warn!(
                        "the broker says that worker {holder} is gone, and it still holds head.lock: no other member can take a job"
                    );
                }
                pool::Input::Tried(Tried::Held)
            }
            Err(error) => drive_failed("no turn as the head", &error),
        }
    }

    pub(super) fn open_head(&mut self) -> Option<pool::Input> {
        self.turn += 1;
        let (turn, outbox) = (self.turn, self.outbox.clone());
        let settings = head_link(&self.config, &self.pool, self.protocol, &self.pulse);
        let gate = self.unread.clone();
        let sink = move |event| {
            if gate.admit(&event) {
                outbox.send(Heard::Head(turn, event));
            }
        };
        match mqtt::open(settings, sink) {
            Ok(link) => {
                self.link = Some(link);
                None
            }
            Err(error) => {
                log::error!("no thread for the connection of the head: {error}");
                Some(pool::Input::HeadLost)
            }
        }
    }

    pub(super) fn subscribe(&mut self, new_session: bool) -> Option<pool::Input> {
        if new_session {
            log::warn!(
                "the broker has no session for the pool {}: the queue begins now, and is empty",
                self.pool.name
            );
            if let Err(error) = self.spool.new_session() {
                return Some(drive_failed("no new session", &error));
            }
        }
        if let Some(connection) = &self.connection {
            connection.subscribe();
        }
        None
    }

    pub(super) fn take(&mut self, message: &Message) -> pool::Input {
        let Config {
            topics, worker_id, ..
        } = &self.config;
        let request = match read_request(message, topics, worker_id) {
            Ok((request, _)) => request,
            Err(error) => {
                log::warn!("request rejected: {}", error.error);
                let (topic, payload) = rejection(topics, worker_id, error, message);
                if let Some(connection) = &self.connection {
                    connection.publish(&topic, payload, Retention::None);
                }
                return pool::Input::Took(Took::Rejected);
            }
        };
        let id = request.id.as_str();
        match self.spool.take(message, &request) {
            Ok(Taking::Claim(claim)) => {
                let bytes = message.payload.len();
                log::info!("job {id}: request taken ({}, {bytes} bytes)", message.topic);
                self.claim = Some(Arc::from(claim));
                pool::Input::Took(Took::Claimed)
            }
            Ok(Taking::Before) => {
                log::info!("job {id}: the request was taken before, and is acknowledged again");
                pool::Input::Took(Took::Known)
            }
            Ok(Taking::Waits) => {
                log::info!("job {id}: waits as a claim for an earlier request for its directory");
                pool::Input::Took(Took::Known)
            }
            Ok(Taking::InProgress) => {
                log::info!("job {id}: a request with its key is in progress");
                pool::Input::Took(Took::InProgress)
            }
            Err(error) => {
                log::error!(
                    "job {id}: the request cannot be taken, and stays with the broker: {error}"
                );
                pool::Input::DriveFailed
            }
        }
    }

    pub(super) fn abandon_head(&mut self) {
        if let Some(link) = self.link.take() {
            link.abandon();
        }
        if let Some(connection) = self.connection.take() {
            connection.disconnect();
        }
    }
}

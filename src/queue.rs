//! The rules of delivery (docs/reference.md, "Delivery"): a pure machine, events in, actions out, with no clock of its own and
//! no I/O but its log.
//!
//! A request is *held* from the moment it is taken until it is acknowledged, and it is acknowledged only after the broker
//! has acknowledged its result. Every state is one question that may still be open:
//!
//! ```text
//! Waiting ──request──▶ Working ──result──▶ Publishing ──broker has it──▶ Acknowledging ──▶ Leaving
//!    ▲                                                                        │
//!    └────────────────── a result that does not end this life ◀───────────────┘
//! ```
//!
//! When the link breaks, nothing that was sent counts: the result is published again on the next connection, and the
//! request is acknowledged when the broker delivers it again there, or not at all if the broker has forgotten it. A request of a pool
//! is in the custody of the drive, which forgets nothing: its acknowledgement is always possible.

use crate::backoff::Backoff;
use crate::mqtt::Message;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The result of the request that is held, ready to be published.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ResultMessage {
    /// Where it is published.
    pub topic: String,
    /// What is published.
    pub payload: Vec<u8>,
    /// A job was run, so this life is over once the broker has it. Else the next request is taken.
    pub ends_life: bool,
    /// Its controller may be on its way back: publish it until a client is subscribed to it.
    pub wait_for_subscriber: bool,
}

/// What the machine hears.
#[derive(Clone, Debug)]
pub enum Input {
    /// There is a connection.
    Connected {
        /// The broker has kept our session.
        resumed: bool,
        /// The broker tells whether a message of ours goes to a client (MQTT 5).
        tells_subscribers: bool,
    },
    /// The connection is gone.
    Lost,
    /// A request has come from the broker.
    Request(Message),
    /// A request has come from the drive.
    Claim(Message),
    /// The broker has the result.
    Published {
        /// A client may be subscribed to it.
        has_subscriber: bool,
    },
    /// The broker does not take the result for now.
    NotPublished,
    /// DISCONNECT is sent: the link has ended, and nothing can come any more.
    Closed,
    /// The request is dealt with.
    Result(ResultMessage),
    /// The job is interrupted, or another worker has it: its request stays with the broker, or on the drive.
    Requeue,
    /// The worker is asked to stop; what is still to be said may take this long.
    Stop {
        /// How long the rest may take.
        grace: Duration,
    },
    /// The deadline has passed.
    Expired,
}

/// What is to be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Deal with this request, and give an [`Input::Result`] or [`Input::Requeue`].
    Take(Message),
    /// Reject this request: it came at QoS 0 while another one is held, and the broker does not keep it.
    RejectNow(Message),
    /// Publish the result.
    Publish(ResultMessage),
    /// Acknowledge the request that came under this packet identifier.
    Acknowledge(u16),
    /// The request came from the drive, and is done.
    EndClaim,
    /// End the connection in order.
    Disconnect,
    /// This life is over, and with it the machine.
    Exit,
}

/// How long a redelivery is waited for on a resumed session. Brokers redeliver right after CONNACK (MQTT 5, section 4.4);
/// where none comes, our acknowledgement had arrived.
const REDELIVERY_WAIT: Duration = Duration::from_secs(2);

/// Pause before a result that the broker did not take, or that no client has subscribed to, is published again; it doubles from
/// the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// How long a result is published again while no client is subscribed to it (docs/reference.md, "Delivery").
const REPUBLISH_LIMIT: Duration = Duration::from_secs(60);

/// After a lost session over MQTT 3.1.1, which does not tell whether a client is subscribed: the time that a controller gets
/// to subscribe again.
const RESUBSCRIBE_WAIT: Duration = Duration::from_secs(2);

/// How long a DISCONNECT may take to leave. Without it the broker only publishes our last will.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// Who has a request that is not acknowledged yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Custody {
    /// The broker, which has delivered it on this connection under this packet identifier.
    Delivered(u16),
    /// The broker, which has not delivered it on this connection yet.
    Awaited,
    /// We alone: the broker has lost the session, or it came at QoS 0.
    Forgotten,
    /// The drive: the pool has it as a claim.
    Drive,
}

/// A request that is not acknowledged yet.
#[derive(Clone, Debug)]
struct Held {
    request: Message,
    custody: Custody,
    /// An acknowledgement was sent, and may have got lost.
    acknowledged: bool,
    /// The connection was lost meanwhile. So may be that of the controller, with its subscription.
    reconnected: bool,
}

impl Held {
    /// Whether a message is this request once more. A message without DUP never is.
    ///
    /// A redelivery keeps its packet identifier. Some brokers number each connection anew all the same: there, the first
    /// message of a connection is the request that was not acknowledged, as long as we have not tried to.
    fn is_redelivered_as(&self, message: &Message, first_of_connection: bool) -> bool {
        let same_text =
            self.request.payload == message.payload && self.request.topic == message.topic;
        let same_identity = self.request.packet_id == message.packet_id
            && self.request.subscription == message.subscription;
        let same = match self.custody {
            Custody::Delivered(packet_id) => message.packet_id == Some(packet_id),
            Custody::Awaited => same_identity || (first_of_connection && !self.acknowledged),
            Custody::Forgotten | Custody::Drive => false,
        };
        message.redelivered && same_text && same
    }
}

/// A result on its way to the broker: published until the broker has it, and where that is promised, until a client is subscribed to it.
#[derive(Clone, Debug)]
struct Publication {
    result: ResultMessage,
    /// Since when no client is subscribed to it.
    unheard_since: Option<Instant>,
    backoff: Backoff,
}

impl Publication {
    /// Whether it is published again although no client is subscribed to it.
    fn goes_on_unheard(&mut self, now: Instant) -> bool {
        match self.unheard_since {
            None => {
                log::warn!(
                    "nobody is subscribed to the result, and its controller may be on its way back: publishing it again for 60 s"
                );
                self.unheard_since = Some(now);
                true
            }
            Some(since) if now.duration_since(since) < REPUBLISH_LIMIT => true,
            Some(_) => {
                log::warn!("nobody has subscribed to the result for 60 s: it counts as delivered");
                false
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
enum State {
    #[default]
    Waiting,
    Working(Held),
    Publishing(Held, Publication),
    /// The result, which ends this life or not, has arrived; the request is to be acknowledged as soon as the broker delivers it on
    /// this connection.
    Acknowledging(Held, bool),
    /// DISCONNECT is on its way; the request, in case its acknowledgement did not get through.
    Leaving(Option<Held>),
}

/// The machine.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    state: State,
    connected: bool,
    /// This connection has delivered a request at QoS 1.
    delivered: bool,
    /// Requests that this connection delivered behind the one that is held.
    behind: VecDeque<Message>,
    deadline: Option<Instant>,
    /// The earliest moment to publish: after a lost session the controller needs time to subscribe.
    publish_at: Option<Instant>,
    /// A signal asked us to stop: the latest moment to go.
    stop_at: Option<Instant>,
    /// What is to be done about the present event.
    actions: Vec<Action>,
}

impl Machine {
    /// Whether no request is held.
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    /// When to send [`Input::Expired`].
    pub fn deadline(&self) -> Option<Instant> {
        [self.deadline, self.stop_at].into_iter().flatten().min()
    }

    /// Takes one event and tells what is to be done about it, in this order.
    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Action> {
        match input {
            Input::Connected {
                resumed,
                tells_subscribers,
            } => self.connected(resumed, tells_subscribers, now),
            Input::Lost => self.lost(),
            Input::Request(message) => self.request(message, now),
            Input::Claim(message) => self.take(message, Custody::Drive),
            Input::Published { has_subscriber } => self.published(has_subscriber, now),
            Input::NotPublished => {
                if let State::Publishing(_, publication) = &mut self.state {
                    self.deadline = Some(now + publication.backoff.next_pause());
                }
            }
            Input::Closed => self.actions.push(Action::Exit),
            Input::Result(result) => self.result(result, now),
            Input::Requeue => self.leave(None, now),
            Input::Stop { grace } => self.stop(grace, now),
            Input::Expired => self.expired(now),
        }
        std::mem::take(&mut self.actions)
    }

    fn held_mut(&mut self) -> Option<&mut Held> {
        match &mut self.state {
            State::Working(held) | State::Publishing(held, ..) | State::Acknowledging(held, _) => {
                Some(held)
            }
            State::Waiting | State::Leaving(_) => None,
        }
    }

    fn connected(&mut self, resumed: bool, tells_subscribers: bool, now: Instant) {
        (self.connected, self.delivered) = (true, false);
        if let Some(held) = self.held_mut() {
            held.reconnected = true;
            if !resumed && held.custody == Custody::Awaited {
                held.custody = Custody::Forgotten;
            }
            if !resumed && !tells_subscribers {
                self.publish_at = Some(now + RESUBSCRIBE_WAIT);
            }
        }
        self.publish(now);
        self.acknowledge(now);
    }

    fn lost(&mut self) {
        (self.connected, self.deadline) = (false, None);
        self.behind.clear(); // the broker delivers them again
        if let State::Leaving(held) = &mut self.state {
            let is_kept = |held: &mut Held| matches!(held.custody, Custody::Delivered(_));
            let Some(held) = held.take_if(is_kept).filter(|_| self.stop_at.is_none()) else {
                return self.actions.push(Action::Exit);
            };
            self.state = State::Acknowledging(held, true);
        }
        if let Some(held) = self.held_mut()
            && matches!(held.custody, Custody::Delivered(_))
        {
            held.custody = Custody::Awaited;
        }
    }

    fn request(&mut self, message: Message, now: Instant) {
        let Some(packet_id) = message.packet_id else {
            return match self.state {
                State::Waiting => self.take(message, Custody::Forgotten),
                State::Leaving(_) => {}
                // one request is held at a time, and the broker does not keep this one until its turn
                State::Working(_) | State::Publishing(..) | State::Acknowledging(..) => {
                    self.actions.push(Action::RejectNow(message))
                }
            };
        };
        let first = !std::mem::replace(&mut self.delivered, true);
        if let Some(held) = self.held_mut()
            && held.is_redelivered_as(&message, first)
        {
            held.custody = Custody::Delivered(packet_id);
            return self.acknowledge(now);
        }
        if let State::Leaving(held) = &mut self.state {
            // the broker has given the identifier away again, so it has our acknowledgement
            let is_reused = |held: &mut Held| {
                !message.redelivered && held.request.packet_id == message.packet_id
            };
            held.take_if(is_reused);
            return;
        }
        // once more on the live connection, as NATS does
        let known = |other: &Message| other.packet_id == message.packet_id;
        if !self.behind.iter().any(known) {
            self.behind.push_back(message);
        }
        if let State::Acknowledging(held, _) = &mut self.state {
            // requests come in their order: ours would have been first, so the broker has our acknowledgement already
            held.custody = Custody::Forgotten;
            return self.acknowledge(now);
        }
        self.take_next();
    }

    fn take(&mut self, message: Message, custody: Custody) {
        self.state = State::Working(Held {
            request: message.clone(),
            custody,
            acknowledged: false,
            reconnected: false,
        });
        self.publish_at = None;
        self.actions.push(Action::Take(message));
    }

    fn take_next(&mut self) {
        if self.is_waiting()
            && let Some(message) = self.behind.pop_front()
            && let Some(packet_id) = message.packet_id
        {
            self.take(message, Custody::Delivered(packet_id));
        }
    }

    fn result(&mut self, result: ResultMessage, now: Instant) {
        if let State::Working(held) = &self.state {
            let publication = Publication {
                result,
                unheard_since: None,
                backoff: Backoff::new(FIRST_PAUSE, LAST_PAUSE),
            };
            self.state = State::Publishing(held.clone(), publication);
        }
        self.publish(now);
    }

    /// Publishes the result, if that can be done on the present connection and its controller has had the time to subscribe.
    fn publish(&mut self, now: Instant) {
        let State::Publishing(_, publication) = &self.state else {
            return;
        };
        match self.publish_at.filter(|at| *at > now) {
            _ if !self.connected => {}
            Some(at) => self.deadline = Some(at),
            None => self
                .actions
                .push(Action::Publish(publication.result.clone())),
        }
    }

    fn published(&mut self, has_subscriber: bool, now: Instant) {
        if let State::Publishing(held, publication) = &mut self.state {
            let waits = publication.result.wait_for_subscriber || held.reconnected;
            if waits && !has_subscriber && publication.goes_on_unheard(now) {
                self.deadline = Some(now + publication.backoff.next_pause());
                return;
            }
            self.state = State::Acknowledging(held.clone(), publication.result.ends_life);
        }
        self.acknowledge(now);
    }

    /// Acknowledges the request if that is due and can be done on the present connection.
    fn acknowledge(&mut self, now: Instant) {
        let State::Acknowledging(held, ends_life) = &mut self.state else {
            return;
        };
        match held.custody {
            Custody::Awaited => {
                self.deadline = self.connected.then_some(now + REDELIVERY_WAIT);
                return;
            }
            Custody::Delivered(packet_id) => {
                self.actions.push(Action::Acknowledge(packet_id));
                held.acknowledged = true;
            }
            Custody::Drive => self.actions.push(Action::EndClaim),
            Custody::Forgotten => {}
        }
        self.deadline = None;
        if !*ends_life && self.stop_at.is_none() {
            self.state = State::Waiting;
            return self.take_next();
        }
        let held = held.clone();
        self.leave(Some(held), now);
    }

    fn leave(&mut self, held: Option<Held>, now: Instant) {
        if !self.connected {
            return self.actions.push(Action::Exit);
        }
        self.state = State::Leaving(held);
        self.deadline = Some(now + LEAVE_WAIT);
        self.actions.push(Action::Disconnect);
    }

    fn stop(&mut self, grace: Duration, now: Instant) {
        match self.state {
            State::Waiting => self.leave(None, now),
            // the worker interrupts the job and then gives its request back
            State::Working(_) => {}
            State::Publishing(..) | State::Acknowledging(..) | State::Leaving(_) => {
                self.stop_at = Some(now + grace)
            }
        }
    }

    fn expired(&mut self, now: Instant) {
        if self.stop_at.is_some_and(|at| at <= now) {
            // the result is on the disk, and the broker still has the request: the next worker sends it
            self.stop_at = None;
            return self.leave(None, now);
        }
        if self.deadline.is_none_or(|at| at > now) {
            return;
        }
        self.deadline = None;
        match &mut self.state {
            State::Publishing(..) => self.publish(now),
            State::Acknowledging(held, _) => {
                held.custody = Custody::Forgotten;
                self.acknowledge(now);
            }
            State::Leaving(_) => self.actions.push(Action::Exit),
            State::Waiting | State::Working(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;

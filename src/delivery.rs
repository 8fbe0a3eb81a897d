//! The delivery rules of contract section 6 as a pure machine: events in, actions out, no I/O and no clock of its own.
//!
//! A request is *held* from the moment it is taken until it is acknowledged, and it is acknowledged only after the broker
//! has acknowledged its answer. Every state is one question that may still be open:
//!
//! ```text
//! Waiting ──request──▶ Working ──answer──▶ Reporting ──broker has it──▶ Acknowledging ──▶ Leaving ──sent──▶ Gone
//!    ▲                                                                       │
//!    └───────────────── an answer that does not end our life ◀───────────────┘
//! ```
//!
//! When the link breaks, nothing that was sent counts: the answer is published again on the next connection, and the
//! request is acknowledged when the broker redelivers it there, or not at all if the broker has forgotten it.

use crate::mqtt::Delivery;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a redelivery is waited for on a resumed session. Brokers redeliver right after CONNACK (MQTT 5, section 4.4);
/// where none comes, the request has gone to another worker of our share group, or our acknowledgement had arrived.
const REDELIVERY_WAIT: Duration = Duration::from_secs(2);

/// How long a DISCONNECT may take to leave. Without it the broker only publishes our last will.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// Pause before an answer that the broker did not take is published again.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// What happens after an answer has arrived.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Then {
    /// A job was run: this life is over.
    Leave,
    /// Nothing was run: wait for the next request.
    WaitOn,
}

/// An answer to the request that is held.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    pub topic: String,
    pub payload: Vec<u8>,
    pub then: Then,
}

/// What the machine hears.
#[derive(Clone, Debug)]
pub enum Input {
    Connected {
        resumed: bool,
    },
    Lost,
    Request(Delivery),
    /// The broker has the answer.
    Published,
    /// The broker does not take the answer for now.
    NotPublished,
    /// DISCONNECT is sent.
    Closed,
    /// The request is dealt with.
    Answer(Report),
    /// The job was stopped on request: its request stays with the broker.
    Release,
    /// Somebody asks us to stop; what is still to be said may take this long.
    Stop {
        grace: Duration,
    },
    /// The deadline has passed.
    Expired,
}

/// What is to be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Deal with this request, and give an [`Input::Answer`] or [`Input::Release`].
    Take(Delivery),
    /// Answer this request with a refusal: it came too late for this life, and the broker does not keep it.
    Refuse(Delivery),
    Publish(Report),
    Acknowledge(u16),
    Disconnect,
    /// This life is over.
    Exit,
}

/// A request that is not acknowledged yet.
#[derive(Clone, Debug)]
struct Held {
    request: Delivery,
    /// What to acknowledge on the present connection, once the broker has delivered the request there.
    packet_id: Option<u16>,
    /// The broker does not have the request any more, so there is nothing to acknowledge.
    forgotten: bool,
}

impl Held {
    fn new(request: Delivery) -> Self {
        Self {
            packet_id: request.packet_id,
            forgotten: request.packet_id.is_none(),
            request,
        }
    }

    /// Whether a delivery is this request once more: on the same connection by its packet identifier, on a later
    /// connection of the same session by its content.
    fn is_redelivered_as(&self, other: &Delivery) -> bool {
        let same_content =
            self.request.payload == other.payload && self.request.topic == other.topic;
        let expected = match self.packet_id {
            None => !self.forgotten,
            Some(_) => other.packet_id == self.packet_id,
        };
        same_content && expected && other.packet_id.is_some()
    }
}

#[derive(Clone, Debug)]
enum State {
    Waiting,
    Working(Held),
    Reporting(Held, Report),
    /// The answer has arrived; the request is to be acknowledged as soon as the broker redelivers it.
    Acknowledging(Held, Then),
    /// DISCONNECT is on its way; the request, in case its acknowledgement did not get through.
    Leaving(Option<Held>),
    Gone,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine {
    state: State,
    connected: bool,
    /// Requests that this connection delivered behind the one that is held.
    behind: VecDeque<Delivery>,
    deadline: Option<Instant>,
    /// Somebody asked us to stop: the latest moment to go.
    stop_at: Option<Instant>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            state: State::Waiting,
            connected: false,
            behind: VecDeque::new(),
            deadline: None,
            stop_at: None,
        }
    }
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
        let mut actions = Vec::new();
        match input {
            Input::Connected { resumed } => self.connected(resumed, now, &mut actions),
            Input::Lost => self.lost(&mut actions),
            Input::Request(delivery) => self.request(delivery, now, &mut actions),
            Input::Published => self.published(now, &mut actions),
            Input::NotPublished if matches!(self.state, State::Reporting(..)) => {
                self.deadline = Some(now + RETRY_WAIT)
            }
            Input::NotPublished => {}
            Input::Closed if matches!(self.state, State::Leaving(_)) => self.go(&mut actions),
            Input::Closed => {}
            Input::Answer(report) => self.answer(report, &mut actions),
            Input::Release => self.leave(None, now, &mut actions),
            Input::Stop { grace } => self.stop(grace, now, &mut actions),
            Input::Expired => self.expired(now, &mut actions),
        }
        actions
    }

    fn connected(&mut self, resumed: bool, now: Instant, actions: &mut Vec<Action>) {
        self.connected = true;
        if !resumed
            && let State::Working(held) | State::Reporting(held, _) | State::Acknowledging(held, _) =
                &mut self.state
        {
            held.forgotten = true;
        }
        match &self.state {
            State::Reporting(_, report) => actions.push(Action::Publish(report.clone())),
            State::Acknowledging(..) => self.acknowledge(now, actions),
            _ => {}
        }
    }

    fn lost(&mut self, actions: &mut Vec<Action>) {
        self.connected = false;
        self.deadline = None;
        // the broker redelivers these, except those that it never keeps
        self.behind.retain(|delivery| delivery.packet_id.is_none());
        if let State::Working(held) | State::Reporting(held, _) | State::Acknowledging(held, _) =
            &mut self.state
        {
            held.packet_id = None;
        } else if let State::Leaving(held) = &mut self.state {
            match held.take().filter(|_| self.stop_at.is_none()) {
                Some(held) => {
                    self.state = State::Acknowledging(
                        Held {
                            packet_id: None,
                            ..held
                        },
                        Then::Leave,
                    );
                }
                None => self.go(actions),
            }
        }
    }

    fn request(&mut self, delivery: Delivery, now: Instant, actions: &mut Vec<Action>) {
        match &mut self.state {
            State::Working(held) | State::Reporting(held, _) | State::Acknowledging(held, _)
                if held.is_redelivered_as(&delivery) =>
            {
                held.packet_id = delivery.packet_id;
                if matches!(self.state, State::Acknowledging(..)) {
                    self.acknowledge(now, actions);
                }
            }
            State::Acknowledging(held, _) if delivery.packet_id.is_some() => {
                // requests come in their order: ours would have been first, so the broker has our acknowledgement already
                held.forgotten = true;
                self.behind.push_back(delivery);
                self.acknowledge(now, actions);
            }
            State::Gone => {}
            _ => {
                self.behind.push_back(delivery);
                self.take_next(actions);
            }
        }
    }

    fn take_next(&mut self, actions: &mut Vec<Action>) {
        if self.is_waiting()
            && let Some(delivery) = self.behind.pop_front()
        {
            self.state = State::Working(Held::new(delivery.clone()));
            actions.push(Action::Take(delivery));
        }
    }

    fn answer(&mut self, report: Report, actions: &mut Vec<Action>) {
        self.state = match std::mem::replace(&mut self.state, State::Gone) {
            State::Working(held) => {
                if self.connected {
                    actions.push(Action::Publish(report.clone()));
                }
                State::Reporting(held, report)
            }
            other => other,
        };
    }

    fn published(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.state = match std::mem::replace(&mut self.state, State::Gone) {
            State::Reporting(held, report) => State::Acknowledging(held, report.then),
            other => other,
        };
        self.acknowledge(now, actions);
    }

    /// Settles the request if that can be done on the present connection.
    fn acknowledge(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.state = match std::mem::replace(&mut self.state, State::Gone) {
            State::Acknowledging(held, then) => match (held.packet_id, held.forgotten) {
                (None, false) => {
                    self.deadline = self.connected.then_some(now + REDELIVERY_WAIT);
                    State::Acknowledging(held, then)
                }
                (packet_id, _) => {
                    actions.extend(packet_id.map(Action::Acknowledge));
                    self.deadline = None;
                    return self.settled(held, then, now, actions);
                }
            },
            other => other,
        };
    }

    fn settled(&mut self, held: Held, then: Then, now: Instant, actions: &mut Vec<Action>) {
        if then == Then::WaitOn && self.stop_at.is_none() {
            self.state = State::Waiting;
            return self.take_next(actions);
        }
        // whoever published at QoS 0 is told now, since nobody will have that request after us
        let lost = self
            .behind
            .iter()
            .position(|delivery| delivery.packet_id.is_none());
        match lost
            .filter(|_| self.stop_at.is_none())
            .and_then(|at| self.behind.remove(at))
        {
            Some(delivery) => {
                self.state = State::Working(Held::new(delivery.clone()));
                actions.push(Action::Refuse(delivery));
            }
            None => self.leave(Some(held), now, actions),
        }
    }

    fn leave(&mut self, held: Option<Held>, now: Instant, actions: &mut Vec<Action>) {
        if !self.connected {
            return self.go(actions);
        }
        self.state = State::Leaving(held);
        self.deadline = Some(now + LEAVE_WAIT);
        actions.push(Action::Disconnect);
    }

    fn go(&mut self, actions: &mut Vec<Action>) {
        (self.state, self.deadline, self.stop_at) = (State::Gone, None, None);
        actions.push(Action::Exit);
    }

    fn stop(&mut self, grace: Duration, now: Instant, actions: &mut Vec<Action>) {
        match self.state {
            State::Waiting => self.leave(None, now, actions),
            // the worker stops the job and then gives its request back
            State::Working(_) | State::Gone => {}
            State::Reporting(..) | State::Acknowledging(..) | State::Leaving(_) => {
                self.stop_at = Some(now + grace)
            }
        }
    }

    fn expired(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.stop_at.is_some_and(|at| at <= now) {
            // the answer is on the disk, and the broker still has the request: the next worker answers it
            self.stop_at = None;
            return self.leave(None, now, actions);
        }
        if self.deadline.is_none_or(|at| at > now) {
            return;
        }
        self.deadline = None;
        match &mut self.state {
            State::Reporting(_, report) if self.connected => {
                actions.push(Action::Publish(report.clone()))
            }
            State::Acknowledging(held, _) => {
                held.forgotten = true;
                self.acknowledge(now, actions);
            }
            State::Leaving(_) => self.go(actions),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;

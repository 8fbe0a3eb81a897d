//! A turn as the head of the queue: connect, take one request, leave.

use super::{ANSWER_WAIT, Action, LEAVE_WAIT, Looked, Machine, State, Took};
use crate::mqtt::Message;
use std::time::{Duration, Instant};

/// What a head is about.
#[derive(Clone, Copy, Debug)]
pub enum Head {
    /// For claims that nobody has, before anything else.
    Looking,
    Connecting,
    /// For a request. `ready`: the subscription stands.
    Waiting {
        ready: bool,
    },
    /// The request with this packet identifier becomes a claim.
    Taking(Option<u16>),
    /// It is rejected; it is acknowledged when the broker has the rejection.
    Rejecting(Option<u16>),
    /// A request that needs no claim is acknowledged; the next one is taken when the broker has that.
    Settling {
        packet_id: Option<u16>,
        /// It is the latest in `taken`.
        is_latest: bool,
    },
    /// A request that is a claim is acknowledged.
    Confirming,
    /// DISCONNECT is on its way.
    Closing(Then),
}

/// What follows when the head's connection has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Then {
    /// The job of the claim.
    Run,
    Stand,
    Leave,
}

impl Machine {
    pub(super) fn looked(&mut self, looked: Looked, now: Instant, todo: &mut Vec<Action>) {
        match (self.head(), looked) {
            (Some(Head::Looking), Looked::Claimed) => {
                self.insist = true;
                todo.push(Action::FreeHead);
                self.run(todo);
            }
            (Some(Head::Looking), Looked::Nothing) => {
                self.state = State::Head(Head::Connecting);
                self.deadline = Some(now + ANSWER_WAIT);
                todo.push(Action::OpenHead);
            }
            (Some(Head::Waiting { .. }), Looked::Claimed) => {
                self.insist = true;
                self.close(Then::Run, now, todo);
            }
            (Some(Head::Waiting { .. }), Looked::Nothing) => {
                self.deadline = Some(now + self.looks.next_pause());
            }
            _ => {}
        }
    }

    pub(super) fn head_ready(&mut self, now: Instant) {
        if let State::Head(Head::Waiting { ready }) = &mut self.state {
            *ready = true;
            self.broker_pauses.reset();
            self.looks.reset();
            self.look_later(now);
        }
    }

    /// Sets when to look for claims that nobody has.
    fn look_later(&mut self, now: Instant) {
        let pause = match std::mem::take(&mut self.claims_freed) {
            true => Duration::ZERO,
            false => self.looks.next_pause(),
        };
        self.deadline = Some(now + pause);
    }

    pub(super) fn request(&mut self, message: Message, todo: &mut Vec<Action>) {
        match self.head() {
            Some(Head::Waiting { .. }) => self.take(message, todo),
            // one request at a time, and at QoS 0 the broker does not keep the others
            _ if message.packet_id.is_none() => todo.push(Action::RejectNow(message)),
            Some(Head::Rejecting(packet_id) | Head::Settling { packet_id, .. }) => {
                // once more on the live connection, as NATS does
                let is_known = |other: &Message| other.packet_id == message.packet_id;
                if packet_id != message.packet_id && !self.behind.iter().any(is_known) {
                    self.behind.push_back(message);
                }
            }
            _ => {}
        }
    }

    fn take(&mut self, message: Message, todo: &mut Vec<Action>) {
        self.state = State::Head(Head::Taking(message.packet_id));
        todo.push(Action::Take(message));
    }

    pub(super) fn took(&mut self, took: Took, now: Instant, todo: &mut Vec<Action>) {
        let Some(Head::Taking(packet_id)) = self.head() else {
            return;
        };
        self.deadline = Some(now + ANSWER_WAIT);
        self.drive_pauses.reset();
        self.state = State::Head(match took {
            Took::Rejected => Head::Rejecting(packet_id),
            Took::Claimed => {
                self.insist = !self.connected;
                Head::Confirming
            }
            Took::Known | Took::InProgress => Head::Settling {
                packet_id,
                is_latest: took == Took::Known,
            },
        });
        if took != Took::Rejected {
            todo.extend(packet_id.map(Action::Acknowledge));
            todo.push(Action::Confirm);
        }
    }

    pub(super) fn head_published(&mut self, now: Instant, todo: &mut Vec<Action>) {
        match self.head() {
            Some(Head::Confirming) => {
                self.close(Then::Run, now, todo);
                // while DISCONNECT is on its way
                todo.push(Action::Confirmed);
            }
            Some(Head::Settling { is_latest, .. }) => {
                if is_latest {
                    todo.push(Action::Confirmed);
                }
                self.wait_on(now, todo);
            }
            Some(Head::Rejecting(packet_id)) => {
                todo.extend(packet_id.map(Action::Acknowledge));
                self.wait_on(now, todo);
            }
            _ => {}
        }
    }

    pub(super) fn wait_on(&mut self, now: Instant, todo: &mut Vec<Action>) {
        self.state = State::Head(Head::Waiting { ready: true });
        self.look_later(now);
        if let Some(message) = self.behind.pop_front() {
            self.take(message, todo);
        }
    }

    pub(super) fn close(&mut self, then: Then, now: Instant, todo: &mut Vec<Action>) {
        self.state = State::Head(Head::Closing(then));
        self.deadline = Some(now + LEAVE_WAIT);
        todo.push(Action::CloseHead);
    }

    /// The head's connection has ended, in order or not.
    pub(super) fn head_ended(&mut self, now: Instant, todo: &mut Vec<Action>) {
        let Some(head) = self.head() else {
            return;
        };
        self.behind.clear(); // the broker delivers them again
        todo.extend([Action::AbandonHead, Action::FreeHead]);
        match head {
            // it counts, whether the broker has our acknowledgement or not
            Head::Confirming | Head::Closing(Then::Run) if self.stopping => {
                todo.push(Action::GiveBack);
                self.leave(now, todo);
            }
            Head::Confirming | Head::Closing(Then::Run) => self.run(todo),
            Head::Closing(Then::Leave) => self.leave(now, todo),
            Head::Closing(Then::Stand) => self.stand(now, todo),
            Head::Looking
            | Head::Connecting
            | Head::Waiting { .. }
            | Head::Taking(_)
            | Head::Rejecting(_)
            | Head::Settling { .. } => {
                let pause = self.broker_pauses.next_pause();
                self.stand_later(pause, now, todo);
            }
        }
    }
}

//! The queue that a worker serves: its own, or that of a pool.

use crate::contract::Document;
use crate::job::{Kept, RequestRecord};
use crate::member::Member;
use crate::mqtt::Message;
use crate::queue::spool::Claim;
use crate::queue::{Action, Input, own};
use std::sync::Arc;
use std::time::Instant;

/// The queue that a worker serves.
pub enum Queue {
    Own(Box<own::Machine>),
    Pool(Box<Member>),
}

impl Queue {
    /// Takes one event and tells what is to be done about it, in this order.
    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Action> {
        match self {
            Self::Own(machine) => machine.handle(input, now),
            Self::Pool(member) => member.handle(input, now),
        }
    }

    /// When to send [`Input::Expired`].
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Own(machine) => machine.deadline(),
            Self::Pool(member) => member.deadline(),
        }
    }

    /// Whether there is no request.
    pub fn is_waiting(&self) -> bool {
        match self {
            Self::Own(machine) => machine.is_waiting(),
            Self::Pool(member) => member.is_waiting(),
        }
    }

    /// The request that the broker still has.
    pub fn held_request(&self) -> Option<&Message> {
        match self {
            Self::Own(machine) => machine.held_request(),
            Self::Pool(_) => None,
        }
    }

    /// Whether nobody but us has the request.
    pub fn broker_lacks_request(&self) -> bool {
        match self {
            Self::Own(machine) => machine.broker_lacks_request(),
            Self::Pool(_) => false,
        }
    }

    /// The claim of the request, in a pool.
    pub fn claim(&self) -> Option<&Arc<Claim>> {
        match self {
            Self::Own(_) => None,
            Self::Pool(member) => member.claim(),
        }
    }

    /// Has a final document kept, where that is not done yet.
    pub fn keep(&self, document: &Document) -> Kept {
        self.claim().map_or(Kept::Yes, |claim| claim.keep(document))
    }
}

//! The queue that requests come from: what it hears, and what it wants to be done. The machines, [`own`] and [`pool`], have no I/O and
//! no clock of their own; [`spool`] is what a pool has on the drive.

pub mod own;
pub mod pool;
mod publication;
pub mod spool;

use crate::mqtt::{Message, Subscribers};
use std::time::Duration;

/// What happens after a result has arrived.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AfterResult {
    /// A job was run: this life is over.
    Leave,
    /// Nothing was run: wait for the next request.
    WaitOn,
}

/// The result of the request that is held, ready to be published.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ResultMessage {
    /// Where it is published.
    pub topic: String,
    /// What is published.
    pub payload: Vec<u8>,
    /// What follows once the broker has it.
    pub after: AfterResult,
    /// Its controller may be on its way back: publish it until somebody is subscribed to it.
    pub wait_for_subscriber: bool,
}

/// What a queue hears.
#[derive(Clone, Debug)]
pub enum Input {
    /// There is a connection.
    Connected {
        /// The broker has kept our session.
        resumed: bool,
        /// The broker tells whether a message of ours goes to anybody (MQTT 5).
        tells_subscribers: bool,
    },
    /// The connection is gone.
    Lost,
    /// A request has come.
    Request(Message),
    /// The broker has the result.
    Published(Subscribers),
    /// The broker does not take the result for now.
    NotPublished,
    /// DISCONNECT is sent.
    Closed,
    /// The request is dealt with.
    Result(ResultMessage),
    /// The job is interrupted: its request stays with the broker, or with the pool.
    Requeue,
    /// In a pool: the request is to be run when something else does not have its directory any more.
    Postpone,
    /// In a pool: somebody else has the request by now.
    GiveUp,
    /// Somebody asks us to stop; what is still to be said may take this long.
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
    /// In a pool: deal with the request of the claim that is ours, likewise.
    TakeClaim,
    /// Reject this request: it came at QoS 0 while another one is held, and the broker does not keep it.
    RejectNow(Message),
    /// Publish the result.
    Publish(ResultMessage),
    /// Acknowledge the request that came under this packet identifier.
    Acknowledge(u16),
    /// End the connection in order.
    Disconnect,
    /// Say something that the broker answers, on the connection of a pool's head.
    Confirm,
    /// End: the member on this topic belongs to another pool that has the name of ours.
    LeavePool(String),
    /// Tell on `jobs/rejected` of a claim of the pool that cannot be read.
    TellDamaged(String),
    /// Tell the operator.
    Warn(&'static str),
    /// This life is over.
    Exit,
}

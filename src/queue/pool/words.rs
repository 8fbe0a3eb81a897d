//! What a member of a pool hears, and what it wants to be done.

use crate::mqtt::{Message, Subscribers};
use crate::queue::ResultMessage;
use std::time::Duration;

/// What a member hears.
#[derive(Clone, Debug)]
pub enum Input {
    // On its own connection.
    /// It is established.
    Connected {
        /// See [`crate::queue::Input::Connected`].
        tells_subscribers: bool,
    },
    /// It is gone, and another one is being made.
    Lost,
    /// The broker has the result.
    Published(Subscribers),
    /// The broker does not take the result for now.
    NotPublished,
    /// DISCONNECT is sent.
    Closed,
    /// A member has taken a request, so that the head is free soon; or one is gone, which may have been the head.
    HeadLeaves,
    /// A head of this host may have left.
    HeadFree,
    /// A member is done or gone: claims may be free that were not.
    ClaimsFreed,
    // What the drive has done.
    /// What came of [`Action::TryHead`].
    Tried(Tried),
    /// What came of [`Action::Look`].
    Looked(Looked),
    /// What came of [`Action::Take`].
    Took(Took),
    /// The drive does not take what it must.
    DriveFailed,
    /// It is not sure that the session is ours.
    StandBack,
    // On the head's connection.
    /// It is established.
    HeadConnected {
        /// The broker has kept the session.
        resumed: bool,
    },
    /// The subscription stands.
    HeadReady,
    /// A request has come.
    Request(Message),
    /// The broker has what the head published.
    HeadPublished,
    /// The broker answers, and does not take it.
    HeadNotPublished,
    /// DISCONNECT is sent.
    HeadClosed,
    /// It is gone, or did not come about.
    HeadLost,
    // Of the job.
    /// It is dealt with.
    Result(ResultMessage),
    /// See [`crate::queue::Input::Requeue`].
    Requeue,
    /// See [`crate::queue::Input::Postpone`].
    Postpone,
    /// See [`crate::queue::Input::GiveUp`].
    GiveUp,
    /// Somebody asks us to stop.
    Stop {
        /// What is still to be said may take this long.
        grace: Duration,
    },
    /// The deadline has passed.
    Expired,
}

/// What came of [`Action::TryHead`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tried {
    /// We are the head.
    Ours,
    /// Somebody else is.
    Held,
}

/// What came of [`Action::Look`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Looked {
    /// A claim that nobody had is ours.
    Claimed,
    /// There is none.
    Nothing,
}

/// What came of [`Action::Take`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Took {
    /// It is a claim, and ours.
    Claimed,
    /// It is a claim, or was, and not ours.
    Known,
    /// One with its id, workDir and key is in progress.
    InProgress,
    /// It cannot be used: its rejection is sent on the head's connection.
    Rejected,
}

/// What is to be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Try to become the head, and tell [`Input::Tried`].
    TryHead,
    /// Let somebody else be the head.
    FreeHead,
    /// Look for a claim that nobody has, and tell [`Input::Looked`].
    Look,
    /// Connect with the pool's session.
    OpenHead,
    /// Subscribe on the head's connection; before that, in a new session, forget what was taken in the old one.
    Subscribe {
        /// The broker has a new session for us.
        new_session: bool,
    },
    /// Make a claim of a request, and tell [`Input::Took`].
    Take(Message),
    /// Reject this request, which came at QoS 0.
    RejectNow(Message),
    /// Acknowledge a request on the head's connection.
    Acknowledge(u16),
    /// Send something on the head's connection that the broker answers: [`Input::HeadPublished`].
    Confirm,
    /// The broker has the acknowledgement of the latest request.
    Confirmed,
    /// End the head's connection in order.
    CloseHead,
    /// Give up the head's connection.
    AbandonHead,
    /// Run the job of the claim, and tell [`Input::Result`] or another of its kind.
    Run,
    /// Give the claim back, before its first step.
    GiveBack,
    /// Publish a result on our own connection.
    Publish(ResultMessage),
    /// The broker has the result: remove the claim.
    Remove,
    /// End our own connection in order.
    Disconnect,
    /// Tell the operator.
    Warn(&'static str),
    /// This life is over.
    Exit,
}

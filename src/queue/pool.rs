//! A worker's part in a pool: standing for the head of the queue, taking one request as the head, publishing its result. A
//! pure machine.
//!
//! ```text
//! Standing ──lock──▶ Head: Looking ──nothing is left over──▶ Connecting ──▶ Waiting ──request──▶ Taking ──claim──▶ Confirming
//!    ▲                        │                                                                                        │
//!    │                        └──a claim that nobody has──▶ Working ◀──────────disconnected, lock free───────── Closing ◀┘
//!    └──nothing was run── Publishing ◀──result── Working
//! ```
//!
//! From the moment at which a request is a claim, the drive holds it, and the machine never needs the broker to keep it: the claim
//! is removed after the broker has the result. The session is the head's, and the head is whoever has the lock on `head.lock`.

mod head;
mod words;

pub use words::{Action, Input, Looked, Took, Tried};

use super::AfterResult;
use super::publication::{Publication, RESUBSCRIBE_WAIT, RETRY_PAUSE};
use crate::backoff::Backoff;
use crate::mqtt::{Message, Subscribers};
use head::{Head, Then};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Pause between two tries for the head, when nobody says that it is free.
const TRY_PAUSE: Duration = Duration::from_secs(1);

/// Pauses before the tries when a head of another host is about to leave: it disconnects before it frees the lock.
const HURRIED_PAUSES: [Duration; 5] = [
    Duration::from_millis(2),
    Duration::from_millis(8),
    Duration::from_millis(32),
    Duration::from_millis(100),
    Duration::from_millis(300),
];

/// How long the broker may take to answer the head.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// Pause between two looks of a waiting head for claims that nobody has; it doubles from the first to the last. The steps of a dead
/// worker have its lock for a moment longer.
const FIRST_LOOK_PAUSE: Duration = Duration::from_millis(100);
const LAST_LOOK_PAUSE: Duration = Duration::from_secs(5);

/// Pause before a member stands again, whom the broker did not answer or whose drive took nothing; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// How long a DISCONNECT may take to leave.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
enum State {
    Standing,
    Head(Head),
    Working,
    Publishing(Publication),
    /// DISCONNECT is on its way.
    Leaving,
    Gone,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine {
    state: State,
    connected: bool,
    tells_subscribers: bool,
    /// Our own connection was lost since a claim was taken, or the claim was somebody else's before: its controller may have lost
    /// its connection, too.
    insist: bool,
    deadline: Option<Instant>,
    /// A result is not published before.
    publish_at: Option<Instant>,
    /// Somebody asked us to stop.
    stopping: bool,
    /// The latest moment to go.
    stop_at: Option<Instant>,
    /// Requests that the head's connection delivered behind the one that is dealt with.
    behind: VecDeque<Message>,
    /// How many hurried tries were made.
    hurried: usize,
    /// The broker does not answer.
    broker_pauses: Backoff,
    /// The drive does not take what it must.
    drive_pauses: Backoff,
    looks: Backoff,
    /// Somebody may have freed a claim since the head looked.
    claims_freed: bool,
    /// No try is made before.
    stand_at: Option<Instant>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            state: State::Standing,
            connected: false,
            tells_subscribers: false,
            insist: false,
            deadline: None,
            publish_at: None,
            stopping: false,
            stop_at: None,
            behind: VecDeque::new(),
            hurried: HURRIED_PAUSES.len(),
            broker_pauses: Backoff::new(FIRST_PAUSE, LAST_PAUSE),
            drive_pauses: Backoff::new(FIRST_PAUSE, LAST_PAUSE),
            looks: Backoff::new(FIRST_LOOK_PAUSE, LAST_LOOK_PAUSE),
            claims_freed: false,
            stand_at: None,
        }
    }
}

impl Machine {
    /// Whether there is no job, and none is about to begin.
    pub fn is_waiting(&self) -> bool {
        match self.state {
            State::Standing => true,
            State::Head(head) => !matches!(head, Head::Confirming | Head::Closing(Then::Run)),
            State::Working | State::Publishing(_) | State::Leaving | State::Gone => false,
        }
    }

    /// Whether a rejection is on its way on the head's connection.
    pub fn is_rejecting(&self) -> bool {
        matches!(self.head(), Some(Head::Rejecting(_)))
    }

    /// When to send [`Input::Expired`].
    pub fn deadline(&self) -> Option<Instant> {
        [self.deadline, self.stop_at].into_iter().flatten().min()
    }

    /// Takes one event and tells what is to be done about it, in this order.
    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let todo = &mut actions;
        match input {
            Input::Connected { tells_subscribers } => self.connected(tells_subscribers, now, todo),
            Input::Lost => self.lost(todo),
            Input::Published(subscribers) => self.published(subscribers, now, todo),
            Input::NotPublished if matches!(self.state, State::Publishing(_)) => {
                self.deadline = Some(now + RETRY_PAUSE)
            }
            Input::NotPublished => {}
            Input::Closed if matches!(self.state, State::Leaving) => self.go(todo),
            Input::Closed => {}
            Input::HeadLeaves => self.hurry(now),
            Input::HeadFree if self.may_stand(now) => todo.push(Action::TryHead),
            Input::HeadFree => {}
            Input::ClaimsFreed => {
                self.looks.reset();
                match self.state {
                    State::Head(Head::Waiting { ready: true }) => todo.push(Action::Look),
                    // it has something to finish first
                    State::Head(_) => self.claims_freed = true,
                    _ => {}
                }
            }
            Input::Tried(tried) => self.tried(tried, now, todo),
            Input::Looked(looked) => self.looked(looked, now, todo),
            Input::Took(took) => self.took(took, now, todo),
            Input::DriveFailed => self.stand_back(now, todo),
            // what is being taken is taken to its end
            Input::StandBack => match self.state {
                State::Standing | State::Head(Head::Connecting | Head::Waiting { .. }) => {
                    self.stand_back(now, todo);
                }
                _ => {}
            },
            Input::HeadConnected { resumed } => {
                if matches!(self.state, State::Head(Head::Connecting)) {
                    self.state = State::Head(Head::Waiting { ready: false });
                    todo.push(Action::Subscribe {
                        new_session: !resumed,
                    });
                }
            }
            Input::HeadReady => self.head_ready(now),
            Input::Request(message) => self.request(message, todo),
            // a rejection that nobody gets is none: the request stays with the broker
            Input::HeadNotPublished if matches!(self.head(), Some(Head::Rejecting(_))) => {
                self.stand_at = Some(now + self.broker_pauses.next_pause());
                self.close(Then::Stand, now, todo);
            }
            // whatever the broker thinks of our presence, it has the acknowledgement that was sent before
            Input::HeadPublished | Input::HeadNotPublished => self.head_published(now, todo),
            Input::HeadClosed | Input::HeadLost => self.head_ended(now, todo),
            Input::Result(result) => {
                if matches!(self.state, State::Working) {
                    self.state = State::Publishing(Publication::new(result));
                    self.publish(now, todo);
                }
            }
            Input::Requeue | Input::GiveUp => self.leave(now, todo),
            Input::Postpone if self.stopping => self.leave(now, todo),
            Input::Postpone => self.stand(now, todo),
            Input::Stop { grace } => self.stop(grace, now, todo),
            Input::Expired => self.expired(now, todo),
        }
        actions
    }

    fn head(&self) -> Option<Head> {
        match self.state {
            State::Head(head) => Some(head),
            _ => None,
        }
    }

    fn connected(&mut self, tells_subscribers: bool, now: Instant, todo: &mut Vec<Action>) {
        (self.connected, self.tells_subscribers) = (true, tells_subscribers);
        match self.state {
            State::Standing => self.stand(now, todo),
            State::Publishing(_) => {
                if !tells_subscribers {
                    self.publish_at = Some(now + RESUBSCRIBE_WAIT);
                }
                self.publish(now, todo);
            }
            _ => {}
        }
    }

    fn lost(&mut self, todo: &mut Vec<Action>) {
        (self.connected, self.insist) = (false, true);
        match self.state {
            // whoever the broker answers better may be the head
            State::Head(
                Head::Connecting
                | Head::Waiting { .. }
                | Head::Rejecting(_)
                | Head::Settling { .. },
            ) => {
                todo.extend([Action::AbandonHead, Action::FreeHead]);
                (self.state, self.deadline) = (State::Standing, None);
                self.behind.clear();
            }
            State::Standing | State::Publishing(_) => self.deadline = None,
            State::Leaving => self.go(todo),
            State::Head(_) | State::Working | State::Gone => {}
        }
    }

    // The head.

    /// Tries to become the head, now or when that is worth a try.
    fn stand(&mut self, now: Instant, todo: &mut Vec<Action>) {
        self.state = State::Standing;
        self.deadline = self.stand_at.filter(|at| *at > now && self.connected);
        if self.connected && self.deadline.is_none() {
            todo.push(Action::TryHead);
        }
    }

    /// Stands again after a pause.
    fn stand_later(&mut self, pause: Duration, now: Instant, todo: &mut Vec<Action>) {
        self.stand_at = Some(now + pause);
        self.stand(now, todo);
    }

    /// Whether a try for the head is worth it.
    fn may_stand(&self, now: Instant) -> bool {
        let is_time = self.stand_at.is_none_or(|at| at <= now);
        matches!(self.state, State::Standing) && self.connected && is_time
    }

    fn hurry(&mut self, now: Instant) {
        if self.may_stand(now) {
            self.hurried = 0;
            self.wait_for_try(now);
        }
    }

    fn wait_for_try(&mut self, now: Instant) {
        let pause = HURRIED_PAUSES.get(self.hurried).unwrap_or(&TRY_PAUSE);
        self.hurried = self.hurried.saturating_add(1);
        self.deadline = Some(now + *pause);
    }

    fn tried(&mut self, tried: Tried, now: Instant, todo: &mut Vec<Action>) {
        match (&self.state, tried) {
            (State::Standing, Tried::Ours) => {
                self.state = State::Head(Head::Looking);
                self.claims_freed = false;
                todo.push(Action::Look);
            }
            (State::Standing, Tried::Held) => self.wait_for_try(now),
            _ => {}
        }
    }

    fn stand_back(&mut self, now: Instant, todo: &mut Vec<Action>) {
        let pause = self.drive_pauses.next_pause();
        match self.head() {
            None if matches!(self.state, State::Standing) => self.stand_later(pause, now, todo),
            None | Some(Head::Closing(_)) => {}
            Some(Head::Looking) => {
                todo.push(Action::FreeHead);
                self.stand_later(pause, now, todo);
            }
            Some(_) => {
                self.stand_at = Some(now + pause);
                self.close(Then::Stand, now, todo);
            }
        }
    }

    fn run(&mut self, todo: &mut Vec<Action>) {
        (self.state, self.deadline, self.publish_at) = (State::Working, None, None);
        todo.push(Action::Run);
    }

    // The result.

    fn publish(&mut self, now: Instant, todo: &mut Vec<Action>) {
        let State::Publishing(publication) = &self.state else {
            return;
        };
        match self.publish_at.filter(|at| *at > now) {
            _ if !self.connected => {}
            Some(at) => self.deadline = Some(at),
            None => todo.push(Action::Publish(publication.result.clone())),
        }
    }

    fn published(&mut self, subscribers: Subscribers, now: Instant, todo: &mut Vec<Action>) {
        let State::Publishing(publication) = &mut self.state else {
            return;
        };
        let next = publication.published(subscribers, self.insist, now);
        todo.extend(next.warning.map(Action::Warn));
        self.deadline = next.again_at;
        if next.again_at.is_some() {
            return;
        }
        let after = publication.result.after;
        todo.push(Action::Remove);
        match after == AfterResult::WaitOn && !self.stopping {
            true => self.stand(now, todo),
            false => self.leave(now, todo),
        }
    }

    // The end.

    fn leave(&mut self, now: Instant, todo: &mut Vec<Action>) {
        if !self.connected {
            return self.go(todo);
        }
        self.state = State::Leaving;
        self.deadline = Some(now + LEAVE_WAIT);
        todo.push(Action::Disconnect);
    }

    fn go(&mut self, todo: &mut Vec<Action>) {
        (self.state, self.deadline, self.stop_at) = (State::Gone, None, None);
        todo.push(Action::Exit);
    }

    fn stop(&mut self, grace: Duration, now: Instant, todo: &mut Vec<Action>) {
        self.stopping = true;
        match self.state {
            State::Standing => self.leave(now, todo),
            State::Head(Head::Confirming | Head::Closing(Then::Run)) => {}
            State::Head(Head::Connecting | Head::Looking) => {
                todo.extend([Action::AbandonHead, Action::FreeHead]);
                self.leave(now, todo);
            }
            State::Head(_) => self.close(Then::Leave, now, todo),
            // the worker interrupts the job and then gives its claim back
            State::Working | State::Leaving | State::Gone => {}
            State::Publishing(_) => self.stop_at = Some(now + grace),
        }
    }

    fn expired(&mut self, now: Instant, todo: &mut Vec<Action>) {
        if self.stop_at.is_some_and(|at| at <= now) {
            // the result is in the claim: the next head publishes it
            self.stop_at = None;
            return self.leave(now, todo);
        }
        if self.deadline.is_none_or(|at| at > now) {
            return;
        }
        self.deadline = None;
        match self.state {
            State::Standing => self.stand(now, todo),
            State::Head(Head::Waiting { ready: true }) => todo.push(Action::Look),
            // the broker does not answer
            State::Head(_) => self.head_ended(now, todo),
            State::Publishing(_) => self.publish(now, todo),
            State::Leaving => self.go(todo),
            State::Working | State::Gone => {}
        }
    }
}

#[cfg(test)]
mod tests;

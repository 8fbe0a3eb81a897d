//! A result on its way to the broker: published until the broker has it, and where that is promised, until a client is
//! subscribed to it.

use super::ResultMessage;
use crate::backoff::Backoff;
use crate::mqtt::Subscribers;
use std::time::{Duration, Instant};

/// Pause before a result that the broker did not take is published again; it doubles from the first to the last.
const FIRST_RETRY_PAUSE: Duration = Duration::from_secs(1);
const LAST_RETRY_PAUSE: Duration = Duration::from_secs(30);

/// Pause before a result that no client has subscribed to is published again; it doubles from the first to the last.
const FIRST_REPUBLISH_PAUSE: Duration = Duration::from_millis(500);
const LAST_REPUBLISH_PAUSE: Duration = Duration::from_secs(5);

/// How long a result is published again while no client is subscribed to it (docs/reference.md, "Delivery").
const REPUBLISH_LIMIT: Duration = Duration::from_secs(60);

/// After a lost session over MQTT 3.1.1, which does not tell whether a client is subscribed: the time that a controller gets
/// to subscribe again.
pub const RESUBSCRIBE_WAIT: Duration = Duration::from_secs(2);

/// A result on its way to the broker.
#[derive(Clone, Debug)]
pub struct Publication {
    pub result: ResultMessage,
    no_subscriber: Option<NoSubscriber>,
    retry: Backoff,
}

/// The time in which no client was subscribed to a result.
#[derive(Clone, Debug)]
struct NoSubscriber {
    since: Instant,
    backoff: Backoff,
}

/// What follows when the broker has the result.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Next {
    /// When to publish it again; `None` where it has arrived.
    pub again_at: Option<Instant>,
    /// What to tell the operator.
    pub warning: Option<&'static str>,
}

impl Publication {
    pub fn new(result: ResultMessage) -> Self {
        Self {
            result,
            no_subscriber: None,
            retry: Backoff::new(FIRST_RETRY_PAUSE, LAST_RETRY_PAUSE),
        }
    }

    /// The broker does not take it for now. How long to pause before it is published again.
    pub fn not_taken(&mut self) -> Duration {
        self.retry.next_pause()
    }

    /// The broker has it. `reconnected`: our connection was lost meanwhile, and so may be that of its controller.
    pub fn published(&mut self, subscribers: Subscribers, reconnected: bool, now: Instant) -> Next {
        let waits = self.result.wait_for_subscriber || reconnected;
        if subscribers != Subscribers::None || !waits {
            return Next {
                again_at: None,
                warning: None,
            };
        }
        let is_new = self.no_subscriber.is_none();
        let waiting = self.no_subscriber.get_or_insert_with(|| NoSubscriber {
            since: now,
            backoff: Backoff::new(FIRST_REPUBLISH_PAUSE, LAST_REPUBLISH_PAUSE),
        });
        if now.duration_since(waiting.since) >= REPUBLISH_LIMIT {
            return Next {
                again_at: None,
                warning: Some(
                    "nobody has subscribed to the result for 60 s: it counts as delivered",
                ),
            };
        }
        Next {
            again_at: Some(now + waiting.backoff.next_pause()),
            warning: is_new.then_some(
                "nobody is subscribed to the result, and its controller may be on its way back: \
                 publishing it again for 60 s",
            ),
        }
    }
}

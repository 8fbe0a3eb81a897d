//! A result on its way to the broker: published until the broker has it, and where that is promised, until a client is
//! subscribed to it.

use super::ResultMessage;
use crate::backoff::Backoff;
use std::time::{Duration, Instant};

/// Pause before a result that the broker did not take, or that no client has subscribed to, is published again; it doubles from
/// the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// How long a result is published again while no client is subscribed to it (docs/reference.md, "Delivery").
const REPUBLISH_LIMIT: Duration = Duration::from_secs(60);

/// After a lost session over MQTT 3.1.1, which does not tell whether a client is subscribed: the time that a controller gets
/// to subscribe again.
pub const RESUBSCRIBE_WAIT: Duration = Duration::from_secs(2);

/// A result on its way to the broker.
#[derive(Clone, Debug)]
pub struct Publication {
    pub result: ResultMessage,
    /// Since when no client is subscribed to it.
    unheard_since: Option<Instant>,
    pub backoff: Backoff,
}

impl Publication {
    pub fn new(result: ResultMessage) -> Self {
        Self {
            result,
            unheard_since: None,
            backoff: Backoff::new(FIRST_PAUSE, LAST_PAUSE),
        }
    }

    /// The broker has it. When to publish it again, unless it has arrived. `reconnected`: our connection was lost meanwhile, and so
    /// may be that of its controller.
    pub fn published(
        &mut self,
        has_subscriber: bool,
        reconnected: bool,
        now: Instant,
    ) -> Option<Instant> {
        if has_subscriber || !(self.result.wait_for_subscriber || reconnected) {
            return None;
        }
        match self.unheard_since {
            None => {
                log::warn!(
                    "nobody is subscribed to the result, and its controller may be on its way back: publishing it again for 60 s"
                );
                self.unheard_since = Some(now);
            }
            Some(since) if now.duration_since(since) >= REPUBLISH_LIMIT => {
                log::warn!("nobody has subscribed to the result for 60 s: it counts as delivered");
                return None;
            }
            Some(_) => {}
        }
        Some(now + self.backoff.next_pause())
    }
}

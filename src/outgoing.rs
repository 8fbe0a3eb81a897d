//! What the worker says, on whatever connection there is: results, status, presence, rejections.

use crate::contract::{Document, JobId, Rejection, Topics, rejection_notice, shorten};
use crate::mqtt::{Connection, Message, Retention};
use crate::presence::Presence;
use std::sync::Arc;

/// After how many connections that were lost while the same result was being published the broker is taken for one that
/// does not tell its limit, and what that limit is then, in bytes of payload: less than any broker has.
const LOSSES_BEFORE_SHORT_FORM: u32 = 3;
const ASSUMED_LIMIT: usize = 1024;

/// Where a rejection goes, and what it says there.
pub fn rejection(
    topics: &Topics,
    worker: &str,
    rejection: Rejection,
    message: &Message,
) -> (String, Vec<u8>) {
    match rejection.id {
        Some(id) => {
            let topic = topics.result(&id);
            let document = Document::rejected(id, rejection.work_dir, worker, rejection.error);
            (topic, document.to_json())
        }
        None => (
            topics.rejected.clone(),
            rejection_notice(worker, &rejection.error, &message.payload),
        ),
    }
}

/// Says things, where there is a connection. What must be said is said again on the next one.
pub struct Outgoing {
    topics: Topics,
    worker: String,
    presence: Presence,
    connection: Option<Arc<dyn Connection>>,
    /// How many connections have been lost with a result that the broker has not acknowledged; `None` where there is none.
    losses: Option<u32>,
}

impl Outgoing {
    pub fn new(topics: Topics, worker: &str, presence: Presence) -> Self {
        Self {
            topics,
            worker: worker.to_owned(),
            presence,
            connection: None,
            losses: None,
        }
    }

    /// What to say where the broker denies a result.
    pub fn result_denied(&self) -> String {
        let rejected = &self.topics.rejected;
        let root = rejected.trim_end_matches("rejected");
        format!("the broker denies our result: we may not write to {root}results/+ or {rejected}")
    }

    /// There is a new connection.
    pub fn connected(&mut self, connection: Arc<dyn Connection>) {
        self.connection = Some(connection);
        self.presence.forget();
    }

    /// The connection is gone.
    pub fn lost(&mut self) {
        self.connection = None;
        self.losses = self.losses.map(|losses| losses + 1);
    }

    /// The broker has acknowledged the result.
    pub fn published(&mut self) {
        self.losses = None;
    }

    /// Publishes a result or a notice, in its short form where the broker does not take it whole.
    pub fn publish(&mut self, topic: &str, payload: Vec<u8>) {
        let Some(connection) = &self.connection else {
            return;
        };
        let losses = *self.losses.get_or_insert(0);
        let mut limit = connection.payload_limit(topic);
        if losses >= LOSSES_BEFORE_SHORT_FORM {
            limit = limit.min(ASSUMED_LIMIT);
        }
        if payload.len() > limit {
            log::warn!(
                "{topic}: {} bytes are more than the broker takes; the short form is published",
                payload.len()
            );
        }
        connection.publish(topic, shorten(payload, limit), Retention::None);
    }

    /// Announces the status document of a running job.
    pub fn announce_status(&self, id: &JobId, document: Vec<u8>) {
        self.announce(&self.topics.status(id), document);
    }

    /// Announces the rejection of a request that came at QoS 0: at QoS 0, too, and only if the connection has room for it. A
    /// flood of them must not fill our memory.
    pub fn announce_rejection(&self, rejection: Rejection, message: &Message) {
        log::warn!("request rejected: {}", rejection.error);
        let (topic, payload) = self.rejection(rejection, message);
        self.announce(&topic, payload);
    }

    /// Where a rejection goes, and what it says there.
    pub fn rejection(&self, rejection: Rejection, message: &Message) -> (String, Vec<u8>) {
        self::rejection(&self.topics, &self.worker, rejection, message)
    }

    fn announce(&self, topic: &str, payload: Vec<u8>) {
        self.with_connection(|connection| {
            let payload = shorten(payload, connection.payload_limit(topic));
            connection.announce(topic, payload, Retention::None);
        });
    }

    /// See [`Presence::belongs_to`].
    pub fn belongs_to(&mut self, pool: &str) -> bool {
        self.presence.belongs_to(pool)
    }

    /// Shows whether we have a job, and what that waits for.
    pub fn show_presence(&mut self, job: Option<&JobId>, waiting_for: Option<&str>) {
        if let Some(document) = self.presence.show(job, waiting_for) {
            self.with_connection(|c| c.announce(&self.topics.presence, document, Retention::Kept));
        }
    }

    /// The presence of a worker that has this job, or none, for a head's own connection, and where it goes.
    pub fn say_presence(&mut self, job: Option<&JobId>) -> (String, Vec<u8>) {
        (self.topics.presence.clone(), self.presence.say(job))
    }

    /// Tells of a claim of the pool that cannot be read.
    pub fn tell_damaged(&self, error: &str) {
        let notice = rejection_notice(&self.worker, error, b"");
        self.announce(&self.topics.rejected, notice);
    }

    /// Acknowledges a request.
    pub fn acknowledge(&self, packet_id: u16) {
        self.with_connection(|connection| connection.acknowledge(packet_id));
    }

    /// Gives up subscriptions.
    pub fn unsubscribe(&self, filters: &[String]) {
        for filter in filters {
            self.with_connection(|connection| connection.unsubscribe(filter));
        }
    }

    /// Ends the connection in order. No last will is published then: we say it ourselves.
    pub fn disconnect(&self) {
        self.with_connection(|connection| {
            let retention = self.presence.offline_retention();
            connection.announce(&self.topics.presence, self.presence.offline(), retention);
            connection.disconnect();
        });
    }

    fn with_connection(&self, act: impl FnOnce(&dyn Connection)) {
        if let Some(connection) = &self.connection {
            act(&**connection);
        }
    }
}

//! Everything that the worker publishes: results, status documents, presence, rejections.

use crate::contract::{
    JobId, Rejection, Request, RequestOrigin, Topics, fnv_1a, now, rejection_notice,
};
use crate::mqtt::{Connection, LastWill, Message, Retention};
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How long the broker keeps it that a member of a pool is offline: a day.
const OFFLINE_SECONDS: u32 = 86_400;

/// Why a retained request is rejected.
pub const RETAINED: &str =
    "the request is retained, and would run at every start; publish it without the retain flag";

/// Why a request is rejected that came at QoS 0 while the worker has a job.
pub const AT_QOS_0: &str = "published at QoS 0 while the worker had a job; publish at QoS 1, and the broker keeps it until its turn";

/// Reads the request that a message brings.
///
/// # Errors
/// A [`Rejection`]: the message is retained, came on a topic that is not served, or is no usable request.
pub fn read_request(message: &Message, topics: &Topics) -> Result<Request, Rejection> {
    let unanswered = |error: String| Rejection {
        id: None,
        work_dir: None,
        error,
    };
    if message.retained {
        return Err(unanswered(RETAINED.to_owned()));
    }
    if message.topic != topics.pending {
        return Err(unanswered(format!(
            "the request came on {}, which this worker does not serve; publish it on {}",
            message.topic, topics.pending
        )));
    }
    Request::parse(&message.payload)
}

/// Where a request of the worker's own queue comes from. Its identity, which no other request has in common with it, is the session
/// that it came through, its packet identifier there, and its text; `None` where the broker does not tell enough.
///
/// A redelivery keeps its packet identifier (MQTT 5, section 4.4), but each session counts them anew. The MQTT 5 Subscription
/// Identifier stands for the session: it is drawn at random for each SUBSCRIBE, and the broker marks with it what it queues for that
/// subscription. The text only makes a coincidence rarer still. Packet identifier 1 tells nothing. With one request in flight, it is
/// that of every request where a broker takes the lowest free one (HiveMQ) or numbers each connection anew (RabbitMQ).
pub fn queue_origin(message: &Message, worker: &str) -> RequestOrigin {
    let packet_id = message.packet_id.filter(|packet_id| *packet_id != 1);
    let place = message.subscription.zip(packet_id);
    let text = fnv_1a(&message.payload);
    RequestOrigin::Queue {
        worker: worker.to_owned(),
        redelivered: message.redelivered,
        identity: place.map(|(session, id)| format!("{worker} {session} {id} {text:016x}")),
    }
}

/// The pool in a document on presence.
#[derive(Serialize)]
struct Pool<'a> {
    name: &'a str,
}

/// The retained document on `jobs/workers/{workerId}` (docs/reference.md, "Topics").
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Presence<'a> {
    worker: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<&'a JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_for: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<Pool<'a>>,
    since: &'a str,
    version: &'static str,
}

/// Publishes on the latest connection; what is asked of one that broke vanishes. What must be said is said again on the next one.
pub struct Messages {
    topics: Topics,
    worker: String,
    pool: Option<String>,
    /// Since when the worker is idle, or has the job of `job`.
    since: String,
    job: Option<String>,
    /// What was shown on this connection: the job, if there is one, and what is waited for.
    shown: Option<(Option<String>, Option<String>)>,
    connection: Option<Arc<Connection>>,
}

impl Messages {
    pub fn new(topics: Topics, worker: &str, pool: Option<String>) -> Self {
        Self {
            topics,
            worker: worker.to_owned(),
            pool,
            since: now(),
            job: None,
            shown: None,
            connection: None,
        }
    }

    /// There is a new connection. Nothing has been said on it yet: the broker may have published our last will.
    pub fn connected(&mut self, connection: Arc<Connection>) {
        (self.connection, self.shown) = (Some(connection), None);
    }

    /// Publishes a result or a notice, in its short form where the broker does not take it whole.
    pub fn publish(&self, topic: &str, payload: Vec<u8>) {
        let Some(connection) = &self.connection else {
            return;
        };
        let limit = connection.payload_limit(topic);
        if payload.len() > limit {
            log::warn!(
                "{topic}: {} bytes are more than the broker takes; the short form is published",
                payload.len()
            );
        }
        connection.publish(topic, shorten(payload, limit));
    }

    /// Announces the status document of a running job.
    pub fn announce_status(&self, id: &JobId, document: Vec<u8>) {
        self.announce(&self.topics.status(id), document);
    }

    /// Announces on `jobs/rejected` what has no result, at QoS 0, and only if the connection has room for it: a flood of it must not fill
    /// our memory.
    pub fn announce_rejection(&self, error: &str, payload: &[u8]) {
        let notice = rejection_notice(&self.worker, error, payload);
        self.announce(&self.topics.rejected, notice);
    }

    fn announce(&self, topic: &str, payload: Vec<u8>) {
        if let Some(connection) = &self.connection {
            let payload = shorten(payload, connection.payload_limit(topic));
            connection.announce(topic, payload, Retention::None);
        }
    }

    /// Shows whether we have a job, and what we wait for. Each state is said once on each connection.
    pub fn show_presence(&mut self, job: Option<&JobId>, waiting_for: Option<&str>) {
        let Some(connection) = self.connection.clone() else {
            return;
        };
        let name = job.map(|id| id.as_str().to_owned());
        let shown = Some((name.clone(), waiting_for.map(str::to_owned)));
        if self.shown == shown {
            return;
        }
        if self.job != name {
            self.since = now();
        }
        (self.job, self.shown) = (name, shown);
        let state = if job.is_some() { "busy" } else { "idle" };
        let document = self.presence(state, job, waiting_for, &self.since);
        connection.announce(&self.topics.presence, document, Retention::Kept);
    }

    /// What is true when we are gone. Members of a pool come and go, and each has a name of its own, so that is not worth knowing for ever.
    pub fn offline(&self) -> LastWill {
        LastWill {
            topic: self.topics.presence.clone(),
            payload: self.presence("offline", None, None, &now()),
            retention: match self.pool {
                Some(_) => Retention::KeptFor(OFFLINE_SECONDS),
                None => Retention::Kept,
            },
        }
    }

    fn presence(
        &self,
        state: &'static str,
        job: Option<&JobId>,
        waiting_for: Option<&str>,
        since: &str,
    ) -> Vec<u8> {
        let presence = Presence {
            worker: &self.worker,
            state,
            job,
            waiting_for,
            pool: self.pool.as_deref().map(|name| Pool { name }),
            since,
            version: env!("CARGO_PKG_VERSION"),
        };
        serde_json::to_vec(&presence).unwrap_or_default() // strings always serialise
    }

    /// Acknowledges a request.
    pub fn acknowledge(&self, packet_id: u16) {
        if let Some(connection) = &self.connection {
            connection.acknowledge(packet_id);
        }
    }

    /// Ends the connection in order. No last will is published then: we say it ourselves.
    pub fn disconnect(&self) {
        if let Some(connection) = &self.connection {
            let will = self.offline();
            connection.announce(&will.topic, will.payload, will.retention);
            connection.disconnect();
        }
    }
}

/// The fields that keep their place for ever.
const FIRST: [&str; 4] = ["id", "status", "logFile", "exitCode"];

/// How much of a text a short form keeps, in characters.
const KEPT_CHARACTERS: usize = 200;

/// A document of ours (a status document, a notice on `jobs/rejected`) that has at most `limit` bytes, else its short form: without
/// `steps` and `origin`, with the start of long sentences, without other long texts. `"truncated": true` says so.
fn shorten(document: Vec<u8>, limit: usize) -> Vec<u8> {
    if document.len() <= limit {
        return document;
    }
    let Ok(fields) = serde_json::from_slice::<BTreeMap<String, Box<RawValue>>>(&document) else {
        return document;
    };
    let others = fields.keys().map(String::as_str);
    let others = others.filter(|name| !FIRST.contains(name));
    let mut short = "{".to_owned();
    for name in FIRST.into_iter().chain(others) {
        let Some(raw) = fields.get(name) else {
            continue;
        };
        let text = serde_json::from_slice::<String>(raw.get().as_bytes()).unwrap_or_default();
        let cut = text.char_indices().nth(KEPT_CHARACTERS);
        let value = match (name, cut) {
            ("steps" | "origin", _) => continue,
            ("error" | "warning", Some((end, _))) => quoted(&format!("{}…", &text[..end])),
            ("logFile", Some(_)) => "null".to_owned(),
            (_, Some(_)) => continue,
            (_, None) => raw.get().to_owned(),
        };
        short += &format!("{}:{value},", quoted(name));
    }
    (short + r#""truncated":true}"#).into_bytes()
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default() // a string always serialises
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn an_identity_differs_with_each_of_its_parts() {
        let identity = |worker: &str, subscription, packet_id, text: &'static [u8]| {
            let message = Message {
                topic: "jobs/pending".to_owned(),
                payload: text.into(),
                packet_id,
                redelivered: false,
                subscription,
                retained: false,
            };
            let origin = queue_origin(&message, worker);
            origin.identity().map(str::to_owned)
        };
        let ours = identity("w", Some(5), Some(7), b"a");
        let known = ours.as_deref();
        assert_eq!(known, Some("w 5 7 af63dc4c8601ec8c"), "in every build");
        for other in [
            identity("v", Some(5), Some(7), b"a"),
            identity("w", Some(6), Some(7), b"a"),
            identity("w", Some(5), Some(8), b"a"),
            identity("w", Some(5), Some(7), b"b"),
        ] {
            assert!(other.is_some() && other != ours);
        }
        for (subscription, packet_id) in [(None, Some(7)), (Some(5), None), (Some(5), Some(1))] {
            assert_eq!(identity("w", subscription, packet_id, b"a"), None);
        }
    }

    #[test]
    fn the_short_form_keeps_what_a_controller_needs() {
        let document = json!({
            "id": 7.50, "status": "failed", "logFile": "/data/a/job.log", "exitCode": 1, "error": "long ".repeat(100),
            "worker": "w", "workDir": "d".repeat(201), "origin": "o", "steps": [{ "status": "skipped" }],
        });
        let short = |limit| shorten(document.to_string().into_bytes(), limit);
        assert_eq!(short(10_000), document.to_string().into_bytes());
        let error = format!("{}…", "long ".repeat(40));
        let expected = format!(
            r#"{{"id":7.5,"status":"failed","logFile":"/data/a/job.log","exitCode":1,"error":"{error}","worker":"w","truncated":true}}"#
        );
        assert_eq!(String::from_utf8(short(600)).unwrap(), expected);
        let long = json!({ "id": "a", "logFile": "/".repeat(201) });
        let short = shorten(long.to_string().into_bytes(), 1);
        assert_eq!(short, br#"{"id":"a","logFile":null,"truncated":true}"#);
    }

    #[test]
    fn a_notice_loses_the_payload_and_what_is_no_document_stays() {
        let notice = json!({ "worker": "w", "payload": "p".repeat(1000) });
        let short = shorten(notice.to_string().into_bytes(), 100);
        assert_eq!(short, br#"{"worker":"w","truncated":true}"#);
        assert_eq!(shorten(b"garbage".to_vec(), 1), b"garbage");
        // a later version, or another hand, may have named a field so
        let odd = json!({ "\u{7f}\"": 1, "steps": [] });
        let short = shorten(odd.to_string().into_bytes(), 1);
        let expected = json!({ "\u{7f}\"": 1, "truncated": true });
        assert_eq!(serde_json::from_slice::<Value>(&short).unwrap(), expected);
        let digits = br#"{"id":1.0,"steps":[]}"#;
        assert_eq!(
            shorten(digits.to_vec(), 20),
            br#"{"id":1.0,"truncated":true}"#
        );
    }
}

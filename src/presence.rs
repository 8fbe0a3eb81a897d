//! The retained document on `jobs/workers/{workerId}` (docs/reference.md, "Topics").

use crate::contract::{JobId, Timestamp};
use crate::mqtt::Retention;
use serde::{Deserialize, Serialize};

/// How long the broker keeps it that a member of a pool is offline: a day.
const OFFLINE_SECONDS: u32 = 86_400;

/// What was last said of this worker.
pub struct Presence {
    worker: String,
    pool: Option<Pool>,
    since: Timestamp,
    /// What was shown on this connection: the job, if there is one, and what that waits for.
    shown: Option<(Option<String>, Option<String>)>,
    /// The same over all connections.
    current: Option<String>,
}

/// The pool of a worker.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Pool {
    pub name: String,
    /// Tells pools of one name apart.
    pub id: String,
}

/// What a member of a pool reads in another worker's presence.
#[derive(Debug, Deserialize)]
pub struct Seen {
    pub worker: String,
    pub state: String,
    #[serde(default)]
    pub pool: Option<Pool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    worker: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<&'a JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_for: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<&'a Pool>,
    since: Timestamp,
    version: &'static str,
}

impl Presence {
    pub fn new(worker: &str, pool: Option<Pool>) -> Self {
        Self {
            worker: worker.to_owned(),
            pool,
            since: Timestamp::now(),
            shown: None,
            current: None,
        }
    }

    /// Says that the pool has this id, if it had another. Tells whether that is new.
    pub fn belongs_to(&mut self, id: &str) -> bool {
        match &mut self.pool {
            Some(pool) if pool.id != id => {
                id.clone_into(&mut pool.id);
                self.shown = None;
                true
            }
            _ => false,
        }
    }

    /// On a new connection nothing has been said yet: the broker may have published our last will.
    pub fn forget(&mut self) {
        self.shown = None;
    }

    /// What to publish for a worker that has this job, or none, and still waits for something; nothing where that has
    /// been said.
    pub fn show(&mut self, job: Option<&JobId>, waiting_for: Option<&str>) -> Option<Vec<u8>> {
        let name = job.map(|id| id.as_str().to_owned());
        let shown = Some((name.clone(), waiting_for.map(str::to_owned)));
        if self.shown == shown {
            return None;
        }
        if self.current != name {
            self.since = Timestamp::now();
        }
        (self.current, self.shown) = (name, shown);
        let state = if job.is_some() { "busy" } else { "idle" };
        Some(self.document(state, job, waiting_for, self.since))
    }

    /// The same at any rate, as being said now.
    pub fn say(&mut self, job: Option<&JobId>) -> Vec<u8> {
        self.shown = None;
        self.show(job, None).unwrap_or_default() // it is not shown
    }

    /// For how long it is worth knowing that we are gone: members of a pool come and go, and each has a name of its own.
    pub fn offline_retention(&self) -> Retention {
        match self.pool {
            Some(_) => Retention::KeptFor(OFFLINE_SECONDS),
            None => Retention::Kept,
        }
    }

    /// What is true when we are gone.
    pub fn offline(&self) -> Vec<u8> {
        self.document("offline", None, None, Timestamp::now())
    }

    fn document(
        &self,
        state: &'static str,
        job: Option<&JobId>,
        waiting_for: Option<&str>,
        since: Timestamp,
    ) -> Vec<u8> {
        let document = Document {
            worker: &self.worker,
            state,
            job,
            waiting_for,
            pool: self.pool.as_ref(),
            since,
            version: env!("CARGO_PKG_VERSION"),
        };
        serde_json::to_vec(&document).unwrap_or_default() // strings always serialise
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_is_said_once_on_each_connection() {
        let said = |bytes: Option<Vec<u8>>| {
            bytes.map(|b| serde_json::from_slice::<serde_json::Value>(&b).unwrap())
        };
        let mut presence = Presence::new("w", None);
        let job = JobId::from_text("a").unwrap();
        let idle = said(presence.show(None, None)).unwrap();
        assert_eq!(
            (
                idle["state"].as_str(),
                idle["worker"].as_str(),
                idle.get("job")
            ),
            (Some("idle"), Some("w"), None)
        );
        assert!(presence.show(None, None).is_none());
        let busy = said(presence.show(Some(&job), None)).unwrap();
        assert_eq!(
            (busy["state"].as_str(), busy["job"].as_str()),
            (Some("busy"), Some("a"))
        );
        assert!(presence.show(Some(&job), None).is_none());
        presence.forget();
        let again = said(presence.show(Some(&job), None)).unwrap();
        assert_eq!(
            again["since"], busy["since"],
            "it has been busy since then, connected or not"
        );
    }
}

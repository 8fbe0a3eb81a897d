//! `pool.json`: what all members of a pool must agree on.

use crate::config::PayloadSteps;
use serde::{Deserialize, Serialize};
use std::hash::{BuildHasher, RandomState};
use std::path::Path;

pub const NAME: &str = "pool.json";
const VERSION: u32 = 1;

/// What all members must agree on, in `pool.json`.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    version: u32,
    /// Random: it tells pools of one name apart.
    pub id: String,
    path: String,
    topic_root: String,
    payload_steps: String,
}

impl Description {
    /// That of a pool in the directory `path`.
    pub fn new(path: &Path, topic_root: &str, payload_steps: PayloadSteps) -> Self {
        Self {
            version: VERSION,
            id: random_id(),
            path: path.to_string_lossy().into_owned(),
            topic_root: topic_root.to_owned(),
            payload_steps: match payload_steps {
                PayloadSteps::Allow => "allow".to_owned(),
                PayloadSteps::Deny => "deny".to_owned(),
            },
        }
    }

    /// Whether a member with this description may work in the pool that has the other.
    ///
    /// # Errors
    /// A sentence that says what differs.
    pub fn agrees_with(&self, theirs: &Self) -> Result<(), String> {
        if self.version != theirs.version {
            return Err(format!(
                "the pool is of version {}, and this program knows {VERSION}",
                theirs.version
            ));
        }
        let fields = [
            (
                "its directory (JOB_ROOT and JOB_POOL)",
                &self.path,
                &theirs.path,
            ),
            ("MQTT_TOPIC_ROOT", &self.topic_root, &theirs.topic_root),
            (
                "JOB_PAYLOAD_STEPS",
                &self.payload_steps,
                &theirs.payload_steps,
            ),
        ];
        match fields.into_iter().find(|(_, ours, theirs)| ours != theirs) {
            None => Ok(()),
            Some((what, ours, theirs)) => Err(format!(
                "the pool has {what} {theirs:?}, and this member has {ours:?}: all members need the same"
            )),
        }
    }
}

fn random_id() -> String {
    // each of these is seeded with what the system calls random
    let random = || RandomState::new().hash_one(());
    format!("{:016x}{:016x}", random(), random())
}

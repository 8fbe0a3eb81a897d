//! Members of another pool that has the name of ours, and those of our own whose directory was removed: whoever makes it anew gives
//! it another id.

use super::{Meaning, Member};
use crate::mqtt::Message;
use crate::queue::pool;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a member that was there before us may take to find that our directory is its own.
const PATIENCE: Duration = Duration::from_secs(5);

/// Members with another id that were there before us.
#[derive(Default)]
pub struct Foreigners {
    by_worker: BTreeMap<String, Foreigner>,
    /// Whether one who came later was told of.
    has_told: bool,
}

struct Foreigner {
    id: String,
    topic: String,
    seen: Instant,
}

/// Whether there is another pool.
pub enum Verdict {
    Nobody,
    /// They may still find that it is the same one.
    Unsure,
    /// The member on this topic stays with its id.
    Stays(String),
}

impl Foreigners {
    /// This worker is gone, or belongs to our pool.
    pub fn forget(&mut self, worker: &str) {
        self.by_worker.remove(worker);
    }

    pub fn verdict(&self) -> Verdict {
        let mut all = self.by_worker.values();
        match all.find(|foreigner| foreigner.seen.elapsed() >= PATIENCE) {
            Some(foreigner) => Verdict::Stays(foreigner.topic.clone()),
            None if self.by_worker.is_empty() => Verdict::Nobody,
            None => Verdict::Unsure,
        }
    }
}

impl Member {
    /// What it means that a worker belongs to a pool of our name with another id.
    pub(super) fn understand_foreigner(
        &mut self,
        worker: String,
        id: String,
        message: &Message,
    ) -> Meaning {
        // a head looks at its directory at the end of its turn
        if !self.turn_is_ours() {
            if let Err(error) = self.spool.refresh() {
                log::warn!("the pool's directory: {error}");
            }
            if id == self.spool.id() {
                let foreigners = &mut self.foreigners.by_worker;
                foreigners.retain(|_, foreigner| foreigner.id != id);
                return Meaning::Moved;
            }
        }
        // whoever was there before us is right. Who comes later, or only says so, stops nobody
        if message.retained && self.connections == 1 {
            let topic = message.topic.clone();
            let seen = Instant::now();
            let foreigner = Foreigner { id, topic, seen };
            self.foreigners.by_worker.insert(worker, foreigner);
            return Meaning::Input(pool::Input::StandBack);
        }
        match std::mem::replace(&mut self.foreigners.has_told, true) {
            true => Meaning::Nothing,
            false => Meaning::ForeignPool,
        }
    }
}

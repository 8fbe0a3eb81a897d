//! The connections of a worker: its own, and in a pool that of the head.

use crate::config::{Config, PoolConfig};
use crate::mqtt::{self, LastWill, Life, Protocol, Session, Settings, Subscription};
use crate::presence::Presence;
use crate::pulse::Pulse;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The longest silence of a waiting head before it asks the broker whether it is there: others wait for the head.
const HEAD_KEEP_ALIVE: Duration = Duration::from_secs(5);

/// What comes from the brokers' threads.
pub enum Heard {
    /// On the worker's own connection.
    Own(mqtt::Event),
    /// On the connection of the head, in this turn.
    Head(u64, mqtt::Event),
    /// A head of this host may have left.
    HeadFree,
}

/// The worker's own connection: with the session that is its queue, or in a pool with a session that ends with it.
pub fn own_link(config: &Config, presence: &Presence, pulse: &Pulse) -> Settings {
    let Config {
        worker_id, topics, ..
    } = config;
    let (client_id, session, subscriptions) = match config.pool {
        None => (
            worker_id.clone(),
            Session::Kept,
            vec![
                Subscription::Requests(topics.pending.clone()),
                Subscription::Cancels(topics.cancel_filter.clone()),
            ],
        ),
        Some(_) => {
            let random = RandomState::new().hash_one(()) as u32;
            let client_id = format!("{worker_id}-{random:08x}");
            let subscriptions = vec![
                Subscription::Cancels(topics.cancel_filter.clone()),
                Subscription::Presence(topics.presence_filter.clone()),
            ];
            (client_id, Session::Fleeting, subscriptions)
        }
    };
    Settings {
        broker: config.broker.clone(),
        client_id,
        session,
        life: Life::Lasting,
        subscriptions,
        last_will: Some(LastWill {
            topic: topics.presence.clone(),
            payload: presence.offline(),
            retention: presence.offline_retention(),
        }),
        // without a pool nobody else can do what this worker is stuck in
        pulse: config.pool.is_some().then(|| pulse.clone()),
    }
}

/// The connection of a pool's head, with the session that is the queue, in the version that the broker is known to speak.
pub fn head_link(
    config: &Config,
    pool: &PoolConfig,
    protocol: Option<Protocol>,
    pulse: &Pulse,
) -> Settings {
    let mut broker = config.broker.clone();
    broker.keep_alive = broker.keep_alive.min(HEAD_KEEP_ALIVE);
    broker.protocol = broker.protocol.or(protocol);
    Settings {
        broker,
        client_id: pool.name.clone(),
        session: Session::Kept,
        life: Life::Once,
        subscriptions: vec![Subscription::Requests(config.topics.pending.clone())],
        last_will: None,
        pulse: Some(pulse.clone()),
    }
}

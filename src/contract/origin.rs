//! Where a request came from, and what tells it from every other request.

/// Where a request came from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RequestOrigin {
    /// From a person, by `job-worker run`: it belongs to no request of a queue.
    ByHand,
    /// From a queue.
    Queue {
        /// Whose queue: each worker has its own.
        worker: String,
        /// The broker has sent it before, to whomever (MQTT DUP).
        redelivered: bool,
        /// What no other request has in common with it; `None` where the broker does not tell enough.
        identity: Option<String>,
    },
    /// From a pool, whose drive tells every request from all others.
    Pool {
        /// See [`Self::Queue`].
        redelivered: bool,
        /// What no other request has in common with it.
        identity: String,
        /// How often its claim was taken: the number of the attempt is no less, whatever the directory says.
        taken: u32,
    },
}

impl RequestOrigin {
    /// Whether the broker has sent it before, to whomever.
    pub fn is_redelivered(&self) -> bool {
        match self {
            Self::ByHand => false,
            Self::Queue { redelivered, .. } | Self::Pool { redelivered, .. } => *redelivered,
        }
    }

    /// What no other request has in common with this one, where the broker tells it.
    pub fn identity(&self) -> Option<&str> {
        match self {
            Self::ByHand => None,
            Self::Queue { identity, .. } => identity.as_deref(),
            Self::Pool { identity, .. } => Some(identity),
        }
    }
}

/// The identity of a request: the session that it came through, its packet identifier there, and its text.
///
/// A redelivery keeps its packet identifier (MQTT 5, section 4.4), but each session counts them anew. `subscription` stands
/// for the session: it is the MQTT 5 Subscription Identifier, which is drawn at random for each SUBSCRIBE, and with which the
/// broker marks what it queues for that subscription. The text only makes a coincidence rarer still.
pub fn identity(client_id: &str, subscription: u32, packet_id: u16, text: &[u8]) -> String {
    format!(
        "{client_id} {subscription} {packet_id} {:016x}",
        fnv_1a(text)
    )
}

/// FNV-1a, 64 bits: the same in every build, unlike the hash of the standard library.
pub fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_queue_sends_again_is_redelivered() {
        let from_queue = |redelivered| RequestOrigin::Queue {
            worker: "w".into(),
            redelivered,
            identity: None,
        };
        assert!(from_queue(true).is_redelivered());
        assert!(!from_queue(false).is_redelivered());
        assert!(!RequestOrigin::ByHand.is_redelivered());
    }

    #[test]
    fn an_identity_differs_with_each_of_its_parts() {
        let ours = identity("w", 5, 7, b"a");
        assert_eq!(ours, "w 5 7 af63dc4c8601ec8c", "the same in every build");
        for other in [
            identity("v", 5, 7, b"a"),
            identity("w", 6, 7, b"a"),
            identity("w", 5, 8, b"a"),
            identity("w", 5, 7, b"b"),
        ] {
            assert_ne!(ours, other);
        }
    }
}

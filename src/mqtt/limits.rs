//! What may be sent over one connection, as far as the broker and the thread of the connection have room for it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};

/// The largest packet that MQTT knows, in bytes (MQTT 5, section 2.1.4). A broker that is told a smaller limit drops larger
/// requests in silence, which loses jobs.
pub const MAX_PACKET_BYTES: u32 = 268_435_460;

/// What a PUBLISH holds besides topic and payload, in bytes: its type, its length, the lengths of topic and properties, and
/// the packet identifier (MQTT 5, section 3.3).
const PUBLISH_HEADER_BYTES: usize = 1 + 4 + 2 + 1 + 2;

/// How many messages to send may wait for the connection's thread.
pub const SEND_QUEUE_LENGTH: usize = 100;

/// How many of them may be announcements. The others always find room, so the worker never waits for a broker that has
/// stopped reading.
const MAX_ANNOUNCEMENTS: usize = SEND_QUEUE_LENGTH / 2;

/// What may be sent over one connection, as far as the broker has said.
pub struct Limits {
    /// Maximum Packet Size, in bytes.
    pub packet_bytes: AtomicU32,
    /// Whether a subscription may have an identifier.
    pub subscription_identifiers: AtomicBool,
    /// Announcements that wait to be sent.
    waiting_announcements: AtomicUsize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packet_bytes: MAX_PACKET_BYTES.into(),
            subscription_identifiers: true.into(),
            waiting_announcements: 0.into(),
        }
    }
}

impl Limits {
    /// The largest payload on this topic, in bytes.
    pub fn payload_bytes(&self, topic: &str) -> usize {
        let packet = self.packet_bytes.load(Relaxed) as usize;
        packet.saturating_sub(PUBLISH_HEADER_BYTES + topic.len())
    }

    /// Counts one more waiting announcement, if there is room for it.
    pub fn admit_announcement(&self) -> bool {
        let one_more = |waiting| (waiting < MAX_ANNOUNCEMENTS).then_some(waiting + 1);
        let waiting = &self.waiting_announcements;
        waiting.fetch_update(Relaxed, Relaxed, one_more).is_ok()
    }

    /// One of them was sent.
    pub fn announcement_sent(&self) {
        self.waiting_announcements.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_leave_room_for_what_must_be_said() {
        let limits = Limits::default();
        let admitted = (0..SEND_QUEUE_LENGTH).filter(|_| limits.admit_announcement());
        assert_eq!(admitted.count(), MAX_ANNOUNCEMENTS);
        limits.announcement_sent();
        assert!(limits.admit_announcement());
        assert!(!limits.admit_announcement());
    }

    #[test]
    fn a_packet_holds_topic_header_and_payload() {
        let limits = Limits::default();
        limits.packet_bytes.store(100, Relaxed);
        assert_eq!(limits.payload_bytes("jobs/x"), 100 - 6 - 10);
        assert_eq!(limits.payload_bytes(&"x".repeat(100)), 0);
    }
}

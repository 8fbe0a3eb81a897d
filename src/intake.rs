//! What a message of the queue is: a request that can be run, or one that is rejected, and why.

use crate::contract::{JobId, Rejection, Request, RequestOrigin, Topics};
use crate::mqtt::{Event, Message};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// What may wait for the main thread that came at QoS 0, in bytes: a flood of it must not fill our memory.
const MAX_UNREAD_BYTES: usize = 1 << 20;

/// What has come at QoS 0 and waits for the main thread.
#[derive(Clone, Default)]
pub struct Unread {
    bytes: Arc<AtomicUsize>,
    has_dropped: Arc<AtomicBool>,
}

impl Unread {
    /// Whether an event is passed on to the main thread. What came at QoS 0 is dropped when too much of it waits there:
    /// whoever publishes at QoS 0 accepts a loss.
    pub fn admit(&self, event: &Event) -> bool {
        let more = bytes_at_qos_0(event);
        let room = |waiting| {
            (waiting == 0 || waiting + more <= MAX_UNREAD_BYTES).then_some(waiting + more)
        };
        let admitted = more == 0 || self.bytes.fetch_update(Relaxed, Relaxed, room).is_ok();
        if !admitted && !self.has_dropped.swap(true, Relaxed) {
            log::warn!("more comes at QoS 0 than can be read: some of it is dropped");
        }
        admitted
    }

    /// The main thread has got an event.
    pub fn was_read(&self, event: &Event) {
        self.bytes.fetch_sub(bytes_at_qos_0(event), Relaxed);
    }
}

fn bytes_at_qos_0(event: &Event) -> usize {
    match event {
        Event::Message(message) if message.packet_id.is_none() => {
            message.topic.len() + message.payload.len()
        }
        _ => 0,
    }
}

/// Whether a message on the topic of requests asks for nothing: it takes a retained request off the broker. Nobody would be
/// helped by a rejection of it.
pub fn clears_a_retained_request(message: &Message) -> bool {
    message.payload.is_empty() && message.packet_id.is_none()
}

/// Reads the request that a message brings.
///
/// # Errors
/// A [`Rejection`]: the message is retained, came on a topic that is not served any more, or is no usable request.
pub fn read_request(
    message: &Message,
    topics: &Topics,
    worker: &str,
) -> Result<(Request, RequestOrigin), Rejection> {
    if message.retained {
        let error = "the request is retained, and would run at every start; publish it without the retain flag";
        return Err(Rejection {
            id: None,
            work_dir: None,
            error: error.to_owned(),
        });
    }
    if message.topic != topics.pending {
        let (topic, pending) = (&message.topic, &topics.pending);
        let (id, work_dir) = request_in(message);
        return Err(Rejection {
            id,
            work_dir,
            error: format!(
                "the request came on {topic}, which this worker served once; publish it on {pending}"
            ),
        });
    }
    let request = Request::parse(&message.payload)?;
    let origin = RequestOrigin::Queue {
        worker: worker.to_owned(),
        redelivered: message.redelivered,
        identity: message.identity(worker),
    };
    Ok((request, origin))
}

/// The rejection of a request that came at QoS 0 while the request `held` is held. For the id of that one, only
/// `jobs/rejected` is told, where nobody takes it for the result.
pub fn qos_0_rejection(message: &Message, held: Option<&Message>) -> Rejection {
    let error = "published at QoS 0 while the worker had a job; publish at QoS 1, and the broker keeps it until its turn";
    let held = held.and_then(|held| request_in(held).0);
    let is_held = |id: &JobId| {
        held.as_ref()
            .is_some_and(|held| held.as_str() == id.as_str())
    };
    let (id, work_dir) = request_in(message);
    Rejection {
        id: id.filter(|id| !is_held(id)),
        work_dir,
        error: error.to_owned(),
    }
}

/// The id by which a request can be answered, and its `workDir`, whatever else is wrong with it.
fn request_in(message: &Message) -> (Option<JobId>, Option<String>) {
    match Request::parse(&message.payload) {
        Ok(request) => (Some(request.id), Some(request.work_dir)),
        Err(rejection) => (rejection.id, rejection.work_dir),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize, packet_id: Option<u16>) -> Event {
        Event::Message(Message {
            topic: "t".into(),
            payload: vec![0; bytes].into(),
            packet_id,
            redelivered: false,
            subscription: None,
            retained: false,
        })
    }

    #[test]
    fn a_flood_at_qos_0_is_dropped_and_nothing_else() {
        let unread = Unread::default();
        let large = message(MAX_UNREAD_BYTES, None);
        assert!(unread.admit(&large), "one always has room");
        assert!(!unread.admit(&message(0, None)));
        assert!(unread.admit(&message(MAX_UNREAD_BYTES, Some(1))));
        assert!(unread.admit(&Event::Lost));
        unread.was_read(&Event::Lost);
        assert!(!unread.admit(&message(1, None)));
        unread.was_read(&large);
        assert!(unread.admit(&message(MAX_UNREAD_BYTES - 2, None)));
        assert!(unread.admit(&message(0, None)), "just enough room");
        assert!(!unread.admit(&message(0, None)));
    }
}

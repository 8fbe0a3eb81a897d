//! What a message of the queue is: a request that can be run, or one that is rejected, and why.

use crate::contract::{JobId, Rejection, Request, RequestOrigin, Topics};
use crate::mqtt::Message;

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

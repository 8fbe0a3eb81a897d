//! The topics of contract section 1.

use super::JobId;

/// The topics below one root.
#[derive(Clone, Debug)]
pub struct Topics {
    root: String,
    /// What requests are published on.
    pub pending: String,
    /// What the worker subscribes to: `pending`, or a share of it.
    pub pending_filter: String,
    /// Cancels of whichever job.
    pub cancel_filter: String,
    /// Requests that cannot be answered by id.
    pub rejected: String,
    /// Presence of this worker.
    pub presence: String,
}

impl Topics {
    /// The topics of worker `worker` below `root`, sharing its queue with `share_group` where there is one.
    pub fn new(root: &str, share_group: Option<&str>, worker: &str) -> Self {
        let pending = format!("{root}/pending");
        Self {
            pending_filter: share_group.map_or_else(
                || pending.clone(),
                |group| format!("$share/{group}/{pending}"),
            ),
            cancel_filter: format!("{root}/cancel/+"),
            rejected: format!("{root}/rejected"),
            presence: format!("{root}/workers/{worker}"),
            root: root.to_owned(),
            pending,
        }
    }

    /// Where the result of a job goes.
    pub fn result(&self, id: &JobId) -> String {
        format!("{}/results/{}", self.root, id.as_str())
    }

    /// Where the progress of a job goes.
    pub fn status(&self, id: &JobId) -> String {
        format!("{}/status/{}", self.root, id.as_str())
    }

    /// Whose cancel came on this topic; `None` where it is none.
    pub fn cancelled_id<'a>(&self, topic: &'a str) -> Option<&'a str> {
        topic.strip_prefix(self.cancel_filter.strip_suffix('+')?)
    }
}

//! The topics: docs/reference.md, "Topics".

use super::JobId;

/// The topics below one root.
#[derive(Clone, Debug)]
pub struct Topics {
    root: String,
    /// What requests are published on.
    pub pending: String,
    /// Cancels of whichever job.
    pub cancel_filter: String,
    /// Requests that cannot be answered by id.
    pub rejected: String,
    /// Presence of this worker.
    pub presence: String,
}

impl Topics {
    /// The topics of worker `worker` below `root`.
    pub fn new(root: &str, worker: &str) -> Self {
        Self {
            pending: format!("{root}/pending"),
            cancel_filter: format!("{root}/cancel/+"),
            rejected: format!("{root}/rejected"),
            presence: format!("{root}/workers/{worker}"),
            root: root.to_owned(),
        }
    }

    /// Where the result of a job goes.
    pub fn result(&self, id: &str) -> String {
        format!("{}/results/{id}", self.root)
    }

    /// Where the progress of a job goes.
    pub fn status(&self, id: &JobId) -> String {
        format!("{}/status/{}", self.root, id.as_str())
    }

    /// What all topics begin with.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Whose cancel came on this topic; `None` where it is none.
    pub fn cancelled_id<'a>(&self, topic: &'a str) -> Option<&'a str> {
        topic.strip_prefix(self.cancel_filter.strip_suffix('+')?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_topic_is_below_the_root() {
        let topics = Topics::new("a/b", "w");
        let id = JobId::from_text("7").unwrap();
        assert_eq!(topics.root(), "a/b");
        assert_eq!(topics.result("7"), "a/b/results/7");
        assert_eq!(topics.status(&id), "a/b/status/7");
        assert_eq!(topics.cancelled_id("a/b/cancel/7"), Some("7"));
        assert_eq!(topics.cancelled_id("a/cancel/7"), None);
    }
}

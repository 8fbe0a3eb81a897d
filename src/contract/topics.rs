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
    /// Presence of whichever worker.
    pub presence_filter: String,
}

impl Topics {
    /// The topics of worker `worker` below `root`.
    pub fn new(root: &str, worker: &str) -> Self {
        Self {
            pending: format!("{root}/pending"),
            cancel_filter: format!("{root}/cancel/+"),
            rejected: format!("{root}/rejected"),
            presence: format!("{root}/workers/{worker}"),
            presence_filter: format!("{root}/workers/+"),
            root: root.to_owned(),
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

    /// What all topics begin with.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Whether this is the presence of a worker.
    pub fn is_presence(&self, topic: &str) -> bool {
        let above = self.presence_filter.strip_suffix('+').unwrap_or_default();
        topic.starts_with(above)
    }

    /// Whose cancel came on this topic; `None` where it is none.
    pub fn cancelled_id<'a>(&self, topic: &'a str) -> Option<&'a str> {
        topic.strip_prefix(self.cancel_filter.strip_suffix('+')?)
    }
}

/// The two filters, for requests and for cancels, of the root that `topic` belongs to; the one that matches it first. Empty
/// if it is no topic that a worker subscribes to.
pub fn subscribed_for(topic: &str) -> Vec<String> {
    let (root, is_request) = match topic.strip_suffix("/pending") {
        Some(root) => (root, true),
        None => match topic
            .rsplit_once('/')
            .and_then(|(above, _)| above.strip_suffix("/cancel"))
        {
            Some(root) => (root, false),
            None => return Vec::new(),
        },
    };
    let mut filters = vec![format!("{root}/pending"), format!("{root}/cancel/+")];
    if !is_request {
        filters.reverse();
    }
    filters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_topic_is_below_the_root() {
        let topics = Topics::new("a/b", "w");
        let id = JobId::from_text("7").unwrap();
        assert_eq!(topics.result(&id), "a/b/results/7");
        assert_eq!(topics.status(&id), "a/b/status/7");
        assert_eq!(topics.cancelled_id("a/b/cancel/7"), Some("7"));
        assert_eq!(topics.cancelled_id("a/cancel/7"), None);
    }

    #[test]
    fn an_old_root_is_known_by_its_topics() {
        assert_eq!(
            subscribed_for("a/b/pending"),
            ["a/b/pending", "a/b/cancel/+"]
        );
        assert_eq!(subscribed_for("a/cancel/7"), ["a/cancel/+", "a/pending"]);
        for other in ["a/results/7", "pending", "cancel/7", "a"] {
            assert!(subscribed_for(other).is_empty(), "{other}");
        }
    }
}

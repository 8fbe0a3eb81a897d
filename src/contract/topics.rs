//! The topics (docs/reference.md, "Topics"), and the names that become a level of one: job ids and worker ids
//! (docs/reference.md, "Request").

use super::json;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

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

/// The id of a job: usable as a topic level, and still the JSON value that the request gave.
#[derive(Clone, Debug)]
pub struct JobId {
    text: String,
    json: Box<RawValue>,
}

impl JobId {
    /// Reads the `id` of a request: a string, or a number taken as its decimal text.
    ///
    /// # Errors
    /// A sentence that says what is accepted.
    pub fn from_json(raw: &RawValue) -> Result<Self, String> {
        let text = match json::type_name(raw) {
            "a string" => json::string(raw)?,
            "a number" => raw.get().to_owned(),
            other => return Err(format!("must be a string or a number, not {other}")),
        };
        check_name(&text)?;
        Ok(Self {
            text,
            json: raw.to_owned(),
        })
    }

    /// An id from a plain text, as `job-worker run` takes it.
    ///
    /// # Errors
    /// A sentence that says what is accepted.
    pub fn from_text(text: &str) -> Result<Self, String> {
        let json = serde_json::value::to_raw_value(text).map_err(|e| e.to_string())?;
        Self::from_json(&json)
    }

    /// The id as a topic level.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Serialize for JobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json.serialize(serializer)
    }
}

/// Checks a name that becomes one topic level: 1 to 128 characters, none of `/ + #`, no control characters.
///
/// Unicode's noncharacters count as control characters: the MQTT specification (1.5.4) lets a broker close the connection
/// over them, and Mosquitto does, so an answer to such an id could never be delivered.
///
/// # Errors
/// A sentence that says what is accepted.
pub fn check_name(name: &str) -> Result<(), String> {
    let noncharacter =
        |c: char| matches!(c, '\u{fdd0}'..='\u{fdef}') || (c as u32) & 0xfffe == 0xfffe;
    let is_wrong = |c: &char| "/+#".contains(*c) || c.is_control() || noncharacter(*c);
    let fault = match (name.chars().count(), name.chars().find(is_wrong)) {
        (0, _) => "is empty".to_owned(),
        (length @ 129.., _) => format!("has {length} characters"),
        (_, Some(c)) => format!("contains {c:?}"),
        (_, None) => return Ok(()),
    };
    Err(format!(
        "{fault}; expected 1 to 128 characters, none of / + #, no control characters"
    ))
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

    fn id(json: &str) -> Result<JobId, String> {
        JobId::from_json(&serde_json::from_str::<Box<RawValue>>(json).unwrap())
    }

    #[test]
    fn keeps_the_json_type_and_digits() {
        for (json, text) in [
            (r#""job_1""#, "job_1"),
            ("17", "17"),
            ("-1.50", "-1.50"),
            (
                "123456789012345678901234567890",
                "123456789012345678901234567890",
            ),
            (r#""\u00e9""#, "é"),
            (r#"" ""#, " "),
        ] {
            let id = id(json).unwrap();
            assert_eq!(id.as_str(), text);
            assert_eq!(serde_json::to_string(&id).unwrap(), json);
        }
    }
}

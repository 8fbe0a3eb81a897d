//! Names that become a topic level: job ids and worker ids (docs/reference.md, "Request").

use super::json;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

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

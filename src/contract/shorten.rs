//! The short form of a document that is larger than the broker takes. The one on the drive stays whole.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::{RawValue, to_raw_value};
use std::collections::HashMap;
use std::fmt;

/// How much of a sentence a short form keeps, in characters.
const SHOWN_CHARACTERS: usize = 200;

/// What even the shortest form keeps.
const ESSENTIAL: [&str; 14] = [
    "id",
    "status",
    "logFile",
    "exitCode",
    "reason",
    "error",
    "attempt",
    "worker",
    "host",
    "workDir",
    "startedAt",
    "finishedAt",
    "durationMs",
    "key",
];

/// The fields of an object in their order.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// A document of ours (a status document, a notice on `jobs/rejected`) in at most `limit` bytes, as far as that can be.
///
/// What is too large loses first what makes it large (`steps`, `payload`), then most of `error`, then all that a controller can
/// do without, at last the paths. `"truncated": true` says that it did.
pub fn shorten(document: Vec<u8>, limit: usize) -> Vec<u8> {
    if document.len() <= limit {
        return document;
    }
    let Ok(Fields(mut fields)) = serde_json::from_slice(&document) else {
        return document; // none of ours
    };
    let mut replaced: HashMap<&str, Box<RawValue>> = HashMap::new();
    let written = |fields: &[(String, &RawValue)], replaced: &HashMap<&str, Box<RawValue>>| {
        let mut text = String::from("{");
        for (name, raw) in fields {
            let raw = replaced.get(name.as_str()).map_or(*raw, |raw| raw);
            text += &format!("{name:?}:{raw},"); // the names are ours: nothing in them is escaped
        }
        (text + r#""truncated":true}"#).into_bytes()
    };
    fields.retain(|(name, _)| name != "steps" && name != "payload");
    let mut shorter = written(&fields, &replaced);
    if shorter.len() > limit {
        let error = fields.iter().find(|(name, _)| name == "error");
        if let Some(cut) = error.and_then(|(_, raw)| cut(raw)) {
            replaced.insert("error", cut);
            shorter = written(&fields, &replaced);
        }
    }
    if shorter.len() > limit {
        fields.retain(|(name, _)| ESSENTIAL.contains(&name.as_str()));
        shorter = written(&fields, &replaced);
    }
    if shorter.len() > limit {
        fields.retain(|(name, _)| name != "workDir");
        replaced.insert("logFile", RawValue::NULL.to_owned());
        shorter = written(&fields, &replaced);
    }
    shorter
}

/// The start of a long sentence.
fn cut(raw: &RawValue) -> Option<Box<RawValue>> {
    let text: String = serde_json::from_str(raw.get()).ok()?;
    let (end, _) = text.char_indices().nth(SHOWN_CHARACTERS)?;
    to_raw_value(&format!("{}…", &text[..end])).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The short form of this document in this many bytes: what it holds besides `truncated`.
    fn short(document: &Value, limit: usize) -> Value {
        let bytes = shorten(serde_json::to_vec(document).unwrap(), limit);
        let mut short: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(
            short.as_object_mut().unwrap().remove("truncated"),
            Some(json!(true))
        );
        short
    }

    #[test]
    fn what_makes_a_document_large_goes_first() {
        let document = json!({
            "id": 7.50, "status": "failed", "logFile": "/data/".repeat(20), "exitCode": 1, "error": "long ".repeat(100),
            "worker": "w", "host": "h", "workDir": "d", "stops": 1, "steps": [{ "status": "skipped" }],
        });
        let without = |names: &[&str]| {
            let mut rest = document.clone();
            for name in names {
                rest.as_object_mut().unwrap().remove(*name);
            }
            rest
        };
        let exactly = |short: &Value| short.to_string().len() + r#","truncated":true"#.len();
        let whole_error = without(&["steps"]);
        assert_eq!(short(&document, exactly(&whole_error)), whole_error);
        let error = format!("{}…", "long ".repeat(40));
        let mut cut = without(&["steps"]);
        cut["error"] = json!(error);
        assert_eq!(short(&document, exactly(&cut)), cut);
        cut.as_object_mut().unwrap().remove("stops");
        assert_eq!(short(&document, exactly(&cut)), cut);
        cut.as_object_mut().unwrap().remove("workDir");
        cut["logFile"] = json!(null);
        assert_eq!(short(&document, 10), cut);
    }

    #[test]
    fn what_is_small_enough_stays_as_it_is() {
        let document = br#"{"id":1.0,"steps":[]}"#.to_vec();
        assert_eq!(shorten(document.clone(), document.len()), document);
        assert_eq!(
            shorten(document, 20),
            br#"{"id":1.0,"truncated":true}"#,
            "the digits of an id are kept"
        );
        assert_eq!(shorten(b"garbage".to_vec(), 1), b"garbage");
    }

    #[test]
    fn a_notice_loses_the_payload() {
        let notice = json!({ "worker": "w", "error": "e", "payload": "p".repeat(1000) });
        assert_eq!(short(&notice, 100), json!({ "worker": "w", "error": "e" }));
    }
}

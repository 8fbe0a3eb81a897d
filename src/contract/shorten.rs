//! The short form of a document that is larger than the broker takes. The one on the drive stays whole.

use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// The fields that keep their place for ever.
const FIRST: [&str; 4] = ["id", "status", "logFile", "exitCode"];

/// How much of a text a short form keeps, in characters.
const KEPT_CHARACTERS: usize = 200;

/// A document of ours (a status document, a notice on `jobs/rejected`) that has at most `limit` bytes, else its short form: without
/// `steps` and `origin`, with the start of long sentences, without other long texts. `"truncated": true` says so.
pub fn shorten(document: Vec<u8>, limit: usize) -> Vec<u8> {
    if document.len() <= limit {
        return document;
    }
    let Ok(fields) = serde_json::from_slice::<BTreeMap<String, Box<RawValue>>>(&document) else {
        return document;
    };
    let others = fields.keys().map(String::as_str);
    let others = others.filter(|name| !FIRST.contains(name));
    let mut short = "{".to_owned();
    for name in FIRST.into_iter().chain(others) {
        let Some(raw) = fields.get(name) else {
            continue;
        };
        let text = serde_json::from_str::<String>(raw.get()).unwrap_or_default();
        let cut = text.char_indices().nth(KEPT_CHARACTERS);
        let value = match (name, cut) {
            ("steps" | "origin", _) => continue,
            ("error" | "warning", Some((end, _))) => {
                serde_json::json!(format!("{}…", &text[..end])).to_string()
            }
            ("logFile", Some(_)) => "null".to_owned(),
            (_, Some(_)) => continue,
            (_, None) => raw.get().to_owned(),
        };
        short += &format!("{name:?}:{value},"); // the names are ours: nothing in them is escaped
    }
    (short + r#""truncated":true}"#).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_short_form_keeps_what_a_controller_needs() {
        let document = json!({
            "id": 7.50, "status": "failed", "logFile": "/data/a/job.log", "exitCode": 1, "error": "long ".repeat(100),
            "worker": "w", "workDir": "d".repeat(201), "origin": "o", "steps": [{ "status": "skipped" }],
        });
        let short = |limit| shorten(document.to_string().into_bytes(), limit);
        assert_eq!(short(10_000), document.to_string().into_bytes());
        let error = format!("{}…", "long ".repeat(40));
        let expected = format!(
            r#"{{"id":7.5,"status":"failed","logFile":"/data/a/job.log","exitCode":1,"error":"{error}","worker":"w","truncated":true}}"#
        );
        assert_eq!(String::from_utf8(short(600)).unwrap(), expected);
        let long = json!({ "id": "a", "logFile": "/".repeat(201) });
        let short = shorten(long.to_string().into_bytes(), 1);
        assert_eq!(short, br#"{"id":"a","logFile":null,"truncated":true}"#);
    }

    #[test]
    fn a_notice_loses_the_payload_and_what_is_no_document_stays() {
        let notice = json!({ "worker": "w", "payload": "p".repeat(1000) });
        let short = shorten(notice.to_string().into_bytes(), 100);
        assert_eq!(short, br#"{"worker":"w","truncated":true}"#);
        assert_eq!(shorten(b"garbage".to_vec(), 1), b"garbage");
        let digits = br#"{"id":1.0,"steps":[]}"#;
        assert_eq!(
            shorten(digits.to_vec(), 20),
            br#"{"id":1.0,"truncated":true}"#
        );
    }
}

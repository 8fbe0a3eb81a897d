//! The pointer message on `jobs/pending` (docs/reference.md, "Request"), and what an unusable one
//! becomes (docs/reference.md, "Bad input").

use super::definition::Definition;
use super::id::JobId;
use super::json::{self, Object};
use serde::Serialize;
use serde_json::value::RawValue;

/// The largest request that is run, in bytes of payload.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;

/// How much of an unusable payload is shown to the controller, in bytes.
const SHOWN_PAYLOAD_BYTES: usize = 1024;

/// More than any usable id has as JSON, in bytes: 128 characters, each of them written as two escapes.
const MAX_ID_BYTES: usize = 128 * 12 + 2;

/// A usable request.
#[derive(Clone, Debug)]
pub struct Request {
    /// What its result is published under.
    pub id: JobId,
    /// As the controller wrote it: absolute, or relative to a base that the configuration knows.
    pub work_dir: String,
    /// The idempotency key: requests with the same key are one request, however often they are published.
    pub key: Option<String>,
    /// What the request says of the job itself.
    pub definition: Definition,
}

/// Why a request cannot be run, and whether it can be answered by its id.
#[derive(Debug)]
pub struct Rejection {
    /// The id of the request, where that much could be read.
    pub id: Option<JobId>,
    /// As the request wrote it, where that much could be read.
    pub work_dir: Option<String>,
    /// A sentence that says what is wrong, and what is accepted.
    pub error: String,
}

impl Request {
    /// Parses the payload of a request.
    ///
    /// # Errors
    /// A [`Rejection`], which carries the id wherever that much could be read.
    pub fn parse(payload: &[u8]) -> Result<Self, Rejection> {
        let unreadable = |error: String| Rejection {
            id: None,
            work_dir: None,
            error,
        };
        if payload.len() > MAX_REQUEST_BYTES {
            return Err(Self::too_large(payload));
        }
        let mut object =
            Object::parse(payload).map_err(|e| unreadable(format!("the request {e}")))?;
        let id = object
            .take("id", JobId::from_json)
            .and_then(|id| id.ok_or_else(|| "`id` is missing".to_owned()))
            .map_err(|e| unreadable(format!("the request: {e}")))?;
        let rejected = |work_dir: Option<&String>, error: String| Rejection {
            id: Some(id.clone()),
            work_dir: work_dir.cloned(),
            error: format!("the request: {error}"),
        };
        let work_dir = match object.take("workDir", json::string) {
            Ok(Some(work_dir)) if !work_dir.is_empty() => work_dir,
            Ok(Some(_)) => return Err(rejected(None, "`workDir` is empty".to_owned())),
            Ok(None) => return Err(rejected(None, "`workDir` is missing".to_owned())),
            Err(error) => return Err(rejected(None, error)),
        };
        let key = object.take("key", key);
        match key.and_then(|key| Ok((key, Definition::take_from(object)?))) {
            Ok((key, definition)) => Ok(Self {
                id,
                work_dir,
                key,
                definition,
            }),
            Err(error) => Err(rejected(Some(&work_dir), error)),
        }
    }

    /// It may have 256 MiB, which MQTT allows: nothing of it is copied but its id.
    fn too_large(payload: &[u8]) -> Rejection {
        let error = format!(
            "the request has {} bytes; {MAX_REQUEST_BYTES} are taken",
            payload.len()
        );
        let id = json::id_alone(payload)
            .and_then(|id| match id {
                Some(id) if id.get().len() > MAX_ID_BYTES => Err("has a too long `id`".to_owned()),
                id => id.map(JobId::from_json).transpose(),
            })
            .and_then(|id| id.ok_or_else(|| "has no `id`".to_owned()));
        match id {
            Ok(id) => Rejection {
                id: Some(id),
                work_dir: None,
                error,
            },
            Err(unusable) => Rejection {
                id: None,
                work_dir: None,
                error: format!("{error}, and it cannot be answered by its id: it {unusable}"),
            },
        }
    }
}

/// The longest idempotency key, in characters.
const MAX_KEY_CHARACTERS: usize = 128;

fn key(raw: &RawValue) -> Result<String, String> {
    let key = json::string(raw)?;
    match key.chars().count() {
        1..=MAX_KEY_CHARACTERS => Ok(key),
        count => Err(format!(
            "has {count} characters; expected are 1 to {MAX_KEY_CHARACTERS}"
        )),
    }
}

/// The message on `jobs/rejected` for a request that cannot be answered by id (docs/reference.md, "Bad input").
pub fn rejection_notice(worker: &str, error: &str, payload: &[u8]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Notice<'a> {
        worker: &'a str,
        error: &'a str,
        payload: &'a str,
    }
    let shown = String::from_utf8_lossy(&payload[..payload.len().min(SHOWN_PAYLOAD_BYTES)]);
    // a replacement character is longer than the byte that it replaces
    let shown = &shown[..shown.floor_char_boundary(SHOWN_PAYLOAD_BYTES)];
    let notice = Notice {
        worker,
        error,
        payload: shown,
    };
    serde_json::to_vec(&notice).unwrap_or_default() // strings always serialise
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_too_large_is_answered_by_any_id_that_is_usable() {
        let too_large = |id: &str| {
            let padding = " ".repeat(MAX_REQUEST_BYTES);
            let payload = format!("{{ \"id\": \"{id}\", \"workDir\": \"x\" {padding}}}");
            Request::parse(payload.as_bytes()).unwrap_err()
        };
        // each character in its longest form
        let rejection = too_large(&r"\ud83d\ude00".repeat(128));
        let id = rejection.id.expect("a usable id");
        assert_eq!(id.as_str().chars().count(), 128);
        // a byte more is not even read
        for length in [1537, 3000] {
            let rejection = too_large(&"a".repeat(length));
            assert!(rejection.id.is_none());
            assert!(
                rejection.error.ends_with("it has a too long `id`"),
                "{}",
                rejection.error
            );
        }
    }

    #[test]
    fn takes_the_example_of_the_contract() {
        let request = Request::parse(
            br#"{ "id": "job_2026_01", "workDir": "/data/active_jobs/job_2026_01", "steps": ["npm install"] }"#,
        )
        .unwrap();
        assert_eq!(request.id.as_str(), "job_2026_01");
        assert_eq!(request.work_dir, "/data/active_jobs/job_2026_01");
        assert_eq!(request.definition.steps.unwrap()[0].run, "npm install");
    }

    #[test]
    fn an_unusable_request_is_answered_by_id_where_it_has_one() {
        for (payload, id, said) in [
            (&b""[..], None, "not valid JSON"),
            (b"\xff\xfe", None, "not valid JSON"),
            (b"[1]", None, "must be an object, not an array"),
            (b"{}", None, "`id` is missing"),
            (br#"{"id": null, "workDir": "x"}"#, None, "`id` is missing"),
            (
                br#"{"id": {}, "workDir": "x"}"#,
                None,
                "must be a string or a number",
            ),
            (br#"{"id": "a/b", "workDir": "x"}"#, None, "none of / + #"),
            (br#"{"id": "a"} trailing"#, None, "not valid JSON"),
            (br#"{"id": "a"}"#, Some("a"), "`workDir` is missing"),
            (
                br#"{"id": 7, "workDir": 5}"#,
                Some("7"),
                "`workDir` must be a string, not a number",
            ),
            (
                br#"{"id": "a", "workDir": ""}"#,
                Some("a"),
                "`workDir` is empty",
            ),
            (br#"{"id": "a", "workDir": "x\u0000"}"#, Some("a"), "NUL"),
            (
                br#"{"id": "a", "workDir": "x", "steps": {}}"#,
                Some("a"),
                "`steps` must be an array",
            ),
            (
                br#"{"id": "a", "workDir": "x", "env": 1}"#,
                Some("a"),
                "`env` must be an object",
            ),
        ] {
            let rejection = Request::parse(payload).unwrap_err();
            let shown = String::from_utf8_lossy(payload);
            assert_eq!(rejection.id.as_ref().map(JobId::as_str), id, "{shown}");
            assert!(
                rejection.error.contains(said),
                "{shown}: {}",
                rejection.error
            );
        }
    }

    #[test]
    fn a_mebibyte_is_taken_and_one_byte_more_is_not() {
        let sized = |bytes: usize| {
            let start = r#"{"id": "big", "workDir": "x", "steps": ["#;
            format!("{start}\"{}\"]}}", "x".repeat(bytes - start.len() - 4)).into_bytes()
        };
        assert_eq!(sized(MAX_REQUEST_BYTES).len(), MAX_REQUEST_BYTES);
        assert!(Request::parse(&sized(MAX_REQUEST_BYTES)).is_ok());
        let rejection = Request::parse(&sized(MAX_REQUEST_BYTES + 1)).unwrap_err();
        assert_eq!(rejection.id.unwrap().as_str(), "big");
    }

    #[test]
    fn a_too_large_request_is_answered_by_id_where_it_has_one() {
        let padding = " ".repeat(MAX_REQUEST_BYTES);
        for (text, id, said) in [
            (r#"{"env": {"id": 1}, "id": "a"}"#, Some("a"), "are taken"),
            ("\u{feff}{\"id\": 7}", Some("7"), "are taken"),
            (r#"{"id": null}"#, None, "has no `id`"),
            (r#"{"id": "a/b"}"#, None, "none of / + #"),
            (r#"["a"]"#, None, "must be an object, not an array"),
            (r#"{"id": "a""#, None, "is not valid JSON"),
        ] {
            let rejection = Request::parse(format!("{text}{padding}").as_bytes()).unwrap_err();
            assert_eq!(rejection.id.as_ref().map(JobId::as_str), id, "{text}");
            assert!(
                rejection.error.contains(said),
                "{text}: {}",
                rejection.error
            );
        }
    }

    #[test]
    fn the_notice_cuts_the_payload_and_replaces_invalid_utf8() {
        let notice = rejection_notice("w", "e", &[0xff; 5000]);
        let notice: serde_json::Value = serde_json::from_slice(&notice).unwrap();
        assert_eq!(
            notice["payload"].as_str().unwrap(),
            "\u{fffd}".repeat(341),
            "1,023 bytes"
        );
    }
}

//! The message on `jobs/pending` (docs/reference.md, "Request"), what an unusable one becomes (docs/reference.md, "Bad input"),
//! where it came from, and what tells it from every other request.

use super::definition::Definition;
use super::json::{self, Object};
use super::topics::JobId;
use serde::Serialize;
use serde_json::value::RawValue;

/// The largest request that is run, in bytes of payload.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;

/// How much of an unusable payload is shown to the controller, in bytes.
const SHOWN_PAYLOAD_BYTES: usize = 1024;

/// How many faults of a request are told.
const TOLD_FAULTS: usize = 5;

/// The fields of a request that are none of a job definition.
const FIELDS: [&str; 3] = ["id", "workDir", "key"];

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
            error: format!("the request{error}"),
        };
        if payload.len() > MAX_REQUEST_BYTES {
            let bytes = payload.len();
            let error = format!(" has {bytes} bytes; {MAX_REQUEST_BYTES} are taken");
            return Err(unreadable(error));
        }
        let mut object = Object::parse(payload).map_err(|e| unreadable(format!(" {e}")))?;
        let Some(id) = object.take("id", JobId::from_json) else {
            let missing = || "`id` is missing".to_owned();
            let error = object.faults.pop().unwrap_or_else(missing);
            return Err(unreadable(format!(": {error}")));
        };
        let work_dir = object.take("workDir", work_dir);
        if work_dir.is_none() && object.faults.is_empty() {
            object.faults.push("`workDir` is missing".to_owned());
        }
        let key = object.take("key", key);
        match Definition::take_from(object, &FIELDS) {
            Ok(definition) => Ok(Self {
                id,
                work_dir: work_dir.unwrap_or_default(),
                key,
                definition,
            }),
            Err(faults) => Err(Rejection {
                id: Some(id),
                work_dir,
                error: format!("the request: {}", told(&faults)),
            }),
        }
    }
}

/// The first of many faults, as one sentence.
pub fn told(faults: &[String]) -> String {
    let told = faults[..faults.len().min(TOLD_FAULTS)].join("; ");
    match faults.len().saturating_sub(TOLD_FAULTS) {
        0 => told,
        more => format!("{told}; and {more} more"),
    }
}

/// The longest idempotency key, in characters.
const MAX_KEY_CHARACTERS: usize = 128;

fn work_dir(raw: &RawValue) -> Result<String, String> {
    match json::string(raw)? {
        path if path.is_empty() => Err("is empty".to_owned()),
        path => Ok(path),
    }
}

fn key(raw: &RawValue) -> Result<String, String> {
    let key = json::string(raw)?;
    match key.chars().count() {
        1..=MAX_KEY_CHARACTERS => Ok(key),
        count => Err(format!(
            "has {count} characters; expected are 1 to {MAX_KEY_CHARACTERS}"
        )),
    }
}

#[derive(Serialize)]
struct Notice<'a> {
    error: &'a str,
    payload: &'a str,
    worker: &'a str,
}

/// The message on `jobs/rejected` for a request that cannot be answered by id (docs/reference.md, "Bad input").
pub fn rejection_notice(worker: &str, error: &str, payload: &[u8]) -> Vec<u8> {
    let shown = String::from_utf8_lossy(&payload[..payload.len().min(SHOWN_PAYLOAD_BYTES)]);
    let notice = Notice {
        error,
        // a replacement character is longer than the byte that it replaces
        payload: &shown[..shown.floor_char_boundary(SHOWN_PAYLOAD_BYTES)],
        worker,
    };
    serde_json::to_vec(&notice).unwrap_or_default() // strings always serialise
}

/// The identity of what a person runs.
pub const BY_HAND: &str = "run";

/// Where a request came from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RequestOrigin {
    /// From a person, by `job-worker run`: it belongs to no request of a queue.
    ByHand,
    /// From a queue.
    Queue {
        /// Whose queue: each worker has its own.
        worker: String,
        /// The broker has sent it before, to whomever (MQTT DUP).
        redelivered: bool,
        /// What no other request has in common with it; `None` where the broker does not tell enough.
        identity: Option<String>,
    },
    /// From a pool, whose drive tells every request from all others.
    Pool {
        /// What no other request has in common with it.
        identity: String,
        /// How often its claim was taken: the number of the attempt is no less, whatever the directory says.
        taken: u32,
    },
}

impl RequestOrigin {
    /// What no other request has in common with this one, where the broker tells it.
    pub fn identity(&self) -> Option<&str> {
        match self {
            Self::ByHand => Some(BY_HAND),
            Self::Queue { identity, .. } => identity.as_deref(),
            Self::Pool { identity, .. } => Some(identity),
        }
    }
}

/// FNV-1a, 64 bits: the same in every build, unlike the hash of the standard library.
pub fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::corpus;

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

    /// Checks what is said of a payload, and by which id: nothing where it is good.
    fn is_told(payload: &[u8], id: Option<&str>, words: &str) {
        let (told, error) = match Request::parse(payload) {
            Ok(_) => (id.map(str::to_owned), String::new()),
            Err(rejection) => (
                rejection.id.map(|id| id.as_str().to_owned()),
                rejection.error,
            ),
        };
        let shown = String::from_utf8_lossy(payload);
        assert_eq!(told.as_deref(), id, "{shown}: {error}");
        assert!(error.contains(words), "{shown}: {error}");
        assert_eq!(error.is_empty(), words.is_empty(), "{shown}: {error}");
        let is_missing = error.contains("missing");
        assert_eq!(is_missing, words.contains("missing"), "{shown}: {error}");
    }

    #[test]
    fn an_unusable_request_is_answered_by_id_where_it_has_one() {
        for (words, text) in corpus::each(corpus::REQUESTS) {
            is_told(text.as_bytes(), Some("7"), words);
        }
        for (words, text) in corpus::each(corpus::NAMELESS) {
            is_told(text.as_bytes(), None, words);
        }
        for bytes in corpus::BYTES {
            is_told(bytes, None, "not valid JSON");
        }
        for (words, id) in corpus::each(corpus::IDS) {
            let id_of_good = words.is_empty().then_some("any");
            is_told(corpus::request_with_id(id).as_bytes(), id_of_good, words);
        }
        for (words, text) in corpus::each(corpus::DEFINITIONS) {
            // what is no JSON has no id
            let id = (words != "not valid JSON").then_some("7");
            if let Some(request) = corpus::request_with(text, "d") {
                is_told(request.as_bytes(), id, words);
            }
        }
        is_told(
            b"\xef\xbb\xbf {\"id\":7,\r\"workDir\":\t\"d\"} \n",
            Some("7"),
            "",
        );
        let key = |key: String| format!(r#"{{"id":"a","workDir":"d","key":"{key}"}}"#);
        is_told(key("é".repeat(128)).as_bytes(), Some("a"), "");
        is_told(key("x".repeat(129)).as_bytes(), Some("a"), "`key` has 129");
        let id = |id: String| corpus::request_with_id(&format!("\"{id}\""));
        is_told(id("é".repeat(128)).as_bytes(), Some("any"), "");
        is_told(id("x".repeat(129)).as_bytes(), None, "has 129 characters");
    }

    #[test]
    fn a_rejection_has_the_directory_where_that_could_be_read() {
        let work_dir = |json: &[u8]| Request::parse(json).unwrap_err().work_dir;
        let told = work_dir(br#"{"id":7,"workDir":"d","steps":7}"#);
        assert_eq!(told.as_deref(), Some("d"));
        assert_eq!(work_dir(br#"{"id":7,"workDir":""}"#), None);
    }

    #[test]
    fn of_a_field_that_is_there_twice_the_last_one_counts() {
        let twice = br#"{"id":"a","id":"b","workDir":"x","workDir":"d"}"#;
        let request = Request::parse(twice).unwrap();
        assert_eq!((request.id.as_str(), &*request.work_dir), ("b", "d"));
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
        assert!(rejection.id.is_none() && rejection.error.contains("are taken"));
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

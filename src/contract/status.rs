//! The status document (contract section 5): `job.status.json`, `jobs/status/{id}` and `jobs/results/{id}` are one schema.

use super::JobId;
use super::json::{self, Object};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};

/// State of a job.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    Running,
    Success,
    Failed,
    /// On disk only: stopped before its end, will be run again.
    Interrupted,
}

/// Why a job failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Step,
    Timeout,
    Cancelled,
    LogLimit,
    Interrupted,
    Rejected,
    Internal,
}

/// State of one step.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    Pending,
    Running,
    Success,
    Failed,
    Skipped,
}

/// One step in the document.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub status: StepState,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Name of the signal that ended the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

/// The document. The order of the fields is the order of the keys, and the first four keep names and types for ever.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    pub id: JobId,
    pub status: JobState,
    pub log_file: Option<String>,
    pub exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    pub worker: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    pub steps: Vec<StepStatus>,
    /// MQTT packet identifier under which the request came: the one thing that tells a redelivery of the request that
    /// this document answers from a later request of the same job (MQTT 5, section 4.4: a redelivery keeps its identifier).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_id: Option<u16>,
}

impl Document {
    /// A document that says why no step of the job was run (exit code 1).
    pub fn not_run(id: JobId, worker: &str, reason: Reason, error: String) -> Self {
        Self {
            id,
            status: JobState::Failed,
            log_file: None,
            exit_code: Some(1),
            reason: Some(reason),
            error: Some(error),
            attempt: None,
            worker: worker.to_owned(),
            started_at: None,
            finished_at: Some(Timestamp::now()),
            duration_ms: None,
            steps: Vec::new(),
            packet_id: None,
        }
    }

    /// The answer to a request that cannot be run.
    pub fn rejected(id: JobId, worker: &str, error: String) -> Self {
        Self::not_run(id, worker, Reason::Rejected, error)
    }

    /// Whether this answers a request that could not be run.
    pub fn is_rejection(&self) -> bool {
        self.reason == Some(Reason::Rejected)
    }

    /// The document as it is written and published.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default() // no map keys and no fallible types in it: always serialises
    }
}

/// A wall clock time, RFC 3339 in UTC with milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Timestamp(SystemTime);

impl Timestamp {
    pub fn now() -> Self {
        Self(SystemTime::now())
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // a clock before 1970 or after 9999 has no RFC 3339 form
        let last = Duration::from_secs(253_402_300_799);
        let since = self
            .0
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .min(last);
        serializer.collect_str(&humantime::format_rfc3339_millis(
            SystemTime::UNIX_EPOCH + since,
        ))
    }
}

/// Milliseconds of a duration, for the document.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What `job.status.json` says of earlier runs of a job (contract section 6).
#[derive(Debug, PartialEq)]
pub enum Journal {
    /// Nobody has begun this job here.
    NeverBegun,
    /// Begun and not ended: whoever ran it died.
    Died { attempt: u32 },
    /// Stopped on request before its end.
    Stopped { attempt: u32 },
    /// Over.
    Final(Answer),
}

/// The stored result of a job that is over.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// The result as it was published.
    pub document: Vec<u8>,
    /// The worker that made it.
    worker: String,
    /// The packet identifier of the request that it answers.
    packet_id: Option<u16>,
}

impl Answer {
    /// Whether a request that comes redelivered (MQTT DUP) under `packet_id` is the one that this answers.
    ///
    /// A broker hands out the next request as soon as ours is acknowledged, so a request that nobody has seen may come
    /// with DUP too. Packet identifiers tell the two apart, but only within one session, that is for the same worker.
    pub fn is_for(&self, worker: &str, packet_id: Option<u16>) -> bool {
        self.worker != worker || self.packet_id.is_none() || self.packet_id == packet_id
    }
}

impl Journal {
    /// Reads what is on disk for the job `id`: `None` where there is no file.
    ///
    /// A document that cannot be understood counts as "begun and died": something of ours was there, and the careful
    /// reading is that a step may have run. One of another job says nothing about this one.
    pub fn read(content: Option<&[u8]>, id: &JobId) -> Self {
        match content {
            None => Self::NeverBegun,
            Some(bytes) => Self::understand(bytes, id).unwrap_or(Self::Died { attempt: 1 }),
        }
    }

    fn understand(bytes: &[u8], id: &JobId) -> Result<Self, String> {
        let mut object = Object::parse(bytes)?;
        let owner = object.take("id", JobId::from_json)?.ok_or("no id")?;
        let status = object.take("status", |raw| {
            serde_json::from_str::<JobState>(raw.get()).map_err(|e| e.to_string())
        });
        let status = status?.ok_or("no status")?;
        if owner.as_str() != id.as_str() {
            return Ok(Self::NeverBegun);
        }
        let attempt = object.take("attempt", json::count)?.unwrap_or(1);
        Ok(match status {
            JobState::Running => Self::Died { attempt },
            JobState::Interrupted => Self::Stopped { attempt },
            JobState::Success | JobState::Failed => Self::Final(Answer {
                document: bytes.to_vec(),
                worker: object.take("worker", json::string)?.unwrap_or_default(),
                packet_id: object
                    .take("packetId", json::count)?
                    .map(|id| u16::try_from(id).map_err(|e| e.to_string()))
                    .transpose()?,
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> JobId {
        JobId::from_text("a").unwrap()
    }

    #[test]
    fn the_first_keys_are_those_of_the_seed_in_their_order() {
        let json = Document::not_run(id(), "w", Reason::Rejected, "why".into()).to_json();
        let json = String::from_utf8(json).unwrap();
        let start = r#"{"id":"a","status":"failed","logFile":null,"exitCode":1,"reason":"rejected","error":"why","worker":"w""#;
        assert!(json.starts_with(start), "{json}");
    }

    #[test]
    fn a_journal_is_read_for_what_it_says() {
        let died = |attempt| Journal::Died { attempt };
        for (content, journal) in [
            (r#"{"id":"a","status":"running","attempt":2}"#, died(2)),
            (
                r#"{"id":"a","status":"interrupted","attempt":2}"#,
                Journal::Stopped { attempt: 2 },
            ),
            (
                r#"{"id":"b","status":"running","attempt":2}"#,
                Journal::NeverBegun,
            ),
            (r#"{"id":"b","status":"success"}"#, Journal::NeverBegun),
            ("", died(1)),
            ("{\"id\":\"a\",\"sta", died(1)),
            ("\0\0\0\0", died(1)),
            ("[]", died(1)),
            (r#"{"colour":"red"}"#, died(1)),
            (r#"{"id":"a"}"#, died(1)),
            (r#"{"id":"a","status":"green"}"#, died(1)),
            (r#"{"id":"a","status":"running","attempt":-5}"#, died(1)),
            (r#"{"id":"a","status":"success","packetId":70000}"#, died(1)),
        ] {
            assert_eq!(
                Journal::read(Some(content.as_bytes()), &id()),
                journal,
                "{content}"
            );
        }
        assert_eq!(Journal::read(None, &id()), Journal::NeverBegun);
    }

    #[test]
    fn a_stored_answer_knows_its_request() {
        let stored = br#"{"id":"a","status":"success","worker":"w","packetId":7}"#;
        let Journal::Final(answer) = Journal::read(Some(stored), &id()) else {
            panic!()
        };
        assert_eq!(answer.document, stored);
        assert!(answer.is_for("w", Some(7)), "the same delivery again");
        assert!(
            !answer.is_for("w", Some(8)),
            "another request of the same session"
        );
        assert!(
            answer.is_for("other", Some(8)),
            "identifiers of another session say nothing"
        );
        let Journal::Final(answer) =
            Journal::read(Some(br#"{"id":"a","status":"failed","worker":"w"}"#), &id())
        else {
            panic!()
        };
        assert!(answer.is_for("w", Some(8)), "nothing recorded: DUP decides");
    }

    #[test]
    fn an_id_keeps_its_type_over_a_number_and_its_text() {
        let number = JobId::from_json(&serde_json::value::to_raw_value(&7).unwrap()).unwrap();
        let journal = Journal::read(
            Some(br#"{"id":"7","status":"interrupted","attempt":1}"#),
            &number,
        );
        assert_eq!(
            journal,
            Journal::Stopped { attempt: 1 },
            "both have the same topic, so they are one job"
        );
    }
}

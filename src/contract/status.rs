//! One schema for `job.status.json`, `jobs/status/{id}` and `jobs/results/{id}`
//! (docs/reference.md, "Status document").

use super::JobId;
use crate::host_name;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, SystemTime};

/// State of a job.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Its steps run.
    Running,
    /// Over: every step has succeeded, or there was none.
    Success,
    /// Over: [`Document::reason`] says why.
    Failed,
    /// On disk only: stopped before its end, will be run again.
    Interrupted,
}

/// Why a job failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A step has failed.
    Step,
    /// It, or a step, has run longer than its limit.
    Timeout,
    /// Its controller has cancelled it.
    Cancelled,
    /// Its log has passed its limit.
    LogLimit,
    /// Its worker died in too many attempts, or was stopped too often.
    Interrupted,
    /// The request could not be run.
    Rejected,
    /// The worker or the drive has failed.
    Internal,
}

impl Reason {
    /// The exit code of a step that was ended for this reason and had `own` (docs/reference.md, "Exit codes").
    pub fn exit_code(self, own: i32) -> i32 {
        match self {
            Self::Timeout => 124,
            Self::Cancelled => 130,
            _ => own.max(1),
        }
    }
}

/// State of one step.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// It has not been started yet.
    #[default]
    Pending,
    /// It runs.
    Running,
    /// Its exit code was 0.
    Success,
    /// Its exit code was another one, or a signal has ended it.
    Failed,
    /// It is not run, since an earlier step has failed or the job was ended.
    Skipped,
}

/// One step in the document.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// The name that the job gives it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How far it is.
    pub status: StepState,
    /// Its exit code, once it is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Name of the signal that ended the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Of a step that was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

/// The document. The order of the fields is the order of the keys, and the first four keep names and types for ever.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// The id of the job, with the JSON type that the request gave it.
    pub id: JobId,
    /// How far the job is.
    pub status: JobState,
    /// Absolute path of the log; `None` where none could be opened.
    pub log_file: Option<String>,
    /// The exit code of the job, once it is over.
    pub exit_code: Option<i32>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// A sentence for a person that says why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What a person should know of a job all the same, in one sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// The attempt, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The worker that runs it.
    pub worker: String,
    /// The name of the worker's host.
    pub host: &'static str,
    /// As the request wrote it; `None` where that could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work_dir: Option<String>,
    /// When this attempt began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// One entry for each step of the plan.
    pub steps: Vec<StepStatus>,
    /// The idempotency key of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The identity of the request, for the worker that finds this document later: see [`RequestOrigin`](super::RequestOrigin).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// How many times a stop of its worker has interrupted this job.
    #[serde(skip_serializing_if = "is_zero")]
    pub stops: u32,
}

/// Linux: PATH_MAX.
pub const MAX_PATH_BYTES: usize = 4096;

impl Document {
    /// A document of a job that runs, with nothing else in it.
    pub fn new(id: JobId, worker: &str) -> Self {
        Self {
            id,
            status: JobState::Running,
            log_file: None,
            exit_code: None,
            reason: None,
            error: None,
            warning: None,
            attempt: None,
            worker: worker.to_owned(),
            host: host_name(),
            work_dir: None,
            started_at: None,
            finished_at: None,
            duration_ms: None,
            steps: Vec::new(),
            key: None,
            origin: None,
            stops: 0,
        }
    }

    /// It says why no step of the job was run.
    pub fn not_run(self, reason: Reason, error: String) -> Self {
        Self {
            status: JobState::Failed,
            exit_code: Some(reason.exit_code(1)),
            reason: Some(reason),
            error: Some(error),
            finished_at: Some(now()),
            ..self
        }
    }

    /// The result of a request that cannot be run. `work_dir`: see [`Document::work_dir`]; what is longer than any path can be
    /// is not repeated.
    pub fn rejected(id: JobId, work_dir: Option<String>, worker: &str, error: String) -> Self {
        Self {
            work_dir: work_dir.filter(|path| path.len() <= MAX_PATH_BYTES),
            ..Self::new(id, worker).not_run(Reason::Rejected, error)
        }
    }

    /// Adds what a person should know.
    pub fn warn(&mut self, sentence: &str) {
        let before = self.warning.take();
        let sentences = before.iter().map(String::as_str).chain([sentence]);
        self.warning = Some(sentences.collect::<Vec<_>>().join("; "));
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

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// This moment, RFC 3339 in UTC with milliseconds.
pub fn now() -> String {
    humantime::format_rfc3339_millis(wall_clock()).to_string()
}

/// This moment, RFC 3339 in UTC with whole seconds, for lines that people read.
pub fn now_in_seconds() -> impl fmt::Display {
    humantime::format_rfc3339_seconds(wall_clock())
}

/// A clock before 1970 or after 9999 has no RFC 3339 form.
fn wall_clock() -> SystemTime {
    let last = Duration::from_secs(253_402_300_799);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    SystemTime::UNIX_EPOCH + since.unwrap_or_default().min(last)
}

/// Milliseconds of a duration, for the document.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A limit in seconds, exactly, as a person has written it. Whole numbers do without what formats floating point, which is a
/// hundredth of the program.
pub fn seconds(limit: Duration) -> String {
    let text = format!("{}.{:09}", limit.as_secs(), limit.subsec_nanos());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// How many seconds something took, with one decimal.
pub fn took(ms: u64) -> String {
    let tenths = ms.saturating_add(50) / 100;
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_was_ended_has_the_exit_code_of_the_reason() {
        for (reason, own, code) in [
            (Reason::Timeout, 0, 124),
            (Reason::Cancelled, 143, 130),
            (Reason::LogLimit, 0, 1),
            (Reason::LogLimit, 137, 137),
        ] {
            assert_eq!(reason.exit_code(own), code, "{reason:?}");
        }
    }

    #[test]
    fn a_rejection_is_known_by_its_reason() {
        let rejected = Document::rejected(id(), None, "w", "why".into());
        assert!(rejected.is_rejection());
        let not_run = Document::new(id(), "w").not_run(Reason::Internal, "why".into());
        assert!(!not_run.is_rejection());
    }

    #[test]
    fn a_rejection_repeats_no_directory_that_cannot_be_one() {
        for (length, told) in [(1, true), (4096, true), (4097, false)] {
            let dir = "d".repeat(length);
            let rejected = Document::rejected(id(), Some(dir.clone()), "w", "why".into());
            assert_eq!(rejected.work_dir, told.then_some(dir));
        }
    }

    #[test]
    fn stops_are_told_where_there_were_any() {
        let mut document = Document::new(id(), "w").not_run(Reason::Internal, "why".into());
        for (stops, told) in [(0, false), (1, true), (2, true)] {
            document.stops = stops;
            let json = String::from_utf8(document.to_json()).unwrap();
            assert_eq!(json.contains(&format!("\"stops\":{stops}")), told, "{json}");
        }
    }

    #[test]
    fn each_warning_is_told() {
        let mut document = Document::new(id(), "w").not_run(Reason::Internal, "why".into());
        document.warn("one");
        document.warn("two");
        assert_eq!(document.warning.as_deref(), Some("one; two"));
    }

    #[test]
    fn a_duration_is_told_in_milliseconds() {
        assert_eq!(millis(Duration::from_micros(1_234_999)), 1234);
        assert_eq!(millis(Duration::MAX), u64::MAX);
        for (limit, text) in [
            (2000, "2"),
            (500, "0.5"),
            (10_250, "10.25"),
            (100_000, "100"),
            (0, "0"),
        ] {
            assert_eq!(seconds(Duration::from_millis(limit)), text);
        }
        assert_eq!(
            [0, 49, 50, 1949, 1950].map(took),
            ["0.0", "0.0", "0.1", "1.9", "2.0"]
        );
    }

    fn id() -> JobId {
        JobId::from_text("a").unwrap()
    }

    #[test]
    fn the_first_keys_are_those_of_the_seed_in_their_order() {
        let json = Document::new(id(), "w")
            .not_run(Reason::Rejected, "why".into())
            .to_json();
        let json = String::from_utf8(json).unwrap();
        let start = r#"{"id":"a","status":"failed","logFile":null,"exitCode":1,"reason":"rejected","error":"why","worker":"w""#;
        assert!(json.starts_with(start), "{json}");
        assert!(json.contains("\"finishedAt\":\"20"), "{json}");
    }
}

//! Why a job is ended before its own end: by a limit, by its controller, or by whoever stops the worker.

use crate::contract::Reason;
use std::time::Duration;

/// Why a job is ended before its own end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Interruption {
    /// It, or its step, ran longer than this.
    Timeout(Duration),
    /// Somebody wants it to end: the controller, or who has sent this signal.
    Cancelled(&'static str),
    /// Its log passed this many bytes.
    LogLimit(u64),
    /// The worker is asked to stop.
    Stop,
}

impl Interruption {
    /// The reason that the status document gives.
    pub fn reason(self) -> Reason {
        match self {
            Self::Timeout(_) => Reason::Timeout,
            Self::Cancelled(_) => Reason::Cancelled,
            Self::LogLimit(_) => Reason::LogLimit,
            Self::Stop => Reason::Interrupted,
        }
    }

    /// The exit code of a step that was ended for this reason and had `own` (docs/reference.md, "Exit codes").
    pub fn exit_code(self, own: i32) -> i32 {
        match self {
            Self::Timeout(_) => 124,
            Self::Cancelled(_) => 130,
            Self::LogLimit(_) | Self::Stop => own.max(1),
        }
    }

    /// For the log, and for a person who reads the result.
    pub fn sentence(self) -> String {
        match self {
            Self::Timeout(limit) => format!("timed out after {}s", limit.as_secs_f64()),
            Self::Cancelled(by) => format!("cancelled by {by}"),
            Self::LogLimit(limit) => format!("job.log has passed its limit of {limit} bytes"),
            Self::Stop => "the worker is asked to stop".to_owned(),
        }
    }
}

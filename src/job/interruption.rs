//! Why a job is ended before its own end: by a limit, by its controller, or by a stop of the worker.

use crate::contract::{Reason, seconds};
use std::time::Duration;

/// Why a job is ended before its own end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Interruption {
    /// It ran longer than this.
    Timeout(Duration, Limit),
    /// Its controller wants it to end, or who has sent this signal.
    Cancelled(&'static str),
    /// Its log passed this many bytes.
    LogLimit(u64),
    /// The worker is asked to stop.
    Stop,
}

/// Whose time is over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Limit {
    /// That of the step with this number, from 1.
    Step(usize),
    /// That of the whole job.
    Job,
    /// The same, where the limit is the worker's `JOB_TIMEOUT`.
    Setting,
}

impl Interruption {
    /// The reason that the status document gives.
    pub fn reason(self) -> Reason {
        match self {
            Self::Timeout(..) => Reason::Timeout,
            Self::Cancelled(_) => Reason::Cancelled,
            Self::LogLimit(_) => Reason::LogLimit,
            Self::Stop => Reason::Interrupted,
        }
    }

    /// The exit code of a step that was ended for this reason and had `own` (docs/reference.md, "Exit codes").
    pub fn exit_code(self, own: i32) -> i32 {
        match self {
            Self::Timeout(..) => 124,
            Self::Cancelled(_) => 130,
            Self::LogLimit(_) | Self::Stop => own.max(1),
        }
    }

    /// Whether a step that always runs is spared for a while.
    pub fn spares_always_steps(self) -> bool {
        match self {
            Self::Cancelled(_) | Self::Timeout(_, Limit::Job | Limit::Setting) => true,
            Self::Timeout(_, Limit::Step(_)) | Self::LogLimit(_) | Self::Stop => false,
        }
    }

    /// For the log, and for a person who reads the result.
    pub fn sentence(self) -> String {
        match self {
            Self::Timeout(after, limit) => {
                let (what, whose) = match limit {
                    Limit::Step(number) => (format!("step {number}"), ""),
                    Limit::Job => ("the job".to_owned(), ""),
                    Limit::Setting => ("the job".to_owned(), " (JOB_TIMEOUT)"),
                };
                format!("{what} timed out after {}s{whose}", seconds(after))
            }
            Self::Cancelled(by) => format!("cancelled by {by}"),
            Self::LogLimit(limit) => format!("job.log has passed its limit of {limit} bytes"),
            Self::Stop => "the worker is asked to stop".to_owned(),
        }
    }
}

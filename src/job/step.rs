//! A step while it runs: its processes, its limits, and how it ends. And why a job is ended before its own end: by a limit, by its
//! controller, or by a stop of the worker.

use crate::contract::{Reason, seconds};
use crate::process;
use rustix::process::{Pid, Signal};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// Why a job is ended before its own end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Interruption {
    /// The step with this number, from 1, ran longer than this.
    StepTimeout(usize, Duration),
    /// The job ran longer than this. The text says whose limit that is, where it is not the job's own.
    JobTimeout(Duration, &'static str),
    /// Its controller wants it to end, or who has sent this signal.
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
            Self::StepTimeout(..) | Self::JobTimeout(..) => Reason::Timeout,
            Self::Cancelled(_) => Reason::Cancelled,
            Self::LogLimit(_) => Reason::LogLimit,
            Self::Stop => Reason::Interrupted,
        }
    }

    /// Whether a step that always runs is spared for a while.
    pub fn spares_always_steps(self) -> bool {
        matches!(self, Self::JobTimeout(..) | Self::Cancelled(_))
    }

    /// For the log, and for a person who reads the result.
    pub fn sentence(self) -> String {
        match self {
            Self::StepTimeout(step, limit) => {
                format!("step {step} timed out after {}s", seconds(limit))
            }
            Self::JobTimeout(limit, whose) => {
                format!("the job timed out after {}s{whose}", seconds(limit))
            }
            Self::Cancelled(by) => format!("cancelled by {by}"),
            Self::LogLimit(limit) => format!("job.log has passed its limit of {limit} bytes"),
            Self::Stop => "the worker is asked to stop".to_owned(),
        }
    }
}

/// A moment at which something is to be done about a step, and why.
pub type End = (Instant, Interruption);

/// A step that runs.
pub struct RunningStep {
    pub index: usize,
    pub started: Instant,
    group: Pid,
    /// The end of its own time.
    own_end: Option<End>,
    /// How its shell has ended.
    exit: Option<ExitStatus>,
    /// When to kill what has not gone by then, and why it is being ended.
    pub interrupted: Option<End>,
}

impl RunningStep {
    /// A step that has just started as this process group.
    pub fn new(index: usize, group: Pid, limit: Option<Duration>) -> Self {
        let mut step = Self {
            index,
            group,
            started: Instant::now(),
            own_end: None,
            exit: None,
            interrupted: None,
        };
        if let Some(limit) = limit {
            step.limit_to(limit, step.started);
        }
        step
    }

    /// Gives it this limit from `start` on, unless it has one; one beyond the clock's end is none.
    pub fn limit_to(&mut self, limit: Duration, start: Instant) {
        let why = Interruption::StepTimeout(self.index + 1, limit);
        let end = start.checked_add(limit).map(|at| (at, why));
        self.own_end = self.own_end.or(end);
    }

    /// When its time is over, or that of its job, and what is said then.
    pub fn end(&self, job: Option<End>) -> Option<End> {
        let ends = [job, self.own_end].into_iter().flatten();
        ends.min_by_key(|(at, _)| *at)
    }

    /// Ends it: TERM to the whole job now, and KILL at `kill_at`. A step that is being ended stays so for the first reason.
    pub fn interrupt(&mut self, why: Interruption, kill_at: Instant) {
        if self.interrupted.is_none() {
            self.interrupted = Some((kill_at, why));
            process::terminate(self.group, kill_at - Instant::now());
        }
    }

    /// Some child has ended. Tells whether the step is over: a job that is being ended is over when all of it is gone, not
    /// only its shell.
    pub fn child_ended(&mut self) -> bool {
        let is_left = process::reap_some(|pid, exit| {
            if pid == self.group {
                self.exit = Some(exit);
            }
        });
        !is_left || (self.exit.is_some() && self.interrupted.is_none())
    }

    /// Kills all of it. Returns how many processes it has killed, and how many it could not kill.
    pub fn kill(&mut self) -> (usize, usize) {
        process::sweep(Some((self.group, &mut self.exit)))
    }

    /// How it ended.
    pub fn exit(&self) -> ExitStatus {
        let killed = ExitStatus::from_raw(Signal::KILL.as_raw());
        self.exit.unwrap_or(killed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_ends_with_the_limit_that_is_over_first() {
        let second = Duration::from_secs(1);
        let start = Instant::now();
        let of_job = Interruption::JobTimeout(5 * second, "");
        let job = Some((start + 5 * second, of_job));
        for (job, limit, passed) in [
            (None, None, None),
            (None, Some(Duration::MAX), None),
            (
                job,
                Some(2 * second),
                Some(Interruption::StepTimeout(1, 2 * second)),
            ),
            (job, Some(9 * second), Some(of_job)),
            (job, None, Some(of_job)),
        ] {
            let step = RunningStep::new(0, Pid::INIT, limit);
            assert_eq!(step.end(job).map(|(_, why)| why), passed);
        }
        let mut step = RunningStep::new(0, Pid::INIT, None);
        step.limit_to(second, start);
        step.limit_to(second, start + second);
        let own = Interruption::StepTimeout(1, second);
        assert_eq!(step.end(None), Some((start + second, own)), "once");
    }
}

//! A step while it runs: its processes, its limits, and how it ends. And why a job is ended before its own end: by a limit, by its
//! controller, or by a stop of the worker.

use crate::contract::{Reason, seconds};
use crate::process::{self, Ended, Swept};
use rustix::process::{Pid, Signal};
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

/// A moment at which a step is to be ended, and why.
pub type End = (Instant, Interruption);

/// A step that runs.
pub struct RunningStep {
    pub index: usize,
    pub started: Instant,
    group: Pid,
    /// The end of the job's time, as long as that counts, and that of its own.
    ends: [Option<End>; 2],
    /// How its shell has ended.
    exit: Option<Ended>,
    /// Why it is being ended, and when to kill what has not gone by then.
    interrupted: Option<(Interruption, Instant)>,
}

/// What is to be done about a step whose time is over.
pub enum Due {
    Interrupt(Interruption),
    Kill,
}

impl RunningStep {
    /// A step that has just started as this process group, and ends with its own limit or that of the job.
    pub fn new(index: usize, group: Pid, limit: Option<Duration>, job: Option<End>) -> Self {
        let started = Instant::now();
        let mut step = Self {
            index,
            group,
            started,
            ends: [job, None],
            exit: None,
            interrupted: None,
        };
        step.ends[1] = limit.and_then(|limit| step.end_of(limit, started));
        step
    }

    /// A limit of its own, from `start` on; one beyond the clock's end is none.
    fn end_of(&self, limit: Duration, start: Instant) -> Option<End> {
        let why = Interruption::StepTimeout(self.index + 1, limit);
        Some((start.checked_add(limit)?, why))
    }

    /// From now on the job's limit does not count, and it has this one, unless it has one of its own.
    pub fn limit_to(&mut self, limit: Duration, now: Instant) {
        let [_, own] = self.ends;
        self.ends = [None, own.or_else(|| self.end_of(limit, now))];
    }

    /// When [`Self::due`] has something to say.
    pub fn deadline(&self) -> Option<Instant> {
        match self.interrupted {
            Some((_, kill_at)) => Some(kill_at),
            None => self.end().map(|(at, _)| at),
        }
    }

    /// What is to be done now. The grace is for cleaning up: a job whose log passes its limit meanwhile is killed at once.
    pub fn due(&self, log_limit: Option<Interruption>, now: Instant) -> Option<Due> {
        match self.interrupted {
            Some((_, kill_at)) if kill_at <= now || log_limit.is_some() => Some(Due::Kill),
            Some(_) => None,
            None => match self.end() {
                Some((at, why)) if at <= now => Some(Due::Interrupt(why)),
                _ => log_limit.map(Due::Interrupt),
            },
        }
    }

    /// The moment at which it has run too long.
    fn end(&self) -> Option<End> {
        self.ends.into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Ends it: TERM to the whole job now, and KILL at `kill_at`. A step that is being ended stays so for the first reason.
    pub fn interrupt(&mut self, why: Interruption, kill_at: Instant) {
        if self.interrupted.is_none() {
            self.interrupted = Some((why, kill_at));
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

    /// Kills all of it.
    pub fn kill(&mut self) -> Swept {
        let leads = self.exit.is_none();
        process::sweep(Some((self.group, leads)), |pid, exit| {
            if pid == self.group {
                self.exit = Some(exit);
            }
        })
    }

    /// How it ended.
    pub fn exit(&self) -> Ended {
        self.exit.unwrap_or(Ended::Signal(Signal::KILL.as_raw()))
    }

    /// Why it is being ended, if it is.
    pub fn interruption(&self) -> Option<Interruption> {
        self.interrupted.map(|(why, _)| why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LOG_LIMIT: Interruption = Interruption::LogLimit(7);

    /// A step that began at `started`, with the end of the job's time, its own limit, and the moment of its KILL.
    fn step(
        started: Instant,
        job: Option<End>,
        limit: Option<Duration>,
        kill_at: Option<Instant>,
    ) -> RunningStep {
        let mut step = RunningStep::new(0, Pid::INIT, None, job);
        step.ends[1] = limit.and_then(|limit| step.end_of(limit, started));
        step.interrupted = kill_at.map(|at| (Interruption::Stop, at));
        step
    }

    #[test]
    fn a_step_is_due_when_its_time_is_over() {
        let start = Instant::now();
        let of_job = Interruption::JobTimeout(5 * SECOND, "");
        let job = Some((start + 5 * SECOND, of_job));
        let own = |limit| Some(Interruption::StepTimeout(1, limit));
        let kill = Some(start + SECOND);
        // the end of the job's time, the step's limit, when it is killed, whether the log is too large, and after how many seconds; what is due
        for (job, limit, kill_at, log, seconds, expected) in [
            (None, None, None, None, 9, None),
            (job, Some(2 * SECOND), None, None, 1, None),
            (job, Some(2 * SECOND), None, None, 2, own(2 * SECOND)),
            (job, None, None, None, 5, Some(of_job)),
            (job, Some(9 * SECOND), None, None, 5, Some(of_job)),
            (None, None, None, Some(LOG_LIMIT), 1, Some(LOG_LIMIT)),
            (None, Some(SECOND), None, Some(LOG_LIMIT), 1, own(SECOND)),
            (job, Some(SECOND), kill, None, 0, None),
        ] {
            let step = step(start, job, limit, kill_at);
            let due = match step.due(log, start + seconds * SECOND) {
                Some(Due::Interrupt(why)) => Some(why),
                Some(Due::Kill) => panic!("nothing is to be killed here"),
                None => None,
            };
            assert_eq!(due, expected);
        }
    }

    #[test]
    fn a_step_that_is_being_ended_is_killed_after_the_grace_or_when_it_fills_the_drive() {
        let start = Instant::now();
        let step = step(start, None, Some(SECOND), Some(start + 3 * SECOND));
        assert_eq!(step.deadline(), Some(start + 3 * SECOND));
        assert!(step.due(None, start + 2 * SECOND).is_none());
        for (log, seconds) in [(None, 3), (Some(LOG_LIMIT), 2)] {
            let due = step.due(log, start + seconds * SECOND);
            assert!(matches!(due, Some(Due::Kill)));
        }
    }
}

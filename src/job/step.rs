//! A step while it runs: its processes, its limits, and how it ends.

use super::interruption::{Interruption, Limit};
use crate::process::{self, Ended, Swept};
use rustix::process::{Pid, Signal};
use std::time::{Duration, Instant};

/// A step that runs.
pub struct RunningStep {
    pub index: usize,
    pub started: Instant,
    group: Pid,
    /// Since when which limit counts.
    limit: Option<(Instant, Duration)>,
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
    /// A step that has just started as this process group.
    pub fn new(index: usize, group: Pid, limit: Option<Duration>) -> Self {
        let started = Instant::now();
        Self {
            index,
            group,
            started,
            limit: limit.map(|limit| (started, limit)),
            exit: None,
            interrupted: None,
        }
    }

    /// From now on it has this limit, unless it has one.
    pub fn limit_to(&mut self, limit: Duration, now: Instant) {
        self.limit.get_or_insert((now, limit));
    }

    /// When [`Self::due`] has something to say. `job` is the start of the job, its limit, and whose that is.
    pub fn deadline(&self, job: Option<(Instant, Duration, Limit)>) -> Option<Instant> {
        match self.interrupted {
            Some((_, kill_at)) => Some(kill_at),
            None => self.time_over(job).map(|(at, _)| at),
        }
    }

    /// What is to be done now. The grace is for cleaning up: a job whose log passes its limit meanwhile is killed at once.
    pub fn due(
        &self,
        job: Option<(Instant, Duration, Limit)>,
        log_limit: Option<Interruption>,
        now: Instant,
    ) -> Option<Due> {
        match self.interrupted {
            Some((_, kill_at)) if kill_at <= now || log_limit.is_some() => Some(Due::Kill),
            Some(_) => None,
            None => match self.time_over(job) {
                Some((at, why)) if at <= now => Some(Due::Interrupt(why)),
                _ => log_limit.map(Due::Interrupt),
            },
        }
    }

    /// The moment at which it has run too long, and what it has passed then.
    fn time_over(
        &self,
        job: Option<(Instant, Duration, Limit)>,
    ) -> Option<(Instant, Interruption)> {
        let own = self.limit;
        let own = own.map(|(start, limit)| (start, limit, Limit::Step(self.index + 1)));
        // a limit beyond the clock's end is none
        let at = |(start, limit, whose): (Instant, Duration, Limit)| {
            Some((
                start.checked_add(limit)?,
                Interruption::Timeout(limit, whose),
            ))
        };
        let over = [job.and_then(at), own.and_then(at)];
        over.into_iter().flatten().min_by_key(|(at, _)| *at)
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

    /// A step that began at `started`, with this limit of its own and this moment of its KILL.
    fn step(started: Instant, limit: Option<Duration>, kill_at: Option<Instant>) -> RunningStep {
        RunningStep {
            index: 0,
            group: Pid::INIT,
            started,
            limit: limit.map(|limit| (started, limit)),
            exit: None,
            interrupted: kill_at.map(|at| (Interruption::Stop, at)),
        }
    }

    #[test]
    fn a_step_is_due_when_its_time_is_over() {
        let start = Instant::now();
        let job = Some((start, 5 * SECOND, Limit::Job));
        let timeout = |limit, whose| Some(Interruption::Timeout(limit, whose));
        let (own, kill) = (Limit::Step(1), start + SECOND);
        // the step's limit, the job's, when it is killed, whether the log is too large, and after how many seconds; what is due
        for (limit, job, kill_at, log, seconds, expected) in [
            (None, None, None, None, 9, None),
            (Some(2 * SECOND), job, None, None, 1, None),
            (
                Some(2 * SECOND),
                job,
                None,
                None,
                2,
                timeout(2 * SECOND, own),
            ),
            (None, job, None, None, 5, timeout(5 * SECOND, Limit::Job)),
            (
                Some(9 * SECOND),
                job,
                None,
                None,
                5,
                timeout(5 * SECOND, Limit::Job),
            ),
            (None, None, None, Some(LOG_LIMIT), 1, Some(LOG_LIMIT)),
            (
                Some(SECOND),
                None,
                None,
                Some(LOG_LIMIT),
                1,
                timeout(SECOND, own),
            ),
            (Some(SECOND), job, Some(kill), None, 0, None),
        ] {
            let step = step(start, limit, kill_at);
            let due = match step.due(job, log, start + seconds * SECOND) {
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
        let step = step(start, Some(SECOND), Some(start + 3 * SECOND));
        assert_eq!(step.deadline(None), Some(start + 3 * SECOND));
        assert!(step.due(None, None, start + 2 * SECOND).is_none());
        for (log, seconds) in [(None, 3), (Some(LOG_LIMIT), 2)] {
            let due = step.due(None, log, start + seconds * SECOND);
            assert!(matches!(due, Some(Due::Kill)));
        }
    }
}

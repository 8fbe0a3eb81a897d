//! A job from its request to its result: claiming its directory, running its steps, making its result final.
//!
//! Whoever has a run wakes it when it wants to be woken, passes on what the kernel says, and asks for its news.

use super::claim::{Claim, Claimed};
use super::execution::Execution;
use super::{Interruption, IsLost, Outcome};
use crate::config::JobConfig;
use crate::contract::{Document, JobId, Request, RequestOrigin};
use crate::inbox::Waker;
use crate::process;
use std::path::PathBuf;
use std::time::Instant;

/// A job from its request to its result.
pub struct Run {
    config: JobConfig,
    worker: String,
    waker: Waker,
    stage: Stage,
    started: bool,
}

enum Stage {
    /// Its directory, its definition or its lock may have to be waited for.
    Claiming(Box<Claim>),
    Running(Box<Execution>),
    /// The outcome, until it is told.
    Over(JobId, Option<Outcome>),
}

/// What is new of a run.
pub enum News {
    /// It has its directory, and its first step is about to run.
    Started {
        /// Its workDir.
        dir: PathBuf,
        /// The attempt, from 1.
        attempt: u32,
    },
    /// The status document has changed.
    Changed(Vec<u8>),
    /// It is over.
    Over(Outcome),
}

impl Run {
    /// A run of the job that `request` points to. `waker` wakes the inbox for [`Self::drive_done`].
    pub fn new(
        request: Request,
        origin: RequestOrigin,
        config: &JobConfig,
        worker: &str,
        waker: Waker,
    ) -> Self {
        Self {
            config: config.clone(),
            worker: worker.to_owned(),
            waker,
            stage: Stage::Claiming(Box::new(Claim::new(request, origin))),
            started: false,
        }
    }

    /// Asks `is_lost` before log and journal are made final.
    pub fn ask_at_the_end(&mut self, is_lost: IsLost) {
        if let Stage::Claiming(claim) = &mut self.stage {
            claim.ask_at_the_end(is_lost);
        }
    }

    /// The id of the job.
    pub fn id(&self) -> &JobId {
        match &self.stage {
            Stage::Claiming(claim) => claim.id(),
            Stage::Running(execution) => execution.id(),
            Stage::Over(id, _) => id,
        }
    }

    /// What it waits for before its first step, if that is worth a word.
    pub fn waiting_for(&self) -> Option<&str> {
        match &self.stage {
            Stage::Claiming(claim) => claim.waiting_for(),
            Stage::Running(_) | Stage::Over(..) => None,
        }
    }

    /// Whether it has its directory.
    pub fn has_started(&self) -> bool {
        self.started
    }

    /// Where in the log this attempt begins, in bytes.
    pub fn log_start(&self) -> u64 {
        match &self.stage {
            Stage::Running(execution) => execution.log_start(),
            Stage::Claiming(_) | Stage::Over(..) => 0,
        }
    }

    /// When to call [`Self::wake`].
    pub fn next_wake(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Claiming(claim) => Some(claim.next_look()),
            Stage::Running(execution) => execution.next_wake(),
            Stage::Over(..) => None,
        }
    }

    /// The moment of [`Self::next_wake`] may have come.
    pub fn wake(&mut self, now: Instant) {
        match &mut self.stage {
            Stage::Claiming(claim) if claim.next_look() <= now => {
                match claim.look(&self.config, &self.worker, &self.waker) {
                    Claimed::Waiting => {}
                    Claimed::Running(execution) => {
                        self.stage = Stage::Running(execution);
                    }
                    Claimed::Over(outcome) => self.end(outcome),
                }
            }
            Stage::Running(execution) => execution.wake(now),
            Stage::Claiming(_) | Stage::Over(..) => {}
        }
    }

    /// Some child has ended.
    pub fn child_ended(&mut self) {
        match &mut self.stage {
            Stage::Running(execution) => execution.child_ended(),
            Stage::Claiming(_) | Stage::Over(..) => drop(process::reap_some(|_, _| {})),
        }
    }

    /// The drive may have done what it was given.
    pub fn drive_done(&mut self) {
        if let Stage::Running(execution) = &mut self.stage {
            execution.drive_done();
        }
    }

    /// Ends the job before its own end: TERM to all of it, and KILL after the grace.
    pub fn interrupt(&mut self, why: Interruption, now: Instant) {
        match &mut self.stage {
            Stage::Running(execution) => execution.interrupt(why, now),
            Stage::Claiming(claim) => {
                let outcome = match why {
                    Interruption::Cancelled(by) => {
                        let document = claim.cancelled(by, &self.config, &self.worker);
                        Outcome::Final(Box::new(document))
                    }
                    // only steps have limits
                    Interruption::Stop | Interruption::Timeout(_) | Interruption::LogLimit(_) => {
                        Outcome::Unfinished
                    }
                };
                self.end(outcome);
            }
            Stage::Over(..) => {}
        }
    }

    /// Stops without any grace.
    pub fn stop_at_once(&mut self) {
        match &mut self.stage {
            Stage::Running(execution) => execution.stop_at_once(),
            Stage::Claiming(_) => self.end(Outcome::Unfinished),
            Stage::Over(..) => {}
        }
    }

    /// The result of an interrupted job whose request nobody will deliver again.
    pub fn fail_forgotten(&mut self, error: &str) -> Option<Document> {
        match &mut self.stage {
            Stage::Running(execution) => Some(execution.fail_forgotten(error)),
            Stage::Claiming(claim) => Some(claim.forgotten(&self.worker, error)),
            Stage::Over(..) => None,
        }
    }

    fn end(&mut self, outcome: Outcome) {
        self.stage = Stage::Over(self.id().clone(), Some(outcome));
    }

    /// What is new since the last call.
    pub fn news(&mut self) -> Option<News> {
        match &mut self.stage {
            Stage::Claiming(_) => None,
            Stage::Running(execution) if !std::mem::replace(&mut self.started, true) => {
                Some(execution.started())
            }
            Stage::Running(execution) => match execution.take_change() {
                Some(document) => Some(News::Changed(document)),
                None => execution.take_outcome().map(News::Over),
            },
            Stage::Over(_, outcome) => outcome.take().map(News::Over),
        }
    }
}

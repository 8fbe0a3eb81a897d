//! A job from its request to its result: it is prepared, its steps run, and the drive gets log and journal.
//!
//! The worker wakes a run when it wants to be woken, passes on what the kernel says, and asks for what has come of it.

use super::running::Running;
use super::save::{Saving, Wake};
use super::{Claimed, Interruption, Outcome};
use crate::backoff::Backoff;
use crate::config::JobConfig;
use crate::contract::{Document, JobId, Reason, Request, RequestOrigin};
use crate::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pause between two looks for a file or a lock: short at first, since most come soon.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// How long to wait for the drive after a second stop signal.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// A job from its request to its result.
pub struct Run {
    pub(super) request: Request,
    pub(super) origin: RequestOrigin,
    pub(super) config: Arc<JobConfig>,
    pub(super) worker: String,
    /// Of a pool, what its request is on the drive.
    pub(super) claim: Option<Arc<dyn Claimed>>,
    wake: Wake,
    /// Since when it is prepared, when to look next, and the pauses between looks.
    pub(super) began: Instant,
    pub(super) next_look: Instant,
    pub(super) backoff: Backoff,
    /// What it waits for before its first step, and why.
    pub(super) waiting: Option<(String, String)>,
    stage: Stage,
    /// See [`Self::log_start`], until it is told.
    log_start: Option<u64>,
}

/// How far a run is.
pub enum Stage {
    /// Its directory, its definition or its lock may have to be waited for.
    Preparing,
    Running(Box<Running>),
    Saving(Saving),
    /// The outcome, until it is told.
    Over(Option<Outcome>),
}

impl Stage {
    /// The end with this result.
    pub fn result(document: Document) -> Self {
        Self::Over(Some(Outcome::Final(Box::new(document))))
    }
}

impl Run {
    /// A run of the job that `request` points to. `wake` asks for [`Self::wake`], from another thread.
    pub fn new(
        request: Request,
        origin: RequestOrigin,
        config: &JobConfig,
        worker: &str,
        wake: Wake,
        claim: Option<Arc<dyn Claimed>>,
    ) -> Self {
        let now = Instant::now();
        Self {
            request,
            origin,
            config: Arc::new(config.clone()),
            worker: worker.to_owned(),
            claim,
            wake,
            began: now,
            next_look: now,
            backoff: Backoff::new(FIRST_PAUSE, LAST_PAUSE),
            waiting: None,
            stage: Stage::Preparing,
            log_start: None,
        }
    }

    /// The id of the job.
    pub fn id(&self) -> &JobId {
        &self.request.id
    }

    /// What it waits for before its first step, if that is worth a word.
    pub fn waiting_for(&self) -> Option<&str> {
        match (&self.stage, &self.waiting) {
            (Stage::Preparing, Some((what, _))) => Some(what),
            _ => None,
        }
    }

    /// Whether it has its directory, and no outcome yet.
    pub fn has_started(&self) -> bool {
        matches!(self.stage, Stage::Running(_) | Stage::Saving(_))
    }

    /// When to call [`Self::wake`].
    pub fn next_wake(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Preparing => Some(self.next_look),
            Stage::Running(running) => running.next_wake(),
            Stage::Saving(saving) => saving.leave_at,
            Stage::Over(_) => None,
        }
    }

    /// The moment of [`Self::next_wake`] may have come, or the drive may have log and journal.
    pub fn wake(&mut self, now: Instant) {
        self.await_drive(Duration::ZERO);
        match &mut self.stage {
            Stage::Preparing if self.next_look <= now => {
                self.stage = self.look();
                if let Stage::Running(running) = &self.stage {
                    self.log_start = Some(running.log_start);
                }
            }
            Stage::Running(running) => running.wake(now),
            Stage::Saving(saving) if saving.leave_at.is_some_and(|at| at <= now) => {
                log::warn!("the drive does not answer; leaving without it");
                self.end(Outcome::Unfinished);
            }
            _ => {}
        }
        self.go_on();
    }

    /// Some child has ended.
    pub fn child_ended(&mut self) {
        match &mut self.stage {
            Stage::Running(running) => running.child_ended(),
            _ => drop(process::reap_some(|_, _| {})),
        }
        self.go_on();
    }

    /// Takes the next stage where this one is over.
    fn go_on(&mut self) {
        if let Stage::Running(running) = &self.stage
            && running.step.is_none()
            && let Stage::Running(running) = std::mem::replace(&mut self.stage, Stage::Over(None))
        {
            let leave_at = Instant::now() + self.config.leave_wait();
            let leave_at = running.stopping.then_some(leave_at);
            let saving = Saving::begin(running.end(), leave_at, &self.wake);
            self.stage = Stage::Saving(saving);
        }
        self.await_drive(Duration::ZERO);
    }

    /// Waits for the drive, and no longer than this.
    fn await_drive(&mut self, patience: Duration) {
        if let Stage::Saving(saving) = &self.stage
            && let Some(outcome) = saving.outcome(patience)
        {
            self.end(outcome);
        }
    }

    /// Ends the job before its own end: TERM to all of it, and KILL after the grace. A worker that stops waits for the drive as long.
    pub fn interrupt(&mut self, why: Interruption, now: Instant) {
        match (&mut self.stage, why) {
            (Stage::Running(running), _) => running.interrupt(why, now),
            (Stage::Saving(saving), Interruption::Stop) => {
                saving.stop(now + self.config.leave_wait());
            }
            (Stage::Preparing, Interruption::Cancelled(by)) => {
                let error = format!("cancelled by {by} before its first step");
                self.stage = self.end_unrun(Reason::Cancelled, error);
            }
            (Stage::Preparing, Interruption::Stop) => self.end(Outcome::Unfinished),
            // only steps have limits
            _ => {}
        }
        self.go_on();
    }

    /// Stops without any grace, neither for the step nor for the drive.
    pub fn stop_at_once(&mut self) {
        self.interrupt(Interruption::Stop, Instant::now());
        if let Stage::Running(running) = &mut self.stage {
            running.kill();
        }
        self.go_on();
        self.await_drive(LAST_WAIT);
        if !matches!(self.stage, Stage::Over(_)) {
            self.end(Outcome::Unfinished);
        }
    }

    fn end(&mut self, outcome: Outcome) {
        self.stage = Stage::Over(Some(outcome));
    }

    /// Where in the log this attempt begins, in bytes: told once, when the first step is about to run.
    pub fn log_start(&mut self) -> Option<u64> {
        self.log_start.take()
    }

    /// The status document, where it has changed since the last call.
    pub fn change(&mut self) -> Option<Vec<u8>> {
        match &mut self.stage {
            Stage::Running(running) => running.journal.change.take(),
            _ => None,
        }
    }

    /// How it ended: told once.
    pub fn outcome(&mut self) -> Option<Outcome> {
        match &mut self.stage {
            Stage::Over(outcome) => outcome.take(),
            _ => None,
        }
    }
}

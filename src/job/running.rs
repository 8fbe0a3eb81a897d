//! A job whose steps run: one after the other until the first failure, each within its limits.

use super::directory::is_full;
use super::journal::{self, Journal};
use super::run::Stage;
use super::save::{Job, interrupt};
use super::step::{End, RunningStep};
use super::{Interruption, OpenError};
use crate::config::{JobConfig, variables};
use crate::contract::{Attempt, JobState, Plan, Reason, StepState, StepStatus, millis, now, took};
use crate::process;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What an `always` step without a limit of its own has after a timeout of the job or a cancel.
const ALWAYS_LIMIT: Duration = Duration::from_secs(10);

/// Pause between two looks at the size of the log, where it has a limit. The look that finds it too large sends TERM, the
/// next one KILL.
const LOG_LOOK: Duration = Duration::from_millis(100);

/// A job whose steps run.
pub struct Running {
    pub job: Job,
    plan: Plan,
    config: Arc<JobConfig>,
    env: Vec<(String, Option<OsString>)>,
    pub journal: Journal,
    /// The step that runs now; `None`: no step is to run any more, and [`Self::end`] is next.
    pub step: Option<RunningStep>,
    next: usize,
    /// Why the job fails, and its exit code.
    failure: Option<(Reason, i32, String)>,
    /// A limit was passed, or the job was cancelled: from now on every step has a limit, and the job's own counts no more.
    limit_every_step: bool,
    /// The size that the log may have, in bytes, where it has a limit. An `always` step may write as much again as there was at the
    /// failure.
    log_allowed: Option<u64>,
    /// When to look at that.
    look_at_log: Instant,
    /// Where in the log this attempt begins, in bytes.
    pub log_start: u64,
    /// The worker stops: no further step is to run.
    pub stopping: bool,
    /// How many processes could not be killed since the last step began.
    unkilled: usize,
}

impl Running {
    /// Begins the log, writes the first journal, and starts the first step: what has no journal could be run again and again.
    ///
    /// Where the drive does not take log or journal, the job is over: nothing has been run.
    ///
    /// # Errors
    /// The drive is full, so it is waited for: the next jobs would only fail, too. A person at a terminal is told at once.
    pub fn start(
        mut job: Job,
        plan: Plan,
        attempt: Attempt,
        config: Arc<JobConfig>,
    ) -> Result<Stage, OpenError> {
        let log_start = match attempt == Attempt::FIRST {
            true => 0,
            false => job.log.size(),
        };
        // these lines are told once, where the drive is full for a while
        job.log.hold();
        let asked = job.document.clone();
        let begun = job
            .begin(&plan, attempt)
            .and_then(|()| Journal::begin(&job));
        if let Err(error) = &begun
            && is_full(error)
            && !job.is_by_hand
        {
            job.log.cut(log_start);
            return Err(OpenError::no_room(&job.dir, error));
        }
        job.log.release();
        let journal = match begun {
            Ok(journal) => journal,
            Err(error) => {
                job.log.verdict(&format!("job failed: {error}"));
                let document = asked.not_run(Reason::Internal, error.to_string());
                // the journal may say by now that the job runs; the first error is the one to tell
                let _ = journal::write(&job.dir, &document.to_json());
                return Ok(Stage::result(document));
            }
        };
        let id = job.document.id.as_str();
        for sentence in &plan.warnings {
            log::warn!("job {id}: {sentence}");
        }
        if !job.is_by_hand {
            let (path, number) = (job.dir.path().display(), attempt.number);
            log::info!("job {id}: running in {path}, attempt {number}");
        }
        let mut running = Self {
            env: environment(&job, &plan, attempt),
            journal,
            job,
            plan,
            step: None,
            next: 0,
            failure: None,
            limit_every_step: false,
            log_allowed: config.log_limit,
            config,
            look_at_log: Instant::now() + LOG_LOOK,
            log_start,
            stopping: false,
            unkilled: 0,
        };
        process::spare_children();
        running.run_next();
        Ok(Stage::Running(Box::new(running)))
    }

    /// When to call [`Self::wake`].
    pub fn next_wake(&self) -> Option<Instant> {
        let look = self.log_allowed.map(|_| self.look_at_log);
        let step = self.step.as_ref()?;
        let end = step.end(self.end_of_job());
        let over = step.interrupted.or(end).map(|(at, _)| at);
        let due = self.journal.due.filter(|_| self.may_write());
        [over, look, due].into_iter().flatten().min()
    }

    /// The end of the job's time, as long as its limit counts; one beyond the clock's end is none.
    fn end_of_job(&self) -> Option<End> {
        let limit = self.plan.timeout.filter(|_| !self.limit_every_step)?;
        let at = self.journal.started.checked_add(limit)?;
        Some((at, Interruption::JobTimeout(limit, self.plan.timeout_of)))
    }

    /// Whether the journal may be written here: it is this worker's, and no stop waits meanwhile.
    fn may_write(&self) -> bool {
        !self.stopping && !self.job.log.is_taken
    }

    /// The moment of [`Self::next_wake`] has come.
    pub fn wake(&mut self, now: Instant) {
        if self.may_write() {
            self.journal.write_if_due(&self.job, now);
        }
        let mut log_limit = None;
        if self.look_at_log <= now {
            self.look_at_log = now + LOG_LOOK;
            log_limit = self.log_limit_passed();
        }
        let Some(step) = &self.step else { return };
        let is_over = |(at, _): &End| *at <= now;
        match step.interrupted {
            // the grace is for cleaning up: a job whose log passes its limit meanwhile is killed at once
            Some(kill) if is_over(&kill) || log_limit.is_some() => self.kill(),
            Some(_) => {}
            None => {
                let end = step.end(self.end_of_job()).filter(is_over);
                let passed = end.map(|(_, why)| why);
                if let Some(why) = passed.or(log_limit) {
                    self.interrupt(why, now);
                }
            }
        }
    }

    /// Some child has ended.
    pub fn child_ended(&mut self) {
        if self.step.as_mut().is_some_and(RunningStep::child_ended) {
            self.step_over();
        }
    }

    /// Ends the job: TERM to all of it, and KILL after the grace. A step that always runs has its time all the same, once.
    pub fn interrupt(&mut self, why: Interruption, now: Instant) {
        if why == Interruption::Stop && !std::mem::replace(&mut self.stopping, true) {
            // from now on nothing is asked of the drive: it may not answer before this worker has to leave
            self.job.log.hold();
            if !self.job.log.is_taken {
                self.job.note_stop();
            }
        }
        let Some(step) = &mut self.step else { return };
        let sentence = why.sentence();
        match &mut step.interrupted {
            None => {}
            // no next worker runs a job that its controller has ended
            Some((_, before @ Interruption::Stop)) if matches!(why, Interruption::Cancelled(_)) => {
                *before = why;
                return self.job.log.line(&sentence);
            }
            Some(_) => return,
        }
        if self.plan.steps[step.index].always && why.spares_always_steps() {
            if !std::mem::replace(&mut self.limit_every_step, true) {
                step.limit_to(ALWAYS_LIMIT, now);
                self.job.log.line(&format!(
                    "{sentence}; this step always runs, and has time to end"
                ));
                self.fail(why, 1);
            }
            return;
        }
        let log = &mut self.job.log;
        log.line(&format!("{sentence}; asking the job to stop"));
        step.interrupt(why, now + self.config.stop_grace);
        self.child_ended(); // the shell may have ended before: from now on all of the job has to
    }

    /// Ends the step without any grace.
    pub fn kill(&mut self) {
        let Some(step) = &mut self.step else { return };
        let (killed, left) = step.kill();
        self.unkilled = left;
        self.job
            .log
            .line(&format!("killed what did not stop, processes: {killed}"));
        self.step_over();
    }

    fn step_over(&mut self) {
        let Some(step) = self.step.take() else { return };
        let why = step.interrupted.map(|(_, why)| why).or_else(|| {
            let passed = self.log_limit_passed()?; // it ended before the size check
            self.job.log.line(&passed.sentence());
            Some(passed)
        });
        let (exit, ms) = (step.exit(), millis(step.started.elapsed()));
        let own = process::code(exit);
        let code = why.map_or(own, |why| why.reason().exit_code(own));
        let signal = process::signal_name(exit);
        let place = self.plan.place(step.index);
        let by = signal.as_ref().map(|name| format!(" ({name})"));
        self.job.log.line(&format!(
            "{place}: exit {code}{} in {}s",
            by.unwrap_or_default(),
            took(ms)
        ));
        match why {
            Some(Interruption::Stop) => {}
            Some(why) => {
                self.limit_every_step |= why.spares_always_steps();
                self.fail(why, code);
            }
            None if code != 0 => {
                let ended = match &signal {
                    None => format!("ended with exit code {code}"),
                    Some(name) => format!("was ended by {name}"),
                };
                let name = self.plan.name(step.index);
                self.fail_for(Reason::Step, code, format!("{place} ({name}) {ended}"));
            }
            None => {}
        }
        let status = &mut self.job.document.steps[step.index];
        status.status = match code {
            0 => StepState::Success,
            _ => StepState::Failed,
        };
        status.exit_code = Some(code);
        status.signal = signal;
        status.duration_ms = Some(ms);
        self.run_next();
    }

    fn fail(&mut self, why: Interruption, own: i32) {
        let reason = why.reason();
        self.fail_for(reason, reason.exit_code(own), why.sentence());
    }

    /// The first failure is the job's; what comes later cannot change it.
    fn fail_for(&mut self, reason: Reason, code: i32, error: String) {
        if self.failure.is_none() {
            // `always` steps may write as much again, or the first look would end them
            let limit = self.config.log_limit;
            self.log_allowed = limit.map(|limit| self.job.log.known_size().saturating_add(limit));
            self.failure = Some((reason, code, error));
        }
    }

    fn log_limit_passed(&self) -> Option<Interruption> {
        let allowed = self.log_allowed?;
        let is_passed = self.job.log.known_size() > allowed;
        is_passed.then_some(Interruption::LogLimit(self.config.log_limit?))
    }

    /// Starts the next step that is due, if there is one.
    fn run_next(&mut self) {
        while self.next < self.plan.steps.len() && !self.stopping {
            let index = self.next;
            self.next += 1;
            let step = &self.plan.steps[index];
            if self.failure.is_some() && !step.always {
                self.job.document.steps[index].status = StepState::Skipped;
                let place = self.plan.place(index);
                self.job.log.line(&format!("{place}: skipped"));
                continue;
            }
            let limit = step
                .timeout
                .or(self.limit_every_step.then_some(ALWAYS_LIMIT));
            match self.start_step(index, limit) {
                Ok(running) => {
                    self.step = Some(running);
                    self.unkilled = 0;
                    return;
                }
                Err(error) => {
                    let place = self.plan.place(index);
                    self.job.log.line(&format!("{place}: {error}"));
                    let status = &mut self.job.document.steps[index];
                    (status.status, status.started_at) = (StepState::Failed, None);
                    let error = format!("{place} could not be started: {error}");
                    self.fail_for(Reason::Internal, 1, error);
                }
            }
        }
    }

    fn start_step(&mut self, index: usize, limit: Option<Duration>) -> Result<RunningStep, String> {
        let status = &mut self.job.document.steps[index];
        // the first journal has the first step already
        let is_new = status.status != StepState::Running;
        (status.status, status.started_at) = (StepState::Running, Some(now()));
        let ready = self.get_ready();
        if is_new && self.may_write() {
            self.journal.note_change(&self.job);
        }
        let (place, label) = (self.plan.place(index), self.plan.label(index));
        self.job.log.line(&format!("{place}: {label}"));
        ready?;
        let number = (index + 1).to_string();
        let env = self.env.iter();
        let env = env.map(|(name, value)| (&**name, value.as_deref()));
        let env = env.chain([("JOB_STEP", Some(OsStr::new(&number)))]);
        let run = &self.plan.steps[index].run;
        let shell = &self.config.shell;
        // a step that writes nothing is not ended for what those before it wrote
        let written = |allowed: u64| allowed.max(self.job.log.known_size());
        self.log_allowed = self.log_allowed.map(written);
        let log = self.job.log.handle().map_err(|error| error.to_string())?;
        let group = process::spawn(shell, run, &self.job.dir.current_dir(), env, log)
            .map_err(|error| format!("{shell}: {error}"))?;
        Ok(RunningStep::new(index, group, limit))
    }

    /// Whatever the step before has done to the workDir: the next one finds directory, log and lock as they belong.
    fn get_ready(&mut self) -> Result<(), String> {
        if !self.job.dir.is_in_place() {
            let path = self.job.dir.path().display();
            return Err(format!("the workDir {path} has vanished"));
        }
        self.job.log.restore_if_removed(&self.job.dir)
    }

    /// Leaves nothing behind: only then log and journal can be made final.
    pub fn end(mut self) -> Job {
        // what could not be killed a moment ago would keep the worker for as long once more
        let (killed, left) = match self.unkilled {
            0 => process::sweep(None),
            left => (0, left),
        };
        let Job { log, document, .. } = &mut self.job;
        if killed > 0 {
            log.line(&format!(
                "killed what the steps left running, processes: {killed}"
            ));
        }
        if left > 0 {
            let left = format!("processes of the job that could not be killed still run: {left}");
            log.line(&format!("warning: {left}"));
            document.warn(&left);
        }
        if self.failure.is_none() && self.stopping {
            interrupt(document);
            return self.job;
        }
        (document.status, document.exit_code) = (JobState::Success, Some(0));
        if let Some((reason, code, error)) = self.failure {
            (document.status, document.exit_code) = (JobState::Failed, Some(code));
            (document.reason, document.error) = (Some(reason), Some(error));
        }
        let not_run = |step: &&mut StepStatus| step.status == StepState::Pending;
        for step in document.steps.iter_mut().filter(not_run) {
            step.status = StepState::Skipped;
        }
        document.finished_at = Some(now());
        document.duration_ms = Some(millis(self.journal.started.elapsed()));
        self.job
    }
}

/// What every step has otherwise than this process (docs/reference.md, "Steps and their environment"): no configuration of ours, the
/// variables of the job, and the job's own `JOB_…` on top.
fn environment(job: &Job, plan: &Plan, attempt: Attempt) -> Vec<(String, Option<OsString>)> {
    let configured = variables().filter(|name| std::env::var_os(name).is_some());
    let configured = configured.map(|name| (name.to_owned(), None));
    let own = plan.env.iter().map(|(name, value)| (&**name, value.into()));
    let ours: [(&str, OsString); 6] = [
        ("JOB_ID", job.document.id.as_str().into()),
        ("JOB_WORK_DIR", job.dir.path().into()),
        ("JOB_LOG", (&job.log.path).into()),
        ("JOB_STEPS", plan.steps.len().to_string().into()),
        ("JOB_ATTEMPT", attempt.number.to_string().into()),
        ("WORKER_ID", (&job.document.worker).into()),
    ];
    let set = own.chain(ours);
    let set = set.map(|(name, value)| (name.to_owned(), Some(value)));
    configured.chain(set).collect()
}

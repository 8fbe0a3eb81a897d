//! A job whose steps run: one after the other until the first failure, each within its limits.

use super::directory::is_full;
use super::interruption::Limit;
use super::journal::Journal;
use super::prepared::PreparedJob;
use super::run::Stage;
use super::save;
use super::step::{Due, RunningStep};
use super::{Interruption, OpenError, environment, journal};
use crate::config::{Durability, JobConfig};
use crate::contract::{Attempt, JobState, Reason, StepState, Timestamp, millis, took};
use crate::process::{self, Swept};
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

/// What an `always` step without a limit of its own has after a timeout of the job or a cancel.
const ALWAYS_LIMIT: Duration = Duration::from_secs(10);

/// Pause between two looks at the size of the log, where it has a limit. The look that finds it too large sends TERM, the
/// next one KILL.
const LOG_LOOK: Duration = Duration::from_millis(100);

/// A job whose steps run.
pub struct Running {
    pub job: PreparedJob,
    config: JobConfig,
    env: Vec<(OsString, OsString)>,
    pub journal: Journal,
    /// The step that runs now.
    step: Option<RunningStep>,
    next: usize,
    /// Why the job fails, and its exit code.
    failure: Option<(Reason, i32, String)>,
    /// A limit was passed, or the job was cancelled: from now on every step has a limit, and the job's own counts no more.
    limit_every_step: bool,
    log_limit: Option<LogLimit>,
    /// Where in the log this attempt begins, in bytes.
    pub log_start: u64,
    /// The worker stops: no further step is to run.
    pub stopping: bool,
    /// How many processes could not be killed since the last step began.
    unkilled: usize,
    /// No step is to run any more: [`Self::end`] is next.
    pub is_over: bool,
}

/// The size that the log may have, in bytes, and when to look at it.
struct LogLimit {
    configured: u64,
    /// An `always` step may write as much again as there was at the failure.
    allowed: u64,
    look_at: Instant,
}

impl Running {
    /// Begins the log, writes the first journal, and starts the first step: what has no journal could be run again and again.
    ///
    /// Where the drive does not take log or journal, the job is over: nothing has been run.
    ///
    /// # Errors
    /// The drive is full, so it is waited for: the next jobs would only fail, too. A person at a terminal is told at once.
    pub fn start(mut job: PreparedJob, config: &JobConfig) -> Result<Stage, OpenError> {
        let log_start = match job.attempt == Attempt::FIRST {
            true => 0,
            false => job.log.size(),
        };
        // these lines are told once, where the drive is full for a while
        job.log.hold();
        let begun = job
            .begin_log()
            .and_then(|()| Journal::begin(&job.dir, job.first_document(), job.durability));
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
                let document = job.document.not_run(Reason::Internal, error.to_string());
                // the journal may say by now that the job runs; the first error is the one to tell
                let _ = journal::write(&job.dir, &document.to_json(), Durability::Cache);
                return Ok(Stage::result(document));
            }
        };
        let mut running = Self {
            env: environment::of(&job),
            journal,
            job,
            config: config.clone(),
            step: None,
            next: 0,
            failure: None,
            limit_every_step: false,
            log_limit: config.log_limit.map(|limit| LogLimit {
                configured: limit,
                allowed: limit,
                look_at: Instant::now() + LOG_LOOK,
            }),
            log_start,
            stopping: false,
            unkilled: 0,
            is_over: false,
        };
        process::spare_children();
        running.run_next();
        Ok(Stage::Running(Box::new(running)))
    }

    /// When to call [`Self::wake`].
    pub fn next_wake(&self) -> Option<Instant> {
        let look = self.log_limit.as_ref().map(|limit| limit.look_at);
        let over = self.step.as_ref()?.deadline(self.limit());
        let due = self.journal.due.filter(|_| self.may_write());
        [over, look, due].into_iter().flatten().min()
    }

    /// The start of the job, its limit and whose that is, as long as it counts.
    fn limit(&self) -> Option<(Instant, Duration, Limit)> {
        let limit = self.job.plan.timeout.filter(|_| !self.limit_every_step)?;
        let whose = match self.job.plan.is_bound {
            true => Limit::Setting,
            false => Limit::Job,
        };
        Some((self.journal.started, limit, whose))
    }

    /// Whether the journal may be written here: it is this worker's, and no stop waits meanwhile.
    fn may_write(&self) -> bool {
        !self.stopping && !self.job.log.is_taken()
    }

    /// The moment of [`Self::next_wake`] has come.
    pub fn wake(&mut self, now: Instant) {
        if self.may_write() {
            self.journal.write_if_due(&self.job.dir, now);
        }
        let log_limit = self.look_at_log(now);
        let limit = self.limit();
        let due = self
            .step
            .as_ref()
            .and_then(|s| s.due(limit, log_limit, now));
        match due {
            Some(Due::Interrupt(why)) => self.interrupt(why, now),
            Some(Due::Kill) => self.kill(),
            None => {}
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
            self.note_stop();
        }
        let Some(step) = self.step.as_mut().filter(|s| s.interruption().is_none()) else {
            return;
        };
        let sentence = why.sentence();
        if self.job.plan.steps[step.index].always && why.spares_always_steps() {
            if !std::mem::replace(&mut self.limit_every_step, true) {
                step.limit_to(ALWAYS_LIMIT, now);
                self.job.log.line(format_args!(
                    "{sentence}; this step always runs, and has time to end"
                ));
                self.fail(why.reason(), why.exit_code(1), sentence);
            }
            return;
        }
        if why != Interruption::Stop {
            self.job
                .log
                .line(format_args!("{sentence}; asking the job to stop"));
        }
        step.interrupt(why, now + self.config.stop_grace);
        self.child_ended(); // the shell may have ended before: from now on all of the job has to
    }

    /// Tells the drive of a stop, and asks nothing of it from then on: it may not answer before this worker has to leave.
    fn note_stop(&mut self) {
        let handles = (self.job.dir.try_clone(), self.job.log.try_clone());
        self.job.log.hold();
        match handles {
            (Ok(dir), Ok(log)) if !self.job.log.is_taken() => {
                let document = self.journal.document.clone();
                save::note_stop(dir, Some(log), document, self.job.begun.clone());
            }
            _ => log::warn!("the stop cannot be noted before the end"),
        }
    }

    /// Stops without any grace.
    pub fn stop_at_once(&mut self, now: Instant) {
        self.interrupt(Interruption::Stop, now);
        self.kill();
    }

    fn kill(&mut self) {
        let Some(step) = &mut self.step else { return };
        let Swept { killed, left } = step.kill();
        self.unkilled = left;
        self.job.log.line(format_args!(
            "killed what did not stop, processes: {killed}"
        ));
        self.step_over();
    }

    fn step_over(&mut self) {
        let Some(step) = self.step.take() else { return };
        let why = step.interruption().or_else(|| {
            let passed = self.log_limit_passed()?; // it ended before the size check
            self.job.log.line(format_args!("{}", passed.sentence()));
            Some(passed)
        });
        let (exit, ms) = (step.exit(), millis(step.started.elapsed()));
        let code = why.map_or(exit.code(), |why| why.exit_code(exit.code()));
        let signal = exit.signal_name();
        let how = signal.as_ref().map(|name| format!(" ({name})"));
        let place = self.job.step_number(step.index);
        self.job.log.line(format_args!(
            "{place}: exit {code}{} in {}s",
            how.as_deref().unwrap_or_default(),
            took(ms)
        ));
        let status = &mut self.journal.document.steps[step.index];
        status.status = match code {
            0 => StepState::Success,
            _ => StepState::Failed,
        };
        status.exit_code = Some(code);
        status.signal = signal;
        status.duration_ms = Some(ms);
        self.judge(step.index, why, code, how);
        self.run_next();
    }

    /// Whether the job fails by this step. `why`: the exit code is that of an interruption; `how`: the signal that ended it.
    fn judge(&mut self, index: usize, why: Option<Interruption>, code: i32, how: Option<String>) {
        match why {
            Some(Interruption::Stop) => {}
            Some(why) => {
                self.limit_every_step |= why.spares_always_steps();
                self.fail(why.reason(), code, why.sentence());
            }
            None if code != 0 => {
                let ended = match how {
                    None => format!("ended with exit code {code}"),
                    Some(signal) => format!("was ended by{signal}"),
                };
                let (place, name) = (self.job.step_number(index), self.job.name(index));
                self.fail(Reason::Step, code, format!("{place} ({name}) {ended}"));
            }
            None => {}
        }
    }

    /// The first failure is the job's; what comes later cannot change it.
    fn fail(&mut self, reason: Reason, code: i32, error: String) {
        // `always` steps may write as much again, or the first look would end them
        if let Some(limit) = &mut self.log_limit {
            limit.allowed = self.job.log.size().saturating_add(limit.configured);
        }
        self.failure.get_or_insert((reason, code, error));
    }

    fn look_at_log(&mut self, now: Instant) -> Option<Interruption> {
        let limit = self.log_limit.as_mut().filter(|l| l.look_at <= now)?;
        limit.look_at = now + LOG_LOOK;
        self.log_limit_passed()
    }

    fn log_limit_passed(&self) -> Option<Interruption> {
        let limit = self.log_limit.as_ref()?;
        (self.job.log.size() > limit.allowed).then_some(Interruption::LogLimit(limit.configured))
    }

    /// Starts the next step that is due, if there is one.
    fn run_next(&mut self) {
        while self.next < self.job.plan.steps.len() && !self.stopping {
            let index = self.next;
            self.next += 1;
            let step = &self.job.plan.steps[index];
            if self.failure.is_some() && !step.always {
                self.journal.document.steps[index].status = StepState::Skipped;
                let place = self.job.step_number(index);
                self.job.log.line(format_args!("{place}: skipped"));
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
                    let place = self.job.step_number(index);
                    self.job.log.line(format_args!("{place}: {error}"));
                    let status = &mut self.journal.document.steps[index];
                    (status.status, status.started_at) = (StepState::Failed, None);
                    let error = format!("{place} could not be started: {error}");
                    self.fail(Reason::Internal, 1, error);
                }
            }
        }
        self.is_over = true;
    }

    fn start_step(&mut self, index: usize, limit: Option<Duration>) -> Result<RunningStep, String> {
        let status = &mut self.journal.document.steps[index];
        // the first journal has the first step already
        let is_new = status.status != StepState::Running;
        (status.status, status.started_at) = (StepState::Running, Some(Timestamp::now()));
        let ready = self.get_ready();
        if is_new && self.may_write() {
            self.journal.note_change(&self.job.dir, Instant::now());
        }
        let (place, label) = (self.job.step_number(index), self.job.label(index));
        self.job.log.line(format_args!("{place}: {label}"));
        ready?;
        let number = (index + 1).to_string();
        let env = self.env.iter().map(|(name, value)| (&**name, &**value));
        let env = env.chain([(OsStr::new("JOB_STEP"), OsStr::new(&number))]);
        let run = &self.job.plan.steps[index].run;
        let shell = &self.config.shell;
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
    pub fn end(mut self) -> PreparedJob {
        // what could not be killed a moment ago would keep the worker for as long once more
        let swept = match self.unkilled {
            0 => process::sweep(None, |_, _| {}),
            left => Swept { killed: 0, left },
        };
        if swept.killed > 0 {
            self.job.log.line(format_args!(
                "killed what the steps left running, processes: {}",
                swept.killed
            ));
        }
        if swept.left > 0 {
            let left = format!(
                "processes of the job that could not be killed still run: {}",
                swept.left
            );
            self.job.log.line(format_args!("warning: {left}"));
            self.journal.document.warn(&left);
        }
        match self.failure {
            None if self.stopping => save::interrupt(&mut self.journal.document),
            None => self.journal.make_final(JobState::Success, 0),
            Some((reason, code, error)) => {
                self.journal.make_final(JobState::Failed, code);
                let document = &mut self.journal.document;
                (document.reason, document.error) = (Some(reason), Some(error));
            }
        }
        self.job.document = self.journal.document;
        self.job
    }
}

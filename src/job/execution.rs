//! Running a claimed job: its steps one after the other until the first failure, each within its limits, and then what
//! makes its result final.

use super::claimed::ClaimedJob;
use super::drive::{Done, Drive};
use super::record::Record;
use super::step::{Due, EndedStep, RunningStep};
use super::{Interruption, News, Outcome, environment};
use crate::config::JobConfig;
use crate::contract::{Attempt, Document, JobId, JobState, Reason, StepState, Timestamp, millis};
use crate::inbox::Waker;
use crate::process;
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

/// Limit of an `always` step without one of its own, when it runs after a timeout or a cancel.
const ALWAYS_LIMIT: Duration = Duration::from_secs(10);

/// Pause between two looks at the size of the log, where it has a limit. The look that finds it too large sends TERM, the
/// next one KILL.
const LOG_LOOK: Duration = Duration::from_millis(100);

/// How long to wait for the drive after a second stop signal.
const LAST_WAIT: Duration = Duration::from_millis(200);

/// A job whose steps are running.
pub struct Execution {
    job: ClaimedJob,
    config: JobConfig,
    env: Vec<(OsString, OsString)>,
    record: Record,
    stage: Stage,
    /// The step that runs now.
    step: Option<RunningStep>,
    next: usize,
    /// Why the job fails, and its exit code.
    failure: Option<(Reason, i32, String)>,
    /// A step has passed its limit or was cancelled: from now on every step has a limit, and the job's own counts no more.
    limit_every_step: bool,
    log_limit: Option<LogLimit>,
    /// Where in the log this attempt begins, in bytes.
    log_start: u64,
    /// The worker stops: no further step is to run.
    stopping: bool,
    /// The worker stops, and waits for the drive until then.
    leave_drive_at: Option<Instant>,
    outcome: Option<Outcome>,
}

enum Stage {
    /// The first journal is being written, and no step has run. Holds the reason if the job was ended meanwhile.
    Beginning(Option<Interruption>),
    Steps,
    /// The drive takes log and result.
    Saving,
}

/// The size that the log may have, in bytes, and when to look at it.
struct LogLimit {
    configured: u64,
    /// An `always` step may write as much again as there was at the failure.
    allowed: u64,
    look_at: Instant,
}

impl Execution {
    /// Begins the log, and has the drive take the journal. The first step starts when the drive has it: what has no journal
    /// could be run again and again. `waker` wakes the inbox for [`Self::drive_done`].
    ///
    /// # Errors
    /// A sentence, where the log cannot be written. Nothing has been run then.
    pub fn start(
        mut job: ClaimedJob,
        config: &JobConfig,
        worker: &str,
        waker: &Waker,
    ) -> Result<Self, String> {
        let log_start = match job.attempt == Attempt::FIRST {
            true => 0,
            false => job.log.size(),
        };
        job.begin_log(worker)?;
        let drive = Drive::open(&job, config.durability, waker)?;
        let mut execution = Self {
            env: environment::of(&job, worker),
            record: Record::begin(job.document(worker), drive, config.durability),
            job,
            config: config.clone(),
            stage: Stage::Beginning(None),
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
            leave_drive_at: None,
            outcome: None,
        };
        execution.drive_done();
        Ok(execution)
    }

    pub fn id(&self) -> &JobId {
        &self.job.id
    }

    /// What is to be told of its start.
    pub fn started(&self) -> News {
        News::Started {
            dir: self.job.dir.path().to_owned(),
            attempt: self.job.attempt.number,
        }
    }

    /// Where in the log this attempt begins, in bytes.
    pub fn log_start(&self) -> u64 {
        self.log_start
    }

    /// The document as the journal has it, if that has changed since the last call, while the job runs.
    pub fn take_change(&mut self) -> Option<Vec<u8>> {
        self.record.take_change()
    }

    /// How it ended, once it has.
    pub fn take_outcome(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }

    /// When to call [`Self::wake`].
    pub fn next_wake(&self) -> Option<Instant> {
        let Some(step) = &self.step else {
            return self.leave_drive_at;
        };
        let look = self.log_limit.as_ref().map(|limit| limit.look_at);
        let over = step.deadline(self.limit());
        [over, look, self.record.due()].into_iter().flatten().min()
    }

    /// The start of the job and its limit, as long as that counts.
    fn limit(&self) -> Option<(Instant, Duration)> {
        let limit = self.job.plan.timeout.filter(|_| !self.limit_every_step);
        limit.map(|limit| (self.record.started(), limit))
    }

    /// The moment of [`Self::next_wake`] has come.
    pub fn wake(&mut self, now: Instant) {
        self.record.write_if_due(&self.job, now);
        self.drive_done();
        let log_limit = self.look_at_log(now);
        let limit = self.limit();
        match &self.step {
            Some(step) => match step.due(limit, log_limit, now) {
                Some(Due::Interrupt(why)) => self.interrupt(why, now),
                Some(Due::Kill) => self.kill(),
                None => {}
            },
            None if self.leave_drive_at.is_some_and(|at| at <= now) => {
                // what the drive still does is as good as if we had died: the journal tells how far it came
                self.leave_drive_at = None;
                log::warn!("the drive does not answer; leaving without it");
                self.outcome.get_or_insert(Outcome::Unfinished);
            }
            None => {}
        }
    }

    /// Some child has ended.
    pub fn child_ended(&mut self) {
        if self.step.as_mut().is_some_and(RunningStep::child_ended) {
            self.step_over();
        }
    }

    /// The drive may have done what it was given.
    pub fn drive_done(&mut self) {
        while let Some(done) = self.record.next_done() {
            match (done, &self.stage) {
                (Done::Lost, _) => self.outcome = Some(Outcome::Lost),
                (Done::Finished(document), _) => {
                    self.outcome = Some(match document.status {
                        JobState::Interrupted => Outcome::Unfinished,
                        _ => Outcome::Final(document),
                    });
                }
                (Done::Written(Ok(document)), &Stage::Beginning(interrupted)) => {
                    self.record.journal_written(document);
                    self.begin(interrupted);
                }
                (Done::Written(Err(error)), Stage::Beginning(_)) => self.not_begun(error),
                (Done::Written(Ok(document)), Stage::Steps) => {
                    self.record.journal_written(document)
                }
                (Done::Written(Err(error)), Stage::Steps) => self.record.journal_failed(&error),
                // the final journal is behind it
                (Done::Written(_), Stage::Saving) => {}
            }
        }
    }

    /// The drive does not take the first journal: nothing is run.
    fn not_begun(&mut self, error: String) {
        let (id, worker) = (self.job.id.clone(), &self.record.document.worker);
        self.outcome = Some(Outcome::Final(Box::new(Document {
            key: self.job.key.clone(),
            origin: self.job.origin.clone(),
            work_dir: Some(self.job.work_dir.clone()),
            ..Document::not_run(id, worker, Reason::Internal, error)
        })));
    }

    /// Starts the first step, unless somebody has ended the job meanwhile.
    fn begin(&mut self, interrupted: Option<Interruption>) {
        self.stage = Stage::Steps;
        if let Some(why) = interrupted {
            if let Some(first) = self.record.document.steps.first_mut() {
                (first.status, first.started_at) = (StepState::Pending, None);
            }
            if why != Interruption::Stop {
                self.limit_every_step = true;
                self.fail(why.reason(), why.exit_code(1), why.sentence());
            }
        }
        self.run_next();
    }

    /// Ends the job: TERM to all of it, and KILL after the grace. A worker that stops waits for the drive as long.
    pub fn interrupt(&mut self, why: Interruption, now: Instant) {
        self.stopping |= why == Interruption::Stop;
        let end_of_grace = now + self.config.stop_grace;
        match &mut self.step {
            Some(step) if step.is_interrupted() => {}
            Some(step) => {
                let sentence = why.sentence();
                self.job
                    .log
                    .line(format_args!("{sentence}; asking the job to stop"));
                step.interrupt(why, end_of_grace);
                self.child_ended(); // the shell may have ended before: from now on all of the job has to
            }
            None => {
                if let Stage::Beginning(interrupted) = &mut self.stage {
                    interrupted.get_or_insert(why);
                }
                if why == Interruption::Stop {
                    self.leave_drive_at.get_or_insert(end_of_grace);
                }
            }
        }
    }

    /// Stops without any grace, neither for the step nor for the drive.
    pub fn stop_at_once(&mut self) {
        self.interrupt(Interruption::Stop, Instant::now());
        self.kill();
        if self.outcome.is_none() {
            self.record.wait(LAST_WAIT);
            self.drive_done();
        }
        self.outcome.get_or_insert(Outcome::Unfinished);
    }

    fn kill(&mut self) {
        let Some(step) = &mut self.step else { return };
        let killed = step.kill();
        self.job.log.line(format_args!(
            "killed what did not stop, processes: {killed}"
        ));
        self.step_over();
    }

    fn step_over(&mut self) {
        let Some(step) = self.step.take() else { return };
        let log_limit = self.log_limit_passed().filter(|_| !step.is_interrupted());
        if let Some(passed) = log_limit {
            self.job.log.line(format_args!("{}", passed.sentence())); // it ended before the size check
        }
        let ended = step.ended(log_limit);
        let (code, signal) = (ended.exit_code(), ended.exit.signal_name());
        let how = signal.as_ref().map(|name| format!(" ({name})"));
        let place = self.job.step_number(ended.index);
        self.job.log.line(format_args!(
            "{place}: exit {code}{} in {:.1}s",
            how.as_deref().unwrap_or_default(),
            ended.duration.as_secs_f64()
        ));
        let status = &mut self.record.document.steps[ended.index];
        status.status = match code {
            0 => StepState::Success,
            _ => StepState::Failed,
        };
        status.exit_code = Some(code);
        status.signal = signal;
        status.duration_ms = Some(millis(ended.duration));
        self.judge(&ended, code, how);
        self.run_next();
    }

    /// Whether the job fails by this step. `how`: the signal that ended it.
    fn judge(&mut self, step: &EndedStep, code: i32, how: Option<String>) {
        match step.interruption {
            Some(Interruption::Stop) => {}
            Some(why) => {
                self.limit_every_step |= !matches!(why, Interruption::LogLimit(_));
                self.fail(why.reason(), code, why.sentence());
            }
            None if code != 0 => {
                let ended = match how {
                    None => format!("ended with exit code {code}"),
                    Some(signal) => format!("was ended by{signal}"),
                };
                let (place, name) = (self.job.step_number(step.index), self.job.name(step.index));
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

    /// Starts the next step that is due, or ends the run.
    fn run_next(&mut self) {
        while self.next < self.job.plan.steps.len() && !self.stopping {
            let index = self.next;
            self.next += 1;
            let step = &self.job.plan.steps[index];
            if self.failure.is_some() && !step.always {
                self.record.document.steps[index].status = StepState::Skipped;
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
                    return;
                }
                Err(error) => {
                    let place = self.job.step_number(index);
                    self.job.log.line(format_args!("{place}: {error}"));
                    let status = &mut self.record.document.steps[index];
                    (status.status, status.started_at) = (StepState::Failed, None);
                    let error = format!("{place} could not be started: {error}");
                    self.fail(Reason::Internal, 1, error);
                }
            }
        }
        self.over();
    }

    fn start_step(&mut self, index: usize, limit: Option<Duration>) -> Result<RunningStep, String> {
        let status = &mut self.record.document.steps[index];
        // the first journal has the first step already
        let is_new = status.status != StepState::Running;
        (status.status, status.started_at) = (StepState::Running, Some(Timestamp::now()));
        let ready = self.get_ready();
        if is_new {
            self.record.note_change(&self.job, Instant::now());
            self.drive_done();
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

    /// Leaves nothing behind, and only then makes the result final.
    fn over(&mut self) {
        let killed = process::sweep(|_, _| {});
        if killed > 0 {
            self.job.log.line(format_args!(
                "killed what the steps left running, processes: {killed}"
            ));
        }
        if let Err(error) = self.job.log.restore_if_removed(&self.job.dir) {
            log::warn!("{error}; the result is published all the same");
        }
        match self.failure.take() {
            None if self.stopping => {
                let document = &mut self.record.document;
                document.status = JobState::Interrupted;
                document.stops = document.stops.saturating_add(1);
            }
            None => self.record.make_final(JobState::Success, 0),
            Some((reason, code, error)) => {
                self.record.make_final(JobState::Failed, code);
                let document = &mut self.record.document;
                (document.reason, document.error) = (Some(reason), Some(error));
            }
        }
        self.save();
    }

    /// Gives log and document to the drive.
    fn save(&mut self) {
        self.stage = Stage::Saving;
        let end_of_grace = Instant::now() + self.config.stop_grace;
        self.leave_drive_at = self.stopping.then_some(end_of_grace);
        if let Err(error) = self.record.finish(&self.job) {
            let path = self.job.log.path();
            log::warn!("{path}: {error}; the job is to be run again");
            self.outcome = Some(Outcome::Unfinished);
        }
        self.drive_done();
    }

    /// Makes the document of an interrupted job final, for a request that nobody will deliver again.
    pub fn fail_forgotten(&mut self, error: &str) -> Document {
        // `wake` clears it when the drive has not answered in time. Then do not write: the next worker counts a crash.
        let drive_answers = self.leave_drive_at.is_some();
        let steps = &self.record.document.steps;
        let code = steps.iter().filter_map(|step| step.exit_code).next_back();
        self.record
            .make_final(JobState::Failed, code.unwrap_or(0).max(1));
        let document = &mut self.record.document;
        (document.reason, document.error) = (Some(Reason::Interrupted), Some(error.to_owned()));
        document.forgotten = true;
        if drive_answers {
            self.job.log.line(format_args!("job failed: {error}"));
            if let Err(error) = self.record.store(&self.job) {
                log::warn!("{error}; the result is published all the same");
            }
        }
        self.record.document.clone()
    }
}

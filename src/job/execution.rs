//! Running the steps of a claimed job: one after the other, until the first failure, each within its limits
//! (contract sections 4 and 7).

use super::log::JobLog;
use super::{End, WorkDir, environment, journal};
use crate::config::JobConfig;
use crate::contract::{
    Attempt, Document, Follows, JobId, JobState, Plan, Reason, StepState, StepStatus, Timestamp,
    millis,
};
use crate::process::{self, Exit, Left};
use rustix::process::{Pid, Signal};
use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

/// Limit of an `always` step without one of its own, when it runs after a timeout or a cancel.
const ALWAYS_LIMIT: Duration = Duration::from_secs(10);

/// Pause between two looks at the size of the log, where it has a limit. The look that finds it too large sends TERM, the
/// next one KILL.
const LOG_LOOK: Duration = Duration::from_millis(100);

/// Pause between two writes of a journal that changes all the time. What is told of a job is what the journal says, so
/// this is the pause between two announcements, too.
const JOURNAL_PAUSE: Duration = Duration::from_millis(100);

/// A claimed job, ready to run.
pub struct Job {
    pub id: JobId,
    pub plan: Plan,
    pub dir: WorkDir,
    pub log: JobLog,
    pub attempt: Attempt,
    /// See [`Document::key`] and [`Document::origin`].
    pub key: Option<String>,
    pub origin: Option<String>,
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// With a result.
    Final(Box<Document>),
    /// Before its end: the job is to be run again.
    Stopped,
}

/// A job whose steps are running.
pub struct Execution {
    job: Job,
    config: JobConfig,
    document: Document,
    env: Vec<(OsString, OsString)>,
    started: Instant,
    /// The step that runs now.
    step: Option<Running>,
    next: usize,
    /// Why the job fails, and its exit code.
    failure: Option<(Reason, i32, String)>,
    /// A step overran its time or was cancelled: from now on every step has a limit.
    overrun: bool,
    /// The size that the log may have, where that is limited, and when to look at it.
    log_room: Option<u64>,
    log_look: Instant,
    log_start: u64,
    /// No further step is to run.
    stopping: bool,
    /// When the journal may be written again, where the document has changed since the last time.
    journal_due: Option<Instant>,
    journal_written: Instant,
    /// What the journal says since the last call of [`Self::take_change`].
    change: Option<Vec<u8>>,
    outcome: Option<Outcome>,
}

struct Running {
    index: usize,
    group: Pid,
    started: Instant,
    limit: Option<Duration>,
    exit: Option<Exit>,
    /// Why it is being ended, and when to kill what has not gone by then.
    ending: Option<(End, Instant)>,
}

impl Execution {
    /// Begins the log, writes the journal, and starts the first step, in this order.
    ///
    /// # Errors
    /// A sentence, where log or journal cannot be written. Nothing has been run then: what has no journal could be run
    /// again and again.
    pub fn start(mut job: Job, config: &JobConfig, worker: &str) -> Result<Self, String> {
        let path = job.log.path().to_owned();
        let log_start = if job.attempt == Attempt::FIRST {
            0
        } else {
            job.log.size()
        };
        match job.attempt.follows {
            Follows::Nothing => job
                .log
                .begin(&job.id, &job.dir)
                .map_err(|error| format!("{path} cannot be written: {error}"))?,
            Follows::Crash => {
                job.log.line(format_args!(
                    "attempt {}: whoever ran the one before died in mid-run",
                    job.attempt.number
                ));
            }
            Follows::Stop => {
                job.log.line(format_args!(
                    "attempt {} again: the worker was asked to stop in mid-run",
                    job.attempt.number
                ));
            }
        }
        let steps = job.plan.steps.iter().map(|step| StepStatus {
            name: step.name.clone(),
            status: StepState::Pending,
            exit_code: None,
            signal: None,
            duration_ms: None,
        });
        let document = Document {
            id: job.id.clone(),
            status: JobState::Running,
            log_file: Some(path),
            exit_code: None,
            reason: None,
            error: None,
            attempt: Some(job.attempt.number),
            worker: worker.to_owned(),
            started_at: Some(Timestamp::now()),
            finished_at: None,
            duration_ms: None,
            steps: steps.collect(),
            key: job.key.clone(),
            origin: job.origin.clone(),
            stops: job.attempt.stops,
        };
        let mut execution = Self {
            env: environment::of(&job, worker),
            job,
            config: config.clone(),
            document,
            started: Instant::now(),
            step: None,
            next: 0,
            failure: None,
            overrun: false,
            log_room: config.log_limit,
            log_look: Instant::now() + LOG_LOOK,
            log_start,
            stopping: false,
            journal_due: None,
            journal_written: Instant::now(),
            change: None,
            outcome: None,
        };
        execution.run_next(true)?;
        Ok(execution)
    }

    pub fn id(&self) -> &JobId {
        &self.job.id
    }

    /// Where in the log this attempt begins, in bytes.
    pub fn log_start(&self) -> u64 {
        self.log_start
    }

    /// The document as the journal has it, if that has changed since the last call, while the job runs.
    pub fn take_change(&mut self) -> Option<Vec<u8>> {
        self.change.take()
    }

    /// How it ended, once it has.
    pub fn take_outcome(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }

    /// When to call [`Self::expired`].
    pub fn deadline(&self) -> Option<Instant> {
        let step = self.step.as_ref()?;
        let over = match step.ending {
            Some((_, kill_at)) => Some(kill_at),
            None => self.time_left(step).map(|(at, _)| at),
        };
        let look = self.log_room.map(|_| self.log_look);
        [over, look, self.journal_due].into_iter().flatten().min()
    }

    /// The moment at which a step has run too long, and the limit that it has passed then.
    fn time_left(&self, step: &Running) -> Option<(Instant, Duration)> {
        let job = self
            .job
            .plan
            .timeout
            .filter(|_| !self.overrun)
            .map(|limit| (self.started, limit));
        let own = step.limit.map(|limit| (step.started, limit));
        // a limit beyond the clock's end is none
        let at = |(start, limit): (Instant, Duration)| Some((start.checked_add(limit)?, limit));
        [job.and_then(at), own.and_then(at)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Some child has ended.
    pub fn child_ended(&mut self) {
        let Some(step) = &mut self.step else { return };
        let left = process::reap_some(|pid, exit| {
            if pid == step.group {
                step.exit = Some(exit);
            }
        });
        // a job that is being ended is over when all of it is gone, not only its shell
        if left == Left::None || (step.exit.is_some() && step.ending.is_none()) {
            self.step_over();
        }
    }

    /// The deadline has passed.
    pub fn expired(&mut self, now: Instant) {
        if self.journal_due.is_some_and(|at| at <= now)
            && let Err(error) = self.write_journal(now)
        {
            log::warn!("{error}; going on, since the job runs already");
        }
        let Some(step) = &self.step else { return };
        let passed = (self.log_look <= now)
            .then(|| self.log_limit_passed())
            .flatten();
        if self.log_look <= now {
            self.log_look = now + LOG_LOOK;
        }
        match step.ending {
            // the grace is for cleaning up: whoever goes on filling the drive has none
            Some((_, kill_at)) if kill_at <= now || passed.is_some() => self.kill(),
            Some(_) => {}
            None => {
                if let Some((_, limit)) = self.time_left(step).filter(|(at, _)| *at <= now) {
                    self.end(End::Timeout(limit), now);
                } else if let Some(passed) = passed {
                    self.end(passed, now);
                }
            }
        }
    }

    fn log_limit_passed(&self) -> Option<End> {
        self.log_room.filter(|room| self.job.log.size() > *room)?;
        self.config.log_limit.map(End::LogLimit)
    }

    /// Ends the step that runs: TERM to the whole job, and KILL after the grace.
    pub fn end(&mut self, why: End, now: Instant) {
        self.stopping |= why == End::Stopped;
        let Some(step) = &mut self.step else { return };
        if step.ending.is_some() {
            return;
        }
        step.ending = Some((why, now + self.config.stop_grace));
        let group = step.group;
        self.job
            .log
            .line(format_args!("{}; asking the job to stop", why.sentence()));
        process::terminate(group);
        self.child_ended();
    }

    /// Ends the step that runs, without any grace.
    pub fn kill(&mut self) {
        let Some(step) = &mut self.step else { return };
        let group = step.group;
        let killed = process::sweep(|pid, exit| {
            if pid == group {
                step.exit = Some(exit);
            }
        });
        self.job.log.line(format_args!(
            "killed what did not stop, processes: {killed}"
        ));
        self.step_over();
    }

    fn step_over(&mut self) {
        let Some(step) = self.step.take() else { return };
        let exit = step.exit.unwrap_or(Exit::Signal(Signal::KILL.as_raw()));
        let duration = step.started.elapsed();
        let passed = self.log_limit_passed().filter(|_| step.ending.is_none());
        if let Some(passed) = passed {
            self.job.log.line(format_args!("{}", passed.sentence())); // it was quicker than our looks
        }
        let ending = step.ending.map(|(why, _)| why).or(passed);
        let code = ending.map_or(exit.code(), |why| why.exit_code(exit.code()));
        let signal = exit.signal_name();
        let how = signal
            .as_ref()
            .map_or(String::new(), |name| format!(" ({name})"));
        let place = self.place(step.index);
        self.job.log.line(format_args!(
            "{place}: exit {code}{how} in {:.1}s",
            duration.as_secs_f64()
        ));
        let status = &mut self.document.steps[step.index];
        status.status = if code == 0 {
            StepState::Success
        } else {
            StepState::Failed
        };
        (status.exit_code, status.signal, status.duration_ms) =
            (Some(code), signal, Some(millis(duration)));
        let label = self.label(step.index);
        match ending {
            Some(End::Stopped) => {}
            Some(why) => {
                self.overrun |= !matches!(why, End::LogLimit(_));
                self.fail(why.reason(), code, why.sentence());
            }
            None if code != 0 => {
                let ended = if how.is_empty() {
                    format!("ended with exit code {code}")
                } else {
                    format!("was ended by{how}")
                };
                self.fail(Reason::Step, code, format!("{place} ({label}) {ended}"));
            }
            None => {}
        }
        if let Err(error) = self.run_next(false) {
            log::warn!("{error}; going on, since the job runs already");
        }
    }

    /// The first failure is the job's; what comes later cannot change it.
    fn fail(&mut self, reason: Reason, code: i32, error: String) {
        // `always` steps may write as much again, or the first look would end them
        self.log_room = self
            .config
            .log_limit
            .map(|limit| self.job.log.size().saturating_add(limit));
        self.failure.get_or_insert((reason, code, error));
    }

    /// Starts the next step that is due, or ends the run. With `must_journal`, nothing is started unless the journal is
    /// written.
    fn run_next(&mut self, must_journal: bool) -> Result<(), String> {
        let mut journalled = Ok(());
        while self.next < self.job.plan.steps.len() && !self.stopping {
            let index = self.next;
            self.next += 1;
            let step = &self.job.plan.steps[index];
            if self.failure.is_some() && !step.always {
                self.document.steps[index].status = StepState::Skipped;
                continue;
            }
            let limit = step.timeout.or(self.overrun.then_some(ALWAYS_LIMIT));
            self.document.steps[index].status = StepState::Running;
            let ready = self.get_ready();
            let now = Instant::now();
            let mut due = self.journal_written + JOURNAL_PAUSE;
            if !journal::is_there(&self.job.dir) {
                due = now; // it counts the attempts
            }
            if must_journal {
                self.write_journal(now)?;
            } else if due <= now {
                journalled = journalled.and(self.write_journal(now));
            } else {
                self.journal_due = Some(due);
            }
            let place = self.place(index);
            self.job
                .log
                .line(format_args!("{place}: {}", self.label(index)));
            match ready.and_then(|()| self.spawn(index)) {
                Ok(group) => {
                    self.step = Some(Running {
                        index,
                        group,
                        started: Instant::now(),
                        limit,
                        exit: None,
                        ending: None,
                    });
                    return journalled;
                }
                Err(error) => {
                    self.job.log.line(format_args!("{place}: {error}"));
                    self.document.steps[index].status = StepState::Failed;
                    self.fail(
                        Reason::Internal,
                        1,
                        format!("{place} could not be started: {error}"),
                    );
                }
            }
        }
        self.over();
        journalled
    }

    /// Whatever the step before has done to the workDir: the next one finds directory, log and lock as they belong.
    fn get_ready(&mut self) -> Result<(), String> {
        if !self.job.dir.is_in_place() {
            let path = self.job.dir.path().display();
            return Err(format!("the workDir {path} has vanished"));
        }
        self.job.log.keep(&self.job.dir)
    }

    fn spawn(&self, index: usize) -> Result<Pid, String> {
        let number = (index + 1).to_string();
        let env = self
            .env
            .iter()
            .map(|(name, value)| (name.as_os_str(), value.as_os_str()));
        let env = env.chain([(OsStr::new("JOB_STEP"), OsStr::new(&number))]);
        let run = &self.job.plan.steps[index].run;
        let shell = &self.config.shell;
        let log = self.job.log.handle().map_err(|error| error.to_string())?;
        process::spawn(shell, run, &self.job.dir.current_dir(), env, log)
            .map_err(|error| format!("{shell}: {error}"))
    }

    /// Leaves nothing behind, and only then makes the result final.
    fn over(&mut self) {
        let killed = process::sweep(|_, _| {});
        if killed > 0 {
            self.job.log.line(format_args!(
                "killed what the steps left running, processes: {killed}"
            ));
        }
        if let Err(error) = self.job.log.keep(&self.job.dir) {
            log::warn!("{error}; the result is published all the same");
        }
        let stopped = self.stopping && self.failure.is_none();
        if stopped {
            self.document.status = JobState::Interrupted;
            self.document.stops = self.document.stops.saturating_add(1);
            self.job.log.line(format_args!(
                "stopped before the end; the job will be run again"
            ));
        } else {
            match self.failure.take() {
                None => self.make_final(JobState::Success, 0),
                Some((reason, code, error)) => {
                    self.make_final(JobState::Failed, code);
                    (self.document.reason, self.document.error) = (Some(reason), Some(error));
                }
            }
        }
        if let Err(error) = self.write_journal(Instant::now()) {
            log::warn!("{error}; the result is published all the same");
        }
        self.change = None;
        self.outcome = Some(if stopped {
            Outcome::Stopped
        } else {
            Outcome::Final(Box::new(self.document.clone()))
        });
    }

    fn make_final(&mut self, status: JobState, exit_code: i32) {
        for step in &mut self.document.steps {
            if step.status == StepState::Pending {
                step.status = StepState::Skipped;
            }
        }
        (self.document.status, self.document.exit_code) = (status, Some(exit_code));
        self.document.finished_at = Some(Timestamp::now());
        self.document.duration_ms = Some(millis(self.started.elapsed()));
    }

    /// Makes the document of an interrupted job final, for a request that nobody will deliver again.
    pub fn fail_interrupted(&mut self, error: &str) -> Document {
        self.job.log.line(format_args!("{error}"));
        let mut exit_codes = self.document.steps.iter().filter_map(|step| step.exit_code);
        self.make_final(JobState::Failed, exit_codes.next_back().unwrap_or(0).max(1));
        (self.document.reason, self.document.error) =
            (Some(Reason::Interrupted), Some(error.to_owned()));
        if let Err(error) = self.write_journal(Instant::now()) {
            log::warn!("{error}; the result is published all the same");
        }
        self.document.clone()
    }

    fn write_journal(&mut self, now: Instant) -> Result<(), String> {
        (self.journal_due, self.journal_written) = (None, now);
        if self.job.log.is_taken() {
            return Err("the journal is another worker's by now".to_owned());
        }
        let document = self.document.to_json();
        let written = journal::write(&self.job.dir, &document).map_err(|error| {
            format!(
                "{}/job.status.json cannot be written: {error}",
                self.job.dir.path().display()
            )
        });
        self.change = Some(document);
        written
    }

    fn place(&self, index: usize) -> String {
        format!("step {}/{}", index + 1, self.job.plan.steps.len())
    }

    /// What a person knows the step by.
    fn label(&self, index: usize) -> String {
        let step = &self.job.plan.steps[index];
        let mut lines = step.run.lines();
        let first = lines.next().unwrap_or_default();
        let run = if lines.next().is_some() {
            format!("{first} …")
        } else {
            first.to_owned()
        };
        step.name
            .as_ref()
            .map_or_else(|| run.clone(), |name| format!("{name} ({run})"))
    }
}

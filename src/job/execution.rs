//! Running the steps of a claimed job: one after the other, until the first failure, each within its limits
//! (contract sections 4 and 7).

use super::drive::{self, Done, Drive, Order};
use super::log::JobLog;
use super::{End, WorkDir, environment, journal};
use crate::config::JobConfig;
use crate::contract::{
    Attempt, Document, Follows, JobId, JobState, Plan, Reason, StepState, StepStatus, Timestamp,
    millis,
};
use crate::inbox::Bell;
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

/// How long somebody waits for the drive who stops at once.
const LAST_WAIT: Duration = Duration::from_millis(200);

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
    drive: Drive,
    stage: Stage,
    /// A stop waits for the drive until then, where no step runs.
    give_up_at: Option<Instant>,
    /// The drive has a journal to write.
    writing: bool,
    /// When the journal may be written again, where the document has changed since the last time.
    journal_due: Option<Instant>,
    journal_written: Instant,
    /// What the journal says since the last call of [`Self::take_change`].
    change: Option<Vec<u8>>,
    outcome: Option<Outcome>,
}

enum Stage {
    /// The drive takes the first journal; no step has run. Why none is to run, where somebody has said so by now.
    Beginning(Option<End>),
    Steps,
    /// The drive takes log and result.
    Saving,
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
    /// Begins the log, and has the drive take the journal. The first step starts when the drive has it: what has no journal
    /// could be run again and again. `bell` rings for [`Self::drive_done`].
    ///
    /// # Errors
    /// A sentence, where the log cannot be written. Nothing has been run then.
    pub fn start(
        mut job: Job,
        config: &JobConfig,
        worker: &str,
        bell: &Bell,
    ) -> Result<Self, String> {
        let path = job.log.path().to_owned();
        let log_start = if job.attempt == Attempt::FIRST {
            0
        } else {
            job.log.size()
        };
        let begun = match job.attempt.follows {
            Follows::Nothing => job.log.begin(&job.id, &job.dir),
            Follows::Crash | Follows::Stop => job.log.resume(&job.id, &job.dir),
        };
        begun.map_err(|error| format!("{path} cannot be written: {error}"))?;
        match job.attempt.follows {
            Follows::Nothing => {}
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
            warning: None,
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
        let drive = Drive::open(&job.dir, &job.log, config.durability, bell)?;
        let mut execution = Self {
            drive,
            stage: Stage::Beginning(None),
            give_up_at: None,
            writing: false,
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
        if let Some(first) = execution.document.steps.first_mut() {
            first.status = StepState::Running;
        }
        let document = execution.document.to_json();
        execution.drive.give(Order::Begin(document));
        execution.drive_done();
        Ok(execution)
    }

    /// The drive may have done what it was given.
    pub fn drive_done(&mut self) {
        while let Some(done) = self.drive.take() {
            match (done, &self.stage) {
                (Done::Finished(document), _) => {
                    self.outcome = Some(match document.status {
                        JobState::Interrupted => Outcome::Stopped,
                        _ => Outcome::Final(document),
                    });
                }
                (Done::Written(written), &Stage::Beginning(ended)) => self.begin(written, ended),
                (Done::Written(written), stage) => {
                    let is_over = matches!(stage, Stage::Saving);
                    self.writing = false;
                    match written {
                        Ok(document) if !is_over => self.change = Some(document),
                        Ok(_) => {}
                        Err(error) => log::warn!("{error}; going on, since the job runs already"),
                    }
                }
            }
        }
    }

    /// Starts the first step, if the drive has the first journal and nobody has ended the job.
    fn begin(&mut self, written: Result<Vec<u8>, String>, ended: Option<End>) {
        match written {
            Ok(document) => self.change = Some(document),
            Err(error) => {
                let id = self.job.id.clone();
                let document =
                    Document::not_run(id, &self.document.worker, Reason::Internal, error);
                self.outcome = Some(Outcome::Final(Box::new(Document {
                    key: self.job.key.clone(),
                    origin: self.job.origin.clone(),
                    ..document
                })));
                return;
            }
        }
        self.stage = Stage::Steps;
        self.journal_written = Instant::now();
        if let Some(why) = ended {
            if let Some(first) = self.document.steps.first_mut() {
                first.status = StepState::Pending;
            }
            if why != End::Stopped {
                self.overrun = true;
                self.fail(why.reason(), why.exit_code(1), why.sentence());
            }
        }
        self.run_next();
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
        let Some(step) = &self.step else {
            return self.give_up_at;
        };
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
        if self.journal_due.is_some_and(|at| at <= now) {
            self.write_journal(now);
        }
        let Some(step) = &self.step else {
            if self.give_up_at.is_some_and(|at| at <= now) {
                self.give_up();
            }
            return;
        };
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

    /// Does not wait for the drive any longer. What it still does is as good as if we had died: the journal tells how far
    /// it came.
    fn give_up(&mut self) {
        self.give_up_at = None;
        log::warn!("the drive does not answer; leaving without it");
        self.outcome.get_or_insert(Outcome::Stopped);
    }

    /// Stops without any grace, neither for the step nor for the drive.
    pub fn stop_at_once(&mut self) {
        self.end(End::Stopped, Instant::now());
        self.kill();
        if self.outcome.is_none() {
            self.drive.wait(LAST_WAIT);
            self.drive_done();
        }
        self.outcome.get_or_insert(Outcome::Stopped);
    }

    /// Ends the step that runs: TERM to the whole job, and KILL after the grace.
    pub fn end(&mut self, why: End, now: Instant) {
        self.stopping |= why == End::Stopped;
        let Some(step) = &mut self.step else {
            if let Stage::Beginning(ended) = &mut self.stage {
                ended.get_or_insert(why);
            }
            if why == End::Stopped {
                self.give_up_at.get_or_insert(now + self.config.stop_grace);
            }
            return;
        };
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
        self.run_next();
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

    /// Starts the next step that is due, or ends the run.
    fn run_next(&mut self) {
        while self.next < self.job.plan.steps.len() && !self.stopping {
            let index = self.next;
            self.next += 1;
            let step = &self.job.plan.steps[index];
            if self.failure.is_some() && !step.always {
                self.document.steps[index].status = StepState::Skipped;
                continue;
            }
            let limit = step.timeout.or(self.overrun.then_some(ALWAYS_LIMIT));
            // the first journal has the first step already
            let is_new = self.document.steps[index].status != StepState::Running;
            self.document.steps[index].status = StepState::Running;
            let ready = self.get_ready();
            if is_new {
                self.note_change(Instant::now());
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
                    return;
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
        } else {
            match self.failure.take() {
                None => self.make_final(JobState::Success, 0),
                Some((reason, code, error)) => {
                    self.make_final(JobState::Failed, code);
                    (self.document.reason, self.document.error) = (Some(reason), Some(error));
                }
            }
        }
        self.save();
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
        if self.give_up_at.is_some() {
            self.job.log.line(format_args!("{error}"));
        }
        let mut exit_codes = self.document.steps.iter().filter_map(|step| step.exit_code);
        self.make_final(JobState::Failed, exit_codes.next_back().unwrap_or(0).max(1));
        (self.document.reason, self.document.error) =
            (Some(Reason::Interrupted), Some(error.to_owned()));
        // without that moment, the drive is hanging: whoever finds the journal takes the job for one that died
        if self.give_up_at.is_some() && !self.job.log.is_taken() {
            let document = self.document.to_json();
            if let Err(error) = drive::store(&self.job.dir, &document, self.config.durability) {
                log::warn!("{error}; the result is published all the same");
            }
        }
        self.document.clone()
    }

    /// Gives log and final document to the drive.
    fn save(&mut self) {
        self.stage = Stage::Saving;
        (self.journal_due, self.change) = (None, None);
        self.give_up_at = self
            .stopping
            .then(|| Instant::now() + self.config.stop_grace);
        let document = self.document.clone();
        match self.job.log.try_clone() {
            Ok(log) => self.drive.give(Order::Finish(Box::new((log, document)))),
            Err(error) => {
                log::warn!(
                    "{}: {error}; the job is to be run again",
                    self.job.log.path()
                );
                self.outcome = Some(Outcome::Stopped);
            }
        }
        self.drive_done();
    }

    /// The document has changed: at once, or with what changes in the next moments, the journal says so.
    fn note_change(&mut self, now: Instant) {
        let due = self.journal_written + JOURNAL_PAUSE;
        if !self.writing && !journal::is_there(&self.job.dir) {
            self.restore_journal(); // it counts the attempts
        } else if due <= now {
            self.write_journal(now);
        } else {
            self.journal_due = Some(due);
        }
    }

    fn write_journal(&mut self, now: Instant) {
        if self.writing {
            self.journal_due = Some(now + JOURNAL_PAUSE);
            return;
        }
        (self.journal_due, self.journal_written) = (None, now);
        if self.job.log.is_taken() {
            return;
        }
        self.writing = true;
        self.drive.give(Order::Update(self.document.to_json()));
        self.drive_done();
    }

    /// A step has removed the journal: it is there again before the next one starts.
    fn restore_journal(&mut self) {
        if self.job.log.is_taken() {
            return;
        }
        let document = self.document.to_json();
        match journal::write(&self.job.dir, &document, self.config.durability) {
            Ok(()) => self.change = Some(document),
            Err(error) => log::warn!("job.status.json cannot be written anew: {error}"),
        }
        (self.journal_due, self.journal_written) = (None, Instant::now());
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

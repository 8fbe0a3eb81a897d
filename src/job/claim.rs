//! Claiming a job: finding its directory, reading its definition, getting its lock, and deciding by the journal what is to
//! be done (contract sections 2, 3 and 6). What may have to be waited for is tried again: by [`Claim::poll`].

use super::directory::is_passing;
use super::execution::{Execution, Job};
use super::log::{JobLog, Lock, while_nothing_runs};
use super::{OpenError, WorkDir, journal};
use crate::config::{JobConfig, PayloadSteps};
use crate::contract::{
    Answer, Definition, Document, JobId, JobState, Journal, MAX_DEFINITION_BYTES, Plan, Reason,
    Request,
};
use serde::de::IgnoredAny;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Pause between two looks for a file or a lock: short at first, since most come soon.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// The file that withdraws a job, whatever it is.
const WITHDRAWN: &str = "job.cancel";

/// Where a request came from, as far as it matters for the job.
#[derive(Clone, Copy, Debug, Default)]
pub struct Source {
    /// The broker has sent it before.
    pub redelivered: bool,
    pub packet_id: Option<u16>,
}

/// A job that is being claimed.
pub struct Claim {
    request: Request,
    source: Source,
    started: Instant,
    next_look: Instant,
    pause: Duration,
    told: bool,
}

/// What became of a claim.
pub enum Claimed {
    /// Nothing yet: to be polled again at [`Claim::next_look`].
    Waiting,
    /// It is ours, and its first step runs.
    Running(Box<Execution>),
    /// It is over already: the stored result.
    Answered(Answer),
    /// It will not run: the result that says why.
    Refused(Box<Document>),
}

/// What the journal wants.
#[derive(Debug, PartialEq)]
enum Decision {
    Run {
        attempt: u32,
        resumed: Option<Resumed>,
    },
    GiveUp {
        attempts: u32,
    },
    Answer(Answer),
}

/// Why an attempt follows another one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Resumed {
    AfterCrash,
    AfterStop,
}

impl Claim {
    pub fn new(request: Request, source: Source) -> Self {
        let started = Instant::now();
        Self {
            request,
            source,
            started,
            next_look: started,
            pause: FIRST_PAUSE,
            told: false,
        }
    }

    pub fn id(&self) -> &JobId {
        &self.request.id
    }

    /// When to poll, next.
    pub fn next_look(&self) -> Instant {
        self.next_look
    }

    /// Ends a job that is cancelled before its first step: its result, which is in its journal then, if its directory is
    /// there and no other run has that.
    pub fn cancelled(&self, config: &JobConfig, worker: &str) -> Document {
        let error = "cancelled by the controller before its first step".to_owned();
        self.end_unrun(self.open_dir(config).ok().as_ref(), worker, error)
    }

    fn end_unrun(&self, dir: Option<&WorkDir>, worker: &str, error: String) -> Document {
        let document = Document {
            exit_code: Some(130),
            ..self.not_run(worker, Reason::Cancelled, error)
        };
        let Some(dir) = dir else { return document };
        let path = dir.path().display();
        match while_nothing_runs(dir, || journal::write(dir, &document.to_json()))
            .map(Option::transpose)
        {
            Ok(Ok(Some(()))) => {}
            // that journal is of the run that goes on
            Ok(Ok(None)) => log::info!("another run has {path}; its journal is left alone"),
            Ok(Err(error)) | Err(error) => {
                log::warn!("{path}/job.status.json cannot be written: {error}");
            }
        }
        document
    }

    /// Tries to claim the job, without waiting.
    pub fn poll(&mut self, config: &JobConfig, worker: &str) -> Claimed {
        match self.try_claim(config, worker) {
            Ok(claimed) => claimed,
            Err(OpenError::Missing { .. }) if self.started.elapsed() < config.dir_wait => {
                self.look_again(config)
            }
            Err(error) => self.refuse(worker, Reason::Rejected, error.to_string()),
        }
    }

    fn look_again(&mut self, config: &JobConfig) -> Claimed {
        let now = Instant::now();
        self.next_look = now + self.pause;
        self.pause = (self.pause * 2).min(LAST_PAUSE);
        // the end of the wait is a moment to look, too
        let end = self.started + config.dir_wait;
        if end > now {
            self.next_look = self.next_look.min(end);
        }
        Claimed::Waiting
    }

    fn refuse(&self, worker: &str, reason: Reason, error: String) -> Claimed {
        Claimed::Refused(Box::new(self.not_run(worker, reason, error)))
    }

    fn not_run(&self, worker: &str, reason: Reason, error: String) -> Document {
        Document {
            packet_id: self.source.packet_id,
            ..Document::not_run(self.request.id.clone(), worker, reason, error)
        }
    }

    fn open_dir(&self, config: &JobConfig) -> Result<WorkDir, OpenError> {
        let base = config.root.as_deref().unwrap_or(Path::new(""));
        let path = std::path::absolute(base.join(&self.request.work_dir)).map_err(|error| {
            OpenError::Unusable(format!("workDir {:?}: {error}", self.request.work_dir))
        })?;
        WorkDir::open(path, config.root.as_deref()).map_err(|error| match error {
            // whoever got it may have removed the directory
            OpenError::Missing { what, why } if self.source.redelivered => OpenError::Missing {
                what,
                why: why + "; if this is a redelivery, a result may have been published before",
            },
            error => error,
        })
    }

    fn try_claim(&mut self, config: &JobConfig, worker: &str) -> Result<Claimed, OpenError> {
        let own = &self.request.definition;
        if config.payload_steps == PayloadSteps::Deny
            && (own.steps.is_some() || !own.env.is_empty())
        {
            let error = "the request brings `steps` or `env`, which JOB_PAYLOAD_STEPS=deny leaves to job.json";
            return Err(OpenError::Unusable(error.to_owned()));
        }
        let dir = self.open_dir(config)?;
        // a stored answer needs neither the definition, which may be gone by now, nor the lock: it does not change
        if self.source.redelivered
            && let Decision::Answer(answer) =
                self.decide(journal::read(&dir, &self.request.id), worker, u32::MAX)
        {
            return Ok(Claimed::Answered(answer));
        }
        if dir.has(WITHDRAWN) {
            let file = dir.path().join(WITHDRAWN);
            let error = format!(
                "withdrawn by {}; remove that file to have the job run",
                file.display()
            );
            let document = self.end_unrun(Some(&dir), worker, error);
            return Ok(Claimed::Refused(Box::new(document)));
        }
        let (plan, unknown) = self.plan(&dir, config)?;
        let internal = |error: String| self.refuse(worker, Reason::Internal, error);
        let log = match JobLog::open(&dir) {
            Ok(log) => log,
            Err(error) => {
                return Ok(internal(format!(
                    "{}/job.log cannot be opened: {error}",
                    dir.path().display()
                )));
            }
        };
        match log.try_lock(&dir) {
            Lock::Ours => {}
            Lock::Replaced => return Ok(self.look_again(config)),
            Lock::Unsupported(error) => warn_once(&log, &error),
            Lock::Busy => {
                if !std::mem::replace(&mut self.told, true) {
                    let path = dir.path().display();
                    log::info!(
                        "job {}: {path} is in use by another worker, or by what one has left; waiting",
                        self.id().as_str()
                    );
                }
                return Ok(self.look_again(config));
            }
        }
        // only now, with the lock, is the journal's word final
        let claimed = match self.decide(
            journal::read(&dir, &self.request.id),
            worker,
            plan.max_attempts,
        ) {
            Decision::Answer(answer) => Claimed::Answered(answer),
            Decision::GiveUp { attempts } => {
                let id = self.request.id.clone();
                Claimed::Refused(Box::new(give_up(
                    id,
                    worker,
                    &dir,
                    log,
                    attempts,
                    self.source.packet_id,
                )))
            }
            Decision::Run { attempt, resumed } => {
                for sentence in unknown.iter().chain(&plan.denied) {
                    log::warn!("job {}: {sentence}", self.id().as_str());
                }
                let (id, packet_id) = (self.request.id.clone(), self.source.packet_id);
                let job = Job {
                    id,
                    plan,
                    dir,
                    log,
                    attempt,
                    resumed,
                    packet_id,
                };
                match Execution::start(job, config, worker) {
                    Ok(execution) => Claimed::Running(Box::new(execution)),
                    Err(error) => internal(error),
                }
            }
        };
        Ok(claimed)
    }

    /// The plan, and what is to be said of fields that mean nothing to us.
    fn plan(&self, dir: &WorkDir, config: &JobConfig) -> Result<(Plan, Vec<String>), OpenError> {
        let place = || format!("{}/job.json", dir.path().display());
        let missing = |why: String| OpenError::Missing { what: place(), why };
        let content = match dir.read("job.json", MAX_DEFINITION_BYTES) {
            Err(error) if is_passing(&error) => {
                return Err(missing(format!("cannot be read: {error}")));
            }
            Err(error) => {
                let error = format!("{} cannot be read: {error}", place());
                return Err(OpenError::Unusable(error));
            }
            Ok(content) => content,
        };
        let own = &self.request.definition;
        match &content {
            None if own.steps.is_none() => {
                let why = "does not exist, and the request has no `steps`";
                return Err(missing(why.to_owned()));
            }
            Some(bytes) if bytes.is_empty() => return Err(missing("is empty".to_owned())),
            Some(bytes) if is_cut(bytes) => {
                return Err(missing("ends in the middle of its JSON".to_owned()));
            }
            _ => {}
        }
        let definition = content
            .map(|bytes| Definition::parse(&bytes))
            .transpose()
            .map_err(OpenError::Unusable)?;
        let fields = [
            ("the request", Some(&own.unknown)),
            ("job.json", definition.as_ref().map(|file| &file.unknown)),
        ];
        let named = |(place, names): (&str, Option<&Vec<String>>)| {
            let names = names.filter(|names| !names.is_empty())?.join(", ");
            Some(format!("unknown fields in {place} are ignored: {names}"))
        };
        let unknown = fields.into_iter().filter_map(named).collect();
        let plan = Plan::merge(
            &self.request,
            definition,
            config.timeout,
            config.max_attempts,
        );
        Ok((plan.map_err(OpenError::Unusable)?, unknown))
    }

    fn decide(&self, journal: Journal, worker: &str, max_attempts: u32) -> Decision {
        match journal {
            Journal::NeverBegun => Decision::Run {
                attempt: 1,
                resumed: None,
            },
            Journal::Died { attempt } if attempt >= max_attempts => {
                Decision::GiveUp { attempts: attempt }
            }
            Journal::Died { attempt } => Decision::Run {
                attempt: attempt + 1,
                resumed: Some(Resumed::AfterCrash),
            },
            Journal::Stopped { attempt } => Decision::Run {
                attempt,
                resumed: Some(Resumed::AfterStop),
            },
            Journal::Final(answer)
                if self.source.redelivered && answer.is_for(worker, self.source.packet_id) =>
            {
                Decision::Answer(answer)
            }
            Journal::Final(_) => Decision::Run {
                attempt: 1,
                resumed: None,
            },
        }
    }
}

/// Ends a job whose every attempt has ended in a crash.
fn give_up(
    id: JobId,
    worker: &str,
    dir: &WorkDir,
    mut log: JobLog,
    attempts: u32,
    packet_id: Option<u16>,
) -> Document {
    let error = format!(
        "interrupted {attempts} times: whoever ran the job died in mid-run, and maxAttempts is reached"
    );
    log.line(format_args!("given up: {error}"));
    let document = Document {
        log_file: Some(log.path().to_owned()),
        attempt: Some(attempts),
        status: JobState::Failed,
        packet_id,
        ..Document::not_run(id, worker, Reason::Interrupted, error)
    };
    if let Err(error) = journal::write(dir, &document.to_json()) {
        log::warn!(
            "{}/job.status.json cannot be written: {error}",
            dir.path().display()
        );
    }
    document
}

/// Whether more is to come: a file that is being written.
fn is_cut(json: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(json).is_err_and(|error| error.is_eof())
}

fn warn_once(log: &JobLog, error: &std::io::Error) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Ordering::Relaxed) {
        log::warn!(
            "{} cannot be locked: {error}; going on, so never let two workers have one directory",
            log.path()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(journal: &str, redelivered: bool, packet_id: u16, max_attempts: u32) -> Decision {
        let request = Request::parse(br#"{"id": "a", "workDir": "x"}"#).unwrap();
        let journal = Journal::read(
            Some(journal.as_bytes()).filter(|j| !j.is_empty()),
            &request.id,
        );
        let claim = Claim::new(
            request,
            Source {
                redelivered,
                packet_id: Some(packet_id),
            },
        );
        claim.decide(journal, "w", max_attempts)
    }

    #[test]
    fn the_journal_decides_what_a_request_is() {
        use Resumed::{AfterCrash, AfterStop};
        let running = |attempt| format!(r#"{{"id":"a","status":"running","attempt":{attempt}}}"#);
        let stopped = r#"{"id":"a","status":"interrupted","attempt":2}"#;
        let run = |attempt, resumed| Decision::Run { attempt, resumed };
        for redelivered in [false, true] {
            assert_eq!(
                decide("", redelivered, 1, 3),
                run(1, None),
                "DUP alone never means that it ran"
            );
            assert_eq!(
                decide(&running(1), redelivered, 1, 3),
                run(2, Some(AfterCrash))
            );
            assert_eq!(
                decide(&running(2), redelivered, 1, 3),
                run(3, Some(AfterCrash))
            );
            assert_eq!(
                decide(&running(3), redelivered, 1, 3),
                Decision::GiveUp { attempts: 3 }
            );
            assert_eq!(
                decide(&running(1), redelivered, 1, 1),
                Decision::GiveUp { attempts: 1 }
            );
            assert_eq!(
                decide(stopped, redelivered, 1, 1),
                run(2, Some(AfterStop)),
                "a stop does not count"
            );
            assert_eq!(
                decide("garbage", redelivered, 1, 3),
                run(2, Some(AfterCrash))
            );
        }
    }

    #[test]
    fn a_final_job_is_answered_or_run_again() {
        let done = r#"{"id":"a","status":"success","worker":"w","packetId":7}"#;
        assert!(
            matches!(decide(done, true, 7, 3), Decision::Answer(_)),
            "the same request, redelivered"
        );
        assert_eq!(
            decide(done, false, 7, 3),
            Decision::Run {
                attempt: 1,
                resumed: None
            },
            "published afresh"
        );
        assert_eq!(
            decide(done, true, 8, 3),
            Decision::Run {
                attempt: 1,
                resumed: None
            },
            "afresh, and redelivered unseen"
        );
    }
}

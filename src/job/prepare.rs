//! Preparing a job: finding its directory, reading its definition, getting its lock, and deciding by the journal what is to
//! be done (docs/reference.md, "Request", "Job definition" and "Attempts and stops"). What may have to be waited for
//! is tried again: by [`Run::look`].

use super::directory::{explained, is_full, is_ours};
use super::log::{JobLog, while_nothing_runs};
use super::run::{Run, Stage};
use super::running::Running;
use super::save::Job;
use super::{OpenError, Outcome, WorkDir, journal};
use crate::contract::{
    BYTE_ORDER_MARK, Decision, Definition, Document, EarlierRun, MAX_DEFINITION_BYTES, Plan,
    Reason, RequestOrigin, told, without_mark,
};
use serde::de::IgnoredAny;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a directory or a `job.json` may be missing before that is told: most come sooner.
const UNREMARKABLE_WAIT: Duration = Duration::from_secs(1);

/// The file that withdraws a job, whatever it is.
pub const CANCEL_FILE: &str = "job.cancel";

impl Run {
    /// Ends the job before its first step.
    pub fn end_unrun(&self, reason: Reason, error: String) -> Stage {
        let document = self.document().not_run(reason, error);
        // a cancel holds when the request comes again, and a person who has run a job by hand finds how that ended
        if (reason == Reason::Cancelled || self.is_by_hand())
            && let Ok(dir) = self.open_dir()
        {
            let stored = while_nothing_runs(&dir, || journal::store(&dir, &document.to_json()));
            let path = dir.path().display();
            match stored {
                Ok(true) => {}
                // that journal is of the run that goes on
                Ok(false) => log::info!("another run has {path}; its journal is left alone"),
                Err(error) => log::warn!("the result is not stored in {path}: {error}"),
            }
        }
        Stage::result(document)
    }

    fn is_by_hand(&self) -> bool {
        self.origin == RequestOrigin::ByHand
    }

    /// Tries to begin the job, without waiting. The stage that it comes to; where that is this one, it looks again at `next_look`.
    pub fn look(&mut self) -> Stage {
        let stage = self
            .try_to_begin()
            .unwrap_or_else(|error| self.not_opened(error));
        if let Stage::Preparing = stage {
            let now = Instant::now();
            self.next_look = now + self.backoff.next_pause();
            // the end of the wait is a moment to look, too
            let end = self.began + self.config.dir_wait;
            if end > now {
                self.next_look = self.next_look.min(end);
            }
        }
        stage
    }

    /// Waits for what is missing, as long as that may take.
    fn not_opened(&mut self, error: OpenError) -> Stage {
        let (reason, error) = match error {
            OpenError::Unusable(error) => (Reason::Rejected, error),
            OpenError::Missing { what, why, reason } => {
                let waited = self.began.elapsed();
                let Some(reason) = reason.filter(|_| waited >= self.config.dir_wait) else {
                    if waited >= UNREMARKABLE_WAIT {
                        self.wait_for(what, why);
                    }
                    return Stage::Preparing;
                };
                (reason, format!("{what} {why}"))
            }
        };
        self.end_unrun(reason, error)
    }

    /// Says once what is waited for.
    fn wait_for(&mut self, what: String, why: String) {
        let id = self.request.id.as_str();
        let waiting = (what, why);
        if self.waiting.as_ref() != Some(&waiting) {
            log::warn!("job {id}: {} {}; waiting", waiting.0, waiting.1);
            self.waiting = Some(waiting);
        }
    }

    /// Opens the workDir, which may not be anywhere.
    fn open_dir(&self) -> Result<WorkDir, OpenError> {
        let work_dir = &self.request.work_dir;
        let base = self.config.root.as_deref().unwrap_or(Path::new(""));
        let path =
            std::path::absolute(base.join(work_dir)).map_err(|error| OpenError::Missing {
                what: "this worker's current directory".to_owned(),
                why: format!("is gone: {error}"),
                reason: None,
            })?;
        let (root, durability) = (self.config.root.as_deref(), self.config.durability);
        let mut opened = WorkDir::open(path, root, durability);
        if let Err(OpenError::Missing { why, reason, .. }) = &mut opened
            && *reason == Some(Reason::Rejected)
            && let RequestOrigin::Queue {
                redelivered: true, ..
            } = self.origin
        {
            // who got it may have removed the directory
            why.push_str("; if this is a redelivery, a result may have been published before");
        }
        apart(opened?, self.config.reserved.as_deref())
    }

    fn try_to_begin(&mut self) -> Result<Stage, OpenError> {
        // giving up has failed, too: whatever kills the worker is perhaps the directory itself
        let most = self.config.max_attempts;
        if let RequestOrigin::Pool { taken, .. } = &self.origin
            && *taken > most.saturating_add(1)
            && let Decision::GiveUp(_, error) = EarlierRun::decide(None, None, &self.origin, most)
        {
            return Ok(self.end_unrun(Reason::Interrupted, error));
        }
        let own = &self.request.definition;
        if !self.config.payload_steps && (own.steps.is_some() || !own.env.is_empty()) {
            let error = "the request brings `steps` or `env`, which JOB_PAYLOAD_STEPS=deny leaves to job.json";
            return Err(OpenError::Unusable(error.to_owned()));
        }
        let dir = self.open_dir()?;
        // a stored result needs neither the definition, which may be gone by now, nor the lock: it does not change
        if let (Decision::Stored, document) = self.decide(&dir, u32::MAX)? {
            if let Err(error) = journal::sync_name(&dir) {
                log::warn!("{error}; the result is published all the same");
            }
            return Ok(Stage::Over(Some(Outcome::Stored(document))));
        }
        if dir.contains(CANCEL_FILE) {
            let file = dir.path().join(CANCEL_FILE);
            let file = file.display();
            let error = format!("withdrawn by {file}; remove that file to have the job run");
            return Ok(self.end_unrun(Reason::Cancelled, error));
        }
        let plan = self.plan(&dir)?;
        let log = match JobLog::open(&dir) {
            Ok(log) => log,
            Err(error) if is_full(&error) => return Err(OpenError::no_room(&dir, &error)),
            Err(error) => {
                let place = format!("{}/job.log", dir.path().display());
                if is_ours(&error) {
                    return Err(OpenError::of(place, error));
                }
                let error = format!("{place} cannot be opened: {}", explained(&error));
                let document = self.document().not_run(Reason::Internal, error);
                return Ok(Stage::result(document));
            }
        };
        if let Err(why) = log.try_lock(&dir) {
            if let Some(why) = why {
                self.wait_for(format!("the lock on {}", log.path), why.to_owned());
            }
            return Ok(Stage::Preparing);
        }
        // only now, with the lock, is the journal's word final
        let (decision, document) = self.decide(&dir, plan.max_attempts)?;
        let mut job = Job {
            document: self.document(),
            dir,
            log,
            is_final: Arc::default(),
            claim: self.claim.clone(),
            is_by_hand: self.is_by_hand(),
        };
        Ok(match decision {
            Decision::Stored => Stage::Over(Some(Outcome::Stored(document))),
            Decision::Run(attempt) => Running::start(job, plan, attempt, self.config.clone())?,
            Decision::GiveUp(attempt, error) => {
                if let Err(error) = job.log.begin(self.id(), &job.dir, true) {
                    log::warn!("{error}");
                }
                job.document = Document {
                    log_file: Some(job.log.path.clone()),
                    attempt: Some(attempt.number),
                    stops: attempt.stops,
                    ..job.document.not_run(Reason::Interrupted, error)
                };
                Stage::Over(Some(job.finish()))
            }
        })
    }

    fn plan(&self, dir: &WorkDir) -> Result<Plan, OpenError> {
        let own = &self.request.definition;
        let content = definition(dir)?;
        if content.is_none() && own.steps.is_none() {
            let no_file = match self.is_by_hand() {
                true => "does not exist",
                false => "does not exist, and the request has no `steps`",
            };
            let unknown = own.told_unknown("the request").into_iter();
            let why: Vec<_> = [no_file.to_owned()].into_iter().chain(unknown).collect();
            return Err(not_whole(dir, why.join("; ")));
        }
        let (timeout, attempts) = (self.config.timeout, self.config.max_attempts);
        let file = content.map(|content| Definition::parse(&content));
        let file = file.transpose();
        let plan = file.and_then(|file| Plan::merge(own, file, timeout, attempts));
        plan.map_err(|faults| OpenError::Unusable(told(&faults)))
    }

    /// What is to be done, and the document of the earlier run that says so.
    fn decide(&self, dir: &WorkDir, max_attempts: u32) -> Result<(Decision, Vec<u8>), OpenError> {
        let (earlier, document) = journal::read(dir, &self.request.id)?.unzip();
        let key = self.request.key.as_deref();
        let decision = EarlierRun::decide(earlier.as_ref(), key, &self.origin, max_attempts);
        Ok((decision, document.unwrap_or_default()))
    }

    /// A document of this request, to be completed.
    fn document(&self) -> Document {
        Document {
            key: self.request.key.clone(),
            origin: self.origin.identity().map(str::to_owned),
            work_dir: Some(self.request.work_dir.clone()),
            ..Document::new(self.request.id.clone(), &self.worker)
        }
    }
}

fn path_of_definition(dir: &WorkDir) -> String {
    format!("{}/job.json", dir.path().display())
}

fn not_whole(dir: &WorkDir, why: String) -> OpenError {
    OpenError::Missing {
        what: path_of_definition(dir),
        why,
        reason: Some(Reason::Rejected),
    }
}

/// The directory, where no step in it can touch the reserved one.
///
/// # Errors
/// It contains the reserved one, lies in it, or is not there any more.
pub fn apart(dir: WorkDir, reserved: Option<&Path>) -> Result<WorkDir, OpenError> {
    let Some(reserved) = reserved else {
        return Ok(dir);
    };
    let path = dir.path().display();
    let real = dir.real_path();
    let real = real.map_err(|error| OpenError::of(format!("workDir {path}"), error))?;
    let place = reserved.canonicalize(); // it may be a symlink
    let place = place.as_deref().unwrap_or(reserved);
    match real.starts_with(place) || place.starts_with(&real) {
        true => Err(OpenError::Unusable(format!(
            "workDir {path} contains the directory of the pool, {}, or lies in it",
            reserved.display()
        ))),
        false => Ok(dir),
    }
}

/// The content of `job.json`; `None` where there is none.
///
/// # Errors
/// It cannot be read, or is not whole.
pub fn definition(dir: &WorkDir) -> Result<Option<Vec<u8>>, OpenError> {
    match dir.read("job.json", MAX_DEFINITION_BYTES) {
        Ok(Some(content)) if let Some(why) = incomplete(&content) => {
            Err(not_whole(dir, why.to_owned()))
        }
        content => content.map_err(|error| OpenError::of(path_of_definition(dir), error)),
    }
}

/// How a file looks that is still being written, or that a network drive does not show whole yet; `None` where it is whole.
fn incomplete(json: &[u8]) -> Option<&'static str> {
    let text = without_mark(json);
    let is_cut = || {
        BYTE_ORDER_MARK.starts_with(text)
            || serde_json::from_slice::<IgnoredAny>(text).is_err_and(|error| error.is_eof())
    };
    match text {
        _ if text.trim_ascii().is_empty() => Some("is empty"),
        // its length is there before its content
        _ if text.contains(&0) => Some("has gaps, which are NUL bytes"),
        _ if is_cut() => Some("ends in the middle of its JSON"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::incomplete;

    #[test]
    fn a_file_that_is_not_whole_yet_is_told_from_a_bad_one() {
        for (content, why) in [
            ("", Some("is empty")),
            (" \n", Some("is empty")),
            ("\u{feff}", Some("is empty")),
            ("{\"steps\": [\"a", Some("ends")),
            ("\u{feff}{\"steps\": [", Some("ends")),
            ("\0\0\0", Some("has gaps")),
            ("{\"steps\": [\0\0\0\0", Some("has gaps")),
            ("{\"steps\": []}", None),
            ("\u{feff}{\"steps\": []}\n", None),
            ("steps: []", None),
            ("{} trailing", None),
        ] {
            let told = incomplete(content.as_bytes());
            assert_eq!(told.is_some(), why.is_some(), "{content:?}");
            assert!(
                told.unwrap_or_default()
                    .starts_with(why.unwrap_or_default())
            );
        }
        assert!(
            incomplete(b"\xef\xbb").is_some(),
            "a part of a byte order mark"
        );
    }
}

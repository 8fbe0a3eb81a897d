//! A job that has its directory, its definition and its lock, and runs next.

use super::log::JobLog;
use super::save::Begun;
use super::{IsLost, WorkDir};
use crate::config::Durability;
use crate::contract::{Attempt, Document, Follows, Plan, StepState, StepStatus, Timestamp};
use crate::host;
use std::io;

/// A job that runs next. Its lock is that of `log`.
pub struct PreparedJob {
    /// What its request says, and who runs it; at the end, how it ended.
    pub document: Document,
    pub plan: Plan,
    pub dir: WorkDir,
    pub log: JobLog,
    pub durability: Durability,
    pub attempt: Attempt,
    pub begun: Begun,
    pub is_lost: Option<IsLost>,
    /// It was started by hand: a terminal shows the log.
    pub is_by_hand: bool,
}

impl PreparedJob {
    /// The status document at the start: the first step runs next.
    pub fn first_document(&self) -> Document {
        let steps = self.plan.steps.iter().map(|step| StepStatus {
            name: step.name.clone(),
            ..StepStatus::default()
        });
        let mut steps: Vec<_> = steps.collect();
        let now = Some(Timestamp::now());
        if let Some(first) = steps.first_mut() {
            (first.status, first.started_at) = (StepState::Running, now);
        }
        let warnings = &self.plan.warnings;
        Document {
            log_file: Some(self.log.path().to_owned()),
            warning: (!warnings.is_empty()).then(|| warnings.join("; ")),
            attempt: Some(self.attempt.number),
            started_at: now,
            steps,
            stops: self.attempt.stops,
            ..self.document.clone()
        }
    }

    /// Begins a fresh log, or goes on in the old one, and says which attempt this is, of whom, and what it follows.
    ///
    /// # Errors
    /// A sentence, where the log cannot be written.
    pub fn begin_log(&mut self) -> io::Result<()> {
        let Document { id, worker, .. } = &self.document;
        let begun = match self.attempt.follows {
            Follows::Nothing => self.log.begin(id, &self.dir),
            Follows::Crash | Follows::Stop => self.log.resume(id, &self.dir),
        };
        begun.map_err(|error| {
            let path = self.log.path();
            io::Error::new(error.kind(), format!("{path} cannot be written: {error}"))
        })?;
        let (number, most) = (self.attempt.number, self.plan.max_attempts);
        let (again, before) = match self.attempt.follows {
            Follows::Nothing => ("", ""),
            Follows::Crash => ("", "; the worker died in the attempt before"),
            Follows::Stop => (" again", "; the worker was asked to stop in mid-run"),
        };
        self.log.line(format_args!(
            "attempt {number} of {most}{again}, {worker} on {host}, job-worker {version}{before}",
            host = host::name(),
            version = env!("CARGO_PKG_VERSION"),
        ));
        for warning in &self.plan.warnings {
            self.log.line(format_args!("warning: {warning}"));
        }
        Ok(())
    }

    /// What a person finds the step by in log and result, from 1.
    pub fn step_number(&self, index: usize) -> String {
        format!("step {}/{}", index + 1, self.plan.steps.len())
    }

    /// What a person knows the step by, in one word: its name, else what it runs.
    pub fn name(&self, index: usize) -> String {
        let step = &self.plan.steps[index];
        first_line(step.name.as_ref().unwrap_or(&step.run))
    }

    /// What the step is and does: its name, and what it runs.
    pub fn label(&self, index: usize) -> String {
        let step = &self.plan.steps[index];
        let run = first_line(&step.run);
        match &step.name {
            Some(name) => format!("{} ({run})", first_line(name)),
            None => run,
        }
    }
}

/// How much of a name or a command is shown, in characters.
const SHOWN: usize = 200;

/// The start of the first line of a command, which says whether there is more.
fn first_line(command: &str) -> String {
    let first = command.lines().next().unwrap_or_default();
    let shown: String = first.chars().take(SHOWN).collect();
    match shown.len() < command.trim_end().len() {
        true => format!("{shown} …"),
        false => shown,
    }
}

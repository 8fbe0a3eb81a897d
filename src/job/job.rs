//! A claimed job, ready to run.

use super::WorkDir;
use super::log::JobLog;
use crate::contract::{Attempt, Document, JobId, JobState, Plan, StepState, StepStatus, Timestamp};

/// A claimed job, ready to run. Its lock is that of `log`.
pub struct Job {
    pub id: JobId,
    /// See [`Document::key`] and [`Document::origin`].
    pub key: Option<String>,
    pub origin: Option<String>,
    pub plan: Plan,
    pub dir: WorkDir,
    pub log: JobLog,
    pub attempt: Attempt,
}

impl Job {
    /// The status document at the start: the first step runs next.
    pub fn document(&self, worker: &str) -> Document {
        let mut steps: Vec<_> = self
            .plan
            .steps
            .iter()
            .map(|step| StepStatus {
                name: step.name.clone(),
                status: StepState::Pending,
                exit_code: None,
                signal: None,
                duration_ms: None,
            })
            .collect();
        if let Some(first) = steps.first_mut() {
            first.status = StepState::Running;
        }
        Document {
            id: self.id.clone(),
            status: JobState::Running,
            log_file: Some(self.log.path().to_owned()),
            exit_code: None,
            reason: None,
            error: None,
            warning: None,
            attempt: Some(self.attempt.number),
            worker: worker.to_owned(),
            started_at: Some(Timestamp::now()),
            finished_at: None,
            duration_ms: None,
            steps,
            key: self.key.clone(),
            origin: self.origin.clone(),
            stops: self.attempt.stops,
            forgotten: false,
        }
    }

    /// What a person finds the step by in log and result, from 1.
    pub fn place(&self, index: usize) -> String {
        format!("step {}/{}", index + 1, self.plan.steps.len())
    }

    /// What a person knows the step by.
    pub fn label(&self, index: usize) -> String {
        let step = &self.plan.steps[index];
        let mut lines = step.run.lines();
        let first = lines.next().unwrap_or_default();
        let run = match lines.next() {
            Some(_) => format!("{first} …"),
            None => first.to_owned(),
        };
        match &step.name {
            Some(name) => format!("{name} ({run})"),
            None => run,
        }
    }
}

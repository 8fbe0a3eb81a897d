//! What a job leads to: its result is published, its request goes back, or another worker has it by now.

use super::Worker;
use crate::Exit;
use crate::contract::{Document, JobId};
use crate::job::Kept;
use crate::mqtt::{Subscribers, Unpublished};
use crate::queue::{AfterResult, Input, ResultMessage};
use std::ops::ControlFlow;

/// What the result of an interrupted job says whose request the broker has forgotten.
const FORGOTTEN: &str = "the worker was asked to stop, and the broker has forgotten the request, so nobody will run it again: \
                         publish it again";

impl Worker {
    /// The job is interrupted. Its request stays with the broker, or gets its result now if the broker has forgotten it.
    pub(super) fn requeue(&mut self) -> ControlFlow<Exit> {
        let Some(run) = &mut self.run else {
            return ControlFlow::Continue(());
        };
        if self.queue.broker_lacks_request()
            && let Some(document) = run.fail_forgotten(FORGOTTEN)
        {
            return self.report(document);
        }
        let id = run.id().as_str();
        log::info!("job {id}: interrupted, it will be run again");
        if let Some(claim) = self.queue.claim() {
            claim.stopped(run.has_started());
        }
        self.run = None;
        self.tell(Input::Requeue)
    }

    /// Publishes a final document.
    pub(super) fn report(&mut self, document: Document) -> ControlFlow<Exit> {
        match self.queue.keep(&document) {
            Kept::Yes => {}
            Kept::Failed(error) => log::warn!("{error}; the result is published all the same"),
            Kept::Lost => return self.give_up(),
        }
        log_result(&document);
        let id = &document.id;
        self.publish_result(ResultMessage {
            topic: self.config.topics.result(id),
            payload: document.to_json(),
            after: match document.is_rejection() {
                true => AfterResult::WaitOn,
                false => AfterResult::Leave,
            },
            wait_for_subscriber: is_a_later_try(&document),
        })
    }

    /// Somebody else has the request by now, and publishes its result.
    pub(super) fn give_up(&mut self) -> ControlFlow<Exit> {
        if let Some(run) = self.run.take() {
            log::warn!(
                "job {}: another worker has its claim by now, and the result is left to that one",
                run.id().as_str()
            );
        }
        self.tell(Input::GiveUp)
    }

    /// Publishes the result of a job that is over already.
    pub(super) fn publish_stored(&mut self, id: &JobId, document: Vec<u8>) -> ControlFlow<Exit> {
        log::info!(
            "job {}: over already, its result is sent again",
            id.as_str()
        );
        self.publish_result(ResultMessage {
            topic: self.config.topics.result(id),
            payload: document,
            after: AfterResult::Leave,
            wait_for_subscriber: true,
        })
    }

    /// Gives the result to the queue: the job is over for this worker.
    pub(super) fn publish_result(&mut self, result: ResultMessage) -> ControlFlow<Exit> {
        self.run = None;
        if self.denied {
            return ControlFlow::Break(Exit::Denied);
        }
        self.resume();
        self.tell(Input::Result(result))?;
        match self.stopping {
            true => self.tell(Input::Stop {
                grace: self.config.job.stop_grace,
            }),
            false => ControlFlow::Continue(()),
        }
    }

    /// The broker has what was published, or does not take it.
    pub(super) fn published(
        &mut self,
        outcome: Result<Subscribers, Unpublished>,
    ) -> ControlFlow<Exit> {
        self.outgoing.published();
        match outcome {
            Ok(subscribers) => self.tell(Input::Published(subscribers)),
            Err(Unpublished::ForNow(reason)) => {
                log::warn!("the broker does not take the result ({reason}); publishing it again");
                self.tell(Input::NotPublished)
            }
            Err(Unpublished::NotAuthorized) => {
                let reason = self.outgoing.result_denied();
                self.denied(&reason)
            }
        }
    }
}

/// Whether an earlier try crashed or was stopped. Whatever did that may have met the controller, too, so that it is not
/// subscribed yet.
fn is_a_later_try(document: &Document) -> bool {
    document.attempt.is_some_and(|attempt| attempt > 1) || document.stops > 0
}

/// Says in one line how a job ended.
fn log_result(document: &Document) {
    let (id, code) = (document.id.as_str(), document.exit_code.unwrap_or(1));
    let seconds = document.duration_ms.map(|ms| ms as f64 / 1000.0);
    let took = seconds.map(|seconds| format!(" in {seconds:.1} s"));
    let took = took.unwrap_or_default();
    match &document.error {
        None => log::info!("job {id}: success{took}, exit code {code}"),
        Some(error) if document.is_rejection() => log::warn!("job {id}: rejected: {error}"),
        Some(error) => log::warn!("job {id}: failed{took}, exit code {code}: {error}"),
    }
}

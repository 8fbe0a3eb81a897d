//! When the broker, or another client, does not let the worker stay: an idle one goes, one with a job first brings it to its
//! end.

use super::Worker;
use crate::{Exit, mqtt};
use std::ops::ControlFlow;

impl Worker {
    /// Another client uses our id. Taking the session back would make two workers kick each other for ever, so an idle one
    /// goes; one with a job first brings it to its end, since nobody else knows of it.
    pub(super) fn taken_over(&mut self) -> ControlFlow<Exit> {
        let id = &self.config.worker_id;
        if self.queue.is_waiting() {
            log::error!(
                "another client has connected with our id {id:?}: each worker needs a WORKER_ID of its own"
            );
            return ControlFlow::Break(Exit::TakenOver);
        }
        log::warn!(
            "another client has connected with our id {id:?}; each worker needs a WORKER_ID of its own"
        );
        self.taken_over = true;
        if self.run.is_none() {
            self.resume();
        }
        ControlFlow::Continue(())
    }

    /// Takes the session back, to report.
    pub(super) fn resume(&mut self) {
        if std::mem::take(&mut self.taken_over) {
            self.link.resume();
        }
    }

    /// The broker keeps dropping us and does not say why. An idle worker goes, as after a takeover. One with a job keeps
    /// trying, ever more slowly, since the cause may pass and only this worker knows of its job.
    pub(super) fn dropped_early(&self, times: u32) -> ControlFlow<Exit> {
        let (id, presence) = (&self.config.worker_id, &self.config.topics.presence);
        let causes = format!(
            "the broker has dropped {times} connections in a row soon after they stood, and gives no reason. Either another \
             client uses our id {id:?}: each worker needs a WORKER_ID of its own. Or we may not write to {presence}"
        );
        if self.queue.is_waiting() {
            log::error!("{causes}");
            return ControlFlow::Break(Exit::TakenOver);
        }
        if times == mqtt::EARLY_DROPS {
            log::warn!("{causes}");
        }
        ControlFlow::Continue(())
    }

    /// Trying again would not help. A running job comes to its end first: nobody would look after its steps. Its result is
    /// on the drive then, and a worker that the broker takes reports it.
    pub(super) fn denied(&mut self, reason: &str) -> ControlFlow<Exit> {
        log::error!("{reason}");
        self.denied = true;
        match &self.run {
            Some(run) if run.has_started() => ControlFlow::Continue(()),
            _ => ControlFlow::Break(Exit::Denied),
        }
    }
}

//! What a member of a pool does beside what every worker does: it hears the others and the head's connection, and takes its request
//! from a claim.

use super::Worker;
use crate::Exit;
use crate::job::{Interruption, Run};
use crate::member::Meaning;
use crate::mqtt::{self, Message, Unpublished};
use crate::queue::pool;
use crate::served::Queue;
use std::ops::ControlFlow;
use std::time::Instant;

impl Worker {
    /// Takes what came on the connection of the head.
    pub(super) fn hear_head(&mut self, turn: u64, event: mqtt::Event) -> ControlFlow<Exit> {
        let mut denied = match &event {
            mqtt::Event::Denied(reason) => Some(format!("as the head of the pool: {reason}")),
            _ => None,
        };
        if let Queue::Pool(member) = &mut self.queue {
            // its request would stay at the head of the queue for ever, and nobody would say why
            if matches!(
                event,
                mqtt::Event::Published(Err(Unpublished::NotAuthorized))
            ) && member.is_rejecting()
            {
                denied = Some(self.outgoing.result_denied());
            }
            let actions = member.hear_head(turn, event, Instant::now());
            self.act(actions)?;
        }
        denied.map_or(ControlFlow::Continue(()), |reason| self.denied(&reason))
    }

    /// A head of this host may have left.
    pub(super) fn hear_head_free(&mut self) -> ControlFlow<Exit> {
        let Queue::Pool(member) = &mut self.queue else {
            return ControlFlow::Continue(());
        };
        let actions = member.feed(pool::Input::HeadFree, Instant::now());
        self.act(actions)
    }

    /// Takes the presence of a worker, which only a member of a pool hears.
    pub(super) fn hear_presence(&mut self, message: &Message) -> ControlFlow<Exit> {
        let Queue::Pool(member) = &mut self.queue else {
            return ControlFlow::Continue(());
        };
        match member.understand(message) {
            Meaning::Nothing => ControlFlow::Continue(()),
            Meaning::Input(input) => {
                let actions = member.feed(input, Instant::now());
                self.act(actions)
            }
            Meaning::Moved => {
                if self.pool_moved() {
                    self.show_presence();
                }
                ControlFlow::Continue(())
            }
            Meaning::ForeignPool => {
                log::warn!("{}", foreign_pool(&message.topic));
                ControlFlow::Continue(())
            }
        }
    }

    /// Whether the pool has another id than our presence says: somebody has removed its directory. It says the new one from now on.
    pub(super) fn pool_moved(&mut self) -> bool {
        match &self.queue {
            Queue::Pool(member) => self.outgoing.belongs_to(member.pool_id()),
            Queue::Own(_) => false,
        }
    }

    /// There is another pool of our name, with another directory, and it was there before us.
    pub(super) fn leave_pool(&self, topic: &str) -> ControlFlow<Exit> {
        log::error!(
            "{}. If that worker is gone for good, remove what is retained there, with an empty retained message",
            foreign_pool(topic)
        );
        ControlFlow::Break(Exit::Config)
    }

    /// Deals with the request of the claim that is ours.
    pub(super) fn take_claim(&mut self) -> ControlFlow<Exit> {
        let Some(claim) = self.queue.claim().cloned() else {
            return ControlFlow::Continue(());
        };
        let (request, origin) = (claim.history.request.clone(), claim.origin());
        if let Some(document) = &claim.history.result {
            return self.publish_stored(&request.id, document.clone());
        }
        if let Err(error) = claim.let_steps_inherit() {
            log::warn!(
                "the steps cannot inherit the lock of the claim {}: {error}",
                claim.path().display()
            );
        }
        let waker = self.inbox.waker().clone();
        let worker = &self.config.worker_id;
        let mut run = Run::new(request, origin, &self.config.job, worker, waker);
        run.record_in(claim.clone());
        match claim.is_cancelled() {
            true => run.interrupt(Interruption::Cancelled("the controller"), Instant::now()),
            false => run.wake(Instant::now()),
        }
        self.run = Some(run);
        ControlFlow::Continue(())
    }
}

fn foreign_pool(topic: &str) -> String {
    format!(
        "{topic} belongs to another pool with the name of ours: all members need JOB_ROOT on the same drive, and another \
         pool needs another JOB_POOL"
    )
}

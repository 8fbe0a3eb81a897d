//! What the worker of a pool does besides: it waits for a claim, and hears of the head.

use super::broker::Favour;
use super::{Worker, give_back};
use crate::Exit;
use crate::pool::{self, Member};
use crate::queue::Input;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

impl Worker {
    /// Starts to wait for a claim where that is due. Not before our own connection stands: without it, a result could not be published.
    pub(super) fn wait_for_claim(&mut self) -> ControlFlow<Exit> {
        if let Some(pool) = &self.config.pool
            && self.member.is_none()
            && self.protocol.is_some()
            && self.queue.is_waiting()
            && !self.stopping
        {
            let outbox = self.outbox.clone();
            match Member::start(&self.config, pool, self.protocol, outbox) {
                Ok(member) => self.member = Some(member),
                Err(error) => {
                    log::error!("no thread to wait for a claim: {error}");
                    return ControlFlow::Break(Exit::Defect);
                }
            }
        }
        ControlFlow::Continue(())
    }

    pub(super) fn hear_pool(&mut self, event: pool::Event) -> ControlFlow<Exit> {
        match event {
            pool::Event::Stands => {
                if !std::mem::replace(&mut self.queue_stands, true) {
                    log::info!("waiting for a job on {}", self.config.topics.pending);
                }
                self.trouble = None;
            }
            pool::Event::Trouble(trouble) => {
                (self.queue_stands, self.trouble) = (false, Some(trouble));
            }
            pool::Event::Claimed(claim) => {
                (self.member, self.leave_at) = (None, None);
                if self.stopping || self.favour == Favour::Denied {
                    give_back(Arc::from(claim));
                    self.tell_of_stop();
                    return ControlFlow::Continue(());
                }
                let message = claim.message.clone();
                self.claim = Some(Arc::from(claim));
                self.tell(Input::Claim(message));
            }
            pool::Event::Damaged(error) => {
                log::error!("{error}");
                self.messages.announce_rejection(&error, b"");
            }
            pool::Event::Left => {
                (self.member, self.leave_at) = (None, None);
                self.tell_of_stop();
            }
            pool::Event::Ended(Exit::Denied, reason) => {
                self.member = None;
                self.denied(&reason);
            }
            pool::Event::Ended(exit, reason) => {
                log::error!("JOB_POOL: {reason}");
                return ControlFlow::Break(exit);
            }
        }
        ControlFlow::Continue(())
    }

    /// Waits for the end of the turn as the head: a claim may be being taken in this moment.
    pub(super) fn stop_member(&mut self) {
        if let Some(member) = &self.member {
            member.stop();
            self.leave_at = Some(Instant::now() + self.config.job.stop_grace);
        }
    }
}

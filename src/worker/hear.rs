//! What the worker hears. The broker says that the connection is there or gone, and that it, or another client, does not let the worker
//! stay; it brings requests and cancels, and takes results or does not. A pool says how its queue stands, and brings claims.

use super::{Worker, give_back};
use crate::Exit;
use crate::contract::rejection_notice;
use crate::job::Interruption;
use crate::mqtt::{Event, Message, Protocol};
use crate::pool::{self, Member};
use crate::queue::Input;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

/// How the broker stands to this worker.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Favour {
    /// It lets the worker in.
    #[default]
    Welcome,
    /// Another client has taken the session, and the worker is not done yet.
    TakenOver,
    /// It does not want the worker any more, which is not done yet, and ends so.
    Unwanted(Exit),
}

impl Worker {
    pub(super) fn hear(&mut self, event: Event) {
        match event {
            Event::Connected {
                connection,
                resumed,
            } => {
                self.tell_of_session(resumed);
                let protocol = connection.version;
                self.protocol = Some(protocol);
                self.messages.connected(connection);
                self.tell(Input::Connected {
                    resumed,
                    tells_subscribers: protocol == Protocol::V5,
                });
            }
            Event::Ready => match &self.member {
                Some(member) => member.reconnected(),
                None if self.config.pool.is_some() => {}
                None => {
                    self.queue_stands = true;
                    if self.queue.is_waiting() {
                        log::info!("waiting for a job on {}", self.config.topics.pending);
                    }
                }
            },
            Event::Message(message) => self.receive(message),
            Event::Published { has_subscriber } => self.tell(Input::Published { has_subscriber }),
            Event::NotPublished(reason) => {
                log::warn!("the broker does not take the result ({reason}); publishing it again");
                self.tell(Input::NotPublished);
            }
            Event::PublishingDenied(reason) => {
                let root = self.config.topics.root();
                let reason = format!(
                    "the broker denies our result ({reason}): we may not write to {root}/results/+ or {root}/rejected"
                );
                self.denied(&reason);
            }
            Event::Closed => self.tell(Input::Closed),
            Event::Lost(_) => {
                self.queue_stands = false;
                self.tell(Input::Lost);
            }
            Event::TakenOver => self.taken_over(),
            Event::DroppedEarly => self.dropped_early(),
            Event::Denied(reason) => self.denied(&reason),
        }
    }

    /// At the start a worker cannot tell a session that is lost from one that never was.
    fn tell_of_session(&mut self, resumed: bool) {
        if resumed || self.config.pool.is_some() {
            return; // the head of a pool has the session that is the queue
        }
        match self.protocol {
            Some(_) => log::warn!("the broker does not know our session: what was queued is gone"),
            None => log::info!(
                "the broker has no session for {}: the queue begins now, and is empty",
                self.config.worker_id
            ),
        }
    }

    fn receive(&mut self, message: Message) {
        let topics = &self.config.topics;
        // cancels come at QoS 0: what the broker waits for is a request of an earlier topic root, which is to be acknowledged
        let is_request = match message.packet_id {
            Some(_) => true,
            // an empty message takes a retained request off the broker
            None => message.topic == topics.pending && !message.payload.is_empty(),
        };
        if is_request {
            return self.tell(Input::Request(message));
        }
        let Some(id) = topics.cancelled_id(&message.topic) else {
            return;
        };
        match &mut self.run {
            // a retained cancel would end every run of this job for ever
            _ if message.retained => {}
            Some(run) if run.id().as_str() == id => {
                // what has not started ends at once, and the result says why
                if run.has_started() {
                    log::info!("job {id}: cancel received");
                }
                let why = Interruption::Cancelled("the controller");
                run.interrupt(why, Instant::now());
            }
            _ => log::debug!("the cancel of job {id} is ignored: it does not run here"),
        }
    }

    /// Another client uses our id. Taking the session back would make two workers kick each other for ever, so an idle one
    /// goes; one with a job first brings it to its end, since no other process knows of it.
    fn taken_over(&mut self) {
        let id = &self.config.worker_id;
        let why = format!(
            "another client has connected with our id {id:?}: each worker needs a WORKER_ID of its own"
        );
        if !self.leaves_if_idle(&why) {
            self.favour = Favour::TakenOver;
            if self.run.is_none() {
                self.resume();
            }
        }
    }

    /// Takes the session back, to publish the result.
    pub(super) fn resume(&mut self) {
        if self.favour == Favour::TakenOver {
            self.favour = Favour::Welcome;
            self.link.resume();
        }
    }

    /// The broker keeps dropping us and does not say why. An idle worker goes, as after a takeover. One with a job keeps
    /// trying, ever more slowly, since the cause may pass and only this worker knows of its job.
    fn dropped_early(&mut self) {
        let (id, presence) = (&self.config.worker_id, &self.config.topics.presence);
        self.leaves_if_idle(&format!(
            "the broker has dropped three connections in a row soon after they stood, and gives no reason. Either another \
             client uses our id {id:?}: each worker needs a WORKER_ID of its own. Or we may not write to {presence}, or something \
             between us ends connections that are idle"
        ));
    }

    fn leaves_if_idle(&mut self, why: &str) -> bool {
        let is_idle = self.queue.is_waiting() && self.inputs.is_empty();
        if is_idle {
            log::error!("{why}");
            self.favour = Favour::Unwanted(Exit::TakenOver);
            self.stop_member();
        } else {
            log::warn!("{why}");
        }
        is_idle
    }

    /// Trying again would not help. A running job comes to its end first: no process would look after its steps. Its result is
    /// on the drive then, and a worker that the broker takes publishes it.
    pub(super) fn denied(&mut self, reason: &str) {
        log::error!("{reason}");
        self.favour = Favour::Unwanted(Exit::Denied);
        if let Some(run) = self.run.as_mut().filter(|run| !run.has_started()) {
            run.interrupt(Interruption::Stop, Instant::now());
        }
        self.stop_member();
    }

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
                if self.stopping || matches!(self.favour, Favour::Unwanted(_)) {
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
                let notice = rejection_notice(&self.config.worker_id, &error, b"");
                self.messages.publish(&self.config.topics.rejected, notice);
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
            self.leave_at = Some(Instant::now() + self.config.job.leave_wait());
        }
    }
}

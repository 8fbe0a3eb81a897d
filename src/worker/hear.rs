//! What comes on the worker's own connection: that it is there or gone, requests, cancels, and what is none of ours any more.

use super::Worker;
use crate::Exit;
use crate::contract::subscribed_for;
use crate::intake::clears_a_retained_request;
use crate::job::Interruption;
use crate::mqtt::{self, Message};
use crate::queue::Input;
use crate::served::Queue;
use std::ops::ControlFlow;
use std::time::Instant;

impl Worker {
    pub(super) fn hear(&mut self, event: mqtt::Event) -> ControlFlow<Exit> {
        match event {
            mqtt::Event::Connected {
                connection,
                resumed,
            } => {
                let tells_subscribers = connection.tells_subscribers();
                self.outgoing.connected(connection);
                self.tell_of_session(resumed);
                self.tell(Input::Connected {
                    resumed,
                    tells_subscribers,
                })
            }
            mqtt::Event::Ready => {
                if self.queue.is_waiting() {
                    log::info!("waiting for a job on {}", self.config.topics.pending);
                }
                self.show_presence();
                ControlFlow::Continue(())
            }
            mqtt::Event::Message(message) => self.receive(message),
            mqtt::Event::Published(outcome) => self.published(outcome),
            mqtt::Event::Closed => self.tell(Input::Closed),
            mqtt::Event::Lost => {
                self.outgoing.lost();
                self.tell(Input::Lost)
            }
            mqtt::Event::TakenOver => self.taken_over(),
            mqtt::Event::DroppedEarly(times) => self.dropped_early(times),
            mqtt::Event::Denied(reason) => self.denied(&reason),
        }
    }

    /// At the start nobody can tell a session that is lost from one that never was.
    fn tell_of_session(&mut self, resumed: bool) {
        if matches!(self.queue, Queue::Pool(_)) {
            return; // it has another one for the queue
        }
        let id = &self.config.worker_id;
        match (resumed, std::mem::replace(&mut self.had_session, true)) {
            (true, _) => {}
            (false, true) => {
                log::warn!("the broker does not know our session: what was queued is gone")
            }
            (false, false) => {
                log::info!("the broker has no session for {id}: the queue begins now, and is empty")
            }
        }
    }

    fn receive(&mut self, message: Message) -> ControlFlow<Exit> {
        let topics = &self.config.topics;
        if message.topic == topics.pending {
            if clears_a_retained_request(&message) {
                return ControlFlow::Continue(());
            }
            return self.tell(Input::Request(message));
        }
        if topics.is_presence(&message.topic) {
            return self.hear_presence(&message);
        }
        let Some(id) = topics.cancelled_id(&message.topic) else {
            return self.give_up_subscriptions(message);
        };
        match &mut self.run {
            // a retained cancel would end every run of this job for ever
            _ if message.retained => {}
            Some(run) if run.id().as_str() == id => {
                if let Some(claim) = self.queue.claim() {
                    claim.cancel();
                }
                // what has not started ends at once, and the result says why
                if run.has_started() {
                    log::info!("job {id}: cancel received");
                }
                run.interrupt(Interruption::Cancelled("the controller"), Instant::now());
            }
            _ => match self.queue.claim() {
                Some(claim) if claim.history.request.id.as_str() == id => claim.cancel(),
                _ => log::debug!("the cancel of job {id} is ignored: it does not run here"),
            },
        }
        ControlFlow::Continue(())
    }

    /// The session still has the subscriptions of another `MQTT_TOPIC_ROOT`: give them up, and tell whoever publishes there.
    fn give_up_subscriptions(&mut self, message: Message) -> ControlFlow<Exit> {
        let subscribed = subscribed_for(&message.topic);
        self.outgoing.unsubscribe(&subscribed);
        log::warn!(
            "a message came on {}, which this worker served once; its old subscriptions are given up",
            message.topic
        );
        match subscribed.first() == Some(&message.topic) {
            true => self.tell(Input::Request(message)),
            false => ControlFlow::Continue(()), // a cancel of a job that does not run here
        }
    }
}

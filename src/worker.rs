//! One worker's life: connect, wait for a request, claim and run its job, report, exit.
//!
//! Everything that happens comes through one inbox. The delivery rules are in [`crate::queue`], the job in
//! [`crate::job`]; this file passes events to them and does what they say.

use crate::Exit;
use crate::config::{Config, OnStop};
use crate::contract::{
    Document, JobId, Rejection, Request, RequestOrigin, rejection_notice, shorten, subscribed_for,
};
use crate::inbox::{self, Event, Inbox};
use crate::job::{Claim, Claimed, End, Execution, Outcome};
use crate::mqtt::{self, Connection, Link, Message, Subscribers, Unpublished};
use crate::presence::Presence;
use crate::process;
use crate::queue::own::Machine;
use crate::queue::{Action, AfterResult, Input, ResultMessage};
use std::mem::ManuallyDrop;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

/// After how many connections that were lost while the same result was being published the broker is taken for one that
/// does not tell its limit, and what that limit is then, in bytes of payload: less than any broker has.
const UNTOLD_AFTER: u32 = 3;
const UNTOLD_LIMIT: usize = 1024;

/// What is being done about the request that is held.
enum Activity {
    None,
    Claiming(Box<Claim>),
    Running(Box<Execution>),
}

struct Worker {
    config: Config,
    inbox: Inbox<mqtt::Event>,
    link: Link,
    connection: Option<Arc<dyn Connection>>,
    /// How many connections have been lost with a result that the broker has not acknowledged; `None` where there is none.
    losses: Option<u32>,
    queue: Machine,
    activity: Activity,
    presence: Presence,
    /// A signal has asked us to stop.
    stopping: bool,
    /// Another client has our session, and we are not done yet.
    taken_over: bool,
    /// The broker does not want us any more, and we are not done yet.
    refused: bool,
}

/// Waits for one job, runs it, reports it (contract section 9, `job-worker`).
pub fn run(config: Config) -> Exit {
    let Some((outbox, inbox)) = inbox::open() else {
        return Exit::Defect;
    };
    process::adopt_orphans();
    let presence = Presence::new(&config.worker_id);
    let topics = &config.topics;
    let settings = mqtt::Settings {
        broker: config.broker.clone(),
        client_id: config.worker_id.clone(),
        requests: topics.pending.clone(),
        cancels: topics.cancel_filter.clone(),
        last_will: (topics.presence.clone(), presence.offline()),
    };
    let link = match mqtt::open(settings, move |event| outbox.send(event)) {
        Ok(link) => link,
        Err(error) => {
            log::error!("no thread for the connection: {error}");
            return Exit::Defect;
        }
    };
    // the process ends with it: taking it apart would only delay that
    let mut worker = ManuallyDrop::new(Worker {
        config,
        inbox,
        link,
        connection: None,
        losses: None,
        queue: Machine::default(),
        activity: Activity::None,
        presence,
        stopping: false,
        taken_over: false,
        refused: false,
    });
    worker.live()
}

impl Worker {
    fn live(&mut self) -> Exit {
        loop {
            if let ControlFlow::Break(exit) = self.take_turn() {
                return match exit {
                    Exit::Done if self.stopping => Exit::Stopped,
                    exit => exit,
                };
            }
        }
    }

    /// Waits for the next event and deals with it.
    fn take_turn(&mut self) -> ControlFlow<Exit> {
        match self.inbox.next(self.deadline()) {
            Some(Event::Sent(event)) => self.hear(event)?,
            Some(Event::Stop(signal)) => self.stop(signal)?,
            Some(Event::ChildEnded) => match &mut self.activity {
                Activity::Running(execution) => execution.child_ended(),
                // PID 1 of a container is given the orphans of others, such as of a health check
                Activity::None | Activity::Claiming(_) => {
                    process::reap_some(|_, _| {});
                }
            },
            Some(Event::Rung) => {
                if let Activity::Running(execution) = &mut self.activity {
                    execution.drive_done();
                }
            }
            None => self.expired()?,
        }
        self.work_on()
    }

    /// When there is something to do even if nothing happens.
    fn deadline(&self) -> Option<Instant> {
        let activity = match &self.activity {
            Activity::None => None,
            Activity::Claiming(claim) => Some(claim.next_look()),
            Activity::Running(execution) => execution.deadline(),
        };
        [activity, self.queue.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    fn expired(&mut self) -> ControlFlow<Exit> {
        let now = Instant::now();
        if let Activity::Running(execution) = &mut self.activity {
            execution.expired(now);
        }
        self.tell(Input::Expired)
    }

    fn hear(&mut self, event: mqtt::Event) -> ControlFlow<Exit> {
        match event {
            mqtt::Event::Connected {
                connection,
                resumed,
            } => {
                let tells_subscribers = connection.tells_subscribers();
                self.connection = Some(connection);
                self.presence.forget();
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
            mqtt::Event::Message(delivery) => self.receive(delivery),
            mqtt::Event::Published(outcome) => self.published(outcome),
            mqtt::Event::Closed => self.tell(Input::Closed),
            mqtt::Event::Lost => {
                self.connection = None;
                self.losses = self.losses.map(|losses| losses + 1);
                self.tell(Input::Lost)
            }
            mqtt::Event::TakenOver => self.taken_over(),
            mqtt::Event::DroppedEarly(times) => self.dropped_early(times),
            mqtt::Event::Denied(reason) => self.refused(&reason),
        }
    }

    fn published(&mut self, outcome: Result<Subscribers, Unpublished>) -> ControlFlow<Exit> {
        self.losses = None;
        match outcome {
            Ok(subscribers) => self.tell(Input::Published(subscribers)),
            Err(Unpublished::ForNow(reason)) => {
                log::warn!("the broker does not take the result ({reason}); publishing it again");
                self.tell(Input::NotPublished)
            }
            Err(Unpublished::NotAuthorized) => {
                let root = self.config.topics.rejected.trim_end_matches("rejected");
                self.refused(&format!(
                    "the broker refuses our answer: we may not write to {root}results/+ or {root}rejected"
                ))
            }
        }
    }

    fn receive(&mut self, delivery: Message) -> ControlFlow<Exit> {
        let topics = &self.config.topics;
        if delivery.topic == topics.pending {
            return self.tell(Input::Request(delivery));
        }
        let Some(id) = topics.cancelled_id(&delivery.topic) else {
            return self.give_up_subscriptions(delivery);
        };
        match &mut self.activity {
            // a retained cancel would end every run of this job for ever
            _ if delivery.retained => {}
            Activity::Running(execution) if execution.id().as_str() == id => {
                log::info!("job {id}: cancelled");
                execution.end(End::Cancelled, Instant::now());
            }
            Activity::Claiming(claim) if claim.id().as_str() == id => {
                log::info!("job {id}: cancelled");
                let document = claim.cancelled(&self.config.job, &self.config.worker_id);
                return self.report(document);
            }
            _ => log::debug!("the cancel of job {id} is ignored: it does not run here"),
        }
        ControlFlow::Continue(())
    }

    /// The session still has the subscriptions of another `MQTT_TOPIC_ROOT`: give them up, and tell whoever publishes there.
    fn give_up_subscriptions(&mut self, delivery: Message) -> ControlFlow<Exit> {
        let subscribed = subscribed_for(&delivery.topic);
        for filter in &subscribed {
            self.with_connection(|connection| connection.unsubscribe(filter));
        }
        log::warn!(
            "a message came on {}, which this worker served once; its old subscriptions are given up",
            delivery.topic
        );
        match subscribed.first() == Some(&delivery.topic) {
            true => self.tell(Input::Request(delivery)),
            false => ControlFlow::Continue(()), // a cancel of a job that does not run here
        }
    }

    /// Another client uses our id. Taking the session back would make two workers kick each other for ever, so an idle one
    /// goes; one with a job first brings it to its end, since nobody else knows of it.
    fn taken_over(&mut self) -> ControlFlow<Exit> {
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
        if matches!(self.activity, Activity::None) {
            self.resume();
        }
        ControlFlow::Continue(())
    }

    /// The broker keeps dropping us and does not say why. An idle worker goes, as after a takeover. One with a job keeps
    /// trying, ever more slowly, since the cause may pass and only this worker knows of its job.
    fn dropped_early(&self, times: u32) -> ControlFlow<Exit> {
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
    /// on the drive then, and a worker that the broker takes answers with it.
    fn refused(&mut self, reason: &str) -> ControlFlow<Exit> {
        log::error!("{reason}");
        self.refused = true;
        match self.activity {
            Activity::Running(_) => ControlFlow::Continue(()),
            _ => ControlFlow::Break(Exit::Refused),
        }
    }

    fn resume(&mut self) {
        if std::mem::take(&mut self.taken_over) {
            self.link.resume();
        }
    }

    fn stop(&mut self, signal: i32) -> ControlFlow<Exit> {
        let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
        if std::mem::replace(&mut self.stopping, true) {
            log::warn!("{name} once more: stopping at once");
            if let Activity::Running(execution) = &mut self.activity {
                execution.stop_at_once();
            }
            return ControlFlow::Break(Exit::Done);
        }
        log::info!("{name}: stopping");
        match (&mut self.activity, self.config.job.on_stop) {
            (Activity::Running(_), OnStop::Finish) => {
                log::info!("finishing the job first (JOB_ON_STOP=finish)")
            }
            (Activity::Running(execution), OnStop::Requeue) => {
                execution.end(End::Stopped, Instant::now())
            }
            (Activity::Claiming(_), _) if self.queue.is_forgotten() => {
                return self.end_forgotten();
            }
            (Activity::Claiming(_), _) => {
                self.activity = Activity::None;
                return self.tell(Input::Requeue);
            }
            (Activity::None, _) => {
                return self.tell(Input::Stop {
                    grace: self.config.job.stop_grace,
                });
            }
        }
        ControlFlow::Continue(())
    }

    /// Takes the activity a step further, if it can be.
    fn work_on(&mut self) -> ControlFlow<Exit> {
        match &mut self.activity {
            Activity::None => ControlFlow::Continue(()),
            Activity::Claiming(claim) if claim.next_look() > Instant::now() => {
                ControlFlow::Continue(())
            }
            Activity::Claiming(claim) => {
                match claim.poll(&self.config.job, &self.config.worker_id, self.inbox.bell()) {
                    Claimed::Waiting => {
                        self.show_presence();
                        ControlFlow::Continue(())
                    }
                    Claimed::Running(execution) => {
                        log::info!("job {}: running", execution.id().as_str());
                        self.activity = Activity::Running(execution);
                        self.show_presence();
                        self.work_on()
                    }
                    Claimed::Stored(document) => {
                        log::info!(
                            "job {}: over already, its result is sent again",
                            claim.id().as_str()
                        );
                        let topic = self.config.topics.result(claim.id());
                        self.publish_result(ResultMessage {
                            topic,
                            payload: document,
                            after: AfterResult::Leave,
                            insist: true,
                        })
                    }
                    Claimed::Refused(document) => self.report(*document),
                }
            }
            Activity::Running(execution) => {
                if let Some(document) = execution.take_change() {
                    let topic = self.config.topics.status(execution.id());
                    self.announce(&topic, document, false);
                    return ControlFlow::Continue(());
                }
                match execution.take_outcome() {
                    None => ControlFlow::Continue(()),
                    Some(Outcome::Final(document)) => self.report(*document),
                    Some(Outcome::Stopped) if self.queue.is_forgotten() => self.end_forgotten(),
                    Some(Outcome::Stopped) => {
                        log::info!(
                            "job {}: interrupted, it will be run again",
                            execution.id().as_str()
                        );
                        self.activity = Activity::None;
                        self.tell(Input::Requeue)
                    }
                }
            }
        }
    }

    /// We are asked to stop, and nobody will deliver the request again: the interrupted job gets its result now.
    fn end_forgotten(&mut self) -> ControlFlow<Exit> {
        let error = "the worker was asked to stop, and the broker has forgotten the request, so nobody will run it again: \
                     publish it again";
        let document = match &mut self.activity {
            Activity::None => return ControlFlow::Continue(()),
            Activity::Claiming(claim) => claim.interrupted(&self.config.worker_id, error),
            Activity::Running(execution) => execution.fail_interrupted(error),
        };
        self.report(document)
    }

    /// Deals with a request that the delivery rules have taken.
    fn take(&mut self, delivery: &Message) -> ControlFlow<Exit> {
        let topics = &self.config.topics;
        let shown = format!("{}, {} bytes", delivery.topic, delivery.payload.len());
        if delivery.retained {
            let error = "the request is retained, and would run at every start; publish it without the retain flag";
            return self.reject(
                Rejection {
                    id: None,
                    error: error.to_owned(),
                },
                delivery,
            );
        }
        if delivery.topic != topics.pending {
            let (topic, pending) = (&delivery.topic, &topics.pending);
            let error = format!(
                "the request came on {topic}, which this worker served once; publish it on {pending}"
            );
            return self.reject(
                Rejection {
                    id: id_in(delivery),
                    error,
                },
                delivery,
            );
        }
        match Request::parse(&delivery.payload) {
            Ok(request) => {
                log::info!("job {}: request taken ({shown})", request.id.as_str());
                if delivery.packet_id.is_none() {
                    log::warn!(
                        "job {}: published at QoS 0, so it would be lost if this worker died; publish at QoS 1",
                        request.id.as_str()
                    );
                }
                let origin = RequestOrigin::Queue {
                    redelivered: delivery.redelivered,
                    identity: delivery.identity(&self.config.worker_id),
                };
                self.activity = Activity::Claiming(Box::new(Claim::new(request, origin)));
                ControlFlow::Continue(())
            }
            Err(rejection) => self.reject(rejection, delivery),
        }
    }

    /// Rejects a request that came at QoS 0 while another one is held. It is answered as it came, at QoS 0, and only if the
    /// connection has room for it: a flood of them must not fill our memory. For the id that is held, only `jobs/rejected`
    /// is told, where nobody takes it for the result.
    fn reject_now(&mut self, delivery: &Message) {
        let error = "published at QoS 0 while the worker had a job; publish at QoS 1, and the broker keeps it until its turn";
        let (worker, topics) = (&self.config.worker_id, &self.config.topics);
        let held = self.queue.held_request().and_then(id_in);
        let is_held = |id: &JobId| {
            held.as_ref()
                .is_some_and(|held| held.as_str() == id.as_str())
        };
        let id = id_in(delivery).filter(|id| !is_held(id));
        let (topic, payload) = match id {
            Some(id) => (
                topics.result(&id),
                Document::rejected(id, worker, error.to_owned()).to_json(),
            ),
            None => (
                topics.rejected.clone(),
                rejection_notice(worker, error, &delivery.payload),
            ),
        };
        log::warn!("request rejected: {error}");
        self.announce(&topic, payload, false);
    }

    fn reject(&mut self, rejection: Rejection, delivery: &Message) -> ControlFlow<Exit> {
        let worker = &self.config.worker_id;
        match rejection.id {
            Some(id) => self.report(Document::rejected(id, worker, rejection.error)),
            None => {
                log::warn!("request rejected: {}", rejection.error);
                let payload = rejection_notice(worker, &rejection.error, &delivery.payload);
                self.publish_result(ResultMessage {
                    topic: self.config.topics.rejected.clone(),
                    payload,
                    after: AfterResult::WaitOn,
                    insist: false,
                })
            }
        }
    }

    /// Publishes a final document.
    fn report(&mut self, document: Document) -> ControlFlow<Exit> {
        let id = &document.id;
        match &document.error {
            None => log::info!("job {}: success", id.as_str()),
            Some(error) => log::warn!("job {}: {error}", id.as_str()),
        }
        self.publish_result(ResultMessage {
            topic: self.config.topics.result(id),
            payload: document.to_json(),
            after: match document.is_rejection() {
                true => AfterResult::WaitOn,
                false => AfterResult::Leave,
            },
            // whatever interrupted an earlier attempt may have interrupted the controller, too
            insist: document.attempt.is_some_and(|attempt| attempt > 1) || document.stops > 0,
        })
    }

    fn publish_result(&mut self, result: ResultMessage) -> ControlFlow<Exit> {
        self.activity = Activity::None;
        if self.refused {
            return ControlFlow::Break(Exit::Refused);
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

    /// Gives an event to the delivery rules, and does what they say.
    fn tell(&mut self, input: Input) -> ControlFlow<Exit> {
        let was_waiting = self.queue.is_waiting();
        for action in self.queue.handle(input, Instant::now()) {
            match action {
                Action::Take(delivery) => self.take(&delivery)?,
                Action::RejectNow(delivery) => self.reject_now(&delivery),
                Action::Publish(result) => self.publish(&result.topic, result.payload),
                Action::Warn(sentence) => log::warn!("{sentence}"),
                Action::Acknowledge(packet_id) => {
                    self.with_connection(|c| c.acknowledge(packet_id))
                }
                Action::Disconnect => {
                    // in order, no last will is published: we say it ourselves
                    self.announce(&self.config.topics.presence, self.presence.offline(), true);
                    self.with_connection(|c| c.disconnect());
                }
                Action::Exit => return ControlFlow::Break(Exit::Done),
            }
        }
        if self.queue.is_waiting() && !was_waiting {
            self.show_presence();
        }
        ControlFlow::Continue(())
    }

    fn show_presence(&mut self) {
        let (job, waiting_for) = match &self.activity {
            Activity::None => (None, None),
            Activity::Claiming(claim) => (Some(claim.id()), claim.waiting_for()),
            Activity::Running(execution) => (Some(execution.id()), None),
        };
        if let Some(document) = self.presence.show(job, waiting_for) {
            self.announce(&self.config.topics.presence, document, true);
        }
    }

    /// Publishes a result or a notice, in its short form where the broker does not take it whole.
    fn publish(&mut self, topic: &str, payload: Vec<u8>) {
        let Some(connection) = &self.connection else {
            return;
        };
        let losses = *self.losses.get_or_insert(0);
        let mut limit = connection.payload_limit(topic);
        if losses >= UNTOLD_AFTER {
            limit = limit.min(UNTOLD_LIMIT);
        }
        if payload.len() > limit {
            log::warn!(
                "{topic}: {} bytes are more than the broker takes; the short form is published",
                payload.len()
            );
        }
        connection.publish(topic, shorten(payload, limit));
    }

    fn announce(&self, topic: &str, payload: Vec<u8>, retain: bool) {
        self.with_connection(|connection| {
            let payload = match retain {
                true => payload,
                false => shorten(payload, connection.payload_limit(topic)),
            };
            connection.announce(topic, payload, retain);
        });
    }

    /// Without a connection nothing can be said; what must be said is said again on the next one.
    fn with_connection(&self, act: impl FnOnce(&dyn Connection)) {
        if let Some(connection) = &self.connection {
            act(&**connection);
        }
    }
}

/// By what id a request can be answered, whatever else is wrong with it.
fn id_in(delivery: &Message) -> Option<JobId> {
    Request::parse(&delivery.payload)
        .map_or_else(|rejection| rejection.id, |request| Some(request.id))
}

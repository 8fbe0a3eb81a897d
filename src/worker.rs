//! One worker's life: wait for a request, run its job, publish its result, leave.
//!
//! Everything that happens comes through one inbox. What is to be done about a request and its acknowledgement is decided
//! in [`crate::queue`], what becomes of the job in [`crate::job`]; this file passes events on and does what they say.

mod hear;

use crate::Exit;
use crate::config::Config;
use crate::contract::{Document, Rejection, rejection_notice, took};
use crate::inbox::{Event, Inbox, Outbox};
use crate::job::{Claimed, Interruption, Outcome, Run};
use crate::messages::{AT_QOS_0, Messages, queue_origin, read_request};
use crate::mqtt::{self, Link, Message, Protocol, Settings, Subscription, Unread};
use crate::pool::{self, Claim, Member};
use crate::queue::{Action, Input, Machine, ResultMessage};
use crate::{process, random};
use hear::Favour;
use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::ops::ControlFlow;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// How long a worker that leaves waits until the drive has its claim.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// What other threads send.
pub enum Heard {
    /// From the connection.
    Broker(mqtt::Event),
    /// From the pool.
    Pool(pool::Event),
    /// The drive has what it was given of the job.
    Saved,
}

struct Worker {
    config: Config,
    inbox: Inbox<Heard>,
    outbox: Outbox<Heard>,
    link: Link,
    unread: Unread,
    messages: Messages,
    queue: Machine,
    /// What the queue has not heard yet.
    inputs: VecDeque<Input>,
    /// The job of the request that is held.
    run: Option<Run>,
    /// In a pool, while the worker waits for a claim.
    member: Option<Member>,
    /// In a pool, the claim that is ours.
    claim: Option<Arc<Claim>>,
    /// What the broker speaks, from our first connection on.
    protocol: Option<Protocol>,
    /// The broker has granted the subscription of the queue: what is published now is kept.
    queue_stands: bool,
    /// Why no request can be taken.
    trouble: Option<String>,
    favour: Favour,
    /// A signal has asked us to stop.
    stopping: bool,
    /// The latest moment to go, while a claim is being taken.
    leave_at: Option<Instant>,
}

/// Waits for one job, runs it, publishes its result (`job-worker`).
pub fn run(config: Config, outbox: Outbox<Heard>, inbox: Inbox<Heard>) -> Exit {
    let pool = config.pool.as_ref().map(|pool| pool.name.clone());
    let messages = Messages::new(config.topics.clone(), &config.worker_id, pool);
    let unread = Unread::default();
    let sender = outbox.clone();
    let sink = move |event| sender.send(Heard::Broker(event));
    let link = mqtt::open(settings(&config, &messages), unread.clone(), sink);
    // the thread of the connection goes first: there is time for the rest while the broker answers
    std::thread::yield_now();
    let link = match link.and_then(|link| inbox.hear_signals().map(|()| link)) {
        Ok(link) => link,
        Err(error) => return Exit::defect(&error),
    };
    process::adopt_orphans();
    // the process ends with it: taking it apart would only delay that
    let mut worker = ManuallyDrop::new(Worker {
        config,
        inbox,
        outbox,
        link,
        unread,
        messages,
        queue: Machine::default(),
        inputs: VecDeque::new(),
        run: None,
        member: None,
        claim: None,
        protocol: None,
        queue_stands: false,
        trouble: None,
        favour: Favour::default(),
        stopping: false,
        leave_at: None,
    });
    worker.live()
}

/// The worker's own connection: with the session that is its queue, or in a pool with a session that ends with it.
fn settings(config: &Config, messages: &Messages) -> Settings {
    let (id, topics) = (&config.worker_id, &config.topics);
    let requests = Subscription::Requests(topics.pending.clone());
    let cancels = Subscription::Cancels(topics.cancel_filter.clone());
    let (client_id, keeps_session, subscriptions) = match config.pool {
        None => (id.clone(), true, vec![requests, cancels]),
        Some(_) => {
            let client_id = format!("{id}-{:08x}", random() as u32);
            (client_id, false, vec![cancels])
        }
    };
    Settings {
        broker: config.broker.clone(),
        client_id,
        keeps_session,
        is_lasting: true,
        subscriptions,
        last_will: Some(messages.offline()),
    }
}

impl Worker {
    fn live(&mut self) -> Exit {
        loop {
            if let ControlFlow::Break(exit) = self.take_turn() {
                return match (exit, self.favour) {
                    (Exit::Done, Favour::Unwanted(exit)) => exit,
                    (Exit::Done, _) if self.stopping => Exit::Stopped,
                    (exit, _) => exit,
                };
            }
        }
    }

    /// Waits for the next event, passes it on, and does what that leads to.
    fn take_turn(&mut self) -> ControlFlow<Exit> {
        match self.inbox.next(self.next_wake()) {
            Some(Event::Sent(Heard::Broker(event))) => {
                self.unread.was_read(&event);
                self.hear(event);
            }
            Some(Event::Sent(Heard::Pool(event))) => self.hear_pool(event)?,
            Some(Event::Stop(signal)) => self.stop(signal)?,
            Some(Event::ChildEnded) => match &mut self.run {
                Some(run) => run.child_ended(),
                // PID 1 of a container is given the orphans of others, such as of a health check
                None => drop(process::reap_some(|_, _| {})),
            },
            Some(Event::Sent(Heard::Saved)) => {
                if let Some(run) = &mut self.run {
                    run.wake(Instant::now());
                }
            }
            None => self.wake()?,
        }
        self.follow_run();
        while let Some(input) = self.inputs.pop_front() {
            for action in self.queue.handle(input, Instant::now()) {
                self.act(action)?;
            }
            self.follow_run();
        }
        if let Favour::Unwanted(exit) = self.favour
            && self.run.is_none()
            && self.member.is_none()
        {
            return ControlFlow::Break(exit);
        }
        self.wait_for_claim()?;
        self.show_presence();
        ControlFlow::Continue(())
    }

    /// When there is something to do even if nothing happens.
    fn next_wake(&self) -> Option<Instant> {
        let run = self.run.as_ref().and_then(Run::next_wake);
        let times = [run, self.queue.deadline(), self.leave_at];
        times.into_iter().flatten().min()
    }

    fn wake(&mut self) -> ControlFlow<Exit> {
        let now = Instant::now();
        if self.leave_at.is_some_and(|at| at <= now) {
            return ControlFlow::Break(Exit::Done); // the drive hangs: the next head finds the claim, or the request
        }
        if let Some(run) = &mut self.run {
            run.wake(now);
        }
        self.tell(Input::Expired);
        ControlFlow::Continue(())
    }

    /// Tells the queue, once this is done.
    fn tell(&mut self, input: Input) {
        self.inputs.push_back(input);
    }

    fn act(&mut self, action: Action) -> ControlFlow<Exit> {
        match action {
            Action::Take(message) => self.take(&message),
            Action::RejectNow(message) => {
                log::warn!("request rejected: {AT_QOS_0}");
                self.messages.announce_rejection(AT_QOS_0, &message.payload);
            }
            Action::Publish(result) => self.messages.publish(&result.topic, result.payload),
            Action::Acknowledge(packet_id) => self.messages.acknowledge(packet_id),
            Action::EndClaim => {
                if let Some(claim) = self.claim.take() {
                    claim.done();
                }
            }
            Action::Disconnect => self.messages.disconnect(),
            Action::Exit => return ControlFlow::Break(Exit::Done),
        }
        ControlFlow::Continue(())
    }

    fn show_presence(&mut self) {
        let job = self.run.as_ref().map(Run::id);
        match job {
            // between its result and our end it is still ours
            None if !self.queue.is_waiting() => {}
            None if !self.queue_stands && self.trouble.is_none() => {}
            None => self.messages.show_presence(None, self.trouble.as_deref()),
            Some(id) => {
                let waiting_for = self.run.as_ref().and_then(Run::waiting_for);
                self.messages.show_presence(Some(id), waiting_for);
            }
        }
    }

    // Take.

    fn take(&mut self, message: &Message) {
        let worker = &self.config.worker_id;
        let request = match read_request(message, &self.config.topics) {
            Ok(request) => request,
            Err(rejection) => return self.reject(rejection, message),
        };
        let id = request.id.as_str();
        let outbox = self.outbox.clone();
        let wake = Arc::new(move || outbox.send(Heard::Saved));
        let origin = match &self.claim {
            None => {
                let bytes = message.payload.len();
                log::info!("job {id}: request taken ({}, {bytes} bytes)", message.topic);
                if message.packet_id.is_none() {
                    log::warn!(
                        "job {id}: published at QoS 0, so it would be lost if this worker died; publish at QoS 1"
                    );
                }
                queue_origin(message, worker)
            }
            Some(claim) => {
                if let Some(document) = claim.document.clone() {
                    return self.publish_stored(id, document);
                }
                log::info!(
                    "job {id}: its request is the claim {}",
                    claim.path().display()
                );
                if let Err(error) = claim.let_steps_inherit() {
                    log::warn!("the steps cannot inherit the lock of their claim: {error}");
                }
                claim.origin()
            }
        };
        let claim = self.claim.clone().map(|claim| claim as Arc<dyn Claimed>);
        let mut run = Run::new(request, origin, &self.config.job, worker, wake, claim);
        run.wake(Instant::now());
        self.run = Some(run);
    }

    fn reject(&mut self, rejection: Rejection, message: &Message) {
        let worker = &self.config.worker_id;
        let Rejection {
            id,
            work_dir,
            error,
        } = rejection;
        if let Some(id) = id {
            return self.report(Document::rejected(id, work_dir, worker, error));
        }
        log::warn!("request rejected: {error}");
        self.publish(ResultMessage {
            topic: self.config.topics.rejected.clone(),
            payload: rejection_notice(worker, &error, &message.payload),
            ends_life: false,
            wait_for_subscriber: false,
        });
    }

    // Follow.

    /// Passes on what is new of the job.
    fn follow_run(&mut self) {
        let Some(run) = &mut self.run else { return };
        if let Some(document) = run.change() {
            self.messages.announce_status(run.id(), document);
        }
        let Some(outcome) = run.outcome() else {
            return;
        };
        let id = run.id().as_str();
        match outcome {
            Outcome::Final(document) => self.report(*document),
            Outcome::Stored(document) => {
                let id = id.to_owned();
                self.publish_stored(&id, document);
            }
            Outcome::Unfinished => {
                log::info!("job {id}: interrupted, it will be run again");
                if let Some(claim) = &self.claim {
                    give_back(claim.clone());
                }
                self.requeue();
            }
            Outcome::Lost => {
                log::warn!(
                    "job {id}: another worker has its claim by now, and the result is left to that one"
                );
                self.requeue();
            }
        }
    }

    /// The request stays with the broker, or on the drive.
    fn requeue(&mut self) {
        self.run = None;
        self.tell(Input::Requeue);
    }

    // Publish.

    /// Publishes a final document.
    fn report(&mut self, document: Document) {
        log_result(&document);
        let payload = document.to_json();
        self.keep(&payload);
        self.publish(ResultMessage {
            topic: self.config.topics.result(document.id.as_str()),
            payload,
            ends_life: !document.is_rejection(),
            // whatever crashed or stopped an earlier try may have met the controller, too, so that it is not subscribed yet
            wait_for_subscriber: document.attempt.is_some_and(|attempt| attempt > 1)
                || document.stops > 0,
        });
    }

    /// Keeps a final document in the claim, which has it already where the job ran.
    fn keep(&self, document: &[u8]) {
        if let Some(claim) = &self.claim {
            claim.keep(document);
        }
    }

    /// Publishes the result of a job that is over already.
    fn publish_stored(&mut self, id: &str, document: Vec<u8>) {
        self.keep(&document);
        log::info!("job {id}: over already, its result is sent again");
        self.publish(ResultMessage {
            topic: self.config.topics.result(id),
            payload: document,
            ends_life: true,
            wait_for_subscriber: true,
        });
    }

    /// Gives the result to the queue: the job is over for this worker.
    fn publish(&mut self, result: ResultMessage) {
        self.run = None;
        self.resume();
        self.tell(Input::Result(result));
        if self.stopping {
            self.tell_of_stop();
        }
    }

    // Leave.

    fn stop(&mut self, signal: i32) -> ControlFlow<Exit> {
        let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
        if std::mem::replace(&mut self.stopping, true) {
            log::warn!("{name} once more: stopping at once");
            if let Some(run) = &mut self.run {
                run.stop_at_once();
                if let Some(claim) = &self.claim {
                    give_back(claim.clone());
                }
            }
            return ControlFlow::Break(Exit::Done);
        }
        log::info!("{name}: stopping");
        match &mut self.run {
            None if self.member.is_some() => self.stop_member(),
            None => self.tell_of_stop(),
            Some(run) if self.config.job.finish_on_stop && run.has_started() => {
                log::info!("finishing the job first (JOB_ON_STOP=finish)");
            }
            Some(run) => run.interrupt(Interruption::Stop, Instant::now()),
        }
        ControlFlow::Continue(())
    }

    fn tell_of_stop(&mut self) {
        let grace = self.config.job.leave_wait();
        self.tell(Input::Stop { grace });
    }
}

/// Gives a claim back, on a thread of its own: a drive that does not answer must not keep a worker that leaves.
fn give_back(claim: Arc<Claim>) {
    let (sender, given_back) = mpsc::channel();
    let thread = std::thread::Builder::new().name("claim".into());
    let begun = thread.spawn(move || {
        claim.give_back();
        let _ = sender.send(()); // nobody waits any more
    });
    if begun.is_err() || given_back.recv_timeout(LAST_WAIT).is_err() {
        log::warn!("the claim is not given back: its next run counts as another attempt");
    }
}

/// Says in one line how a job ended.
fn log_result(document: &Document) {
    let (id, code) = (document.id.as_str(), document.exit_code.unwrap_or(1));
    let took = document.duration_ms.map(|ms| format!(" in {} s", took(ms)));
    let took = took.unwrap_or_default();
    match &document.error {
        None => log::info!("job {id}: success{took}, exit code {code}"),
        Some(error) if document.is_rejection() => log::warn!("job {id}: rejected: {error}"),
        Some(error) => log::warn!("job {id}: failed{took}, exit code {code}: {error}"),
    }
}

//! One worker's life: wait for a request, claim its job, run it, report its result, leave.
//!
//! Everything that happens comes through one inbox. What is to be done about requests and their acknowledgements is decided
//! in [`crate::queue`], what becomes of the job in [`crate::job`]; this file passes events on and does what they say.

mod hear;
mod pool;
mod result;
mod unwelcome;

use crate::Exit;
use crate::config::{Config, OnStop};
use crate::contract::Rejection;
use crate::inbox::{Event, Inbox, Outbox};
use crate::intake::{Unread, qos_0_rejection, read_request};
use crate::job::{Interruption, News, Outcome, Run};
use crate::links::{Heard, own_link};
use crate::member::Member;
use crate::mqtt::{self, Link, Message};
use crate::outgoing::Outgoing;
use crate::presence::Presence;
use crate::process;
use crate::pulse::Pulse;
use crate::queue::{Action, AfterResult, Input, ResultMessage};
use crate::served::Queue;
use std::mem::ManuallyDrop;
use std::ops::ControlFlow;
use std::time::Instant;

struct Worker {
    config: Config,
    inbox: Inbox<Heard>,
    pulse: Pulse,
    link: Link,
    /// What has come at QoS 0 and is still in the inbox.
    unread: Unread,
    outgoing: Outgoing,
    queue: Queue,
    /// The job of the request that is held.
    run: Option<Run>,
    /// The broker has had a session of ours in this process.
    had_session: bool,
    /// A signal has asked us to stop.
    stopping: bool,
    /// Another client has our session, and we are not done yet.
    taken_over: bool,
    /// Whether the queue had no request when it was asked last.
    waiting: bool,
    /// The broker does not want us any more, and we are not done yet.
    denied: bool,
}

/// Waits for one job, runs it, reports it (`job-worker`).
pub fn run(config: Config, outbox: Outbox<Heard>, inbox: Inbox<Heard>) -> Exit {
    process::adopt_orphans();
    let pulse = Pulse::default();
    let queue = match &config.pool {
        None => Queue::Own(Box::default()),
        Some(pool) => match Member::open(&config, pool, outbox.clone(), pulse.clone()) {
            Ok(member) => Queue::Pool(Box::new(member)),
            Err(error) => {
                log::error!("JOB_POOL={:?}: {error}", pool.name);
                return Exit::Config;
            }
        },
    };
    let pool = match &queue {
        Queue::Own(_) => None,
        Queue::Pool(member) => Some(member.pool()),
    };
    let presence = Presence::new(&config.worker_id, pool);
    let settings = own_link(&config, &presence, &pulse);
    let unread = Unread::default();
    let gate = unread.clone();
    let sink = move |event| {
        if gate.admit(&event) {
            outbox.send(Heard::Own(event));
        }
    };
    let link = match mqtt::open(settings, sink) {
        Ok(link) => link,
        Err(error) => {
            log::error!("no thread for the connection: {error}");
            return Exit::Defect;
        }
    };
    // the process ends with it: taking it apart would only delay that
    let mut worker = ManuallyDrop::new(Worker {
        outgoing: Outgoing::new(config.topics.clone(), &config.worker_id, presence),
        config,
        inbox,
        pulse,
        link,
        unread,
        queue,
        run: None,
        had_session: false,
        stopping: false,
        taken_over: false,
        waiting: true,
        denied: false,
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

    /// Waits for the next event, passes it on, and does what that leads to.
    fn take_turn(&mut self) -> ControlFlow<Exit> {
        self.pulse.end_turn();
        let event = self.inbox.next(self.next_wake());
        self.pulse.begin_turn();
        match event {
            Some(Event::Sent(Heard::Own(event))) => {
                self.unread.was_read(&event);
                self.hear(event)?;
            }
            Some(Event::Sent(Heard::Head(turn, event))) => self.hear_head(turn, event)?,
            Some(Event::Sent(Heard::HeadFree)) => self.hear_head_free()?,
            Some(Event::Stop(signal)) => self.stop(signal)?,
            Some(Event::ChildEnded) => match &mut self.run {
                Some(run) => run.child_ended(),
                // PID 1 of a container is given the orphans of others, such as of a health check
                None => drop(process::reap_some(|_, _| {})),
            },
            Some(Event::Woken) => {
                if let Some(run) = &mut self.run {
                    run.drive_done();
                }
            }
            None => {
                if let Some(run) = &mut self.run {
                    run.wake(Instant::now());
                }
                self.tell(Input::Expired)?;
            }
        }
        self.follow_run()
    }

    /// When there is something to do even if nothing happens.
    fn next_wake(&self) -> Option<Instant> {
        let run = self.run.as_ref().and_then(Run::next_wake);
        [run, self.queue.deadline()].into_iter().flatten().min()
    }

    /// Gives an event to the queue, and does what it says.
    fn tell(&mut self, input: Input) -> ControlFlow<Exit> {
        let actions = self.queue.handle(input, Instant::now());
        self.act(actions)
    }

    fn act(&mut self, actions: Vec<Action>) -> ControlFlow<Exit> {
        let was_waiting = self.waiting;
        for action in actions {
            match action {
                Action::Take(message) => self.take(&message)?,
                Action::TakeClaim => self.take_claim()?,
                Action::Confirm => {
                    if let Queue::Pool(member) = &self.queue {
                        let (topic, payload) = self.outgoing.say_presence(member.job());
                        member.confirm(&topic, payload);
                    }
                }
                Action::LeavePool(topic) => return self.leave_pool(&topic),
                Action::TellDamaged(error) => self.outgoing.tell_damaged(&error),
                Action::RejectNow(message) => {
                    let rejection = qos_0_rejection(&message, self.queue.held_request());
                    self.outgoing.announce_rejection(rejection, &message);
                }
                Action::Publish(result) => self.outgoing.publish(&result.topic, result.payload),
                Action::Warn(sentence) => log::warn!("{sentence}"),
                Action::Acknowledge(packet_id) => self.outgoing.acknowledge(packet_id),
                Action::Disconnect => self.outgoing.disconnect(),
                Action::Exit => return ControlFlow::Break(Exit::Done),
            }
        }
        self.waiting = self.queue.is_waiting();
        let pool_moved = self.pool_moved();
        if self.waiting && (!was_waiting || pool_moved) {
            self.show_presence();
        }
        ControlFlow::Continue(())
    }

    fn show_presence(&mut self) {
        let waiting_for = self.run.as_ref().and_then(Run::waiting_for);
        let claim = self.queue.claim();
        let job = self.run.as_ref().map(Run::id);
        let job = job.or(claim.map(|claim| &claim.history.request.id));
        self.outgoing.show_presence(job, waiting_for);
    }

    // Claim.

    fn take(&mut self, message: &Message) -> ControlFlow<Exit> {
        let worker = &self.config.worker_id;
        match read_request(message, &self.config.topics, worker) {
            Ok((request, origin)) => {
                let id = request.id.as_str();
                let bytes = message.payload.len();
                log::info!("job {id}: request taken ({}, {bytes} bytes)", message.topic);
                if message.packet_id.is_none() {
                    log::warn!(
                        "job {id}: published at QoS 0, so it would be lost if this worker died; publish at QoS 1"
                    );
                }
                let waker = self.inbox.waker().clone();
                let mut run = Run::new(request, origin, &self.config.job, worker, waker);
                run.wake(Instant::now());
                self.run = Some(run);
                ControlFlow::Continue(())
            }
            Err(rejection) => self.reject(rejection, message),
        }
    }

    fn reject(&mut self, rejection: Rejection, message: &Message) -> ControlFlow<Exit> {
        match &rejection.id {
            Some(id) => log::warn!("job {}: rejected: {}", id.as_str(), rejection.error),
            None => log::warn!("request rejected: {}", rejection.error),
        }
        let (topic, payload) = self.outgoing.rejection(rejection, message);
        self.publish_result(ResultMessage {
            topic,
            payload,
            after: AfterResult::WaitOn,
            wait_for_subscriber: false,
        })
    }

    // Run.

    /// Passes on what is new of the job.
    fn follow_run(&mut self) -> ControlFlow<Exit> {
        while let Some(run) = &mut self.run {
            match run.news() {
                None => {
                    self.show_presence();
                    return ControlFlow::Continue(());
                }
                Some(News::Started { dir, attempt }) => {
                    let (id, dir) = (run.id().as_str(), dir.display());
                    log::info!("job {id}: running in {dir}, attempt {attempt}");
                }
                Some(News::Changed(document)) => self.outgoing.announce_status(run.id(), document),
                Some(News::Over(Outcome::Final(document))) => self.report(*document)?,
                Some(News::Over(Outcome::Stored(document))) => {
                    let id = run.id().clone();
                    self.publish_stored(&id, document)?;
                }
                Some(News::Over(Outcome::Unfinished)) => self.requeue()?,
                Some(News::Over(Outcome::Busy)) => {
                    log::info!(
                        "job {}: something else has its directory; it is run later",
                        run.id().as_str()
                    );
                    self.run = None;
                    self.tell(Input::Postpone)?;
                }
                Some(News::Over(Outcome::Lost)) => self.give_up()?,
            }
        }
        ControlFlow::Continue(())
    }

    // Leave.

    fn stop(&mut self, signal: i32) -> ControlFlow<Exit> {
        let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
        if std::mem::replace(&mut self.stopping, true) {
            log::warn!("{name} once more: stopping at once");
            if let Some(run) = &mut self.run {
                run.stop_at_once();
                if let Some(claim) = self.queue.claim() {
                    claim.stopped(run.has_started());
                }
            }
            return ControlFlow::Break(Exit::Done);
        }
        log::info!("{name}: stopping");
        match (&mut self.run, self.config.job.on_stop) {
            (None, _) => self.tell(Input::Stop {
                grace: self.config.job.stop_grace,
            }),
            (Some(run), _) if !run.has_started() => self.requeue(),
            (Some(_), OnStop::Finish) => {
                log::info!("finishing the job first (JOB_ON_STOP=finish)");
                ControlFlow::Continue(())
            }
            (Some(run), OnStop::Requeue) => {
                run.interrupt(Interruption::Stop, Instant::now());
                ControlFlow::Continue(())
            }
        }
    }
}

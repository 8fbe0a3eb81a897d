//! A member of a pool: does what the machine in [`crate::queue::pool`] says, on the drive and as the head.

use crate::config::{Config, JobConfig, PoolConfig};
use crate::contract::{JobId, subscribed_for};
use crate::inbox::Outbox;
use crate::intake::{Unread, read_request};
use crate::job;
use crate::links::{Heard, head_link};
use crate::mqtt::{self, Connection, Link, Message, Protocol, Retention};
use crate::outgoing::rejection;
use crate::presence::{Pool, Seen};
use crate::queue::pool::{self, Looked, Machine, Took, Tried};
use crate::queue::spool::{Claim, Orphan, Spool, Taking, Try, Why};
use crate::queue::{Action, Input};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a head may hold its lock while the broker says that it is gone, before somebody should look.
const LONG_GONE: Duration = Duration::from_secs(5);

/// A member of a pool.
pub struct Member {
    machine: Machine,
    spool: Spool,
    config: Config,
    pool: PoolConfig,
    outbox: Outbox<Heard>,
    /// What has come to the head at QoS 0 and is still in the inbox.
    unread: Unread,
    /// Counts the connections of this member as the head.
    turn: u64,
    link: Option<Link>,
    connection: Option<Arc<dyn Connection>>,
    /// The protocol version that the broker speaks.
    protocol: Option<Protocol>,
    claim: Option<Arc<Claim>>,
    /// Who is gone, as the broker says, and since when.
    gone: Option<(String, Instant)>,
}

/// What the presence of a worker means for a member.
pub enum Meaning {
    Nothing,
    Input(pool::Input),
    /// There is another pool of our name.
    ForeignPool,
}

impl Member {
    /// Opens the pool's directory.
    ///
    /// # Errors
    /// A sentence: see [`Spool::open`].
    pub fn open(config: &Config, pool: &PoolConfig, outbox: Outbox<Heard>) -> Result<Self, String> {
        let JobConfig {
            payload_steps,
            durability,
            ..
        } = config.job;
        let root = config.topics.root();
        Ok(Self {
            machine: Machine::default(),
            spool: Spool::open(pool, root, payload_steps, &config.worker_id, durability)?,
            config: config.clone(),
            pool: pool.clone(),
            outbox,
            unread: Unread::default(),
            turn: 0,
            link: None,
            connection: None,
            protocol: None,
            claim: None,
            gone: None,
        })
    }

    /// What our presence says of the pool.
    pub fn pool(&self) -> Pool {
        Pool {
            name: self.pool.name.clone(),
            id: self.spool.id().to_owned(),
        }
    }

    /// See [`Machine::deadline`].
    pub fn deadline(&self) -> Option<Instant> {
        self.machine.deadline()
    }

    /// See [`Machine::is_waiting`].
    pub fn is_waiting(&self) -> bool {
        self.machine.is_waiting()
    }

    /// The claim that is ours.
    pub fn claim(&self) -> Option<&Arc<Claim>> {
        self.claim.as_ref()
    }

    /// The job of the claim that is ours.
    pub fn job(&self) -> Option<&JobId> {
        self.claim.as_ref().map(|claim| &claim.history.request.id)
    }

    /// What the presence of a worker means.
    pub fn understand(&mut self, message: &Message) -> Meaning {
        let Ok(seen) = serde_json::from_slice::<Seen>(&message.payload) else {
            return Meaning::Nothing;
        };
        let is_gone = seen.state == "offline";
        let Some(pool) = seen.pool.filter(|pool| pool.name == self.pool.name) else {
            return Meaning::Nothing;
        };
        if pool.id != self.spool.id() {
            return match is_gone {
                true => Meaning::Nothing,
                false => Meaning::ForeignPool,
            };
        }
        if is_gone {
            self.gone = Some((seen.worker.clone(), Instant::now()));
        } else if self.is_gone(&seen.worker) {
            self.gone = None;
        }
        match &*seen.state {
            _ if message.retained || seen.worker == self.config.worker_id => Meaning::Nothing,
            "idle" => Meaning::Input(pool::Input::ClaimsFreed),
            "busy" => Meaning::Input(pool::Input::HeadLeaves),
            // it may have been the head, and it may have had a job
            _ => Meaning::Input(match self.turn_is_ours() {
                true => pool::Input::ClaimsFreed,
                false => pool::Input::HeadLeaves,
            }),
        }
    }

    fn is_gone(&self, worker: &str) -> bool {
        self.gone.as_ref().is_some_and(|(gone, _)| gone == worker)
    }

    fn turn_is_ours(&self) -> bool {
        self.link.is_some()
    }

    /// Takes what came on the connection of the head.
    pub fn hear_head(&mut self, turn: u64, event: mqtt::Event, now: Instant) -> Vec<Action> {
        self.unread.was_read(&event);
        if turn != self.turn || self.link.is_none() {
            return Vec::new();
        }
        let input = match event {
            mqtt::Event::Connected {
                connection,
                resumed,
            } => {
                self.connection = Some(connection);
                pool::Input::HeadConnected { resumed }
            }
            mqtt::Event::Ready => pool::Input::HeadReady,
            mqtt::Event::Message(message) => match self.is_request(&message) {
                true => pool::Input::Request(message),
                false => return Vec::new(),
            },
            mqtt::Event::Published(Ok(_)) => pool::Input::HeadPublished,
            mqtt::Event::Published(Err(reason)) => {
                log::warn!("the broker does not take what the head publishes ({reason:?})");
                pool::Input::HeadNotPublished
            }
            mqtt::Event::Closed => pool::Input::HeadClosed,
            mqtt::Event::TakenOver => {
                log::warn!(
                    "another client has connected with the client id of the pool, {:?}, while this worker is its head",
                    self.pool.name
                );
                pool::Input::HeadLost
            }
            mqtt::Event::Lost | mqtt::Event::DroppedEarly(_) | mqtt::Event::Denied(_) => {
                pool::Input::HeadLost
            }
        };
        self.feed(input, now)
    }

    /// Whether a message is a request. The session may still have the subscriptions of a worker whose own queue it was, or of another
    /// `MQTT_TOPIC_ROOT`: they are given up.
    fn is_request(&self, message: &Message) -> bool {
        let pending = &self.config.topics.pending;
        if message.topic == *pending {
            return true;
        }
        let subscribed = subscribed_for(&message.topic);
        if let Some(connection) = &self.connection {
            for filter in subscribed.iter().filter(|filter| *filter != pending) {
                connection.unsubscribe(filter);
            }
        }
        subscribed.first() == Some(&message.topic)
    }

    /// Sends something that the broker answers, on the connection of the head.
    pub fn confirm(&self, topic: &str, payload: Vec<u8>) {
        if let Some(connection) = &self.connection {
            connection.publish(topic, payload, Retention::Kept);
        }
    }

    /// Takes one event and tells what of that is the worker's.
    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Action> {
        let input = match input {
            Input::Connected {
                tells_subscribers, ..
            } => {
                self.protocol = Some(match tells_subscribers {
                    true => Protocol::V5,
                    false => Protocol::V3,
                });
                pool::Input::Connected { tells_subscribers }
            }
            Input::Lost => pool::Input::Lost,
            Input::Request(_) => return Vec::new(), // our own connection has none
            Input::Published(subscribers) => pool::Input::Published(subscribers),
            Input::NotPublished => pool::Input::NotPublished,
            Input::Closed => pool::Input::Closed,
            Input::Result(result) => pool::Input::Result(result),
            Input::Requeue => pool::Input::Requeue,
            Input::Postpone => {
                self.give_back(Why::Lock);
                pool::Input::Postpone
            }
            Input::GiveUp => {
                self.claim = None;
                pool::Input::GiveUp
            }
            Input::Stop { grace } => pool::Input::Stop { grace },
            Input::Expired => pool::Input::Expired,
        };
        self.feed(input, now)
    }

    /// Gives an event to the machine and does what follows on the drive and as the head. What is the worker's is left to it.
    pub fn feed(&mut self, input: pool::Input, now: Instant) -> Vec<Action> {
        let mut left = Vec::new();
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for action in self.machine.handle(input, now) {
                self.act(action, &mut inputs, &mut left);
            }
        }
        left
    }

    fn act(
        &mut self,
        action: pool::Action,
        inputs: &mut VecDeque<pool::Input>,
        left: &mut Vec<Action>,
    ) {
        match action {
            pool::Action::TryHead => inputs.push_back(self.try_head()),
            pool::Action::FreeHead => self.spool.free_head(),
            pool::Action::Look => inputs.push_back(self.look(left)),
            pool::Action::OpenHead => inputs.extend(self.open_head()),
            pool::Action::Subscribe { new_session } => inputs.extend(self.subscribe(new_session)),
            pool::Action::Take(message) => inputs.push_back(self.take(&message)),
            pool::Action::RejectNow(message) => left.push(Action::RejectNow(message)),
            pool::Action::Acknowledge(packet_id) => {
                if let Some(connection) = &self.connection {
                    connection.acknowledge(packet_id);
                }
            }
            pool::Action::Confirm => left.push(Action::Confirm),
            pool::Action::Confirmed => {
                if let Err(error) = self.spool.confirm() {
                    // over MQTT 3.1.1, the request may be taken for one that is sent again
                    log::warn!("the pool's `taken` cannot be written: {error}");
                }
            }
            pool::Action::CloseHead => match &self.connection {
                Some(connection) => connection.disconnect(),
                None => inputs.push_back(pool::Input::HeadLost),
            },
            pool::Action::AbandonHead => self.abandon_head(),
            pool::Action::Run => left.push(Action::TakeClaim),
            pool::Action::GiveBack => self.give_back(Why::Stop),
            pool::Action::Publish(result) => left.push(Action::Publish(result)),
            pool::Action::Remove => {
                if let Some(claim) = self.claim.take()
                    && let Err(error) = claim.remove()
                {
                    log::warn!("the claim {} cannot be removed: {error}", claim.name());
                }
            }
            pool::Action::Disconnect => left.push(Action::Disconnect),
            pool::Action::Warn(sentence) => left.push(Action::Warn(sentence)),
            pool::Action::Exit => left.push(Action::Exit),
        }
    }

    /// Gives the claim back before its first step.
    pub fn give_back(&mut self, why: Why) {
        if let Some(claim) = self.claim.take() {
            claim.given_back(why);
        }
    }

    fn try_head(&mut self) -> pool::Input {
        match self.spool.try_head() {
            Ok(Try::Ours) => pool::Input::Tried(Tried::Ours),
            Ok(Try::Held(holder)) => {
                // its next process may be the head before it says that it is there
                let is_long = |(_, since): &(_, Instant)| since.elapsed() >= LONG_GONE;
                if self.is_gone(&holder) && self.gone.as_ref().is_some_and(is_long) {
                    self.gone = None; // once
                    log::warn!(
                        "the broker says that worker {holder} is gone, and it still holds head.lock: no other member can take a job"
                    );
                }
                pool::Input::Tried(Tried::Held)
            }
            Err(error) => drive_failed("no turn as the head", &error),
        }
    }

    fn look(&mut self, left: &mut Vec<Action>) -> pool::Input {
        loop {
            let config = &self.config.job;
            let found = self
                .spool
                .take_orphan(|request| job::is_busy(request, config));
            match found {
                Ok(None) => return pool::Input::Looked(Looked::Nothing),
                Ok(Some(Orphan::Claim(claim))) => {
                    let id = claim.history.request.id.as_str();
                    log::info!("job {id}: taken over, since nobody has its claim");
                    self.claim = Some(Arc::from(claim));
                    return pool::Input::Looked(Looked::Claimed);
                }
                Ok(Some(Orphan::Damaged { name, error })) => {
                    let sentence = format!(
                        "the claim {name} of the pool {} cannot be read, and is put aside: {error}",
                        self.pool.name
                    );
                    log::error!("{sentence}");
                    left.push(Action::TellDamaged(sentence));
                }
                Err(error) => return drive_failed("no look at the claims", &error),
            }
        }
    }

    fn open_head(&mut self) -> Option<pool::Input> {
        self.turn += 1;
        let (turn, outbox) = (self.turn, self.outbox.clone());
        let settings = head_link(&self.config, &self.pool, self.protocol);
        let gate = self.unread.clone();
        let sink = move |event| {
            if gate.admit(&event) {
                outbox.send(Heard::Head(turn, event));
            }
        };
        match mqtt::open(settings, sink) {
            Ok(link) => {
                self.link = Some(link);
                None
            }
            Err(error) => {
                log::error!("no thread for the connection of the head: {error}");
                Some(pool::Input::HeadLost)
            }
        }
    }

    fn subscribe(&mut self, new_session: bool) -> Option<pool::Input> {
        if new_session {
            log::warn!(
                "the broker has no session for the pool {}: the queue begins now, and is empty",
                self.pool.name
            );
            if let Err(error) = self.spool.new_session() {
                return Some(drive_failed("no new session", &error));
            }
        }
        if let Some(connection) = &self.connection {
            connection.subscribe();
        }
        None
    }

    fn take(&mut self, message: &Message) -> pool::Input {
        let Config {
            topics, worker_id, ..
        } = &self.config;
        let request = match read_request(message, topics, worker_id) {
            Ok((request, _)) => request,
            Err(error) => {
                log::warn!("request rejected: {}", error.error);
                let (topic, payload) = rejection(topics, worker_id, error, message);
                if let Some(connection) = &self.connection {
                    connection.publish(&topic, payload, Retention::None);
                }
                return pool::Input::Took(Took::Rejected);
            }
        };
        let id = request.id.as_str();
        match self.spool.take(message, &request) {
            Ok(Taking::Claim(claim)) => {
                let bytes = message.payload.len();
                log::info!("job {id}: request taken ({}, {bytes} bytes)", message.topic);
                self.claim = Some(Arc::from(claim));
                pool::Input::Took(Took::Claimed)
            }
            Ok(Taking::Before) => {
                log::info!("job {id}: the request was taken before, and is acknowledged again");
                pool::Input::Took(Took::Known)
            }
            Ok(Taking::InProgress) => {
                log::info!("job {id}: a request with its key is in progress");
                pool::Input::Took(Took::InProgress)
            }
            Err(error) => {
                log::error!(
                    "job {id}: the request cannot be taken, and stays with the broker: {error}"
                );
                pool::Input::DriveFailed
            }
        }
    }

    fn abandon_head(&mut self) {
        if let Some(link) = self.link.take() {
            link.abandon();
        }
        if let Some(connection) = self.connection.take() {
            connection.disconnect();
        }
    }
}

fn drive_failed(what: &str, error: &std::io::Error) -> pool::Input {
    log::error!("the pool's directory: {what}: {error}");
    pool::Input::DriveFailed
}

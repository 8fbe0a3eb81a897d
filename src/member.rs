//! A member of a pool: does what the machine in [`crate::queue::pool`] says, on the drive and as the head.

mod foreign;
mod head;

use crate::config::{Config, JobConfig, PoolConfig};
use crate::contract::JobId;
use crate::host;
use crate::inbox::Outbox;
use crate::intake::Unread;
use crate::job;
use crate::links::Heard;
use crate::mqtt::{Connection, Link, Message, Protocol};
use crate::presence::{Pool, Seen};
use crate::pulse::Pulse;
use crate::queue::pool::{self, Looked, Machine, Tried};
use crate::queue::spool::{Claim, Holder, Orphan, Spool, Watch, Why};
use crate::queue::{Action, Input};
use foreign::{Foreigners, Verdict};
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
    pulse: Pulse,
    /// What has come to the head at QoS 0 and is still in the inbox.
    unread: Unread,
    /// Counts the connections of this member as the head.
    turn: u64,
    link: Option<Link>,
    connection: Option<Arc<dyn Connection>>,
    /// The protocol version that the broker speaks.
    protocol: Option<Protocol>,
    claim: Option<Arc<Claim>>,
    /// While we stand for the head.
    watch: Option<Watch>,
    /// How many connections of our own there were.
    connections: u32,
    foreigners: Foreigners,
    /// Who is gone, as the broker says, and since when.
    gone: Option<(String, Instant)>,
}

/// What the presence of a worker means for a member.
pub enum Meaning {
    Nothing,
    Input(pool::Input),
    /// The pool has another id by now.
    Moved,
    /// There is another pool of our name.
    ForeignPool,
}

impl Member {
    /// Opens the pool's directory.
    ///
    /// # Errors
    /// A sentence: see [`Spool::open`].
    pub fn open(
        config: &Config,
        pool: &PoolConfig,
        outbox: Outbox<Heard>,
        pulse: Pulse,
    ) -> Result<Self, String> {
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
            pulse,
            unread: Unread::default(),
            turn: 0,
            link: None,
            connection: None,
            protocol: None,
            claim: None,
            watch: None,
            connections: 0,
            foreigners: Foreigners::default(),
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

    /// What tells our pool from another one of its name.
    pub fn pool_id(&self) -> &str {
        self.spool.id()
    }

    /// See [`Machine::deadline`].
    pub fn deadline(&self) -> Option<Instant> {
        self.machine.deadline()
    }

    /// See [`Machine::is_waiting`].
    pub fn is_waiting(&self) -> bool {
        self.machine.is_waiting()
    }

    /// See [`Machine::is_rejecting`].
    pub fn is_rejecting(&self) -> bool {
        self.machine.is_rejecting()
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
        if pool.id != self.spool.id() && !is_gone {
            return self.understand_foreigner(seen.worker, pool.id, message);
        }
        self.foreigners.forget(&seen.worker);
        if pool.id != self.spool.id() {
            return Meaning::Nothing;
        }
        if is_gone {
            self.gone = Some((seen.worker.clone(), Instant::now()));
        } else if self.is_gone(&seen.worker) {
            self.gone = None;
        }
        match &*seen.state {
            _ if message.retained || seen.worker == self.config.worker_id => Meaning::Nothing,
            "idle" => Meaning::Input(pool::Input::ClaimsFreed),
            "busy" if self.watches(&seen.worker) => Meaning::Nothing,
            "busy" => Meaning::Input(pool::Input::HeadLeaves),
            // it may have had a job, or have been the head
            _ if self.turn_is_ours() => Meaning::Input(pool::Input::ClaimsFreed),
            _ if self.is_holder(|holder| holder.worker == seen.worker) => {
                Meaning::Input(pool::Input::HeadLeaves)
            }
            _ => Meaning::Nothing,
        }
    }

    fn is_gone(&self, worker: &str) -> bool {
        self.gone.as_ref().is_some_and(|(gone, _)| gone == worker)
    }

    /// Whether we are told when this worker is not the head any more.
    fn watches(&self, worker: &str) -> bool {
        let is_here = |holder: Holder| holder.worker == worker && holder.host == host::name();
        self.watch.is_some() && self.is_holder(is_here)
    }

    fn is_holder(&self, is_it: impl FnOnce(Holder) -> bool) -> bool {
        self.spool.holder().is_ok_and(is_it)
    }

    fn turn_is_ours(&self) -> bool {
        self.link.is_some()
    }

    /// Takes one event and tells what of that is the worker's.
    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Action> {
        let input = match input {
            Input::Connected {
                tells_subscribers, ..
            } => {
                self.connections = self.connections.saturating_add(1);
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
            pool::Action::TryHead => match self.foreigners.verdict() {
                Verdict::Nobody => inputs.push_back(self.try_head()),
                Verdict::Unsure => inputs.push_back(pool::Input::Tried(Tried::Held)),
                Verdict::Stays(topic) => left.push(Action::LeavePool(topic)),
            },
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
                    log::warn!("the pool's directory: no note of an acknowledgement: {error}");
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
                    log::warn!(
                        "the claim {} cannot be removed: {error}",
                        claim.path().display()
                    );
                }
                // the next process of this worker would not know which pool it was
                if self.spool.is_removed()
                    && let Err(error) = self.spool.restore()
                {
                    log::warn!("{error}");
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
                Ok(Some(Orphan::Damaged { path, error })) => {
                    let sentence = format!(
                        "the claim {} cannot be read, and is put aside: {error}",
                        path.display()
                    );
                    log::error!("{sentence}");
                    left.push(Action::TellDamaged(sentence));
                }
                Err(error) => return drive_failed("no look at the claims", &error),
            }
        }
    }
}

fn drive_failed(what: &str, error: &std::io::Error) -> pool::Input {
    log::error!("the pool's directory: {what}: {error}");
    pool::Input::DriveFailed
}

//! A pool: the drive as a second broker (docs/reference.md, "Pool").
//!
//! A member is a worker whose request comes from the drive, and whose acknowledgement is a rename. What brings requests to the drive is
//! the *head*: the member that has the lock on `head.lock`, and with it the right to connect with the pool's session. A turn as the
//! head is blocking code on a thread of its own, to be read from top to bottom: `Head::turn`.
//!
//! ```text
//! JOB_ROOT/.job-worker/NAME/
//!   head.lock               its line says what all members must agree on; touched at each look
//!   n-*                     a request that is being written: it does not count, and the next head removes it
//!   c-SEQ-RAND-DIR-ID-N     a request in progress, locked by its worker and the steps of that
//!   d-SEQ-RAND-DIR-ID       a request that is done; the last ones are kept
//! ```
//!
//! Every step leaves the directory so that the next head goes on from there, whenever this one dies.

mod claim;
mod lock;
mod place;
mod session;

pub use claim::Claim;
pub use place::{Place, path};

use crate::Exit;
use crate::backoff::Backoff;
use crate::config::{Config, PoolConfig};
use crate::inbox::Outbox;
use crate::mqtt::{self, Message, Protocol, Unread};
use crate::worker::Heard;
use claim::{Name, dir_of, id_of};
use lock::Watch;
use place::{Root, touch};
use rustix::fs::OFlags;
use session::Session;
use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

/// Pause between two looks of a waiting head at the directory.
const LOOK_PAUSE: Duration = Duration::from_secs(2);

/// The same while a claim waits until an earlier one of its directory is done.
const SHORT_LOOK_PAUSE: Duration = Duration::from_millis(100);

/// First and last pause after trouble with the drive or the broker.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// How many names of what is done are kept: the newest one tells whether its request comes again.
const DONE_KEPT: usize = 20;

/// What a member tells its worker.
pub enum Event {
    /// The broker has granted the subscription of the queue.
    Stands,
    /// No request can be taken, for this reason.
    Trouble(String),
    /// This claim is ours.
    Claimed(Box<Claim>),
    /// A claim cannot be read, and is out of the way.
    Damaged(String),
    /// The turn is over: the worker stops.
    Left,
    /// The worker has to end so, for this reason: the broker does not let the head in, or the pool cannot be used as it is configured.
    Ended(Exit, String),
}

/// What happens to the head.
enum Happening {
    /// The lock is ours.
    Locked(io::Result<File>),
    /// On the connection with this number.
    Broker(u64, mqtt::Event),
    /// The worker's own connection was lost, and is there again: it asks whether the queue stands.
    Reconnected,
    /// The worker stops.
    Stop,
}

/// The worker's end of a member that waits for a claim.
pub struct Member(Sender<Happening>);

impl Member {
    /// Starts to wait for a claim: [`Event::Claimed`], or another event that ends the wait, comes through `outbox`.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn start(
        config: &Config,
        pool: &PoolConfig,
        protocol: Option<Protocol>,
        outbox: Outbox<Heard>,
    ) -> io::Result<Self> {
        let (sender, happenings) = mpsc::channel();
        let head = Head {
            agreement: lock::agreement(config),
            config: config.clone(),
            pool: pool.clone(),
            protocol,
            outbox,
            sender: sender.clone(),
            happenings,
            lock: None,
            known: None,
            is_stuck: false,
            told: String::new(),
            session: None,
            sessions: 0,
            unread: Unread::default(),
            stopping: false,
            watch: Watch::default(),
            left_alone: HashSet::new(),
        };
        std::thread::Builder::new()
            .name("head".into())
            .spawn(move || head.run())?;
        Ok(Self(sender))
    }

    /// Asks for [`Event::Left`], or for the claim that is being taken.
    pub fn stop(&self) {
        let _ = self.0.send(Happening::Stop); // fails where the turn is over, which is told already
    }

    /// The worker's own connection is there again.
    pub fn reconnected(&self) {
        let _ = self.0.send(Happening::Reconnected); // likewise
    }
}

struct Head {
    config: Config,
    pool: PoolConfig,
    /// The line in `head.lock`.
    agreement: String,
    protocol: Option<Protocol>,
    outbox: Outbox<Heard>,
    sender: Sender<Happening>,
    happenings: Receiver<Happening>,
    lock: Option<File>,
    /// The drive on which it has seen the pool in use: there was a claim, or something done, or a head with the session. A directory that
    /// it makes anew there is the same pool's.
    known: Option<Root>,
    /// The drive did not take the last request.
    is_stuck: bool,
    /// The trouble that was told last.
    told: String,
    session: Option<Session>,
    /// How many connections there were: the number of the latest.
    sessions: u64,
    /// What waits in `happenings` that came at QoS 0.
    unread: Unread,
    stopping: bool,
    watch: Watch,
    /// Files that cannot be dealt with, each of which is told of once.
    left_alone: HashSet<String>,
}

impl Head {
    fn run(mut self) {
        let mut pauses = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
        loop {
            let end = match self.turn(&mut pauses) {
                Ok(claim) => Event::Claimed(Box::new(claim)),
                Err(end) => end,
            };
            (self.session, self.lock, self.watch) = (None, None, Watch::default());
            let Event::Trouble(trouble) = end else {
                return self.tell(end);
            };
            if self.stopping {
                return self.tell(Event::Left);
            }
            if self.told != trouble {
                log::error!("pool {}: {trouble}", self.pool.name);
                self.tell(Event::Trouble(trouble.clone()));
                self.told = trouble;
            }
            let end = Instant::now() + pauses.next_pause();
            while let Some(happening) = self.receive(end) {
                if matches!(happening, Happening::Stop) {
                    return self.tell(Event::Left);
                }
            }
        }
    }

    /// One turn as the head, until a claim is ours.
    fn turn(&mut self, pauses: &mut Backoff) -> Result<Claim, Event> {
        let place = self.lock_head()?;
        loop {
            if self.stopping {
                return Err(Event::Left);
            }
            let mut names = self.look(&place)?;
            if let Some(claim) = self.free_claim(&place, &mut names) {
                (self.session, self.lock) = (None, None);
                return Ok(claim);
            }
            if self.session.is_none() {
                self.connect(&place, &mut names)?;
            }
            self.stands(&place);
            let is_behind = names.iter().any(|name| name.taken == Some(0));
            let pause = match is_behind {
                true => SHORT_LOOK_PAUSE,
                false => LOOK_PAUSE,
            };
            match self.next_request(pause)? {
                Some(message) => {
                    let taken = self.take(&place, &names, message);
                    self.is_stuck = taken.is_err();
                    if let Some(claim) = taken? {
                        self.lock = None;
                        return Ok(claim);
                    }
                }
                None => {
                    self.is_stuck = false;
                    pauses.reset(); // the broker has kept us for a while
                }
            }
        }
    }

    fn tell(&self, event: Event) {
        self.outbox.send(Heard::Pool(event));
    }

    /// What happens next; `None` when the time is over, also where more of it has come than there is time for.
    fn receive(&self, until: Instant) -> Option<Happening> {
        let patience = until.checked_duration_since(Instant::now())?;
        let happening = self.happenings.recv_timeout(patience).ok();
        if let Some(Happening::Broker(_, event)) = &happening {
            self.unread.was_read(event);
        }
        happening
    }

    /// The queue stands.
    fn tell_stands(&mut self) {
        self.told.clear();
        self.tell(Event::Stands);
    }

    /// The queue stands, and we are its head.
    fn stands(&mut self, place: &Place) {
        if let Some(lock) = &self.lock {
            touch(lock);
        }
        self.known = Some(place.root);
        if !self.is_stuck && !std::mem::replace(&mut self.watch.stands, true) {
            self.tell_stands();
        }
    }

    /// Looks at the directory: what does not count is removed, and we are still the head.
    fn look(&mut self, place: &Place) -> Result<Vec<Name>, Event> {
        let is_ours = |lock: &File| lock.try_lock().is_ok() && place.is_in_place(lock);
        if !self.lock.as_ref().is_some_and(is_ours) {
            return Err(Event::Trouble(format!(
                "{} is not there any more, or another drive is",
                place.path.display()
            )));
        }
        let told = |error: io::Error| place::end(&place.path, &error);
        let (mut names, uncounted) = place.list().map_err(told)?;
        for name in uncounted {
            if let Err(error) = place.dir.remove(&name) {
                self.leave_alone(place, &name, &error.to_string());
            }
        }
        let done = names.iter().filter(|name| name.taken.is_none()).count();
        let mut surplus = done.saturating_sub(DONE_KEPT);
        names.retain(|name| {
            let is_surplus = name.taken.is_none() && surplus > 0;
            surplus -= usize::from(is_surplus);
            // one that cannot be removed does no harm
            !(is_surplus && place.dir.remove(&name.to_string()).is_ok())
        });
        Ok(names)
    }

    fn leave_alone(&mut self, place: &Place, name: &str, error: &str) {
        if self.left_alone.insert(name.to_owned()) {
            log::error!("{}/{name} is left alone: {error}", place.path.display());
        }
    }

    /// The oldest claim that no worker has. Of one directory only the oldest is looked at. What is no claim is taken out of the names:
    /// its request, where the broker still has it, becomes another one.
    fn free_claim(&mut self, place: &Place, names: &mut Vec<Name>) -> Option<Claim> {
        let mut busy = HashSet::new();
        let mut free = None;
        names.retain(|name| {
            if free.is_some() || name.taken.is_none() || !busy.insert(name.dir.clone()) {
                return true;
            }
            match take_free(place, name) {
                Ok(claim) => free = claim,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // done meanwhile
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.put_aside(place, &name.to_string(), &error);
                    return false;
                }
                Err(error) => self.leave_alone(place, &name.to_string(), &error.to_string()),
            }
            true
        });
        free
    }

    /// What is no claim must not keep others waiting.
    fn put_aside(&mut self, place: &Place, name: &str, error: &io::Error) {
        match place.dir.rename(name, &name.replacen("c-", "bad-", 1)) {
            Ok(()) => self.tell(Event::Damaged(format!(
                "the claim {} cannot be read, and is put aside: {error}",
                place.path.join(name).display()
            ))),
            Err(kept) if kept.kind() == io::ErrorKind::NotFound => {} // done meanwhile, on another host
            Err(kept) => {
                let error = format!("it is no claim ({error}), and cannot be put aside: {kept}");
                self.leave_alone(place, name, &error);
            }
        }
    }

    /// Makes a claim of a request; `None` where it waits for an earlier one, or needs no claim.
    ///
    /// `names` may be those of some moments ago: only the head makes any.
    fn take(
        &mut self,
        place: &Place,
        names: &[Name],
        message: Message,
    ) -> Result<Option<Claim>, Event> {
        let told = |error: io::Error| {
            Event::Trouble(format!(
                "the request stays with the broker: no claim can be made of it in {}: {error}",
                place.path.display()
            ))
        };
        let id = id_of(&message);
        if message.redelivered && names.last().is_some_and(|newest| newest.id == id) {
            log::info!("a request was taken before, and is acknowledged again");
            place.dir.sync().map_err(told)?;
            if self.acknowledge(message.packet_id) {
                // no other worker's claim is renamed: one that is newer tells it from what is to come
                mark_newest(place, names).map_err(told)?;
            }
            return Ok(None);
        }
        let dir = dir_of(&message, &self.pool.root);
        let waits = names
            .iter()
            .any(|name| name.dir == dir && name.taken.is_some());
        let name = Name::next(names, dir, id, Some(u32::from(!waits)));
        if let Some(lock) = &self.lock
            && !place.is_in_place(lock)
        {
            return Err(Event::Trouble("head.lock is another's by now".to_owned()));
        }
        let mut claim = write_claim(place, &name, &message).map_err(told)?;
        let bytes = message.payload.len();
        log::info!("request taken ({}, {bytes} bytes): {name}", message.topic);
        if self.acknowledge(message.packet_id)
            && let Err(error) = claim.confirm()
        {
            self.leave_alone(place, &name.to_string(), &error.to_string());
        }
        Ok((!waits).then_some(claim))
    }
}

/// The end of a member whose configuration does not fit.
fn unusable(reason: String) -> Event {
    Event::Ended(Exit::Config, reason)
}

/// Takes a claim if no worker has it.
fn take_free(place: &Place, name: &Name) -> io::Result<Option<Claim>> {
    let text = name.to_string();
    let file = place.dir.open_file(&text, OFlags::RDWR | OFlags::APPEND)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(None),
        locked => locked?,
    }
    if !place.dir.leads_to(&text, &file) {
        return Ok(None);
    }
    let mut claim = Claim::read(place.clone(), file, name.clone())?;
    claim.take()?;
    log::info!("the claim {name} is taken over, since no worker has it");
    Ok(Some(claim))
}

/// Puts a claim on the drive, locked. It counts from the rename on.
fn write_claim(place: &Place, name: &Name, message: &Message) -> io::Result<Claim> {
    let (new, counted) = (name.uncounted(), name.to_string());
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL;
    let mut file = place.dir.open_file(&new, flags)?;
    let written = file
        .try_lock()
        .map_err(io::Error::from)
        .and_then(|()| file.write_all(&Claim::begin(message)))
        .and_then(|()| place.dir.sync_file(&file))
        .and_then(|()| place.dir.rename(&new, &counted));
    if let Err(error) = written {
        let _ = place.dir.remove(&new); // the next head does it, too
        return Err(error);
    }
    place.dir.sync()?;
    Claim::read(place.clone(), file, name.clone())
}

/// Makes something done that is newer than all else, and has no identification.
fn mark_newest(place: &Place, names: &[Name]) -> io::Result<Name> {
    let name = Name::mark(names);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    place.dir.open_file(&name.to_string(), flags)?;
    place.dir.sync()?;
    Ok(name)
}

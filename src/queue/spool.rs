//! The pool's directory: who is the head, which requests have become claims, and the claims themselves.
//!
//! A request becomes a claim exactly once, whenever the head dies, since one step alone counts:
//!
//! 1. The claim is written under a name that does not count, `n-KEY-DIRECTORY`, and locked.
//! 2. `taken` names the request and the key.
//! 3. The claim gets the name that counts, `c-KEY-DIRECTORY`.
//! 4. The request is acknowledged.
//!
//! Each step is on the disk before the next. Whoever becomes the head first removes what does not count: the line in `taken`, then
//! the claim. So a request that is found in `taken` has become a claim, which may be done by now, and is acknowledged again.
//!
//! All of it happens under the lock on `head.lock`. Whoever locks a file makes sure that its name still leads to it.

mod claim;
mod description;
mod name;
mod orphan;
mod place;
mod survey;
mod taken;
mod watch;

pub use claim::{Claim, Why};
pub use orphan::Orphan;
pub use survey::survey;
#[cfg(test)]
pub use taken::Memory;
pub use watch::Watch;

use crate::config::{Durability, POOLS, PayloadSteps, PoolConfig};
use crate::contract::Request;
use crate::host;
use crate::job::WorkDir;
use crate::mqtt::Message;
use claim::{History, Unreadable};
use description::Description;
use name::{directory, directory_of, key_of, name, place};
use place::{at, may_use, open_dir};
use rustix::fs::OFlags;
use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use taken::Taken;

const LOCK: &str = "head.lock";

/// The clocks of two hosts differ by no more than a year, in nanoseconds. A claim from later is no member's, and says nothing
/// about the order.
const CLOCKS_DIFFER: u64 = 365 * 24 * 3600 * 1_000_000_000;

/// The open directory of a pool.
#[derive(Debug)]
pub struct Spool {
    dir: WorkDir,
    root: PathBuf,
    /// What this member and all others say of the pool.
    description: Description,
    /// The MQTT client id of the pool's session.
    pool: String,
    worker: String,
    durability: Durability,
    lock: Option<File>,
    head: Option<Taken>,
    /// Claims that cannot be taken over, each of which is told of once.
    left_alone: BTreeSet<String>,
}

/// What came of a try for the head.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Try {
    /// We are the head.
    Ours,
    /// Somebody else has it.
    Held(Holder),
}

/// Who has the lock on `head.lock`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Holder {
    /// The worker.
    pub worker: String,
    /// The name of its host.
    pub host: String,
}

/// What became of a request.
#[derive(Debug)]
pub enum Taking {
    /// It is a claim now, and ours.
    Claim(Box<Claim>),
    /// It is a claim already, or was.
    Before,
    /// It is a claim now, and waits until an earlier request for its directory is done.
    Waits,
    /// One with its id, workDir and key is in progress.
    InProgress,
}

impl Spool {
    /// Opens the directory of a pool, or makes it.
    ///
    /// # Errors
    /// A sentence: it cannot be used by this user, its drive has no locks, or the pool is configured in another way.
    pub fn open(
        config: &PoolConfig,
        topic_root: &str,
        payload_steps: PayloadSteps,
        worker: &str,
        durability: Durability,
    ) -> Result<Self, String> {
        let path = config.root.join(POOLS).join(&config.name);
        let dir = open_dir(&path, &config.root)?;
        may_use(&path)?;
        let durability = match dir.is_in_memory() {
            true => Durability::Cache,
            false => durability,
        };
        let mut spool = Self {
            dir,
            root: config.root.clone(),
            description: Description::new(&path, topic_root, payload_steps),
            pool: config.name.clone(),
            worker: worker.to_owned(),
            durability,
            lock: None,
            head: None,
            left_alone: BTreeSet::new(),
        };
        spool.agree()?;
        Ok(spool)
    }

    /// What tells this pool from another one of the same name.
    pub fn id(&self) -> &str {
        &self.description.id
    }

    fn sync(&self) -> io::Result<()> {
        match self.durability {
            Durability::Disk => self.dir.sync().map_err(at(&self.dir, "")),
            Durability::Cache => Ok(()),
        }
    }

    /// Tries to get the lock on `head.lock`, without waiting.
    fn try_lock(&mut self) -> io::Result<bool> {
        let file = match self
            .lock
            .take()
            .filter(|file| self.dir.leads_to(LOCK, file))
        {
            Some(file) => file,
            None => self
                .dir
                .open_file(LOCK, OFlags::RDWR | OFlags::CREATE)
                .map_err(at(&self.dir, LOCK))?,
        };
        let got = match file.try_lock() {
            Ok(()) => self.dir.leads_to(LOCK, &file),
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(error)) => {
                let error = format!("it cannot be locked, and a pool needs locks: {error}");
                return Err(at(&self.dir, LOCK)(io::Error::other(error)));
            }
        };
        self.lock = Some(file);
        Ok(got)
    }

    /// Tries to become the head, without waiting. Then nothing is left that does not count.
    ///
    /// # Errors
    /// What the system said; somebody else may become the head.
    pub fn try_head(&mut self) -> io::Result<Try> {
        if !self.try_lock()? {
            return Ok(Try::Held(self.holder()?));
        }
        let begun = self.begin_turn();
        if begun.is_err() {
            self.free_head();
        }
        begun.map(|()| Try::Ours)
    }

    /// Who was the head last.
    ///
    /// # Errors
    /// What the system said.
    pub fn holder(&self) -> io::Result<Holder> {
        let mut text = vec![0; 512];
        let bytes = match &self.lock {
            Some(lock) => lock.read_at(&mut text, 0).map_err(at(&self.dir, LOCK))?,
            None => 0,
        };
        let text = String::from_utf8_lossy(&text[..bytes]);
        let mut words = text.split_whitespace().map(str::to_owned);
        let mut word = || words.next().unwrap_or_default();
        Ok(Holder {
            worker: word(),
            host: word(),
        })
    }

    /// Calls somebody whenever a head of this host may have left.
    ///
    /// # Errors
    /// See [`Watch::open`].
    pub fn watch(&self, is_free: impl Fn() + Send + 'static) -> io::Result<Watch> {
        let what = |error| format!("it cannot be watched: {error}");
        Watch::open(&self.dir, is_free)
            .map_err(|error| at(&self.dir, LOCK)(io::Error::other(what(error))))
    }

    fn begin_turn(&mut self) -> io::Result<()> {
        if let Some(lock) = &self.lock {
            let holder = format!("{} {}\n", self.worker, host::name());
            lock.set_len(0)
                .and_then(|()| lock.write_all_at(holder.as_bytes(), 0))
                .map_err(at(&self.dir, LOCK))?;
        }
        let uncounted = self.names("n-")?;
        let keys: Vec<u64> = uncounted.iter().filter_map(|name| key_of(name)).collect();
        let taken = Taken::open(&self.dir, &keys, self.durability);
        self.head = Some(taken.map_err(at(&self.dir, taken::NAME))?);
        step()?;
        // only now: a request that is in `taken` and whose claim is gone has been run
        for name in uncounted {
            let removed = self.dir.remove(&name);
            if let Err(error) = removed
                && self.left_alone.insert(name.clone())
            {
                // it counts as little as before
                log::warn!("{} cannot be removed", at(&self.dir, &name)(error));
            }
        }
        step()
    }

    /// Lets somebody else be the head.
    pub fn free_head(&mut self) {
        self.head = None;
        if let Some(lock) = self.lock.take() {
            // before it is closed, which is what the others hear
            let _ = lock.unlock(); // closing it does that, too
        }
    }

    /// Whether we are the head. A network drive that was away for long may have given the lock to somebody else.
    fn is_head(&self) -> bool {
        let is_ours = |lock: &File| lock.try_lock().is_ok() && self.dir.leads_to(LOCK, lock);
        self.head.is_some() && self.lock.as_ref().is_some_and(is_ours)
    }

    /// The broker has a new session for us: nothing of the old one comes again.
    ///
    /// # Errors
    /// What the system said.
    pub fn new_session(&mut self) -> io::Result<()> {
        match &mut self.head {
            Some(taken) => taken
                .clear(&self.dir, self.durability)
                .map_err(at(&self.dir, taken::NAME)),
            None => Err(self.not_the_head()),
        }
    }

    /// Makes a claim of a request.
    ///
    /// # Errors
    /// What the system said. It may count or not: whoever becomes the head next finds out.
    pub fn take(&mut self, message: &Message, request: &Request) -> io::Result<Taking> {
        if !self.is_head() {
            return Err(self.not_the_head());
        }
        let counts = self.names("c-")?;
        let Some(taken) = &mut self.head else {
            return Err(self.not_the_head());
        };
        if taken.has(message) {
            return Ok(Taking::Before);
        }
        let place = place(&self.root, &request.work_dir);
        let there = directory(&place);
        let mut earlier = in_progress(&self.dir, &counts, &there).peekable();
        let waits = earlier.peek().is_some();
        if request.key.is_some() && earlier.any(|other| is_same(&self.root, &other, request)) {
            return Ok(Taking::InProgress);
        }
        let now = now();
        let keys = counts.iter().filter_map(|name| key_of(name));
        let keys = keys.filter(|key| *key <= now.saturating_add(CLOCKS_DIFFER));
        let latest = keys.chain(taken.last_key()).max().unwrap_or(0);
        // in the order of taking, whatever the clocks of the hosts say
        let key = now.max(latest.saturating_add(1));
        let (new, counted) = (name("n-", key, &place), name("c-", key, &place));
        step()?;
        let taker = (!waits).then_some(&*self.worker);
        let text = Claim::begin(message, &self.pool, taker)?;
        let file =
            write_claim(&self.dir, &new, &text, self.durability).map_err(at(&self.dir, &new))?;
        step()?;
        taken
            .note(key, message, self.durability)
            .map_err(at(&self.dir, taken::NAME))?;
        step()?;
        // the drive may have hung for so long that somebody else is the head
        if !self.is_head() {
            return Err(self.not_the_head());
        }
        self.dir
            .rename(&new, &counted)
            .map_err(at(&self.dir, &new))?;
        step()?;
        self.sync()?;
        step()?;
        if waits {
            return Ok(Taking::Waits);
        }
        let claim = Claim::read(&self.dir, file, counted.clone(), self.durability);
        claim
            .map(|claim| Taking::Claim(Box::new(claim)))
            .map_err(io::Error::other)
            .map_err(at(&self.dir, &counted))
    }

    /// The broker has our acknowledgement of the latest request.
    ///
    /// # Errors
    /// What the system said.
    pub fn confirm(&mut self) -> io::Result<()> {
        match &mut self.head {
            Some(taken) => taken
                .confirm(self.durability)
                .map_err(at(&self.dir, taken::NAME)),
            None => Err(self.not_the_head()),
        }
    }

    fn not_the_head(&self) -> io::Error {
        at(&self.dir, LOCK)(io::Error::other("it is not ours any more"))
    }

    fn names(&self, prefix: &str) -> io::Result<Vec<String>> {
        let mut names = self.dir.names().map_err(at(&self.dir, ""))?;
        names.retain(|name| name.starts_with(prefix));
        Ok(names)
    }
}

/// Puts a claim under a name that does not count yet on the drive, and locks it.
fn write_claim(dir: &WorkDir, name: &str, text: &[u8], durability: Durability) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL;
    let mut file = dir.open_file(name, flags)?;
    step()?;
    file.try_lock()?;
    file.write_all(text)?;
    if durability == Durability::Disk {
        file.sync_all()?;
        dir.sync()?;
    }
    Ok(file)
}

/// The requests that have a claim, are for a directory, and whose results are still to come. No claim is read before it is asked for.
fn in_progress(dir: &WorkDir, names: &[String], directory: &str) -> impl Iterator<Item = Request> {
    let there = names
        .iter()
        .filter(move |name| directory_of(name) == Some(directory));
    there.filter_map(|name| {
        let file = dir.open_file(name, OFlags::RDONLY).ok()?; // or done meanwhile
        let (history, _) = History::read(&file).ok()?;
        history.result.is_none().then_some(history.request)
    })
}

/// Whether the result of one request is that of another, too.
fn is_same(root: &Path, one: &Request, other: &Request) -> bool {
    one.key == other.key
        && one.id.as_str() == other.id.as_str()
        && place(root, &one.work_dir) == place(root, &other.work_dir)
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(0)
}

impl From<Unreadable> for Box<dyn std::error::Error + Send + Sync> {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::Io(error) => Box::new(error),
            Unreadable::Damaged(error) => error.into(),
            Unreadable::Version(version) => format!("it is of version {version}").into(),
        }
    }
}

/// A moment between two steps, at which a test may have the worker die.
#[cfg(not(test))]
fn step() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
use tests::step;

#[cfg(test)]
mod tests;

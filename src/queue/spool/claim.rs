//! A claim: a request in progress, in a file of its own. It is the record of its request, whatever becomes of the job's directory.
//!
//! The file only grows, a line of JSON at a time, so that it stays the same file: its lock says that somebody works on the request,
//! and the steps inherit that. The first line is the request; each other one says what has happened to it. A last line without its
//! end was cut short by a crash, and has not happened.

use crate::config::Durability;
use crate::contract::{Attempt, Document, Follows, Request, RequestOrigin};
use crate::job::{Kept, RequestRecord, WorkDir};
use crate::mqtt::Message;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// The version of the format. A program that reads another one leaves the claim alone.
const VERSION: u32 = 1;

/// Larger than any claim of ours, in bytes: a request, its events, and a few final documents.
const MAX_BYTES: u64 = 256 << 20;

/// The first line.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Beginning {
    version: u32,
    request: String,
    #[serde(default)]
    redelivered: bool,
    #[serde(default)]
    identity: Option<String>,
}

/// Every other line.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
enum Event {
    /// By this worker. It is counted before the directory is opened.
    Taken(String),
    /// Its worker was asked to stop in mid-run.
    Stopped,
    /// Given back before its first step.
    GivenBack(Why),
    Cancelled,
    /// The final document.
    Result(Box<RawValue>),
    /// The broker has that, and the file could not be removed.
    Published,
}

/// Why a claim is given back before its first step.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Why {
    /// Its worker was asked to stop.
    Stop,
    /// Something else has the lock on its `job.log`.
    Lock,
}

/// What a claim says.
#[derive(Debug)]
pub struct History {
    pub request: Request,
    /// See [`Message::redelivered`] and [`Message::identity`].
    pub redelivered: bool,
    pub identity: Option<String>,
    pub attempt: Attempt,
    pub cancelled: bool,
    /// It was given back since something had the lock on its `job.log`.
    pub waits_for_lock: bool,
    pub result: Option<Vec<u8>>,
    /// The broker has the result: the file is only to be removed.
    pub is_published: bool,
    /// How often it was taken: whoever takes it adds one.
    takings: u32,
    /// Nothing is told of the latest taking: its worker has it, or died.
    open: bool,
}

/// Why a claim cannot be read.
#[derive(Debug)]
pub enum Unreadable {
    Io(io::Error),
    /// It is of another version of this program.
    Version(u32),
    /// It is none, with the reason.
    Damaged(String),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A claim that this worker has taken: its file is locked.
#[derive(Debug)]
pub struct Claim {
    dir: WorkDir,
    file: File,
    name: String,
    durability: Durability,
    /// What it said when it was taken.
    pub history: History,
    cancelled: AtomicBool,
    /// Its final document is in it.
    kept: AtomicBool,
    /// Held while a line is appended: the thread that waits for the drive has some to write, too.
    appending: Mutex<()>,
}

impl Claim {
    /// The text of a new claim, taken by a worker, or by nobody while it waits for its directory.
    pub fn begin(message: &Message, client_id: &str, taker: Option<&str>) -> io::Result<Vec<u8>> {
        let beginning = Beginning {
            version: VERSION,
            request: str::from_utf8(&message.payload)
                .map_err(io::Error::other)?
                .to_owned(),
            redelivered: message.redelivered,
            identity: message.identity(client_id),
        };
        let mut text = serde_json::to_vec(&beginning)?;
        text.push(b'\n');
        text.extend(line(&match taker {
            Some(worker) => Event::Taken(worker.to_owned()),
            None => Event::GivenBack(Why::Lock),
        })?);
        Ok(text)
    }

    /// A claim that is locked, under its name in the pool's directory.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn read(
        dir: &WorkDir,
        file: File,
        name: String,
        durability: Durability,
    ) -> Result<Self, Unreadable> {
        let (history, end) = History::read(&file)?;
        if file.metadata()?.len() > end {
            file.set_len(end)?; // what is torn would spoil the next line
        }
        Ok(Self {
            dir: dir.try_clone()?,
            file,
            name,
            durability,
            cancelled: AtomicBool::new(history.cancelled),
            kept: AtomicBool::new(history.result.is_some()),
            appending: Mutex::default(),
            history,
        })
    }

    /// Its file in the pool's directory.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join(&self.name)
    }

    /// Counts that `worker` has taken a claim that nobody had.
    ///
    /// # Errors
    /// What the system said.
    pub fn take_over(&mut self, worker: &str) -> Result<(), Unreadable> {
        if self.history.result.is_none() {
            self.append(&Event::Taken(worker.to_owned()))?;
            (self.history, _) = History::read(&self.file)?;
        }
        Ok(())
    }

    /// Its worker was asked to stop, in mid-run or before that.
    pub fn stopped(&self, in_mid_run: bool) {
        match in_mid_run {
            _ if self.kept.load(Relaxed) => {} // it is over
            true => self.note(&Event::Stopped),
            false => self.note(&Event::GivenBack(Why::Stop)),
        }
    }

    /// It is given back before its first step.
    pub fn given_back(&self, why: Why) {
        self.note(&Event::GivenBack(why));
    }

    /// The controller has cancelled it.
    pub fn cancel(&self) {
        if !self.cancelled.swap(true, Relaxed) {
            self.note(&Event::Cancelled);
        }
    }

    /// Whether the controller has cancelled it.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Relaxed)
    }

    fn note(&self, event: &Event) {
        if let Err(error) = self.append(event) {
            log::warn!(
                "the claim {} cannot be written: {error}",
                self.path().display()
            );
        }
    }

    fn append(&self, event: &Event) -> io::Result<()> {
        let _appending = self
            .appending
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let end = self.file.metadata()?.len();
        let appended = (&self.file)
            .write_all(&line(event)?)
            .and_then(|()| match self.durability {
                Durability::Disk => self.file.sync_data(),
                Durability::Cache => Ok(()),
            });
        if appended.is_err() {
            // what a full drive has cut short would spoil the next line
            let _ = self.file.set_len(end);
        }
        appended
    }

    /// Where the request came from.
    pub fn origin(&self) -> RequestOrigin {
        RequestOrigin::Claim {
            redelivered: self.history.redelivered,
            identity: self.history.identity.clone(),
            attempt: self.history.attempt,
        }
    }

    /// The broker has the result: nothing is in progress any more.
    ///
    /// # Errors
    /// What the system said, or that the claim is another worker's by now.
    pub fn remove(&self) -> io::Result<()> {
        if !self.is_ours() {
            return Err(io::Error::other("another worker has it by now"));
        }
        // a power cut may bring it back, and then the result comes once more
        let removed = match self.dir.remove(&self.name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        if removed.is_err() && !self.history.is_published {
            self.note(&Event::Published); // or it would be published for ever
        }
        removed
    }

    /// Has the steps inherit the lock, so that nobody takes the claim while one of them lives.
    ///
    /// # Errors
    /// What the system said.
    pub fn let_steps_inherit(&self) -> io::Result<()> {
        Ok(rustix::io::fcntl_setfd(
            &self.file,
            rustix::io::FdFlags::empty(),
        )?)
    }
}

impl RequestRecord for Claim {
    /// A network drive that was away for long may have given the lock to somebody else.
    /// A step may have removed the file: then nobody can have it but us.
    fn is_ours(&self) -> bool {
        let has_place = self.dir.leads_to(&self.name, &self.file) || self.dir.lacks(&self.name);
        self.file.try_lock().is_ok()
            && has_place
            && History::read(&self.file)
                .is_ok_and(|(history, _)| history.takings == self.history.takings)
    }

    fn keep(&self, document: &Document) -> Kept {
        if self.kept.load(Relaxed) {
            return Kept::Yes;
        }
        if !self.is_ours() {
            return Kept::Lost;
        }
        let json = String::from_utf8(document.to_json()).map_err(io::Error::other);
        let kept = json
            .and_then(|json| Ok(RawValue::from_string(json)?))
            .and_then(|document| self.append(&Event::Result(document)));
        match kept {
            Ok(()) => {
                self.kept.store(true, Relaxed);
                Kept::Yes
            }
            Err(error) => Kept::Failed(format!("the claim {}: {error}", self.path().display())),
        }
    }
}

impl History {
    /// What a file says, and where its last whole line ends, in bytes.
    pub fn read(file: &File) -> Result<(Self, u64), Unreadable> {
        let bytes = file.metadata()?.len();
        if bytes > MAX_BYTES {
            return Err(Unreadable::Damaged(format!("it has {bytes} bytes")));
        }
        let mut content = vec![0; bytes as usize];
        // by position: the thread that waits for the drive reads it, too
        file.read_exact_at(&mut content, 0)?;
        let end = content
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let history = Self::parse(&content[..end])?;
        Ok((history, end as u64))
    }

    fn parse(content: &[u8]) -> Result<Self, Unreadable> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let damaged = |error: serde_json::Error| Unreadable::Damaged(error.to_string());
        let mut lines = content
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        let first = lines
            .next()
            .ok_or_else(|| Unreadable::Damaged("it is empty".to_owned()))?;
        let Version { version } = serde_json::from_slice(first).map_err(damaged)?;
        if version != VERSION {
            return Err(Unreadable::Version(version));
        }
        let beginning: Beginning = serde_json::from_slice(first).map_err(damaged)?;
        let request = Request::parse(beginning.request.as_bytes())
            .map_err(|rejection| Unreadable::Damaged(rejection.error))?;
        let mut history = Self {
            request,
            redelivered: beginning.redelivered,
            identity: beginning.identity,
            attempt: Attempt {
                number: 0,
                ..Attempt::FIRST
            },
            cancelled: false,
            waits_for_lock: false,
            result: None,
            is_published: false,
            takings: 0,
            open: false,
        };
        for line in lines {
            // what cannot be read was cut short by the drive, and has not happened
            if let Ok(event) = serde_json::from_slice(line) {
                history.happens(event);
            }
        }
        Ok(history)
    }

    fn happens(&mut self, event: Event) {
        let attempt = &mut self.attempt;
        match event {
            Event::Taken(_) => {
                if std::mem::replace(&mut self.open, true) {
                    attempt.follows = Follows::Crash;
                }
                self.takings = self.takings.saturating_add(1);
                attempt.number = attempt.number.saturating_add(1);
                self.waits_for_lock = false;
            }
            Event::Stopped => {
                attempt.number = attempt.number.saturating_sub(1);
                attempt.stops = attempt.stops.saturating_add(1);
                attempt.follows = Follows::Stop;
                self.open = false;
            }
            Event::GivenBack(why) => {
                attempt.number = attempt.number.saturating_sub(1);
                self.open = false;
                self.waits_for_lock = why == Why::Lock;
            }
            Event::Cancelled => self.cancelled = true,
            Event::Published => self.is_published = true,
            Event::Result(document) => self.result = Some(document.get().as_bytes().to_vec()),
        }
    }
}

fn line(event: &Event) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    Ok(line)
}

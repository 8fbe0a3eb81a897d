//! `taken`: which requests have become claims, so that one that the broker sends again does not become another.
//!
//! A line is `KEY SUBSCRIPTION PACKET-ID HASH`, or `KEY confirmed` once the broker is known to have our acknowledgement. Only the
//! head reads and writes it.

use crate::config::Durability;
use crate::contract::fnv_1a;
use crate::job::WorkDir;
use crate::mqtt::Message;
use rustix::fs::OFlags;
use std::fs::File;
use std::io::{self, Write};

pub const NAME: &str = "taken";

/// How many requests are remembered. A broker that goes back to what it saved last sends those again that it had given
/// since then.
const REMEMBERED: usize = 1000;

/// More than the file ever has, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// A request that has become a claim, as far as the broker tells it from others.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Entry {
    key: u64,
    /// MQTT 5: stands for the session, see [`crate::contract::identity`].
    subscription: Option<u32>,
    packet_id: u16,
    hash: u64,
    confirmed: bool,
}

/// The requests that have become claims, the latest last.
#[derive(Clone, Debug, Default)]
pub struct Memory(Vec<Entry>);

impl Memory {
    /// Forgets requests whose claims do not count.
    pub fn forget(&mut self, uncounted: &[u64]) {
        self.0.retain(|entry| !uncounted.contains(&entry.key));
    }

    /// Forgets all: the session is a new one, and its packet identifiers begin anew.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether a message is a request that has become a claim. One without DUP never is.
    pub fn has(&self, message: &Message) -> bool {
        let Some(packet_id) = message.telling_packet_id().filter(|_| message.redelivered) else {
            return false;
        };
        let hash = fnv_1a(&message.payload);
        let is_it = |entry: &Entry| {
            (entry.subscription, entry.packet_id, entry.hash)
                == (message.subscription, packet_id, hash)
        };
        match message.subscription {
            Some(_) => self.0.iter().rev().take(REMEMBERED).any(is_it),
            None => self.last_unconfirmed().is_some_and(is_it),
        }
    }

    /// The latest request, if its acknowledgement may be lost. Brokers that number each connection from 1 give one identifier
    /// to many requests: where identifiers do not grow, nothing tells one from the next, and a doubtful request runs.
    fn last_unconfirmed(&self) -> Option<&Entry> {
        let (last, earlier) = self.0.split_last()?;
        let grows = earlier
            .last()
            .is_none_or(|before| before.packet_id < last.packet_id);
        (!last.confirmed && grows).then_some(last)
    }

    /// Remembers a request under the key of its claim, and returns its line in the file. At QoS 0 nothing comes again.
    pub fn note(&mut self, key: u64, message: &Message) -> Option<String> {
        let entry = Entry {
            key,
            subscription: message.subscription,
            packet_id: message.packet_id?,
            hash: fnv_1a(&message.payload),
            confirmed: false,
        };
        let line = entry.lines();
        self.0.push(entry);
        Some(line)
    }

    /// The broker has our acknowledgement of the latest request; returns its line in the file. What the broker tells apart needs
    /// no confirmation.
    pub fn confirm(&mut self) -> Option<String> {
        let last = self.0.last_mut()?;
        if last.subscription.is_some() || last.confirmed {
            return None;
        }
        last.confirmed = true;
        Some(format!("{:016x} confirmed\n", last.key))
    }
}

/// The open file, and what it says.
#[derive(Debug)]
pub struct Taken {
    file: File,
    memory: Memory,
}

impl Taken {
    /// Reads the file, and forgets those requests of whose claims only the `uncounted` keys are there: they do not count.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(dir: &WorkDir, uncounted: &[u64], durability: Durability) -> io::Result<Self> {
        let content = dir.read(NAME, MAX_BYTES)?;
        let is_there = content.is_some();
        let content = content.unwrap_or_default();
        let mut memory = Memory(parse(&content));
        let is_long = memory.0.len() > 2 * REMEMBERED;
        memory.forget(uncounted);
        // a line that a power cut or a full drive has cut short is none; the next one must not be appended to it
        let is_torn = content.last().is_some_and(|byte| *byte != b'\n');
        // a new file also where a head that has lost its lock, and does not know, may still write to the old one
        if !is_there || !uncounted.is_empty() || is_torn || is_long {
            let forgotten = memory.0.len().saturating_sub(REMEMBERED);
            memory.0.drain(..forgotten);
            let text: String = memory.0.iter().map(Entry::lines).collect();
            replace(dir, &text, durability)?;
        }
        let file = dir.open_file(NAME, OFlags::WRONLY | OFlags::APPEND)?;
        Ok(Self { file, memory })
    }

    /// See [`Memory::clear`].
    ///
    /// # Errors
    /// What the system said; all is as it was then.
    pub fn clear(&mut self, dir: &WorkDir, durability: Durability) -> io::Result<()> {
        if self.memory.0.is_empty() {
            return Ok(());
        }
        replace(dir, "", durability)?;
        self.file = dir.open_file(NAME, OFlags::WRONLY | OFlags::APPEND)?;
        self.memory.clear();
        Ok(())
    }

    /// See [`Memory::has`].
    pub fn has(&self, message: &Message) -> bool {
        self.memory.has(message)
    }

    /// The key of the latest request.
    pub fn last_key(&self) -> Option<u64> {
        self.memory.0.last().map(|entry| entry.key)
    }

    /// See [`Memory::note`].
    ///
    /// # Errors
    /// What the system said; it is not known then whether it is remembered.
    pub fn note(&mut self, key: u64, message: &Message, durability: Durability) -> io::Result<()> {
        let line = self.memory.note(key, message);
        self.append(line, durability)
    }

    /// See [`Memory::confirm`].
    ///
    /// # Errors
    /// What the system said.
    pub fn confirm(&mut self, durability: Durability) -> io::Result<()> {
        let line = self.memory.confirm();
        self.append(line, durability)
    }

    fn append(&mut self, line: Option<String>, durability: Durability) -> io::Result<()> {
        let Some(line) = line else { return Ok(()) };
        self.file.write_all(line.as_bytes())?;
        match durability {
            Durability::Disk => self.file.sync_data(),
            Durability::Cache => Ok(()),
        }
    }
}

impl Entry {
    fn lines(&self) -> String {
        let Self {
            key,
            packet_id,
            hash,
            ..
        } = self;
        let subscription = self
            .subscription
            .map_or("-".to_owned(), |id| id.to_string());
        let mut lines = format!("{key:016x} {subscription} {packet_id} {hash:016x}\n");
        if self.confirmed {
            lines += &format!("{key:016x} confirmed\n");
        }
        lines
    }
}

fn parse(content: &[u8]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        let Some(line) = line
            .strip_suffix(b"\n")
            .and_then(|line| str::from_utf8(line).ok())
        else {
            continue;
        };
        let fields: Vec<&str> = line.split(' ').collect();
        let key = fields
            .first()
            .and_then(|key| u64::from_str_radix(key, 16).ok());
        match (key, &fields[1..]) {
            (Some(key), ["confirmed"]) => {
                if let Some(last) = entries.last_mut().filter(|last| last.key == key) {
                    last.confirmed = true;
                }
            }
            (Some(key), [subscription, packet_id, hash]) => {
                if let (Ok(packet_id), Ok(hash)) =
                    (packet_id.parse(), u64::from_str_radix(hash, 16))
                {
                    entries.push(Entry {
                        key,
                        subscription: subscription.parse().ok(),
                        packet_id,
                        hash,
                        confirmed: false,
                    });
                }
            }
            _ => {}
        }
    }
    entries
}

fn replace(dir: &WorkDir, text: &str, durability: Durability) -> io::Result<()> {
    dir.replace(NAME, text.as_bytes(), durability)?;
    match durability {
        Durability::Disk => dir.sync(),
        Durability::Cache => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file with this content, opened by a head of whose claims all count; and what the file has then.
    fn opened(name: &str, content: &str) -> (Taken, String) {
        let name = format!("job-worker-taken-{}-{name}", std::process::id());
        let path = std::env::temp_dir().canonicalize().unwrap().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join(NAME), content).unwrap();
        let dir = WorkDir::open(path.clone(), None).unwrap();
        let taken = Taken::open(&dir, &[], Durability::Cache).unwrap();
        let kept = std::fs::read_to_string(path.join(NAME)).unwrap();
        std::fs::remove_dir_all(path).unwrap();
        (taken, kept)
    }

    fn line(key: usize) -> String {
        format!("{key:016x} - 7 00000000000000ff\n")
    }

    #[test]
    fn a_file_that_grows_long_keeps_the_latest() {
        let lines = |keys: std::ops::RangeInclusive<usize>| keys.map(line).collect::<String>();
        for (count, first_kept) in [(2 * REMEMBERED, 1), (2 * REMEMBERED + 1, REMEMBERED + 2)] {
            let (taken, kept) = opened(&format!("long-{count}"), &lines(1..=count));
            assert!(kept == lines(first_kept..=count), "of {count}");
            // the next claim gets a later key, also where the clock of its host is behind
            assert_eq!(taken.last_key(), Some(count as u64));
        }
    }

    #[test]
    fn only_the_latest_request_is_confirmed_by_its_key() {
        let confirmed = |key: usize| format!("{key:016x} confirmed\n");
        for (confirms, is_confirmed) in [(1, false), (2, true), (3, false)] {
            let entries = parse((line(1) + &line(2) + &confirmed(confirms)).as_bytes());
            let confirmed: Vec<_> = entries.iter().map(|entry| entry.confirmed).collect();
            assert_eq!(confirmed, [false, is_confirmed], "{confirms}");
        }
    }
}

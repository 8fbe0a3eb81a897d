//! The lock of the head: how a member gets it, and what it sees of the head while it waits.

use super::place::{self, LOCK, Place};
use super::{Event, Happening, Head, path, unusable};
use crate::config::Config;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant, SystemTime};

/// Pause between two tries of the lock where a lock that blocks may be woken late.
const TRY_PAUSE: Duration = Duration::from_millis(250);

/// Pause between two looks of a waiting member at the head, before and after it has seen that the queue stands.
const FIRST_WATCH_PAUSE: Duration = Duration::from_millis(100);
const WATCH_PAUSE: Duration = Duration::from_secs(30);

/// A head that has not touched its lock for so long hangs.
const HANGS: Duration = Duration::from_secs(60);

/// What a waiting member has seen of the head.
#[derive(Default)]
pub struct Watch {
    touched: Option<(Option<SystemTime>, Instant)>,
    pub(super) stands: bool,
    has_warned: bool,
}

impl Head {
    /// Waits until we are the head. What is on the drive is reached by its path: the drive may be mounted anew, or removed.
    pub(super) fn lock_head(&mut self) -> Result<Place, Event> {
        loop {
            let opened = Place::open(&self.pool, self.config.job.durability, self.known);
            let place = opened.map_err(|error| place::end(&path(&self.pool), &error))?;
            place.may_be_used()?;
            let told = |error: io::Error| place::end(&place.path.join(LOCK), &error);
            let lock = place.open_or_make_lock().map_err(told)?;
            agree(&place, &lock, &self.agreement)?;
            let lock = match lock.try_lock() {
                Ok(()) => lock,
                Err(TryLockError::WouldBlock) => {
                    let listed = place.list();
                    let (names, _) = listed.map_err(|error| place::end(&place.path, &error))?;
                    if !names.is_empty() {
                        self.known = Some(place.root);
                    }
                    self.wait_for(&place, lock)?
                }
                Err(TryLockError::Error(error)) => {
                    return Err(no_locks(&place, &error));
                }
            };
            if place.is_in_place(&lock) {
                agree(&place, &lock, &self.agreement)?;
                self.lock = Some(lock);
                return Ok(place);
            }
        }
    }

    /// The broker has let us in: the pool is in use, and this is its drive.
    pub(super) fn write_agreement(&self, place: &Place) -> Result<(), Event> {
        if let Some(lock) = &self.lock
            && !agree(place, lock, &self.agreement)?
        {
            // new, or that of an earlier version
            lock.set_len(0)
                .and_then(|()| lock.write_all_at(self.agreement.as_bytes(), 0))
                .map_err(|error| place::end(&place.path.join(LOCK), &error))?;
        }
        Ok(())
    }

    fn wait_for(&mut self, place: &Place, lock: File) -> Result<File, Event> {
        let mut polled = match place.is_on_network() {
            true => Some(lock),
            false => {
                // the kernel wakes the waiting members one by one, in order, and nothing else does
                let sender = self.sender.clone();
                let wait = move || {
                    let locked = loop {
                        match lock.lock() {
                            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                            locked => break locked,
                        }
                    };
                    let _ = sender.send(Happening::Locked(locked.map(|()| lock))); // the turn may be over
                };
                let thread = std::thread::Builder::new().name("lock".into());
                thread
                    .spawn(wait)
                    .map_err(|error| Event::Trouble(format!("no thread to wait: {error}")))?;
                None
            }
        };
        self.watch.touched = None;
        loop {
            self.watch_head(place);
            let pause = match (&polled, self.watch.stands) {
                (Some(_), _) => TRY_PAUSE,
                (None, false) => FIRST_WATCH_PAUSE,
                (None, true) => WATCH_PAUSE,
            };
            match self.receive(Instant::now() + pause) {
                Some(Happening::Locked(lock)) => {
                    return lock.map_err(|error| Event::Trouble(format!("{LOCK}: {error}")));
                }
                Some(Happening::Reconnected) => self.watch = Watch::default(),
                Some(Happening::Stop) => return Err(Event::Left),
                Some(Happening::Broker(..)) | None => {}
            }
            if let Some(lock) =
                polled.take_if(|lock| lock.try_lock().is_ok() || !place.is_in_place(lock))
            {
                return Ok(lock);
            }
        }
    }

    /// Sees by its touches whether a head lives, and with it the queue.
    fn watch_head(&mut self, place: &Place) {
        let touched = place.touched();
        match &self.watch.touched {
            Some((before, since)) if *before == touched => {
                if since.elapsed() >= HANGS && !std::mem::replace(&mut self.watch.has_warned, true)
                {
                    log::warn!(
                        "{}/{LOCK} is held, and was not touched for a minute: the process that has it hangs, and no member can take \
                         a request",
                        place.path.display()
                    );
                }
                return;
            }
            Some((Some(_), _))
                if touched.is_some() && !std::mem::replace(&mut self.watch.stands, true) =>
            {
                self.known = Some(place.root);
                self.tell_stands();
            }
            _ => {}
        }
        (self.watch.touched, self.watch.has_warned) = (Some((touched, Instant::now())), false);
    }
}

/// The drive has no locks.
pub fn no_locks(place: &Place, error: &io::Error) -> Event {
    unusable(format!(
        "{}/{LOCK} cannot be locked, and a pool needs locks: {error}",
        place.path.display()
    ))
}

/// The line in `head.lock`: what all members must have in common.
pub fn agreement(config: &Config) -> String {
    let allowed = match config.job.payload_steps {
        true => "allowed",
        false => "denied",
    };
    let root = config.topics.root();
    format!("pool: MQTT_TOPIC_ROOT {root}, steps in requests {allowed}\n")
}

/// Whether the line in `head.lock` is ours; `false` where there is none yet.
pub fn agree(place: &Place, lock: &File, ours: &str) -> Result<bool, Event> {
    let mut theirs = [0; 512];
    let bytes = lock
        .read_at(&mut theirs, 0)
        .map_err(|error| place::end(&place.path.join(LOCK), &error))?;
    let theirs = String::from_utf8_lossy(&theirs[..bytes]);
    if theirs == ours {
        return Ok(true);
    }
    match theirs
        .strip_prefix("pool: ")
        .and_then(|line| line.strip_suffix('\n'))
    {
        Some(line) => Err(unusable(format!(
            "{}/{LOCK} says {line:?}, and this member has {:?}: all members need the same. To change it, stop all of them and \
             remove that file",
            place.path.display(),
            ours.trim_start_matches("pool: ").trim_end()
        ))),
        None => Ok(false),
    }
}

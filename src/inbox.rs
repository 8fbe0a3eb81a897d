//! Where the main thread waits: one inbox for what other threads send, and for the signals of the kernel
//! (docs/reference.md, "Signals").
//!
//! A signal handler may set a flag and write a byte to a socket, and hardly anything else. So the inbox sleeps on that socket, each
//! sender writes a byte to it, too, and no thread is needed to pass the signals on.

use nix::sys::signal::{SigSet, Signal};
use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::iterator::{backend::SignalDelivery, exfiltrator::SignalOnly};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};

/// How long to stay awake for the next message: a broker nearby answers sooner than a sleeping processor wakes up.
const LOOKOUT: Duration = Duration::from_micros(100);

/// How much later than the first one a stop is a second one. Systemd, `timeout` and `supervise` may all tell us of one and the same.
const SECOND_STOP: Duration = Duration::from_secs(1);

/// Signals that ask us to stop. Those behind SIGINT stay ignored if they were ignored at start (`nohup`).
const STOPS: [i32; 8] = [
    SIGTERM,
    SIGINT,
    SIGHUP,
    SIGQUIT,
    SIGUSR1,
    SIGUSR2,
    Signal::SIGPWR as i32, // signal-hook has no name for it
    SIGRTMIN_3,
];

/// SIGRTMIN+3, the stop signal of images that are made for systemd, as glibc, systemd and Docker count. musl, which our static
/// binaries have, begins one later: no process ever sends its own SIGRTMIN+3.
const SIGRTMIN_3: i32 = 37;

/// What comes in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event<T> {
    /// SIGTERM or another signal of its kind asks us to stop.
    Stop(i32),
    /// SIGCHLD: some child has ended.
    ChildEnded,
    /// A thread has sent this.
    Sent(T),
}

/// The receiving end, for one thread.
pub struct Inbox<T> {
    sent: Receiver<T>,
    /// Signals, and the end of the socket on which we sleep.
    signals: SignalDelivery<UnixStream, SignalOnly>,
    /// What has come and is not told yet.
    come: VecDeque<Event<T>>,
    first_stop: Option<Instant>,
    /// What we find at a look has come after this moment.
    looked: Instant,
}

/// The sending end.
pub struct Outbox<T> {
    sent: Sender<T>,
    bell: Arc<UnixStream>,
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        let (sent, bell) = (self.sent.clone(), self.bell.clone());
        Self { sent, bell }
    }
}

impl<T> Outbox<T> {
    /// Sends without waiting. Where the inbox is gone, the worker is leaving.
    pub fn send(&self, message: T) {
        let _ = self.sent.send(message);
        let _ = (&*self.bell).write(&[0]); // a full socket wakes the inbox, too
    }
}

/// Opens an inbox. From now on no signal ends this process; [`Inbox::hear_signals`] tells of those that have come since.
///
/// To be called before anything else: the kernel ignores a signal to PID 1 that has no handler and is not blocked.
///
/// # Errors
/// The system has no room for a socket.
pub fn open<T>() -> io::Result<(Outbox<T>, Inbox<T>)> {
    SigSet::all().thread_block()?;
    let (bell, ring) = UnixStream::pair()?;
    ring.set_nonblocking(true)?;
    let none: [i32; 0] = [];
    let signals = SignalDelivery::with_pipe(bell, ring.try_clone()?, SignalOnly, none)?;
    let (sender, sent) = mpsc::channel();
    let bell = Arc::new(ring);
    let inbox = Inbox {
        sent,
        signals,
        come: VecDeque::new(),
        first_stop: None,
        looked: Instant::now(),
    };
    Ok((Outbox { sent: sender, bell }, inbox))
}

/// The signals that are ignored now, as a mask. None where the kernel does not say.
fn ignored_signals() -> u64 {
    let mut status = [0; 4096]; // in one piece: the kernel writes all of it anew for each
    let length = File::open("/proc/self/status").and_then(|mut file| file.read(&mut status));
    let mut lines = status[..length.unwrap_or_default()].split(|byte| *byte == b'\n');
    let mask = lines.find_map(|line| line.strip_prefix(b"SigIgn:\t"));
    let mask = mask.and_then(|mask| std::str::from_utf8(mask).ok());
    mask.and_then(|mask| u64::from_str_radix(mask, 16).ok())
        .unwrap_or_default()
}

impl<T> Inbox<T> {
    /// Hears signals from now on, and those that have come since [`open`]. Some 30 system calls: a worker has time for them while the
    /// broker answers. A thread or a child that is there before has all signals blocked.
    ///
    /// # Errors
    /// What the kernel says of a handler.
    pub fn hear_signals(&self) -> io::Result<()> {
        let ignored = ignored_signals();
        let is_heard = |signal: &i32| {
            matches!(*signal, SIGTERM | SIGINT) || ignored & (1 << (signal - 1)) == 0
        };
        let stops = STOPS.into_iter().filter(is_heard);
        // SIGXFSZ has a handler so that writing beyond RLIMIT_FSIZE is an error and not our end. Steps do not inherit it.
        for signal in stops.chain([SIGCHLD, SIGXFSZ]) {
            // they are all blocked: between the moment at which a handler is there and the one at which it knows what to do, a
            // signal would be lost
            self.signals.handle().add_signal(signal)?;
        }
        // A parent may have blocked some: we would wait for ever for the end of a step. In the background of a terminal with
        // `stty tostop`, a line of our own log would stop us.
        SigSet::from(Signal::SIGTTOU).thread_set_mask()?;
        Ok(())
    }

    /// Sleeps until something comes, and no longer than to `deadline`; `None` when that has passed. A passed deadline goes
    /// first, or a stream of events could put it off for ever.
    pub fn next(&mut self, deadline: Option<Instant>) -> Option<Event<T>> {
        loop {
            let now = Instant::now();
            if deadline.is_some_and(|at| at <= now) {
                return None;
            }
            if self.come.is_empty() {
                self.look(now);
            }
            if let Some(event) = self.come.pop_front() {
                return Some(event);
            }
            if let Some(message) = self.look_out(now) {
                return Some(Event::Sent(message));
            }
            self.sleep(deadline.map(|at| at - now));
        }
    }

    /// Takes what the signals say, and one message at a time: so a stream of messages does not hide the end of a child, nor many
    /// such ends a message.
    fn look(&mut self, now: Instant) {
        let since = std::mem::replace(&mut self.looked, now);
        // this empties the socket before it looks at the signals, and we look at all else after it
        for signal in self.signals.pending() {
            match signal {
                SIGCHLD => self.come.push_back(Event::ChildEnded),
                SIGXFSZ => {}
                stop => {
                    // a terminal that goes sends more than one SIGHUP
                    let is_second = |first| since >= first + SECOND_STOP && stop != SIGHUP;
                    if self.first_stop.is_none_or(is_second) {
                        self.first_stop.get_or_insert(now);
                        self.come.push_front(Event::Stop(stop));
                    }
                }
            }
        }
        self.come.extend(self.sent.try_recv().ok().map(Event::Sent));
    }

    /// Looks for messages alone: signals cost a system call.
    fn look_out(&self, now: Instant) -> Option<T> {
        loop {
            match self.sent.try_recv() {
                Ok(message) => return Some(message),
                Err(TryRecvError::Empty) if now.elapsed() < LOOKOUT => std::thread::yield_now(),
                Err(_) => return None,
            }
        }
    }

    /// Until a byte comes, or has come since the last look, or for this long.
    fn sleep(&mut self, patience: Option<Duration>) {
        // not a timeout of the socket: the kernel's coarse timers end it up to an eighth late
        let patience = patience.and_then(|patience| patience.try_into().ok());
        let mut bell = [PollFd::new(self.signals.get_read(), PollFlags::IN)];
        let _ = poll(&mut bell, patience.as_ref()); // time over, or a signal: look, in any case
        self.looked = Instant::now(); // what woke us has come just now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use signal_hook::low_level::raise;

    fn heard<T>() -> (Outbox<T>, Inbox<T>) {
        let (outbox, inbox) = open().unwrap();
        inbox.hear_signals().unwrap();
        (outbox, inbox)
    }

    /// What comes in the end; the signals are those of the whole process, so other tests cause some, too.
    fn events<T>(inbox: &mut Inbox<T>) -> impl Iterator<Item = Event<T>> {
        std::iter::from_fn(|| inbox.next(Some(Instant::now() + Duration::from_secs(30))))
    }

    fn sent<T>(inbox: &mut Inbox<T>) -> Option<T> {
        events(inbox).find_map(|event| match event {
            Event::Sent(message) => Some(message),
            _ => None,
        })
    }

    #[test]
    fn threads_and_the_kernel_wake_it() {
        let (outbox, mut inbox) = heard();
        raise(SIGTERM).unwrap();
        // or the stop of another test, of which this one is a part then
        assert!(events(&mut inbox).any(|event| matches!(event, Event::Stop(_))));
        std::thread::scope(|scope| {
            scope.spawn(|| outbox.send(7));
            assert_eq!(sent(&mut inbox), Some(7));
        });
        raise(SIGCHLD).unwrap();
        assert!(events(&mut inbox).any(|event| event == Event::ChildEnded));
    }

    #[test]
    fn a_passed_deadline_goes_first() {
        let (outbox, mut inbox) = heard();
        outbox.send(8);
        assert_eq!(inbox.next(Some(Instant::now())), None);
        assert_eq!(sent(&mut inbox), Some(8));
        let soon = Instant::now() + Duration::from_millis(5);
        while inbox.next(Some(soon)).is_some() {}
        assert!(Instant::now() >= soon);
    }

    #[test]
    fn the_end_of_a_child_is_seen_between_messages_and_a_full_socket_loses_none() {
        let (outbox, mut inbox) = heard();
        let count = 5000; // more than the socket holds
        (0..count).for_each(|n| outbox.send(n));
        raise(SIGCHLD).unwrap();
        let first = events(&mut inbox)
            .filter(|event| !matches!(event, Event::Stop(_)))
            .take(2);
        let (ends, messages): (Vec<_>, Vec<_>) =
            first.partition(|event| *event == Event::ChildEnded);
        assert!(!ends.is_empty());
        for n in messages.len()..count {
            assert_eq!(sent(&mut inbox), Some(n));
        }
    }

    /// However late we look at the second signal, it came when the first one did.
    #[test]
    fn stops_of_one_moment_are_one() {
        let (_outbox, mut inbox) = heard::<()>();
        let now = Instant::now();
        let stops = |inbox: &mut Inbox<()>, signal: i32, seconds: u64| {
            raise(signal).unwrap();
            inbox.look(now + Duration::from_secs(seconds));
            let come = std::mem::take(&mut inbox.come);
            come.into_iter()
                .filter(|event| matches!(event, Event::Stop(_)))
                .count()
        };
        assert_eq!(stops(&mut inbox, SIGUSR2, 0), 1);
        let late = stops(&mut inbox, SIGUSR2, 5);
        assert_eq!(late, 0, "it may have come at once");
        let hangup = stops(&mut inbox, SIGHUP, 6);
        assert_eq!(hangup, 0, "a terminal that goes");
        assert_eq!(stops(&mut inbox, SIGUSR2, 7), 1);
    }
}

//! Where the main thread waits: one inbox for what the connection's thread sends, and for the signals of the kernel
//! (docs/reference.md, "Signals").
//!
//! A signal handler may set a flag and write a byte to a socket, and hardly anything else. So that byte is what the inbox
//! sleeps on, whoever has something for it rings with one, and no thread is needed to pass the signals on.

use nix::sys::signal::{SigSet, Signal};
use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{
    SIGABRT, SIGALRM, SIGCHLD, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGSYS, SIGTERM, SIGTRAP,
    SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU, SIGXFSZ,
};
use signal_hook::iterator::{backend::SignalDelivery, exfiltrator::SignalOnly};
use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

/// How long to stay awake for the next event: a broker nearby answers sooner than a sleeping processor wakes up.
const LOOKOUT: Duration = Duration::from_micros(150);

/// Signals that ask us to stop, whatever else they may mean elsewhere: each of them would end this process and leave its
/// steps behind. Those from SIGHUP on stay ignored if they were ignored at start (`nohup`).
///
/// SIGABRT is what a watchdog sends. The abort() of the C library ends this process all the same.
const STOPS: [i32; 16] = [
    SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGXCPU,
    SIGIO, SIGABRT, SIGTRAP, SIGSYS, SIGPWR, SIGSTKFLT,
];

// signal-hook has no names for these
const SIGPWR: i32 = Signal::SIGPWR as i32;
const SIGSTKFLT: i32 = Signal::SIGSTKFLT as i32;

/// SIGRTMIN+3, the stop signal of images that are made for systemd, as glibc, systemd and Docker count. musl, which our static
/// binaries have, begins one later: its own SIGRTMIN+3 is never sent by anybody.
const SIGRTMIN_3: i32 = 37;

/// What comes in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event<T> {
    /// SIGTERM or another signal of its kind: somebody asks us to stop.
    Stop(i32),
    /// SIGCHLD: some child has ended.
    ChildEnded,
    /// A [`Waker`] has woken us.
    Woken,
    /// A thread has sent this.
    Sent(T),
}

/// The receiving end, for one thread.
pub struct Inbox<T> {
    sent: Receiver<T>,
    /// Signals, and the end of the bell that we hear.
    signals: RefCell<SignalDelivery<UnixStream, SignalOnly>>,
    /// Stops that have been raised and not told yet.
    stops: RefCell<Vec<i32>>,
    /// Whether a stop has come out of here.
    stop_told: Cell<bool>,
    child_ended: Cell<bool>,
    own_waker: Waker,
    /// Whose turn it is, when a child has ended and something was sent.
    child_first: Cell<bool>,
}

/// Wakes the inbox without a message: [`Event::Woken`] says that there is something to look for.
#[derive(Clone)]
pub struct Waker {
    woken: Arc<AtomicBool>,
    bell: Arc<UnixStream>,
}

impl Waker {
    /// Wakes the inbox.
    pub fn wake(&self) {
        self.woken.store(true, Ordering::SeqCst);
        let _ = (&*self.bell).write(&[0]); // a full socket wakes the inbox, too
    }
}

/// The sending end.
pub struct Outbox<T> {
    sent: Sender<T>,
    bell: Arc<UnixStream>,
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self {
            sent: self.sent.clone(),
            bell: self.bell.clone(),
        }
    }
}

/// Opens an inbox, which gets the signals of this process from now on; `None` where that cannot be, which is logged.
///
/// To be called before anything else: the kernel ignores a signal to PID 1 that has no handler.
pub fn open<T>() -> Option<(Outbox<T>, Inbox<T>)> {
    try_open()
        .inspect_err(|error| log::error!("no signal handlers: {error}"))
        .ok()
}

fn try_open<T>() -> io::Result<(Outbox<T>, Inbox<T>)> {
    let (bell, ring) = UnixStream::pair()?;
    ring.set_nonblocking(true)?;
    let ignored = ignored_signals();
    let stops = STOPS
        .into_iter()
        .chain([SIGRTMIN_3])
        .filter(|signal| matches!(*signal, SIGTERM | SIGINT) || ignored & (1 << (signal - 1)) == 0);
    // between the moment at which a handler is there and the one at which it knows what to do, a signal would be lost
    SigSet::all().thread_block()?;
    // SIGXFSZ has a handler so that writing beyond RLIMIT_FSIZE is an error and not our end. Steps do not inherit it.
    // All at once: each registration copies those before it
    let signals = SignalDelivery::with_pipe(
        bell,
        ring.try_clone()?,
        SignalOnly,
        stops.chain([SIGCHLD, SIGXFSZ]),
    )?;
    // a parent may have blocked them, too, and we would wait for ever for the end of a step
    SigSet::all().thread_unblock()?;
    // in the background of a terminal with `stty tostop`, a line of our own log would stop us
    SigSet::from(Signal::SIGTTOU).thread_block()?;
    let (sender, sent) = mpsc::channel();
    let inbox = Inbox {
        sent,
        signals: RefCell::new(signals),
        stops: RefCell::default(),
        stop_told: Cell::new(false),
        child_ended: Cell::new(false),
        own_waker: Waker {
            woken: Arc::new(AtomicBool::new(false)),
            bell: Arc::new(ring.try_clone()?),
        },
        child_first: Cell::new(false),
    };
    Ok((
        Outbox {
            sent: sender,
            bell: Arc::new(ring),
        },
        inbox,
    ))
}

/// The signals that are ignored now, as a mask. None where the kernel does not say.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}

impl<T> Outbox<T> {
    /// Sends without waiting. Where the inbox is gone, so is whoever cared.
    pub fn send(&self, message: T) {
        let _ = self.sent.send(message);
        let _ = (&*self.bell).write(&[0]); // a full socket wakes the inbox, too
    }
}

impl<T> Inbox<T> {
    /// What wakes this inbox with [`Event::Woken`].
    pub fn waker(&self) -> &Waker {
        &self.own_waker
    }

    /// Sleeps until something comes, and no longer than to `deadline`; `None` when that has passed. A passed deadline goes
    /// first, or whoever keeps us busy could put it off for ever.
    pub fn next(&self, deadline: Option<Instant>) -> Option<Event<T>> {
        let end_of_lookout = Instant::now() + LOOKOUT;
        loop {
            let now = Instant::now();
            if deadline.is_some_and(|at| at <= now) {
                return None;
            }
            if let Some(event) = self.look() {
                return Some(event);
            }
            match now < end_of_lookout {
                true => std::thread::yield_now(),
                false => self.sleep(deadline.map(|at| at - now)),
            }
        }
    }

    fn look(&self) -> Option<Event<T>> {
        // this silences the bell before it looks at the signals, and we look at all else after it
        for signal in self.signals.borrow_mut().pending() {
            match signal {
                SIGCHLD => self.child_ended.set(true),
                SIGXFSZ => {}
                stop => self.stops.borrow_mut().push(stop),
            }
        }
        while let Some(signal) = self.stops.borrow_mut().pop() {
            // a terminal that goes sends more than one SIGHUP, a service manager one behind its SIGTERM: that is not somebody
            // who insists
            if !(self.stop_told.replace(true) && signal == SIGHUP) {
                return Some(Event::Stop(signal));
            }
        }
        if self.own_waker.woken.swap(false, Ordering::SeqCst) {
            return Some(Event::Woken);
        }
        // by turns, so that neither a stream of messages nor one of processes hides the other
        let sent = || self.sent.try_recv().ok().map(Event::Sent);
        let child_ended = || self.child_ended.take().then_some(Event::ChildEnded);
        match self.child_first.replace(!self.child_first.get()) {
            true => child_ended().or_else(sent),
            false => sent().or_else(child_ended),
        }
    }

    /// Until the bell rings, or has rung since the last time, or for this long.
    fn sleep(&self, patience: Option<Duration>) {
        // not a timeout of the socket: the kernel's coarse timers end it up to an eighth late
        let patience = patience.and_then(|patience| patience.try_into().ok());
        let signals = self.signals.borrow();
        let _ = poll(
            &mut [PollFd::new(signals.get_read(), PollFlags::IN)],
            patience.as_ref(),
        ); // time over, or a signal: look, in any case
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use signal_hook::low_level::raise;

    /// What comes in the end; the signals are those of the whole process, so other tests cause some, too.
    fn events<T>(inbox: &Inbox<T>) -> impl Iterator<Item = Event<T>> {
        std::iter::from_fn(|| inbox.next(Some(Instant::now() + Duration::from_secs(30))))
    }

    fn sent<T>(inbox: &Inbox<T>) -> Option<T> {
        events(inbox).find_map(|event| {
            if let Event::Sent(message) = event {
                Some(message)
            } else {
                None
            }
        })
    }

    #[test]
    fn threads_and_the_kernel_wake_it() {
        let (outbox, inbox) = open().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| outbox.send(7));
            assert_eq!(sent(&inbox), Some(7));
        });
        raise(SIGTERM).unwrap();
        assert!(events(&inbox).any(|event| event == Event::Stop(SIGTERM)));
        raise(SIGCHLD).unwrap();
        assert!(events(&inbox).any(|event| event == Event::ChildEnded));
    }

    #[test]
    fn a_passed_deadline_goes_first() {
        let (outbox, inbox) = open().unwrap();
        outbox.send(8);
        assert_eq!(inbox.next(Some(Instant::now())), None);
        assert_eq!(sent(&inbox), Some(8));
        let soon = Instant::now() + Duration::from_millis(5);
        while inbox.next(Some(soon)).is_some() {}
        assert!(Instant::now() >= soon);
    }

    #[test]
    fn the_end_of_a_child_is_seen_between_messages() {
        let (outbox, inbox) = open().unwrap();
        (0..100).for_each(|n| outbox.send(n));
        raise(SIGCHLD).unwrap();
        let mut events = events(&inbox).filter(|event| !matches!(event, Event::Stop(_)));
        assert!(
            events
                .by_ref()
                .take(2)
                .any(|event| event == Event::ChildEnded)
        );
    }

    #[test]
    fn nobody_waits_for_an_inbox_that_is_full() {
        let (outbox, inbox) = open().unwrap();
        let count = 5000; // more rings than the socket holds
        (0..count).for_each(|n| outbox.send(n));
        for n in 0..count {
            assert_eq!(sent(&inbox), Some(n));
        }
    }
}

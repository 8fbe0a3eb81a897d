//! Signals of the kernel as events (contract section 7).

use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;

/// What a signal means to us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// SIGTERM or SIGINT: somebody asks us to stop.
    Stop(i32),
    /// SIGCHLD: some child has ended.
    ChildEnded,
}

/// Hands every signal to `sink`, from a thread of its own.
///
/// To be called before anything else: the kernel ignores a signal to PID 1 that has no handler.
///
/// # Errors
/// What the kernel said, when handlers cannot be installed.
pub fn forward(sink: impl Fn(Event) + Send + 'static) -> io::Result<()> {
    // a parent may have blocked them, and we would wait for ever for the end of a step
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD]).thread_unblock()?;
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGCHLD])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            sink(if signal == SIGCHLD { Event::ChildEnded } else { Event::Stop(signal) });
        }
    })?;
    Ok(())
}

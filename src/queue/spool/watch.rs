//! Hears that `head.lock` is free, where its holder is on this host: nobody has to try it all the time.
//!
//! The system tells that a file is closed, and the head unlocks the file before. What happens on another host it does not tell.

use super::LOCK;
use crate::job::WorkDir;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// More than one event takes, in bytes.
const BUFFER: usize = 512;

/// Calls somebody whenever `head.lock` may have become free, until it is dropped.
#[derive(Debug)]
pub struct Watch {
    inotify: Arc<OwnedFd>,
    descriptor: i32,
}

impl Watch {
    /// Watches the `head.lock` that is there now.
    ///
    /// # Errors
    /// What the system said, which has room for so many of these, and for so many threads.
    pub fn open(dir: &WorkDir, is_free: impl Fn() + Send + 'static) -> io::Result<Self> {
        let inotify = Arc::new(inotify::init(CreateFlags::CLOEXEC)?);
        let lock = dir.current_dir().join(LOCK);
        let descriptor = inotify::add_watch(&inotify, lock, WatchFlags::CLOSE_WRITE)?;
        let events = inotify.clone();
        std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || listen(&events, is_free))?;
        Ok(Self {
            inotify,
            descriptor,
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // fails where the file is gone, and the thread with it
        let _ = inotify::remove_watch(&self.inotify, self.descriptor);
    }
}

fn listen(inotify: &OwnedFd, is_free: impl Fn()) {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut reader = Reader::new(inotify, &mut buffer);
    while let Ok(event) = reader.next() {
        match event.events() {
            events if events.contains(ReadFlags::IGNORED) => return,
            _ => is_free(),
        }
    }
}

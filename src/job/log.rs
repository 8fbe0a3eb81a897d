//! `job.log`: the steps' stdout and stderr are this very file, and our own lines go between (contract section 4).

use super::WorkDir;
use crate::contract::{JobId, single_line};
use rustix::fs::{OFlags, fcntl_setfl};
use std::fmt::Arguments;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

const NAME: &str = "job.log";

/// The open log of a job. Its lock is the job's lock: it belongs to the open file, which the steps inherit, so it lasts
/// until the last of them is gone.
#[derive(Debug)]
pub struct JobLog {
    file: File,
    path: String,
    broken: bool,
}

/// Whether we may run in this directory.
#[derive(Debug)]
pub enum Lock {
    Ours,
    /// Another worker runs here, or orphans of one.
    Busy,
    /// The file system has no locks, and says so.
    Unsupported(io::Error),
}

impl JobLog {
    /// Opens the log for appending, without changing what is in it.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(dir: &WorkDir) -> io::Result<Self> {
        let flags = OFlags::APPEND | OFlags::CREATE;
        let file = dir.open_file(NAME, OFlags::RDWR | flags)?;
        // the steps get this open file: they do not expect a stdout that does not block
        fcntl_setfl(&file, OFlags::APPEND)?;
        Ok(Self {
            file,
            path: dir.path().join(NAME).to_string_lossy().into_owned(),
            broken: false,
        })
    }

    /// Its absolute path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Tries to get the lock, without waiting.
    pub fn try_lock(&self) -> Lock {
        match self.file.try_lock() {
            Ok(()) => Lock::Ours,
            Err(TryLockError::WouldBlock) => Lock::Busy,
            Err(TryLockError::Error(error)) => Lock::Unsupported(error),
        }
    }

    /// Starts a fresh log: the three lines of its head.
    ///
    /// # Errors
    /// What the system said.
    pub fn begin(&mut self, id: &JobId, dir: &WorkDir) -> io::Result<()> {
        self.file.set_len(0)?;
        let rule = "-".repeat(40);
        let (id, dir) = (
            single_line(id.as_str()),
            single_line(&dir.path().to_string_lossy()),
        );
        self.file
            .write_all(format!("Job ID: {id}\nWorking Directory: {dir}\n{rule}\n").as_bytes())
    }

    /// Writes one line of ours, on a line of its own whatever a step has written before.
    pub fn line(&mut self, text: Arguments) {
        let start = if self.ends_in_mid_line() {
            "\n==> "
        } else {
            "==> "
        };
        let line = format!("{start}{}\n", single_line(&text.to_string()));
        if let Err(error) = self.file.write_all(line.as_bytes())
            && !std::mem::replace(&mut self.broken, true)
        {
            log::warn!("{} cannot be written: {error}; going on", self.path);
        }
    }

    fn ends_in_mid_line(&self) -> bool {
        let mut last = [b'\n'];
        if let Some(end) = self.size().checked_sub(1) {
            let _ = self.file.read_at(&mut last, end); // then we know no better than "at the start of a line"
        }
        last != *b"\n"
    }

    /// Its present size in bytes; 0 where the system does not say.
    pub fn size(&self) -> u64 {
        self.file.metadata().map_or(0, |meta| meta.len())
    }

    /// The same open file once more, for a step.
    ///
    /// # Errors
    /// What the system said.
    pub fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

//! `job.log`: the steps' stdout and stderr are this very file, and our own lines go between. Its lock is the job's.

use super::WorkDir;
use super::directory::close;
use crate::contract::{JobId, now_in_seconds, single_line};
use rustix::fs::{AtFlags, OFlags, StatxFlags, fcntl_setfl, statx};
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Once;

const NAME: &str = "job.log";

/// How much of a removed log is copied at once, in bytes.
const COPIED_AT_ONCE: usize = 64 << 10;

/// The longest line of ours, in characters.
const LONGEST_LINE: usize = 1000;

/// The open log of a job. Its lock is the job's lock: it belongs to the open file, which the steps inherit, so it lasts
/// until the last of them is gone.
#[derive(Debug)]
pub struct JobLog {
    file: File,
    /// Its absolute path.
    pub path: String,
    /// The first line of ours that was not written, and why.
    broken: Option<String>,
    /// Lines of ours that wait for [`Self::release`].
    held: Option<String>,
    /// Where the last line begins, in bytes, once it is written.
    verdict_at: Option<u64>,
    /// Logs that a step has removed, where what it has left running may still write; and how much of each is in the log that was
    /// written anew, in bytes.
    removed: Vec<(File, u64)>,
    /// A step has removed the log, and another worker has begun one of its own: it has the directory.
    pub is_taken: bool,
}

impl JobLog {
    /// Opens the log for appending, without changing what is in it.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(dir: &WorkDir) -> io::Result<Self> {
        Ok(Self {
            file: open(dir, OFlags::empty())?,
            path: dir.path().join(NAME).to_string_lossy().into_owned(),
            broken: None,
            held: None,
            verdict_at: None,
            removed: Vec::new(),
            is_taken: false,
        })
    }

    /// Tries to get the lock, without waiting. Where the file system has none, it goes on.
    ///
    /// # Errors
    /// Why it is not ours; nothing where the name leads to another file by now, which is to be opened anew.
    pub fn try_lock(&self, dir: &WorkDir) -> Result<(), Option<&'static str>> {
        match self.file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Some(match self.file.try_lock_shared() {
                // a worker's lock is exclusive
                Ok(()) => "is held by a process that only reads it, such as `flock -s`",
                Err(_) => "is in use by another worker, or by what one has left",
            })),
            // the worker that had the lock may have written the log anew, and locked that
            _ if !dir.leads_to(NAME, &self.file) => Err(None),
            Ok(()) => Ok(()),
            Err(TryLockError::Error(error)) => {
                static WARN: Once = Once::new();
                WARN.call_once(|| {
                    let path = &self.path;
                    log::warn!("{path} cannot be locked: {error}; going on, so never let two workers have one directory");
                });
                Ok(())
            }
        }
    }

    /// Looks for the log by its name. Where a step has removed or replaced it, it is written anew from the open file, and
    /// locked.
    ///
    /// # Errors
    /// What the system said, or that another worker has locked a log of its own. That is left alone then.
    pub fn restore_if_removed(&mut self, dir: &WorkDir) -> Result<(), String> {
        if !dir.leads_to(NAME, &self.file) {
            let removed = format!("a step has removed {}", self.path);
            let new = begin_anew(dir)
                .map_err(|error| format!("{removed}, and it cannot be written anew: {error}"))?;
            self.is_taken = new.is_none();
            let new = new.ok_or(format!("{removed}, and another worker has it by now"))?;
            log::warn!(
                "{} was removed or replaced by a step; writing it anew",
                self.path
            );
            let file = std::mem::replace(&mut self.file, new);
            self.removed.push((file, 0));
            self.copy_removed()?;
            self.line("job.log was removed or replaced by a step, and is written anew");
        }
        self.copy_removed()
    }

    fn copy_removed(&mut self) -> Result<(), String> {
        if self.removed.is_empty() {
            return Ok(());
        }
        let mut buffer = vec![0; COPIED_AT_ONCE]; // on the stack it costs each job its pages
        for (removed, copied) in &mut self.removed {
            loop {
                // by position: the steps share the file's own
                let more = match removed.read_at(&mut buffer, *copied) {
                    Ok(0) => break,
                    Ok(bytes) => self.file.write_all(&buffer[..bytes]).map(|()| bytes),
                    Err(error) => Err(error),
                };
                *copied += more
                    .map_err(|error| format!("{} cannot be written anew: {error}", self.path))?
                    as u64;
            }
        }
        Ok(())
    }

    /// Starts a fresh log, with the three lines of its head; or goes on behind what earlier attempts have written. A power cut may have
    /// left nothing of that.
    ///
    /// # Errors
    /// A sentence, with what the system said.
    pub fn begin(&mut self, id: &JobId, dir: &WorkDir, goes_on: bool) -> io::Result<()> {
        if goes_on && self.size() > 0 {
            return Ok(());
        }
        let rule = "-".repeat(40);
        let (id, dir) = (
            single_line(id.as_str()),
            single_line(&dir.path().to_string_lossy()),
        );
        let head = format!("Job ID: {id}\nWorking Directory: {dir}\n{rule}\n");
        let emptied = self.file.set_len(0);
        let begun = emptied.and_then(|()| self.file.write_all(head.as_bytes()));
        begun.map_err(|error| {
            let sentence = format!("{} cannot be written: {error}", self.path);
            io::Error::new(error.kind(), sentence)
        })
    }

    /// Writes one line of ours with the time.
    pub fn line(&mut self, text: &str) {
        let mut text = single_line(text);
        if let Some((end, _)) = text.char_indices().nth(LONGEST_LINE) {
            text.truncate(end);
            text.push('…');
        }
        let line = format!("==> {} {text}\n", now_in_seconds());
        match &mut self.held {
            Some(held) => held.push_str(&line),
            None => self.append(&line),
        }
    }

    /// Keeps the lines to come in memory, since the drive may not answer.
    pub fn hold(&mut self) {
        self.held.get_or_insert_default();
    }

    /// Writes what was held, and holds nothing any more.
    pub fn release(&mut self) {
        match self.held.take() {
            Some(lines) if !lines.is_empty() => self.append(&lines),
            _ => {}
        }
    }

    /// Writes the last line: how the job ended. It takes the place of one that turned out to be wrong.
    pub fn verdict(&mut self, text: &str) {
        self.retract_verdict();
        self.verdict_at = Some(self.size());
        self.line(text);
    }

    /// Takes the last line back. Nothing of the job runs any more, so nothing is behind it.
    pub fn retract_verdict(&mut self) {
        if let Some(start) = self.verdict_at.take() {
            self.cut(start);
        }
    }

    /// Takes back what was written from `start` on, in bytes. Nothing of the job runs.
    pub fn cut(&self, start: u64) {
        if let Err(error) = self.file.set_len(start) {
            log::warn!("{}: {error}", self.path);
        }
    }

    /// Writes on a line of its own, whatever a step has written before.
    fn append(&mut self, lines: &str) {
        let start = match self.ends_in_mid_line() {
            true => "\n",
            false => "",
        };
        if let Err(error) = self.file.write_all(format!("{start}{lines}").as_bytes())
            && self.broken.is_none()
        {
            let error = format!("{} cannot be written: {error}", self.path);
            log::warn!("{error}; going on");
            self.broken = Some(error);
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

    /// The same as this host knows it, which has the steps: a drive may not answer any more, or have all that is not written yet first.
    pub fn known_size(&self) -> u64 {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let known = statx(&self.file, "", flags, StatxFlags::SIZE);
        known.map_or_else(|_| self.size(), |known| known.stx_size)
    }

    /// Makes sure that the drive has all of it.
    ///
    /// # Errors
    /// A sentence, also where a line could not be written some time before; it is told once.
    pub fn complete(&mut self, dir: &WorkDir) -> Result<(), String> {
        let synced = dir.sync_file(&self.file);
        // a network drive writes at each close, and only then tells what it thinks of it
        let closed = synced.and_then(|()| self.handle().and_then(close));
        let complete = closed.map_err(|error| format!("{} cannot be written: {error}", self.path));
        self.broken.take().map_or(Ok(()), Err).and(complete)
    }

    /// Puts everything on the disk that was written on its file system. The system tells errors that are newer than the handle, so this
    /// takes the oldest.
    ///
    /// # Errors
    /// What the system said.
    pub fn sync_file_system(&self) -> io::Result<()> {
        let oldest = self.removed.first().map(|(file, _)| file);
        Ok(rustix::fs::syncfs(oldest.unwrap_or(&self.file))?)
    }

    /// The same open file once more, for a step.
    ///
    /// # Errors
    /// What the system said.
    pub fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

/// Does something while no job runs in the directory and none can begin; `false` where one runs. Leaves the log as it is.
///
/// # Errors
/// What the system said.
pub fn while_nothing_runs(dir: &WorkDir, act: impl FnOnce() -> io::Result<()>) -> io::Result<bool> {
    let made = dir.open_file(NAME, OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL);
    let is_new = made.is_ok();
    let file = match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            dir.open_file(NAME, OFlags::RDONLY)?
        }
        made => made?,
    };
    // a worker's lock is exclusive: one that is shared keeps workers away, and goes with that of a mere reader
    if let Err(TryLockError::WouldBlock) = file.try_lock_shared() {
        return Ok(false);
    }
    if !dir.leads_to(NAME, &file) {
        return Ok(false);
    }
    let done = act();
    if is_new {
        dir.remove(NAME)?;
    }
    done.map(|()| true)
}

/// A new log in the place of what is there; `None` where that is another worker's.
fn begin_anew(dir: &WorkDir) -> io::Result<Option<File>> {
    // kept until its name is gone: no worker gets the lock of a file that is to be removed and believes in it
    let there = dir.open_file(NAME, OFlags::RDONLY);
    // only a worker's lock is exclusive
    if let Ok(there) = &there
        && let Err(TryLockError::WouldBlock) = there.try_lock_shared()
    {
        return Ok(None);
    }
    match dir.remove(NAME) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let new = match open(dir, OFlags::EXCL) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        new => new?,
    };
    let is_taken = matches!(new.try_lock(), Err(TryLockError::WouldBlock));
    Ok((!is_taken).then_some(new)) // where there are no locks, that has been said
}

fn open(dir: &WorkDir, flags: OFlags) -> io::Result<File> {
    let file = dir.open_file(NAME, OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | flags)?;
    // the steps get this open file: they do not expect a stdout that does not block
    fcntl_setfl(&file, OFlags::APPEND)?;
    Ok(file)
}

//! The worker's own log on stderr (`RUST_LOG`).

use crate::config::is_log_filter;
use crate::contract::{Timestamp, single_line};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use std::fs::File;
use std::io::{self, Write};

/// What a pipe that poll(2) says is writable takes without blocking: PIPE_BUF.
const AT_ONCE: usize = 4096;

/// What is logged unless `RUST_LOG` says otherwise, or where that cannot be used, which is told as an error.
const DEFAULT_FILTER: &str = "info";

/// Whether each line has the time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Times {
    /// It has.
    Shown,
    /// The reader sees the line when it is written, or has another clock for it.
    Left,
}

/// Whether the lines of a process that works on its own need the time. The journal of systemd has it anyway.
pub fn times() -> Times {
    match is_the_journal() {
        true => Times::Left,
        false => Times::Shown,
    }
}

/// Starts the log. Control characters are escaped here, in one place for all: a name or an error from outside can neither
/// forge a line nor speak to the reader's terminal.
pub fn start(times: Times) {
    let filter = std::env::var("RUST_LOG")
        .ok()
        .filter(|text| is_log_filter(text))
        .unwrap_or_else(|| DEFAULT_FILTER.to_owned());
    let out = Lossy::new(stderr(), times);
    env_logger::Builder::new()
        .parse_filters(&without_mqtt_warnings(filter))
        .target(env_logger::Target::Pipe(Box::new(out)))
        .format(move |out, record| {
            let text = single_line(&record.args().to_string());
            let level = record.level().as_str().to_ascii_lowercase();
            writeln!(out, "{}job-worker: {level}: {text}", times.start())
        })
        .init();
}

/// The MQTT library warns of what the worker tells better, or means to do. That is for whoever wants to see the packets.
fn without_mqtt_warnings(filter: String) -> String {
    let lower_case = filter.to_ascii_lowercase();
    let packets_are_shown = ["debug", "trace", "rumqttc"]
        .iter()
        .any(|word| lower_case.contains(word));
    match packets_are_shown {
        true => filter,
        false => filter + ",rumqttc=error",
    }
}

impl Times {
    /// How a line starts.
    fn start(self) -> String {
        match self {
            Self::Shown => format!("{} ", Timestamp::now().to_millis()),
            Self::Left => String::new(),
        }
    }
}

/// Whether stderr leads to the journal of systemd, which says in `JOURNAL_STREAM` which open file that is.
fn is_the_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM");
    let stderr = rustix::fs::fstat(io::stderr());
    named.is_ok_and(|named| {
        stderr.is_ok_and(|file| named == format!("{}:{}", file.st_dev, file.st_ino))
    })
}

/// Stderr, which never blocks where that can be had.
///
/// A pipe or a terminal is opened once more, since not to block is a matter of the open file, and that one is shared with
/// whoever else has it as stderr.
fn stderr() -> Box<dyn Write + Send> {
    let is_waited_for = |file: rustix::fs::Stat| {
        matches!(
            FileType::from_raw_mode(file.st_mode),
            FileType::Fifo | FileType::CharacterDevice
        )
    };
    if rustix::fs::fstat(io::stderr()).is_ok_and(is_waited_for) {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::open("/proc/self/fd/2", flags, Mode::empty()) {
            return Box::new(File::from(file));
        }
    }
    Box::new(io::stderr())
}

/// Drops the lines that nobody takes, and says how many when somebody does again.
///
/// The job must not wait for a reader of our log: a pipe that is full, a terminal that is held, a reader who has gone.
struct Lossy<W> {
    out: W,
    times: Times,
    lost: u64,
    /// A line has been cut.
    in_mid_line: bool,
}

impl<W: Write> Lossy<W> {
    fn new(out: W, times: Times) -> Self {
        Self {
            out,
            times,
            lost: 0,
            in_mid_line: false,
        }
    }

    fn line(&mut self, line: &[u8]) {
        if self.lost > 0 {
            let cut = if self.in_mid_line { "\n" } else { "" };
            let notice = format!(
                "{cut}{}job-worker: warn: lines of this log that nobody took are lost: {}\n",
                self.times.start(),
                self.lost
            );
            if self.all(notice.as_bytes()) {
                self.lost = 0;
            }
        }
        if self.lost > 0 || !self.all(line) {
            self.lost += 1;
        }
    }

    /// Whether all of it was taken.
    fn all(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let part = &bytes[..bytes.len().min(AT_ONCE)];
            let written = match can_be_written() {
                true => self.out.write(part),
                false => return false,
            };
            match written {
                Ok(0) => return false,
                Ok(count) => {
                    self.in_mid_line = bytes[count - 1] != b'\n';
                    bytes = &bytes[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

impl<W: Write> Write for Lossy<W> {
    /// Takes a whole line: that is how env_logger calls it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether stderr takes something now. What cannot be opened once more (a socket, a pipe of another user's) is only asked.
fn can_be_written() -> bool {
    let stderr = io::stderr();
    let mut asked = [PollFd::new(&stderr, PollFlags::OUT)];
    let answered = poll(&mut asked, Some(&Timespec::default()));
    answered.is_ok() && asked[0].revents().contains(PollFlags::OUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes this many bytes, until it is emptied.
    struct Bounded(Vec<u8>, usize);

    impl Write for Bounded {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.1.saturating_sub(self.0.len()).min(bytes.len());
            self.0.extend(&bytes[..room]);
            if room == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(room)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_mqtt_library_is_heard_by_whoever_wants_the_packets() {
        for heard in ["debug", "Trace", "warn,rumqttc=info"] {
            assert_eq!(without_mqtt_warnings(heard.into()), heard);
        }
        assert_eq!(without_mqtt_warnings("warn".into()), "warn,rumqttc=error");
    }

    #[test]
    fn what_nobody_takes_is_counted_and_told() {
        let mut log = Lossy::new(Bounded(Vec::new(), 7), Times::Left);
        for line in ["one\n", "two\n", "three\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(log.out.0, b"one\ntwo");
        log.out = Bounded(Vec::new(), 1000);
        log.write_all(b"four\n").unwrap();
        log.write_all(b"five\n").unwrap();
        assert_eq!(
            String::from_utf8_lossy(&log.out.0),
            "\njob-worker: warn: lines of this log that nobody took are lost: 2\nfour\nfive\n"
        );
    }
}

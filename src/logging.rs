//! The worker's own log on stderr (`RUST_LOG`).

use crate::contract::{now, single_line};
use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use std::fs::File;
use std::io::{self, Write};
use std::sync::OnceLock;

/// How long a line is at most: a pipe takes that much whole or not at all (PIPE_BUF), and the journal of systemd does not split it.
const LINE: usize = 4096;

struct Logger {
    /// The most that is logged of each module whose name begins so; the longest beginning counts.
    filter: Vec<(String, LevelFilter)>,
    /// Lines go to the journal of systemd, which has the time and takes a priority.
    is_journal: bool,
    shows_time: bool,
    /// Stderr, opened once more at the first line so as not to block; `None` where it cannot be had so.
    out: OnceLock<Option<File>>,
}

/// What a text for `RUST_LOG` asks for; `None` where it cannot be used.
pub fn filter(text: &str) -> Option<Vec<(String, LevelFilter)>> {
    let rule = |part: &str| {
        let (module, level) = part.split_once('=').unwrap_or(("", part));
        let is_named = !module.trim().is_empty() || !part.contains('=');
        let level = level.trim().parse().ok().filter(|_| is_named)?;
        Some((module.trim().to_owned(), level))
    };
    let mut rules: Vec<_> = text.split(',').map(rule).collect::<Option<_>>()?;
    // the MQTT library warns of what the worker tells better, or means to do: that is for people who want to see the packets
    let shows_packets =
        |(module, level): &(String, _)| module.starts_with("rumqttc") || *level >= Level::Debug;
    if !rules.iter().any(shows_packets) {
        rules.push(("rumqttc".to_owned(), LevelFilter::Error));
    }
    Some(rules)
}

/// Starts the log. Each line has the time where `shows_time` says so, but not in the journal.
pub fn start(shows_time: bool) {
    let text = std::env::var("RUST_LOG").unwrap_or_default();
    // one that cannot be used is told as an error
    let filter = filter(&text).or(filter("info")).unwrap_or_default();
    let is_journal = std::env::var("JOURNAL_STREAM").is_ok_and(|stream| {
        let stderr = rustix::fs::fstat(io::stderr());
        stderr.is_ok_and(|file| stream == format!("{}:{}", file.st_dev, file.st_ino))
    });
    let level = filter.iter().map(|(_, level)| *level).max();
    let logger = Box::new(Logger {
        filter,
        is_journal,
        shows_time: shows_time && !is_journal,
        out: OnceLock::new(),
    });
    if log::set_logger(Box::leak(logger)).is_ok() {
        log::set_max_level(level.unwrap_or(LevelFilter::Off));
    }
}

/// A pipe or a terminal is opened once more, since not to block is a matter of the open file, and that one is shared with all who
/// have it as stderr.
fn open_stderr() -> Option<File> {
    let mode = rustix::fs::fstat(io::stderr()).ok()?.st_mode;
    let kind = FileType::from_raw_mode(mode);
    let is_waited_for = matches!(kind, FileType::Fifo | FileType::CharacterDevice);
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let again = || rustix::fs::open("/proc/self/fd/2", flags, Mode::empty());
    is_waited_for.then(again)?.ok().map(File::from)
}

impl Logger {
    /// Control characters are escaped here, in one place for all: a name or an error from outside can neither forge a line nor
    /// speak to the reader's terminal.
    fn line(&self, level: Level, text: &str) -> String {
        let (name, priority) = match level {
            Level::Error => ("error", "<3>"),
            Level::Warn => ("warn", "<4>"),
            Level::Info => ("info", "<6>"),
            Level::Debug => ("debug", "<7>"),
            Level::Trace => ("trace", "<7>"),
        };
        let priority = if self.is_journal { priority } else { "" };
        let time = match self.shows_time {
            true => now() + " ",
            false => String::new(),
        };
        let mut line = format!("{priority}{time}job-worker: {name}: {}", single_line(text));
        if line.len() >= LINE {
            line.truncate(line.floor_char_boundary(LINE - "…\n".len()));
            line.push('…');
        }
        line + "\n"
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        let rules = self.filter.iter();
        let ours = rules.filter(|(module, _)| metadata.target().starts_with(module));
        let longest = ours.max_by_key(|(module, _)| module.len());
        longest.is_some_and(|(_, level)| metadata.level() <= *level)
    }

    /// The job must not wait for a reader of our log. A line that is not taken at once (a full pipe, a terminal that is held, a reader
    /// who has gone) is lost.
    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            let line = self.line(record.level(), &record.args().to_string());
            let _ = match self.out.get_or_init(open_stderr) {
                Some(out) => (&*out).write(line.as_bytes()),
                None if can_be_written() => io::stderr().write(line.as_bytes()),
                None => Ok(0),
            };
        }
    }

    fn flush(&self) {}
}

/// Whether stderr takes something now.
fn can_be_written() -> bool {
    let stderr = io::stderr();
    let mut asked = [PollFd::new(&stderr, PollFlags::OUT)];
    let answered = poll(&mut asked, Some(&Timespec::default()));
    answered.is_ok() && asked[0].revents().contains(PollFlags::OUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logger(filter: &str, is_journal: bool) -> Logger {
        Logger {
            filter: super::filter(filter).unwrap(),
            is_journal,
            shows_time: false,
            out: OnceLock::new(),
        }
    }

    #[test]
    fn the_filter_says_what_is_logged_of_each_module() {
        use Level::{Debug, Error, Info, Trace, Warn};
        for (text, module, most) in [
            ("info", "job_worker::worker", Some(Info)),
            ("info", "rumqttc::state", Some(Error)),
            ("debug", "rumqttc", Some(Debug)),
            ("warn,rumqttc=info", "rumqttc::v5", Some(Info)),
            (
                "warn, job_worker::mqtt = trace",
                "job_worker::mqtt::tls",
                Some(Trace),
            ),
            ("WARN,job_worker::mqtt=trace", "job_worker::job", Some(Warn)),
            ("off", "job_worker", None),
        ] {
            let logger = logger(text, false);
            let is_enabled = |level: &Level| {
                logger.enabled(&Metadata::builder().level(*level).target(module).build())
            };
            assert_eq!(
                Level::iter().filter(is_enabled).last(),
                most,
                "{text} {module}"
            );
        }
    }

    #[test]
    fn a_line_has_its_priority_for_the_journal_and_an_end() {
        let journal = logger("info", true);
        assert_eq!(
            journal.line(Level::Warn, "a\nb"),
            "<4>job-worker: warn: a\\nb\n"
        );
        let line = logger("info", false).line(Level::Error, &"ä\n<2>".repeat(100_000));
        assert!(line.starts_with("job-worker: error: ä") && line.ends_with("…\n"));
        assert!((LINE - 4..=LINE).contains(&line.len()), "{}", line.len());
    }
}

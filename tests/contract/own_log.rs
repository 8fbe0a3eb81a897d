//! The worker's own log on stderr (docs/reference.md, "Configuration").

use crate::support;

use rustix::process::Signal;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use support::broker::Broker;
use support::site::{Site, read};

/// What a worker says that is stopped while it waits, with stderr in a file, and with that file's device and inode.
fn log(site: &Site<Broker>, journal: impl FnOnce(u64, u64) -> String) -> String {
    let path = site.drive.path().join("log");
    let file = File::create(&path).unwrap();
    let meta = file.metadata().unwrap();
    let mut command = site.command::<&str>([]);
    command
        .stderr(file)
        .env("JOURNAL_STREAM", journal(meta.dev(), meta.ino()));
    let mut child = command.spawn().unwrap();
    site.await_idle(0);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    read(&path)
}

#[test]
fn each_line_has_the_time() {
    let log = log(&Site::scripted(), |device, inode| {
        format!("{device}:{}", inode + 1)
    });
    assert!(log.lines().count() > 1, "{log}");
    for line in log.lines() {
        let (time, text) = line.split_once(' ').unwrap();
        assert_eq!(time.len(), "2026-02-17T09:12:01.024Z".len(), "{line}");
        assert!(humantime::parse_rfc3339(time).is_ok(), "{line}");
        assert!(text.starts_with("job-worker: info: "), "{line}");
    }
}

#[test]
fn the_journal_has_the_time_already() {
    let log = log(&Site::scripted(), |device, inode| {
        format!("{device}:{inode}")
    });
    assert!(log.lines().count() > 1, "{log}");
    for line in log.lines() {
        assert!(line.starts_with("job-worker: info: "), "{line}");
    }
}

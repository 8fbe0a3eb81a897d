//! What `JOB_SYNC=on` costs, beside the same syncs without a worker around them.

use crate::Place;
use crate::machine::Scratch;
use crate::report::{Budget::AtMost, Figure, Part, Sample, table};
use crate::worker::{command, milliseconds, program, time};
use rustix::fs::{fsync, syncfs};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

const ROUNDS: usize = 100;

/// In memory and on a disk.
pub fn measure(at: &Place) -> Part {
    let mut figures = Vec::new();
    let rows = [&at.memory, &at.disk].map(|place| {
        let [off, bare, on] = cycles(at, place);
        let sums: Sample = off
            .0
            .iter()
            .zip(&bare.0)
            .map(|(off, bare)| off + bare)
            .collect();
        let name = place.describe();
        figures.push(Figure::new(
            &format!("whole cycle with `JOB_SYNC=on`, jobs in {name}"),
            AtMost(1.1),
            "× (the cycle with `JOB_SYNC=off` + the bare syncs)",
            &on.over(&sums),
            "keeping a job over a power cut costs more than the drive asks for it",
        ));
        let [off, bare, on] = [off, bare, on].map(|sample| sample.to_string());
        [name, off, bare, on]
    });
    let titles = [
        "whole cycle, jobs in",
        "`JOB_SYNC=off`, ms",
        "the bare syncs, ms",
        "`JOB_SYNC=on`, ms",
    ];
    Part {
        figures,
        tables: table(&titles, rows),
        plot: None,
    }
}

/// With off, the syncs alone, with on.
fn cycles(at: &Place, place: &Scratch) -> [Sample; 3] {
    let mut client = at.broker.client("controller");
    let mut cycle = |sync: &str| {
        let id = format!("sync-{sync}");
        at.broker.open_queue(&id);
        settle(&place.dir(&id));
        // the controller's own part of what the drive has to keep
        let dir = place.dir(&id);
        client.submit(&id, &dir, "true");
        time(command(program(), &at.broker, &id).env("JOB_SYNC", sync))
    };
    let mut samples = <[Sample; 3]>::default();
    for round in 0..ROUNDS {
        // each comes first in one half of the rounds
        let order = if round % 2 == 0 {
            [("off", 0), ("on", 2)]
        } else {
            [("on", 2), ("off", 0)]
        };
        for (sync, sample) in order {
            samples[sample].0.push(cycle(sync));
        }
        samples[1].0.push(bare_syncs(place));
    }
    samples
}

/// The syncs of one job, with as much to write, and nothing else in the time.
fn bare_syncs(place: &Scratch) -> f64 {
    settle(&place.dir("bare-syncs"));
    let dir = place.dir("bare-syncs");
    let handle = File::open(&dir).expect("a directory");
    let mut syncing = 0.0;
    let mut timed = |sync: &dyn Fn() -> rustix::io::Result<()>| {
        let started = Instant::now();
        sync().expect("the drive can be synced");
        syncing += milliseconds(started);
    };
    let log = dir.join("job.log");
    fs::write(&log, [b'-'; 300]).expect("a log");
    let log = File::options().append(true).open(&log).expect("a log");
    for length in [300, 400] {
        if length == 400 {
            (&log).write_all(&[b'-'; 150]).expect("a log");
            timed(&|| syncfs(&log));
            timed(&|| fsync(&log));
        }
        let new = dir.join("new");
        fs::write(&new, vec![b'j'; length]).expect("a document");
        let file = File::open(&new).expect("a document");
        timed(&|| fsync(&file));
        fs::rename(&new, dir.join("job.status.json")).expect("a rename");
        timed(&|| fsync(&handle));
    }
    syncing
}

/// Nothing of what went before is left to be written.
fn settle(dir: &Path) {
    syncfs(File::open(dir).expect("a directory")).expect("the drive can be synced");
}

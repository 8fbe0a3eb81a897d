//! What `JOB_SYNC=on` costs, beside the same syncs without a worker around them.

use crate::cycle::open_session;
use crate::load::jobs_per_second;
use crate::mqtt::{Broker, Client};
use crate::report::{Figure, Table};
use crate::scratch::Scratch;
use crate::statistics::Sample;
use crate::worker::{command, program, time};
use rustix::fs::{fsync, syncfs};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

const ROUNDS: usize = 100;
const JOBS: u32 = 300;
const QUEUE_ROUNDS: usize = 3;

/// On and off, in memory and on a disk.
pub fn measure(broker: &Broker, memory: &Scratch, disk: &Scratch) -> (Vec<Figure>, Table) {
    let mut figures = Vec::new();
    let mut table = Table::new(&[
        "whole cycle, jobs in",
        "`JOB_SYNC=off`, ms",
        "the bare syncs, ms",
        "`JOB_SYNC=on`, ms",
    ]);
    for place in [memory, disk] {
        let (off, bare, on, ratio) = cycles(broker, place);
        let name = place.describe();
        figures.push(Figure::at_most(
            &format!("whole cycle with `JOB_SYNC=on`, jobs in {name}"),
            1.1,
            "× (the cycle with `JOB_SYNC=off` + the bare syncs)",
            &ratio,
        ));
        let cells = [off, bare, on].map(|sample| sample.to_string());
        let [off, bare, on] = cells;
        table.row([name, off, bare, on]);
    }
    for (name, place) in [("memory", memory), ("disk", disk)] {
        let [on, off] = queues(broker, place, name);
        for (sync, sample) in [("on", on), ("off", off)] {
            figures.push(Figure::told(
                &format!(
                    "`supervise`, queue of {JOBS} `true` jobs in {}, `JOB_SYNC={sync}`",
                    place.describe()
                ),
                "jobs/s",
                &sample,
            ));
        }
    }
    (figures, table)
}

/// The three times, and the ratio that has a budget.
fn cycles(broker: &Broker, place: &Scratch) -> (Sample, Sample, Sample, Sample) {
    let ids = ["sync-off", "sync-on"];
    for id in ids {
        open_session(broker, id);
    }
    let mut client = broker.client("controller");
    let mut cycle = |sync: &str| {
        let id = format!("sync-{sync}");
        let dir = place.dir(&id);
        settle(&dir);
        // the controller's own part of what the drive has to keep
        let dir = place.dir(&id);
        run(&mut client, broker, &dir, &id, sync)
    };
    let (mut off, mut bare, mut on, mut ratio) = <(Sample, Sample, Sample, Sample)>::default();
    for round in 0..ROUNDS {
        // each comes first in one half of the rounds
        let (without, with) = if round % 2 == 0 {
            let without = cycle("off");
            (without, cycle("on"))
        } else {
            let with = cycle("on");
            (cycle("off"), with)
        };
        let syncs = bare_syncs(place);
        off.push_time(without);
        on.push_time(with);
        bare.push_time(syncs);
        ratio.push(with.as_secs_f64() / (without + syncs).as_secs_f64());
    }
    (off, bare, on, ratio)
}

fn run(client: &mut Client, broker: &Broker, dir: &Path, id: &str, sync: &str) -> Duration {
    let request = format!(
        r#"{{"id":"a","workDir":"{}","steps":["true"]}}"#,
        dir.display()
    );
    client.publish(&format!("{id}/pending"), request.as_bytes());
    let needed = time(command(program(), broker, id).env("JOB_SYNC", sync));
    let status = fs::read_to_string(dir.join("job.status.json")).unwrap_or_default();
    assert!(status.contains("\"success\""), "{status}");
    needed
}

/// The syncs of one job, with as much to write, and nothing else in the time.
fn bare_syncs(place: &Scratch) -> Duration {
    let dir = place.dir("bare-syncs");
    settle(&dir);
    let dir = place.dir("bare-syncs");
    let handle = File::open(&dir).expect("a directory");
    let mut syncing = Duration::ZERO;
    let mut timed = |sync: &dyn Fn() -> rustix::io::Result<()>| {
        let started = Instant::now();
        sync().expect("the drive can be synced");
        syncing += started.elapsed();
    };
    let journal = |document: &[u8], timed: &mut dyn FnMut(&dyn Fn() -> _)| {
        let new = dir.join("new");
        fs::write(&new, document).expect("a document");
        let file = File::open(&new).expect("a document");
        timed(&|| fsync(&file));
        fs::rename(&new, dir.join("job.status.json")).expect("a rename");
        timed(&|| fsync(&handle));
    };
    let log = dir.join("job.log");
    fs::write(&log, [b'-'; 300]).expect("a log");
    journal(&[b'r'; 300], &mut timed);
    let log = File::options().append(true).open(&log).expect("a log");
    (&log).write_all(&[b'-'; 150]).expect("a log");
    timed(&|| syncfs(&log));
    timed(&|| fsync(&log));
    journal(&[b'f'; 400], &mut timed);
    syncing
}

/// Nothing of what went before is left to be written.
fn settle(dir: &Path) {
    syncfs(File::open(dir).expect("a directory")).expect("the drive can be synced");
}

/// Jobs per second, with on and with off.
fn queues(broker: &Broker, place: &Scratch, name: &str) -> [Sample; 2] {
    let mut samples = <[Sample; 2]>::default();
    for round in 0..QUEUE_ROUNDS {
        for (sync, sample) in ["on", "off"].iter().zip(&mut samples) {
            let id = format!("sync-{name}-{sync}-{round}");
            sample.push(jobs_per_second(broker, place, &id, JOBS, sync));
        }
    }
    samples
}

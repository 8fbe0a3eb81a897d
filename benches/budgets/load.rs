//! Many jobs, and one with much to say.

use crate::cycle::open_session;
use crate::mqtt::Broker;
use crate::report::Figure;
use crate::scratch::Scratch;
use crate::statistics::Sample;
use crate::worker::{Running, command, program, time};
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;
const LOG_ROUNDS: usize = 7;

/// About what the worker's own lines before the first output take, in bytes.
const BEGIN: usize = 150;

pub fn throughput(broker: &Broker, scratch: &Scratch) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (jobs, rounds) in [(300, 5), (1_000, 3)] {
        let id = |round| format!("supervise-{jobs}-{round}");
        let sample: Sample = (0..rounds)
            .map(|round| jobs_per_second(broker, scratch, &id(round), jobs, "on"))
            .collect();
        figures.push(Figure::at_least(
            &format!("`supervise`, queue of {jobs} `true` jobs"),
            400.0,
            "jobs/s",
            &sample,
        ));
    }
    figures
}

/// Jobs per second from the start of `supervise` to the last result, for a queue of its own called `id`.
pub fn jobs_per_second(broker: &Broker, scratch: &Scratch, id: &str, jobs: u32, sync: &str) -> f64 {
    open_session(broker, id);
    let (mut controller, mut results) = (broker.client("controller"), broker.client("results"));
    results.subscribe(&format!("{id}/results/+"));
    for job in 0..jobs {
        let dir = scratch.dir(&format!("{id}-{job}"));
        let request = format!(
            r#"{{"id":"{job}","workDir":"{}","steps":["true"]}}"#,
            dir.display()
        );
        controller.publish(&format!("{id}/pending"), request.as_bytes());
    }
    let started = Instant::now();
    let mut supervise = command(program(), broker, id);
    supervise.arg("supervise").env("JOB_SYNC", sync);
    let _supervise = Running::start(&mut supervise);
    for _ in 0..jobs {
        let result = String::from_utf8_lossy(&results.message()).into_owned();
        assert!(result.contains("\"success\""), "{result}");
    }
    f64::from(jobs) / started.elapsed().as_secs_f64()
}

/// 1 GiB of output through a step, against the same command redirected by a shell.
pub fn log(broker: &Broker, scratch: &Scratch) -> Vec<Figure> {
    let output = format!("head -c {GIB} /dev/zero");
    let id = "log";
    open_session(broker, id);
    let mut controller = broker.client("controller");
    let mut submit = |steps: &[&str]| {
        let dir = scratch.dir("log");
        let request = format!(
            r#"{{"id":"a","workDir":"{}","steps":{steps:?}}}"#,
            dir.display()
        );
        controller.publish(&format!("{id}/pending"), request.as_bytes());
        dir
    };
    let (mut to_empty, mut to_begun) = (Sample::default(), Sample::default());
    for _ in 0..LOG_ROUNDS {
        let redirected = |begin: &[u8]| {
            let log = scratch.dir("redirected").join("log");
            fs::write(&log, begin).expect("a log");
            let time = time(
                Command::new("/bin/sh")
                    .arg("-c")
                    .arg(format!("{output} >> '{}' 2>&1", log.display())),
            );
            fs::remove_file(log).expect("a log");
            time.as_secs_f64()
        };
        let (empty, begun) = (redirected(b""), redirected(&[b'-'; BEGIN]));
        let dir = submit(&[&output]);
        let worker = time(&mut command(program(), broker, id)).as_secs_f64();
        let size = size(&dir);
        assert!(
            size > GIB && size < GIB + 4096,
            "all of it is in the log, which has {size} bytes"
        );
        scratch.dir("log");
        to_empty.push(worker / empty);
        to_begun.push(worker / begun);
    }

    // processor time and peak memory from the step before to the step after
    let mut taken = |step: &str| {
        let dir = submit(&["true", &gate("before"), step, &gate("after")]);
        let worker = Running::start(&mut command(program(), broker, id));
        await_file(&dir.join("before"));
        let before = (worker.processor_time(), worker.peak_memory());
        File::create(dir.join("before-passed")).expect("a file");
        await_file(&dir.join("after"));
        let after = (worker.processor_time(), worker.peak_memory());
        File::create(dir.join("after-passed")).expect("a file");
        worker.ends();
        (after.0 - before.0, after.1 - before.1)
    };
    let (mut time, mut memory) = (Sample::default(), Sample::default());
    for _ in 0..LOG_ROUNDS {
        let (quiet, loud) = (taken("true"), taken(&output));
        time.push(loud.0 - quiet.0);
        memory.push(loud.1 - quiet.1);
    }
    scratch.dir("log");

    vec![
        Figure::at_most(
            "log of 1 GiB through a step",
            1.1,
            "× the same command redirected by a shell",
            &to_empty,
        ),
        Figure::at_most(
            "the same, the shell's log beginning with a few lines, too",
            1.1,
            "×",
            &to_begun,
        ),
        Figure::told(
            "the worker's own processor time for this GiB: more than for a step of `true`",
            "ms",
            &time,
        ),
        Figure::at_most(
            "the worker's peak memory for this GiB: more than for a step of `true`",
            0.0,
            "kB",
            &memory,
        ),
    ]
}

/// A step that says that it is there, by a file of this name, and waits until it may go on.
pub fn gate(name: &str) -> String {
    format!("touch {name}; until [ -e {name}-passed ]; do sleep 0.02; done")
}

pub fn await_file(path: &Path) {
    let end = Instant::now() + Duration::from_secs(60);
    while !path.exists() {
        assert!(Instant::now() < end, "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(50)); // what the worker does right after having started the step
}

fn size(dir: &Path) -> u64 {
    dir.join("job.log").metadata().map_or(0, |log| log.len())
}

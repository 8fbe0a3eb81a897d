//! Many jobs, and one with much to say.

use crate::Place;
use crate::plots::{OURS, Plot, THEIRS};
use crate::report::{Budget::AtLeast, Budget::AtMost, Figure, Part, Sample};
use crate::worker::{Running, command, earlier_program, how, program, static_program, time};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

const ROUNDS: usize = 5;
const JOBS: usize = 300;
const GIB: u64 = 1 << 30;
const LOG_ROUNDS: usize = 7;

/// In milliseconds, of `restart: always`, as `SHORT_JOBS=12 tests/docker.sh` has measured them.
const DOCKER: [f64; 11] = [
    214.0, 313.0, 511.0, 911.0, 1_725.0, 3_326.0, 6_507.0, 12_909.0, 25_705.0, 51_313.0, 60_108.0,
];

/// Throughput of `supervise`, and its pauses.
pub fn throughput(at: &Place) -> Part {
    let what = format!("`supervise`, queue of {JOBS} `true` jobs, jobs per second");
    let figure = match (static_program(), earlier_program()) {
        (Some(now), Some(earlier)) => {
            let rate = |program: &Path, id: String| rate(at, program, &id, JOBS);
            let ratio = (0..ROUNDS).map(|round| {
                let before = rate(&earlier, format!("earlier-{round}"));
                rate(&now, format!("supervise-{round}")) / before
            });
            let means = "a long queue of very short jobs takes longer than it could; with jobs of seconds you do not notice it";
            Figure::new(
                &what,
                AtLeast(1.2),
                "× the first version",
                &ratio.collect(),
                means,
            )
        }
        _ => Figure::skipped(&what, how()),
    };
    Part {
        figures: vec![figure],
        plot: Some(pauses(at)),
        ..Part::default()
    }
}

/// Jobs per second from the start of `supervise` to the last result, for a queue of its own called `id`.
pub fn rate(at: &Place, program: &Path, id: &str, jobs: usize) -> f64 {
    let (took, ..) = supervise(at, program, id, jobs);
    jobs as f64 / took.as_secs_f64()
}

fn supervise(
    at: &Place,
    program: &Path,
    id: &str,
    jobs: usize,
) -> (Duration, Running, Vec<PathBuf>) {
    let broker = &at.broker;
    broker.open_queue(id);
    let (mut controller, mut results) = (broker.client("controller"), broker.client("results"));
    results.subscribe(&format!("{id}/results/+"));
    let dirs: Vec<_> = (0..jobs)
        .map(|job| at.memory.dir(&format!("{id}-{job}")))
        .collect();
    dirs.iter()
        .for_each(|dir| controller.submit(id, dir, "true"));
    let started = Instant::now();
    let supervise = Running::start(command(program, broker, id).arg("supervise"));
    results.await_successes(jobs);
    (started.elapsed(), supervise, dirs)
}

/// From the end of one job to the start of the next, by their journals.
fn pauses(at: &Place) -> Plot {
    let jobs = DOCKER.len() + 1;
    let (_, _supervise, dirs) = supervise(at, &program(), "pauses", jobs);
    let pause = |pair: &[PathBuf]| {
        let pause = told(&pair[1], "startedAt").duration_since(told(&pair[0], "finishedAt"));
        // the journals count in milliseconds, and the axis has no 0
        pause
            .map_or(1.0, |pause| pause.as_secs_f64() * 1e3)
            .max(1.0)
    };
    let ours: Vec<f64> = dirs.windows(2).map(pause).collect();
    let line = |name: &str, colour, pauses: &[f64]| {
        let all = pauses.iter().sum::<f64>() / 1e3;
        let points = (1..).map(f64::from).zip(pauses.iter().copied());
        crate::plots::Line {
            name: format!("{name}: {all:.2} s in all"),
            colour,
            points: points.collect(),
        }
    };
    let lines = vec![
        line("Docker's restart: always", THEIRS, &DOCKER),
        line("supervise", OURS, &ours),
    ];
    Plot::lines(
        "pauses",
        &format!("Pauses between {jobs} short jobs"),
        (("pause", None), ("milliseconds", Some(10.0))),
        &[("from the end of one job to the start of the next", lines)],
    )
}

/// What the journal of a job says. The first `startedAt` is that of the job.
fn told(job: &Path, field: &str) -> SystemTime {
    let journal = fs::read_to_string(job.join("job.status.json")).expect("a journal");
    let (_, rest) = journal
        .split_once(&format!("\"{field}\":\""))
        .expect("a time");
    let (time, _) = rest.split_once('"').expect("a time");
    humantime::parse_rfc3339(time).expect("a time")
}

/// 1 GiB of output through a step, against the same command redirected by a shell.
pub fn log(at: &Place) -> Part {
    let output = format!("head -c {GIB} /dev/zero");
    let id = "log";
    at.broker.open_queue(id);
    let mut controller = at.broker.client("controller");
    let mut submit = |step: &str| {
        let dir = at.memory.dir("log");
        controller.submit(id, &dir, step);
        dir
    };
    // the worker's own lines before the first output shift it, so that each block crosses a page: the shell's log begins so, too
    let begin = [b'-'; 150];
    let to_shell = (0..LOG_ROUNDS).map(|_| {
        let log = at.memory.dir("redirected").join("log");
        fs::write(&log, begin).expect("a log");
        let script = format!("{output} >> '{}' 2>&1", log.display());
        let redirected = time(Command::new("/bin/sh").arg("-c").arg(script));
        fs::remove_file(log).expect("a log");
        let dir = submit(&output);
        let worker = time(&mut command(program(), &at.broker, id));
        let size = dir.join("job.log").metadata().map_or(0, |log| log.len());
        assert!(
            size > GIB && size < GIB + 4096,
            "{size} bytes are not all of it"
        );
        at.memory.dir("log");
        worker / redirected
    });
    let to_shell: Sample = to_shell.collect();
    let figure = Figure::new(
        "log of 1 GiB through a step",
        AtMost(1.1),
        "× the same command redirected by a shell, behind as many bytes",
        &to_shell,
        "output is slower than it could be; nothing of ours is between step and file, so the drive or the machine is the reason",
    );
    Part {
        figures: vec![figure],
        ..Part::default()
    }
}

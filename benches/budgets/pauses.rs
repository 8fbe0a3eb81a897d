//! The pauses between short jobs: of Docker's restart policy, and of `supervise`.

use crate::cycle::open_session;
use crate::mqtt::Broker;
use crate::pictures;
use crate::plot::Picture;
use crate::scratch::Scratch;
use crate::worker::{Running, command, program};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// In milliseconds, of `restart: always`, as `tests/docker.sh` has measured them: it takes a Docker engine and three minutes.
const DOCKER: [f64; 11] = [
    214.0, 313.0, 511.0, 911.0, 1_725.0, 3_326.0, 6_507.0, 12_909.0, 25_705.0, 51_313.0, 60_108.0,
];

pub fn measure(broker: &Broker, scratch: &Scratch) -> Picture {
    let id = "pauses";
    open_session(broker, id);
    let (mut controller, mut results) = (broker.client("controller"), broker.client("results"));
    results.subscribe(&format!("{id}/results/+"));
    let jobs: Vec<_> = (0..=DOCKER.len())
        .map(|job| scratch.dir(&format!("{id}-{job}")))
        .collect();
    for (job, dir) in jobs.iter().enumerate() {
        let dir = dir.display();
        let request = format!(r#"{{"id":"{job}","workDir":"{dir}","steps":["true"]}}"#);
        controller.publish(&format!("{id}/pending"), request.as_bytes());
    }
    let _supervise = Running::start(command(program(), broker, id).arg("supervise"));
    jobs.iter().for_each(|_| _ = results.message());
    let pause = |pair: &[_]| -> f64 {
        let [before, after]: &[std::path::PathBuf; 2] = pair.try_into().expect("two");
        let pause = time(after, "startedAt").duration_since(time(before, "finishedAt"));
        // the journals count in milliseconds, and the axis has no 0
        pause.unwrap_or(Duration::ZERO).as_secs_f64().max(1e-3) * 1e3
    };
    let pauses: Vec<f64> = jobs.windows(2).map(pause).collect();
    pictures::pauses(&DOCKER, &pauses)
}

/// What the journal of a job says. The first `startedAt` is that of the job.
fn time(job: &Path, field: &str) -> SystemTime {
    let journal = fs::read_to_string(job.join("job.status.json")).expect("a journal");
    let (_, rest) = journal
        .split_once(&format!("\"{field}\":\""))
        .expect("a time");
    let (time, _) = rest.split_once('"').expect("a time");
    humantime::parse_rfc3339(time).expect("a time")
}

//! The whole design in one transcript, with nothing to install: `cargo run --example quickstart`.
//!
//! A controller (this program) prepares a directory and publishes a request that names it; a worker (a process of its own, as in
//! real life) takes the job, runs its steps with all output going to `job.log`, publishes the result and exits; a restart
//! policy (this program again) starts a fresh worker. The broker is the embedded one of the tests.

#[allow(dead_code)] // the tests use more of it
#[path = "../tests/support/broker.rs"]
mod broker;

use broker::Broker;
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

const JOB: &str = r#"{
  "steps": [
    "echo compiling...; sleep 0.3; echo 'int main(void) { return 0; }' > main.c; echo done",
    { "run": "for n in 1 2 3; do echo test $n of 3: ok; sleep 0.3; done", "name": "tests" },
    { "run": "echo \"job $JOB_ID, attempt $JOB_ATTEMPT, greets $GREETED\"; ls", "always": true }
  ],
  "env": { "GREETED": "the world" }
}
"#;

fn main() -> ExitCode {
    // as in `job-worker`: this program is also the worker, started once more by itself
    if std::env::args().nth(1).as_deref() == Some("worker") {
        return ExitCode::from(job_worker::cli::main(std::env::args_os().skip(2)).status());
    }
    match tell() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("quickstart: {error}");
            ExitCode::FAILURE
        }
    }
}

fn tell() -> Result<bool, Box<dyn Error>> {
    let drive = std::env::temp_dir().join(format!("job-worker-quickstart-{}", std::process::id()));
    let dir = drive.join("hello");
    std::fs::create_dir_all(&dir)?;
    let broker = Broker::start();
    say(
        "a broker",
        &format!(
            "listens on {}, and {} is the shared drive",
            broker.url(),
            drive.display()
        ),
    );

    let mut worker = start_worker(&broker, &drive)?;
    broker.wait_for_message("jobs/workers/+", 1, Duration::from_secs(20));
    say(
        "a worker",
        &format!(
            "(process {}) has subscribed to jobs/pending and waits for one job",
            worker.id()
        ),
    );

    std::fs::write(dir.join("job.json"), JOB)?;
    say(
        "the controller",
        "writes the job into a directory of its own, hello/job.json:",
    );
    JOB.lines().for_each(|line| println!("    {line}"));
    let request = r#"{"id": "hello", "workDir": "hello"}"#;
    say(
        "the controller",
        &format!("publishes the request on jobs/pending:\n    {request}"),
    );
    broker.publish("jobs/pending", request);

    say(
        "the steps",
        "write straight into hello/job.log, which anybody can follow:",
    );
    let result = follow(&broker, &dir)?;
    say(
        "the worker",
        &format!(
            "publishes the result on jobs/results/hello, and leaves it in hello/job.status.json:\n    {result}"
        ),
    );
    let status = worker.wait()?;
    say(
        "the worker",
        &format!("has done its one job and exits: {status}"),
    );

    let before = broker.received("jobs/workers/+").len();
    let mut fresh = start_worker(&broker, &drive)?;
    broker.wait_for_message("jobs/workers/+", before + 1, Duration::from_secs(20));
    say(
        "a fresh worker",
        &format!(
            "(process {}) waits for the next job; a restart policy would have started it",
            fresh.id()
        ),
    );
    fresh.kill()?;
    fresh.wait()?;
    std::fs::remove_dir_all(&drive)?;
    let succeeded = result.contains(r#""status":"success""#) && status.success();
    say(
        "result",
        if succeeded {
            "the job succeeded"
        } else {
            "the job FAILED"
        },
    );
    Ok(succeeded)
}

fn say(who: &str, what: &str) {
    println!("\n\u{2022} {who} {what}");
}

fn start_worker(broker: &Broker, drive: &Path) -> std::io::Result<Child> {
    let mut worker = Command::new(std::env::current_exe()?);
    worker
        .arg("worker")
        .env("MQTT_URL", broker.url())
        .env("JOB_ROOT", drive)
        .env("RUST_LOG", "warn");
    worker.spawn()
}

/// Shows the log as it grows, until the result is there.
fn follow(broker: &Broker, dir: &Path) -> Result<String, Box<dyn Error>> {
    let started = Instant::now();
    let mut shown = 0;
    loop {
        let result = broker.received("jobs/results/hello").into_iter().next();
        let log = std::fs::read_to_string(dir.join("job.log")).unwrap_or_default();
        let new = log.get(shown..).unwrap_or_default();
        new.split_inclusive('\n')
            .for_each(|line| print!("    {line}"));
        std::io::stdout().flush()?;
        shown = log.len();
        if let Some(message) = result {
            return Ok(message.text().to_string());
        }
        if started.elapsed() > Duration::from_secs(30) {
            return Err("no result within 30 s".into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

//! What the worker takes while it waits, and while a step runs: memory, wake-ups, and room on the disk.

use crate::cycle::open_session;
use crate::load::{await_file, gate};
use crate::mqtt::Broker;
use crate::report::Figure;
use crate::scratch::Scratch;
use crate::statistics::Sample;
use crate::worker::{HOW_STATIC, Running, command, program, static_program};
use std::fs::File;
use std::path::Path;
use std::time::Duration;

const ROUNDS: usize = 9;
const MIB: usize = 1 << 20;
const WATCHED: Duration = Duration::from_secs(5);

pub fn measure(broker: &Broker, scratch: &Scratch) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (program, which, has_budget) in [
        (Some(program()), "", false),
        (static_program(), ", static musl", true),
    ] {
        let Some(program) = program else {
            figures.push(Figure::skipped(&format!("peak memory{which}"), HOW_STATIC));
            continue;
        };
        let sample = |measured: &dyn Fn() -> f64| (0..ROUNDS).map(|_| measured()).collect();
        let memory: [(&str, bool, Sample); 4] = [
            (
                "idle",
                true,
                sample(&|| idle(&program, broker, "127.0.0.1")),
            ),
            (
                "idle, broker by name (`mqtt://localhost`)",
                true,
                sample(&|| idle(&program, broker, "localhost")),
            ),
            (
                "in a job",
                true,
                sample(&|| in_job(&program, broker, scratch, 0)),
            ),
            (
                "in a job whose request has 1 MiB",
                false,
                sample(&|| in_job(&program, broker, scratch, MIB - 200)),
            ),
        ];
        let mut figure = |what: String, limit: Option<f64>, unit: &str, sample: &Sample| {
            figures.push(match limit.filter(|_| has_budget) {
                Some(limit) => Figure::at_most(&what, limit, unit, sample),
                None => Figure::told(&what, unit, sample),
            });
        };
        for (what, is_usual, sample) in &memory {
            let limit = is_usual.then_some(1.0);
            figure(format!("peak memory{which}, {what}"), limit, "MB", sample);
        }
        let bytes = program.metadata().map_or(0, |file| file.len()) as f64;
        let size = Sample::from_iter([bytes / 1e3]);
        figure(
            format!("program{which}, release, stripped"),
            Some(900.0),
            "KB",
            &size,
        );
    }
    figures.extend(wake_ups(broker, scratch));
    figures
}

fn idle(program: &Path, broker: &Broker, host: &str) -> f64 {
    let id = "memory-idle";
    let worker = Running::idle(
        command(program, broker, id).env("MQTT_URL", format!("mqtt://{host}:{}", broker.port)),
        broker,
        id,
    );
    megabytes(&worker)
}

/// With a request that is padded with this many bytes of a field that means nothing.
fn in_job(program: &Path, broker: &Broker, scratch: &Scratch, padding: usize) -> f64 {
    let (id, dir) = ("memory-job", scratch.dir("memory-job"));
    open_session(broker, id);
    let (step, padding) = (gate("there"), "x".repeat(padding));
    let request = format!(
        r#"{{"id":"a","workDir":"{}","steps":["{step}"],"padding":"{padding}"}}"#,
        dir.display()
    );
    broker
        .client("controller")
        .publish(&format!("{id}/pending"), request.as_bytes());
    let worker = Running::start(command(program, broker, id).env("RUST_LOG", "error"));
    await_file(&dir.join("there"));
    let megabytes = megabytes(&worker);
    File::create(dir.join("there-passed")).expect("a file");
    worker.ends();
    megabytes
}

/// `VmHWM` counts in 1024 bytes, our budgets in 1000.
fn megabytes(worker: &Running) -> f64 {
    worker.peak_memory() * 1024.0 / 1e6
}

fn wake_ups(broker: &Broker, scratch: &Scratch) -> Vec<Figure> {
    let (id, dir) = ("wake-job", scratch.dir("wake-job"));
    open_session(broker, id);
    let mut controller = broker.client("controller");
    let request = format!(
        r#"{{"id":"a","workDir":"{}","steps":["touch there; exec sleep 60"]}}"#,
        dir.display()
    );
    controller.publish(&format!("{id}/pending"), request.as_bytes());
    let busy = Running::start(command(program(), broker, id).env("RUST_LOG", "error"));
    await_file(&dir.join("there"));
    let idle = Running::idle(
        &mut command(program(), broker, "wake-idle"),
        broker,
        "wake-idle",
    );
    let before = (idle.sleeps(), busy.sleeps());
    std::thread::sleep(WATCHED);
    let after = (idle.sleeps(), busy.sleeps());
    controller.publish(&format!("{id}/cancel/a"), b"");
    busy.ends();
    let seconds = WATCHED.as_secs();
    let figure = |what: &str, count: f64| {
        Figure::at_most(
            &format!("wake-ups {what}, in {seconds} s"),
            0.0,
            "but keep-alive",
            &Sample::from_iter([count]),
        )
    };
    vec![
        figure("while idle", after.0 - before.0),
        figure("while a step runs", after.1 - before.1),
    ]
}

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
    for (program, which, memory, size) in [
        (Some(program()), "", 2.5, 900.0),
        (static_program(), ", static musl", 1.5, 900.0),
    ] {
        let Some(program) = program else {
            figures.push(Figure::skipped(&format!("peak memory{which}"), HOW_STATIC));
            continue;
        };
        let waiting: Sample = (0..ROUNDS)
            .map(|_| idle(&program, broker, "127.0.0.1"))
            .collect();
        let by_name: Sample = (0..ROUNDS)
            .map(|_| idle(&program, broker, "localhost"))
            .collect();
        let job: Sample = (0..ROUNDS)
            .map(|_| in_job(&program, broker, scratch, 0))
            .collect();
        let large: Sample = (0..ROUNDS)
            .map(|_| in_job(&program, broker, scratch, MIB - 200))
            .collect();
        let mut figure = |what: &str, sample: &Sample| {
            figures.push(Figure::at_most(
                &format!("peak memory{which}, {what}"),
                memory,
                "MB",
                sample,
            ));
        };
        figure("idle", &waiting);
        figure("idle, broker by name (`mqtt://localhost`)", &by_name);
        figure("in a job", &job);
        figure("in a job whose request has 1 MiB", &large);
        let bytes = program.metadata().map_or(0, |file| file.len()) as f64;
        figures.push(Figure::at_most(
            &format!("program{which}, release, stripped"),
            size,
            "KB",
            &Sample::from_iter([bytes / 1e3]),
        ));
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

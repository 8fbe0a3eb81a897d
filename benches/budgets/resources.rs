//! What the worker takes while it waits, and while a step runs: memory, wake-ups, and room on the disk.

use crate::Place;
use crate::report::{Budget::AtMost, Figure, Part, Sample, table};
use crate::worker::{
    HOW_STATIC, Running, await_file, built_program, command, gate, program, static_program,
};
use std::fs::File;
use std::path::Path;
use std::time::Duration;

const ROUNDS: usize = 9;
const MIB: usize = 1 << 20;
const WATCHED: Duration = Duration::from_secs(5);

pub fn measure(at: &Place) -> Part {
    let mut figures = Vec::new();
    let mut rows = Vec::new();
    for (name, program) in [
        ("static", static_program()),
        ("with glibc", Some(built_program())),
    ] {
        let Some(program) = program else {
            figures.push(Figure::skipped("program and memory, static", HOW_STATIC));
            continue;
        };
        let sample =
            |measured: &dyn Fn() -> f64| (0..ROUNDS).map(|_| measured()).collect::<Sample>();
        let bytes = program.metadata().map_or(0, |file| file.len()) as f64;
        let size = Sample(vec![bytes / 1e3]);
        let idle = sample(&|| idle(at, &program, "127.0.0.1"));
        let by_name = sample(&|| self::idle(at, &program, "localhost"));
        let busy = sample(&|| in_job(at, &program, 0));
        let large = sample(&|| in_job(at, &program, MIB - 200));
        if name == "static" {
            let means = "more to download, and to load at each start";
            figures.push(Figure::new(
                "program, static",
                AtMost(780.0),
                "KB",
                &size,
                means,
            ));
            let means =
                "matters where hundreds of workers wait on one machine, or on the smallest boards";
            figures.push(Figure::new(
                "peak memory, static, idle",
                AtMost(0.9),
                "MB",
                &idle,
                means,
            ));
            figures.push(Figure::new(
                "peak memory, static, in a job",
                AtMost(1.0),
                "MB",
                &busy,
                means,
            ));
        }
        rows.push([
            name.to_owned(),
            size.to_string(),
            idle.to_string(),
            by_name.to_string(),
            busy.to_string(),
            large.to_string(),
        ]);
    }
    figures.extend(wake_ups(at));
    let titles = [
        "program",
        "size, KB",
        "peak memory, idle, MB",
        "broker by name",
        "in a job",
        "in a job whose request has 1 MiB",
    ];
    Part {
        figures,
        tables: table(&titles, rows),
        plot: None,
    }
}

fn idle(at: &Place, program: &Path, host: &str) -> f64 {
    let id = "memory-idle";
    let url = format!("mqtt://{host}:{}", at.broker.port);
    let mut command = command(program, &at.broker, id);
    Running::idle(command.env("MQTT_URL", url), &at.broker, id).peak_memory()
}

/// With a request that is padded with this many bytes of a field that means nothing.
fn in_job(at: &Place, program: &Path, padding: usize) -> f64 {
    let (id, dir) = ("memory-job", at.memory.dir("memory-job"));
    at.broker.open_queue(id);
    let padding = format!(",\"padding\":\"{}\"", "x".repeat(padding));
    at.broker
        .client("controller")
        .submit(id, &dir, &[&gate("there")], &padding);
    let worker = Running::start(&mut command(program, &at.broker, id));
    await_file(&dir.join("there"));
    let peak = worker.peak_memory();
    File::create(dir.join("there-passed")).expect("a file");
    worker.ends();
    peak
}

fn wake_ups(at: &Place) -> [Figure; 2] {
    let (id, dir) = ("wake-job", at.memory.dir("wake-job"));
    at.broker.open_queue(id);
    let mut controller = at.broker.client("controller");
    controller.submit(id, &dir, &["touch there; exec sleep 60"], "");
    let busy = Running::start(&mut command(program(), &at.broker, id));
    await_file(&dir.join("there"));
    let idle = Running::idle(
        &mut command(program(), &at.broker, "wake-idle"),
        &at.broker,
        "wake-idle",
    );
    let before = [idle.sleeps(), busy.sleeps()];
    std::thread::sleep(WATCHED);
    let after = [idle.sleeps(), busy.sleeps()];
    controller.publish(&format!("{id}/cancel/a"), b"");
    busy.ends();
    let figure = |what: &str, at: usize| {
        let what = format!("wake-ups {what}, in {} s", WATCHED.as_secs());
        let count = Sample(vec![after[at] - before[at]]);
        Figure::new(
            &what,
            AtMost(0.0),
            "but keep-alive",
            &count,
            "a waiting worker costs a little power",
        )
    };
    [figure("while idle", 0), figure("while a step runs", 1)]
}

//! What the worker takes while it waits, and while a step runs: memory, wake-ups, and room on the disk.

use crate::Place;
use crate::report::{Budget::AtMost, Figure, Part, Sample, table};
use crate::worker::{Running, await_file, built_program, command, how, program, static_program};
use std::path::Path;
use std::time::Duration;

const ROUNDS: usize = 9;
const WATCHED: Duration = Duration::from_secs(5);

pub fn measure(at: &Place) -> Part {
    let (mut figures, mut rows) = (Vec::new(), Vec::new());
    for (name, program) in [
        ("static", static_program()),
        ("with glibc", Some(built_program())),
    ] {
        let Some(program) = program else {
            figures.push(Figure::skipped("program and memory, static", how()));
            continue;
        };
        let bytes = program.metadata().map_or(0, |file| file.len());
        let size = Sample(vec![bytes as f64 / 1e3]);
        let peaks = |_| with_both(at, &program, |both| both.map(Running::peak_memory));
        let (idle, busy): (Vec<f64>, Vec<f64>) = (0..ROUNDS).map(peaks).map(Into::into).unzip();
        let [idle, busy] = [Sample(idle), Sample(busy)];
        let waits = "you notice it where hundreds of workers wait on one machine, or on the smallest boards";
        let wishes = [
            (
                "program, static",
                780.0,
                "KB",
                &size,
                "each start has more to load",
            ),
            ("peak memory, static, idle", 0.9, "MB", &idle, waits),
            ("peak memory, static, in a job", 1.0, "MB", &busy, waits),
        ];
        for (what, limit, unit, sample, means) in wishes.into_iter().filter(|_| name == "static") {
            figures.push(Figure::new(what, AtMost(limit), unit, sample, means));
        }
        let [size, idle, busy] = [size, idle, busy].map(|sample| sample.to_string());
        rows.push([name.to_owned(), size, idle, busy]);
    }
    let woken = with_both(at, &program(), |both| {
        let before = both.map(Running::sleeps);
        std::thread::sleep(WATCHED);
        [both[0].sleeps() - before[0], both[1].sleeps() - before[1]]
    });
    for (what, count) in ["while idle", "while a step runs"].into_iter().zip(woken) {
        let what = format!("wake-ups {what}, in {} s", WATCHED.as_secs());
        let (count, means) = (Sample(vec![count]), "a waiting worker costs a little power");
        figures.push(Figure::new(
            &what,
            AtMost(0.0),
            "but keep-alive",
            &count,
            means,
        ));
    }
    let titles = [
        "program",
        "size, KB",
        "peak memory, idle, MB",
        "in a job, MB",
    ];
    let tables = table(&titles, rows);
    let plot = None;
    Part {
        figures,
        tables,
        plot,
    }
}

/// With a worker that waits for a job, and one that has one.
fn with_both(at: &Place, program: &Path, look: impl FnOnce([&Running; 2]) -> [f64; 2]) -> [f64; 2] {
    let dir = at.memory.dir("busy");
    at.broker.open_queue("busy");
    let mut controller = at.broker.client("controller");
    controller.submit("busy", &dir, "touch there; exec sleep 600");
    let busy = Running::start(&mut command(program, &at.broker, "busy"));
    await_file(&dir.join("there"));
    let idle = Running::idle(
        &mut command(program, &at.broker, "idle"),
        &at.broker,
        "idle",
    );
    let seen = look([&idle, &busy]);
    controller.publish("busy/cancel/a", b"");
    busy.ends();
    seen
}

//! Measures every figure of the budgets side by side in one run, and prints BENCHMARKS.md: `cargo bench --bench budgets`. With
//! `-- --write` it also writes that file, and the pictures in it. `-- --only NAME` measures one of the stages alone.
//!
//! What is compared is measured in the same round, one after the other, so that other work on the machine meets all alike;
//! the ratios of these pairs are what to look at, not the milliseconds. Mosquitto and its clients are needed, npm is not, nor are
//! `strace` and a static binary (`JOB_WORKER_STATIC`).

mod cycle;
mod fleet;
mod growth;
mod load;
mod machine;
mod mqtt;
mod page;
mod pauses;
mod pictures;
mod plot;
mod pool;
mod report;
mod resources;
mod scratch;
mod statistics;
#[path = "../../tests/support/mod.rs"]
mod support;
mod sync;
mod tap;
mod turns;
mod worker;

use machine::load;
use mqtt::Broker;
use report::Part;
use scratch::Scratch;
use std::path::Path;
use std::time::Instant;

/// Where a stage measures.
struct Place {
    broker: Broker,
    memory: Scratch,
    disk: Scratch,
}

/// One part of what is measured: its name, what is said when it begins, and what it does.
type Stage = (&'static str, &'static str, fn(&Place) -> Part);

const STAGES: [Stage; 8] = [
    (
        "cycle",
        "the whole cycle, against its limit, a shell loop and mqtt.js",
        |at| cycle::measure(&at.broker, &at.memory, &at.disk).into(),
    ),
    ("growth", "the cycle at growing queues", |at| {
        growth::measure(&at.broker, &at.memory).into()
    }),
    (
        "supervise",
        "throughput of supervise, and its pauses",
        |at| {
            let figures = load::throughput(&at.broker, &at.memory);
            (figures, pauses::measure(&at.broker, &at.memory)).into()
        },
    ),
    ("pool", "throughput of a pool", |at| {
        pool::measure(&at.broker, &at.memory).into()
    }),
    ("turns", "members of a pool that wait", |at| {
        turns::measure(&at.broker, &at.memory).into()
    }),
    ("sync", "what JOB_SYNC costs", |at| {
        sync::measure(&at.broker, &at.memory, &at.disk).into()
    }),
    ("log", "1 GiB of log", |at| {
        load::log(&at.broker, &at.memory).into()
    }),
    ("resources", "memory, wake-ups, size", |at| {
        resources::measure(&at.broker, &at.memory).into()
    }),
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let asked = |flag: &str| arguments.iter().position(|argument| argument == flag);
    // `cargo test --benches` only wants to know that it can be started
    if asked("--bench").is_none() {
        return;
    }
    let only = asked("--only").map(|at| arguments.get(at + 1).map_or("", String::as_str));
    let stages: Vec<_> = STAGES
        .into_iter()
        .filter(|(name, ..)| only.is_none_or(|only| only == *name))
        .collect();
    let names = STAGES.map(|(name, ..)| name);
    assert!(!stages.is_empty(), "--only takes one of {names:?}");

    let (started, load) = (Instant::now(), load());
    let memory = Scratch::in_memory();
    let place = Place {
        broker: Broker::start(&memory),
        memory,
        disk: Scratch::on_disk(),
    };
    let seconds = || started.elapsed().as_secs();
    let parts: Vec<_> = stages
        .into_iter()
        .map(|(name, what, measure)| {
            eprintln!("{:4} s  {what}", seconds());
            (name, measure(&place))
        })
        .collect();
    eprintln!("{:4} s  done", seconds());

    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let is_written = asked("--write").is_some();
    if is_written {
        let pictures = parts.iter().filter_map(|(_, part)| part.picture.as_ref());
        pictures.for_each(|picture| picture.write(repository).expect("a picture"));
    }
    if only.is_some() {
        parts.iter().for_each(|(_, part)| println!("{part}"));
        return;
    }
    let page = page::page(&parts, &load, seconds(), &place.memory.describe());
    println!("{page}");
    if is_written {
        std::fs::write(repository.join("BENCHMARKS.md"), page).expect("BENCHMARKS.md");
    }
}

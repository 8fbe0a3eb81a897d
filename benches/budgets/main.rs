//! Measures every figure of the budgets side by side in one run, and prints BENCHMARKS.md: `cargo bench --bench budgets`. With
//! `-- --write` it also writes that file, and the pictures in it. `-- --only NAME` measures one of the stages alone.
//!
//! What is compared is measured in the same round, one after the other, so that other work on the machine meets all alike;
//! the ratios of these pairs are what to look at, not the milliseconds. Only Mosquitto and its clients are needed. What lacks
//! a tool (npm, strace, perf, valgrind, qemu) or a program is left out with a word.
//!
//! `JOB_WORKER_STATIC` is the program that is measured, `JOB_WORKER_EARLIER` the one that it is compared with: BENCHMARKS.md says how to
//! build them.
//! `JOB_WORKER_FOREIGN` are programs for other processors, separated by `:`, whose instructions qemu counts.

mod cycle;
mod load;
mod machine;
mod mqtt;
mod page;
mod phases;
mod plots;
mod pool;
mod report;
mod resources;
#[path = "../../tests/support/mod.rs"]
mod support;
mod sync;
mod worker;

use machine::Scratch;
use mqtt::Broker;
use report::{Figure, Part};
use std::path::Path;
use std::time::Instant;

/// Where a stage measures.
struct Place {
    broker: Broker,
    memory: Scratch,
    disk: Scratch,
}

/// One part of what is measured: its name, and what it does.
type Stage = (&'static str, fn(&Place) -> Part);

const STAGES: [Stage; 8] = [
    ("cycle", cycle::measure),
    ("growth", pool::growth),
    ("supervise", load::throughput),
    ("pool", pool::throughput),
    ("turns", pool::turns),
    ("sync", sync::measure),
    ("log", load::log),
    ("resources", resources::measure),
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let asked = |flag: &str| arguments.iter().position(|argument| argument == flag);
    // `cargo test --benches` only wants to know that it can be started
    if asked("--bench").is_none() {
        return;
    }
    let only = asked("--only").map(|at| arguments.get(at + 1).map_or("", String::as_str));
    let stages = STAGES.into_iter();
    let stages: Vec<_> = stages
        .filter(|(name, _)| only.is_none_or(|only| only == *name))
        .collect();
    let names = STAGES.map(|(name, _)| name);
    assert!(!stages.is_empty(), "--only takes one of {names:?}");

    let (started, load) = (Instant::now(), machine::load());
    let memory = Scratch::in_memory();
    let place = Place {
        broker: Broker::start(&memory),
        memory,
        disk: Scratch::on_disk(),
    };
    let seconds = || started.elapsed().as_secs();
    let measure = |(name, measure): Stage| {
        eprintln!("{:4} s  {name}", seconds());
        (name, measure(&place))
    };
    let parts: Vec<_> = stages.into_iter().map(measure).collect();
    eprintln!("{:4} s  done", seconds());

    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let is_written = asked("--write").is_some();
    if is_written {
        let plots = parts.iter().filter_map(|(_, part)| part.plot.as_ref());
        plots.for_each(|plot| plot.write(repository));
    }
    if only.is_some() {
        for (_, part) in &parts {
            println!("{}\n{}", Figure::table(part.figures.iter()).0, part.tables);
        }
        return;
    }
    let page = page::page(&parts, &load, seconds(), &place.memory.describe());
    println!("{page}");
    if is_written {
        std::fs::write(repository.join("BENCHMARKS.md"), page).expect("BENCHMARKS.md");
    }
}

//! Measures every figure of the budgets side by side in one run, and prints BENCHMARKS.md: `cargo bench --bench budgets`. With
//! `-- --write` it also writes that file. `-- --only-cycle` and `-- --only-sync` measure nothing but the whole cycle, and the cost
//! of `JOB_SYNC`.
//!
//! What is compared is measured in the same round, one after the other, so that other work on the machine meets all alike;
//! the ratios of these pairs are what to look at, not the milliseconds. Mosquitto and its clients are needed, npm is not, nor is a
//! static binary (`JOB_WORKER_STATIC`).

mod cycle;
mod load;
mod machine;
mod mqtt;
mod report;
mod resources;
mod scratch;
mod statistics;
#[path = "../../tests/support/mod.rs"]
mod support;
mod sync;
mod worker;

use mqtt::Broker;
use report::Figure;
use scratch::Scratch;
use std::time::Instant;

fn main() {
    // `cargo test --benches` only wants to know that it can be started
    let asked = |flag: &str| std::env::args().any(|argument| argument == flag);
    if !asked("--bench") {
        return;
    }
    let started = Instant::now();
    let stage = |name: &str| eprintln!("{:4.0} s  {name}", started.elapsed().as_secs_f64());
    let (load, scratch) = (machine::load(), Scratch::in_memory());
    let broker = Broker::start(&scratch);
    let disk = Scratch::on_disk();
    if asked("--only-sync") {
        let (figures, syncs) = sync::measure(&broker, &scratch, &disk);
        println!("{}\n{syncs}", Figure::table(figures));
        return;
    }

    if asked("--only-cycle") {
        let (figures, cycles) = cycle::measure(&broker, &scratch, &disk);
        println!("{}\n{cycles}", Figure::table(figures));
        return;
    }
    stage("the whole cycle, against its limit, a shell loop and mqtt.js");
    let (mut figures, cycles) = cycle::measure(&broker, &scratch, &disk);
    stage("the cycle at growing queues");
    let queues = cycle::at_growing_queues(&broker, &scratch);
    stage("throughput of supervise");
    figures.extend(load::throughput(&broker, &scratch));
    stage("what JOB_SYNC costs");
    let (sync_figures, syncs) = sync::measure(&broker, &scratch, &disk);
    figures.extend(sync_figures);
    stage("1 GiB of log");
    figures.extend(load::log(&broker, &scratch));
    stage("memory, wake-ups, size");
    figures.extend(resources::measure(&broker, &scratch));
    stage("done");

    let (machine, jobs, budgets) = (
        machine::description(),
        scratch.describe(),
        Figure::table(figures),
    );
    let seconds = started.elapsed().as_secs();
    let page = format!(
        "# Benchmarks

Measured and written by

```console
$ cargo bench --bench budgets -- --write
```

on {machine}; load of the machine before the run: {load}; {seconds} s; jobs in {jobs}, unless it says otherwise.

A figure is the median, with the quartiles in brackets. Each ratio is one of two times that were measured in the same round, right
after each other, so that other work on the machine meets both. MB and KB count in thousands. With `JOB_WORKER_STATIC` set to a
static program (`.ci/release`), that is measured, too.

## Budgets

{budgets}
What stands in the way of those that are not met:

- Cycle with glibc: the dynamic program takes 0.4 ms longer to start than the static one, for the loader, for what it asks of the
  processor (slow in a virtual machine), and for what Rust's runtime asks of glibc.
- Memory with glibc: more than half of it are pages of the C library and the loader, which all processes share.
- Program with glibc, and its memory: 200 KB are the backtraces of Rust's standard library, which a stock toolchain always links;
  `.ci/release` builds that library without them.
- Memory with a request of 1 MiB: the request itself, once as a packet and once as it grew.
- Log: the worker's own lines at the beginning of the log shift the output, so that each block that is written crosses a page of
  the cache. A shell's redirect behind as many lines takes as long.

## The whole cycle

{cycles}
A round trip is a PUBLISH at QoS 1 of 256 bytes until its PUBACK, on a connection that stands, with TCP_NODELAY; connecting,
which everybody but this reference has to do, is not in it. The shell loop gives the best guarantee that it can (persistent
session, QoS 1), and still loses the job if it dies in it, since `mosquitto_sub` acknowledges before the step begins; neither
it nor the one on mqtt.js has the locks, the sweeping, the status while the job runs, or the cancel of Job Worker. The broker
is Mosquitto on loopback, without persistence.

## What `JOB_SYNC` costs

{syncs}
The bare syncs are those of one job, on the same file system, with as much to write, by a loop in the benchmark: the journal and its
directory before the first step, the whole file system and the log after the last one, the final journal and its directory. All three are
measured in the same round; before each, the file system is synced, so that nothing of what went before is left to be written.

## Growth with the queue

{queues}
The second column is a client of the benchmark that connects with the worker's session, waits for the first request, and
leaves: what Mosquitto itself needs.

## How the rest is measured

- `supervise`: from its start to the last result, by a subscriber of `results/+`.
- Log: `head -c 1073741824 /dev/zero` as a step, from the start of the worker to its end, against `sh -c` with a redirect. The
  worker's own processor time and peak memory are taken between the step before and the step after.
- Memory: `VmHWM` of /proc/PID/status, which counts every page of the C library and of the program that is mapped, shared or
  not; between two runs it differs by some 64 kB, by what the kernel maps around a page.
- Wake-ups: voluntary context switches of all threads of the worker (/proc/PID/task/*/status).
"
    );
    println!("{page}");
    if asked("--write") {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/BENCHMARKS.md"), page)
            .expect("BENCHMARKS.md can be written");
    }
}

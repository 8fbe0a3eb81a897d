//! The text of BENCHMARKS.md.

use crate::machine;
use crate::report::{Figure, Part};

/// All of it, of a run that took so many seconds on a machine with this load, with its jobs in `jobs`.
pub fn page(parts: &[(&str, Part)], load: &str, seconds: u64, jobs: &str) -> String {
    let machine = machine::description();
    let budgets = Figure::table(parts.iter().flat_map(|(_, part)| &part.figures));
    let part = |name: &str| parts.iter().find(|(other, _)| *other == name);
    let table = |name| {
        let table = part(name).and_then(|(_, part)| part.table.as_ref());
        table.map_or(String::new(), ToString::to_string)
    };
    let picture = |name| {
        let picture = part(name).and_then(|(_, part)| part.picture.as_ref());
        picture.map_or(String::new(), |picture| picture.link())
    };
    let [cycle, growth, pool, turns, sync] =
        ["cycle", "growth", "pool", "turns", "sync"].map(table);
    let [cycle_picture, growth_picture, pool_picture, pauses_picture] =
        ["cycle", "growth", "pool", "supervise"].map(picture);
    format!(
        "# Benchmarks

Measured and written by

```console
$ cargo bench --bench budgets -- --write
```

on {machine}; load of the machine before the run: {load}; {seconds} s; jobs in {jobs}, unless it says otherwise.

A figure is the median, with the quartiles in brackets. Each ratio is one of two times that were measured in the same round, right
after each other, so that other work on the machine meets both. MB and KB count in thousands. With `JOB_WORKER_STATIC` set to a
static program without TLS (`.ci/release`), that is measured, too.

## Budgets

{budgets}
What the figures are made of:

- Cycle with glibc: the dynamic program takes 0.4 ms longer to start than the static one, for the loader, for what it asks of the
  processor (slow in a virtual machine), and for what Rust's runtime asks of glibc.
- Memory with glibc: more than half of it are pages of the C library and the loader, which all processes share.
- Program with glibc, and its memory: 200 KB are the backtraces of Rust's standard library, which a stock toolchain always links;
  `.ci/release` builds that library without them.
- Memory with a request of 1 MiB: the request itself, once as a packet and once as it grew.
- Log: the worker's own lines at the beginning of the log shift the output, so that each block that is written crosses a page of
  the cache. A shell's redirect behind as many lines takes as long.

## The whole cycle

{cycle_picture}

{cycle}
A round trip is a PUBLISH at QoS 1 of 256 bytes until its PUBACK, on a connection that stands, with TCP_NODELAY; connecting,
which everybody but this reference has to do, is not in it. The shell loop gives the best guarantee that it can (persistent
session, QoS 1), and still loses the job if it dies in it, since `mosquitto_sub` acknowledges before the step begins; neither
it nor the one on mqtt.js has the locks, the sweeping, the status while the job runs, or the cancel of Job Worker. The broker
is Mosquitto on loopback, without persistence.

## What `JOB_SYNC` costs

{sync}
The bare syncs are those of one job, on the same file system, with as much to write, by a loop in the benchmark: the journal and its
directory before the first step, the whole file system and the log after the last one, the final journal and its directory. All three are
measured in the same round; before each, the file system is synced, so that nothing of what went before is left to be written.

## Growth with the queue

{growth_picture}

{growth}
A member's turn as the head is from its connection with the pool's session to its DISCONNECT, as a proxy before the broker sees it. The
last column is a client of the benchmark that connects with the worker's session, waits for the first request, and
leaves: what Mosquitto itself needs.

## A pool

{pool_picture}

{pool}
Each member is a `supervise` with `JOB_POOL`. The time begins with the start of all of them, and ends with the last result.

{turns}
Here one job of `true` runs at a time, and so many members wait beside the one that runs it. A proxy before the broker counts the
messages of all members: requests, results, status, presence. Each member hears the presence of all others, so what is delivered
grows with their number. The wake-ups are of each member, of which one is the head, in a pool without a job. The tries for the lock on
`head.lock` are counted with `strace`.

## Pauses between jobs

{pauses_picture}

Docker's pauses are those that `tests/docker.sh` has measured: it needs a Docker engine, and three minutes. Those of `supervise` are of
this run.

## How the rest is measured

- `supervise`: from its start to the last result, by a subscriber of `results/+`.
- Log: `head -c 1073741824 /dev/zero` as a step, from the start of the worker to its end, against `sh -c` with a redirect. The
  worker's own processor time and peak memory are taken between the step before and the step after.
- Memory: `VmHWM` of /proc/PID/status, which counts every page of the C library and of the program that is mapped, shared or
  not; between two runs it differs by some 64 kB, by what the kernel maps around a page.
- Wake-ups: voluntary context switches of all threads of the worker (/proc/PID/task/*/status).
"
    )
}

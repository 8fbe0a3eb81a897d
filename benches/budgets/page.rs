//! The text of BENCHMARKS.md.

use crate::machine;
use crate::report::{Figure, Part};

/// All of it, of a run that took so many seconds on a machine with this load, with its jobs in `jobs`.
pub fn page(parts: &[(&str, Part)], load: &str, seconds: u64, jobs: &str) -> String {
    let (machine, load_now) = (machine::description(), machine::load());
    let (figures, missed) = Figure::table(parts.iter().flat_map(|(_, part)| &part.figures));
    let missed = match missed.as_str() {
        "" => "None is missed.\n",
        some => some,
    };
    let section = |name: &str| {
        let part = parts.iter().find(|(other, _)| *other == name);
        part.map_or(String::new(), |(_, part)| {
            let plot = part.plot.as_ref().map(|plot| plot.link() + "\n\n");
            plot.unwrap_or_default() + &part.tables
        })
    };
    let [cycle, growth, supervise, pool, sync, resources] =
        ["cycle", "growth", "supervise", "pool", "sync", "resources"].map(section);
    format!(
        "# Benchmarks

`cargo bench --bench budgets -- --write` measures all of this in one run, and writes this page. It ran on {machine}; jobs are in {jobs},
unless it says otherwise. The run took {seconds} s. The load of the machine was {load} when it began and {load_now} when it ended: this run is 1
to 2 of it, all above is other work.

A figure is the median, with the quartiles in brackets. Each ratio is one of two times that were measured in the same round, right after
each other, so that other work meets both: look at the ratios, the milliseconds are this machine's. MB and KB count in thousands.

*Static* is the released program without TLS, for which `JOB_WORKER_STATIC` is set. *The first version* is the commit 50f6e02 with the release
settings of today, for which `JOB_WORKER_EARLIER` is set:

```console
$ git worktree add /tmp/first 50f6e02 && cp .ci/release /tmp/first/.ci/release
$ (cd /tmp/first && KINDS=minimal .ci/release /tmp/out x86_64-unknown-linux-musl)
$ KINDS=minimal .ci/release /tmp/out x86_64-unknown-linux-musl
$ export JOB_WORKER_EARLIER=$(echo /tmp/out/job-worker-0.1.0-*) JOB_WORKER_STATIC=$(echo /tmp/out/job-worker-0.[2-9]*-minimal)
```

## Wishes and figures

The wishes are our own: what we want a worker on a small board to be. Nobody relies on them, and no test asserts them.

{figures}
What the misses mean for a user:

{missed}
## The whole cycle

{cycle}
A round trip is a PUBLISH at QoS 1 of 256 bytes until its PUBACK, on a connection that stands; connecting, which all but this reference
have to do, is not in it. The shell script gives the best guarantee that it can (persistent session, QoS 1), and still loses the job that it
dies in, because `mosquitto_sub` acknowledges before the step begins. Neither the script nor the worker on mqtt.js has the
locks, the sweeping, the status while the job runs, or the cancel of Job Worker. The broker is Mosquitto on loopback, without persistence.

System calls and page faults are those of the worker, without the step's own. They come from `strace` and `perf`, the instructions from
valgrind, and for other processors from qemu. Where there are two numbers, the second is the first version's.

## Growth with the queue

{growth}
The last column is a client of the benchmark that connects with the worker's session, waits for the first request, and
leaves: what Mosquitto itself needs.

## A pool

{pool}
Each member is a `supervise` with `JOB_POOL`. The time begins with the start of all of them, and ends with the last result. Between two heads
the time is from the one broker's line in its log to the next: a client has disconnected, another has connected.

## What `JOB_SYNC` costs

{sync}
The bare syncs are those of one job, on the same file system, with as much to write, by a loop in the benchmark: the journal and its
directory before the first step, the whole file system and the log after the last one, the final journal and its directory.

## Pauses between jobs

{supervise}
Docker's pauses are those that `tests/docker.sh` has measured: it needs a Docker engine, and three minutes.

## Size and memory

{resources}
Memory is the peak of what is resident (`VmHWM`): every page of the program and of the C library that is mapped, shared or not. With
glibc more than half of it are pages of that library and its loader. A request of 1 MiB is held once as a packet and once as it grew.
Wake-ups are voluntary context switches of all threads of the worker.
"
    )
}

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
unless it says otherwise. The run took {seconds} s. The load of the machine was {load} when it began and {load_now} when it ended. The benchmark itself makes a load of 1
to 2; what is above that was other work.

A figure is the median, with the quartiles in brackets. A ratio (×) compares two times that were measured right after
each other, so other work meets both. So look at the ratios, because the milliseconds are this machine's. MB and KB count in thousands.

*Static* is the released program without TLS; `JOB_WORKER_STATIC` names its file. *The first version* is the commit 50f6e02 with the release
settings of today; `JOB_WORKER_EARLIER` names its file. These commands make both:

```console
$ git worktree add /tmp/first 50f6e02 && cp .ci/release /tmp/first/.ci/release
$ (cd /tmp/first && KINDS=minimal .ci/release /tmp/out x86_64-unknown-linux-musl)
$ KINDS=minimal .ci/release /tmp/out x86_64-unknown-linux-musl
$ export JOB_WORKER_EARLIER=$(echo /tmp/out/job-worker-0.1.0-*) JOB_WORKER_STATIC=$(echo /tmp/out/job-worker-0.[2-9]*-minimal)
```

## Wishes and figures

The wishes are our own: they say what we want a worker on a small board to be. The reference promises none of them, and no test asserts them.

A *whole cycle* is one job of one `true` step: the process starts, runs the job, has its result acknowledged, and exits. *The least* is what no worker can
save: a spawn of `sh -c true`, a spawn of `/bin/true` and three round trips to the broker. *The script* is `mosquitto_sub -C 1`, `sh` and `mosquitto_pub`.

{figures}
What the misses mean for a user:

{missed}
## The whole cycle

{cycle}
A round trip is a PUBLISH at QoS 1 of 256 bytes until its PUBACK, on a connection that is there already. So the least has no time for connecting, which every
worker needs. The script gives the best guarantee that it can (persistent session, QoS 1). It still loses the job in which it
dies, because `mosquitto_sub` acknowledges before the step begins. Neither the script nor the worker on mqtt.js has Job Worker's
locks, its status while the job runs, or its cancel, and neither ends what a step leaves behind. The broker is Mosquitto on loopback, without persistence.

System calls and page faults are those of the worker, without the step's own. `strace` and `perf` count them. valgrind counts the instructions,
and qemu those of other processors. Where a cell has two numbers, the second is the first version's.

## Growth with the queue

{growth}
The last column is what Mosquitto itself needs. A client of the benchmark connects with the worker's session, waits for the first request, and
leaves.

## A pool

{pool}
Each member is a `supervise` with `JOB_POOL`. The time begins with the start of all members, and ends with the last result. The time between two heads
is from the line in the broker's log that says that the first one has disconnected, to the line that says that the next one has connected.

## What `JOB_SYNC` costs

{sync}
The bare syncs are those of one job without the job. A loop in the benchmark writes as much to the same file system, and syncs the journal and its
directory as before the first step, then the whole file system and the log, the final journal and its directory as after the last step.

## Pauses between jobs

{supervise}
`tests/docker.sh` has measured Docker's pauses. It needs a Docker engine, and with `SHORT_JOBS=12` three minutes.

## Size and memory

{resources}
Memory is the peak of what is resident (`VmHWM`): every page of the program and of the C library that is mapped, shared or not. With
glibc more than half of these pages are that library's and its loader's. A request of 1 MiB takes twice its size.
Wake-ups are voluntary context switches of all threads of the worker.
"
    )
}

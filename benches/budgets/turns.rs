//! What it costs that members of a pool wait beside the head: how long the pool is without one, messages, lock tries, wake-ups.

use crate::fleet::Fleet;
use crate::mqtt::Broker;
use crate::report::{Figure, Table};
use crate::scratch::Scratch;
use crate::statistics::Sample;
use crate::tap::{Tap, Visit};
use crate::worker::program;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const IDLE: [usize; 3] = [1, 8, 32];
const JOBS: usize = 60;
/// Each lock try stops a process for its tracer.
const TRACED_JOBS: usize = 20;
/// Until the member that had the last job stands again.
const PAUSE: Duration = Duration::from_millis(30);
const WATCHED: Duration = Duration::from_secs(5);
/// Until a new head looks for claims as seldom as it ever will.
const SETTLING: Duration = Duration::from_secs(7);

/// With 1, 8 and 32 members that have nothing to do.
pub fn measure(broker: &Broker, scratch: &Scratch) -> (Vec<Figure>, Table) {
    let mut figures = Vec::new();
    let mut table = Table::new(&[
        "idle members",
        "from one head's DISCONNECT to the next head's connection, ms",
        "messages sent, a job",
        "messages delivered, a job",
        "tries for the head, a job",
        "wake-ups of a member, a second",
    ]);
    for (idle, wake_ups) in IDLE.into_iter().zip(wake_ups(broker, scratch)) {
        let Turns {
            gaps,
            sent,
            delivered,
        } = turns(broker, scratch, idle);
        let tries = match lock_tries(broker, scratch, idle) {
            Some(tries) => format!("{tries:.1}"),
            None => "skipped: no strace".to_owned(),
        };
        table.row([
            idle.to_string(),
            gaps.to_string(),
            format!("{sent:.1}"),
            format!("{delivered:.1}"),
            tries,
            wake_ups.to_string(),
        ]);
        figures.push(Figure::at_most(
            &format!("pool, from the end of a head's turn to the next head, {idle} idle"),
            10.0,
            "ms",
            &gaps,
        ));
        figures.push(Figure::at_most(
            &format!("wake-ups of an idle member of a pool, {idle} idle"),
            1.0,
            "a second",
            &wake_ups,
        ));
    }
    (figures, table)
}

struct Turns {
    gaps: Sample,
    /// Messages per job.
    sent: f64,
    delivered: f64,
}

/// One job at a time, seen from between the members and the broker.
fn turns(broker: &Broker, scratch: &Scratch, idle: usize) -> Turns {
    let tap = Tap::before(broker.port);
    let pool = format!("turns-{idle}");
    let mut fleet = Fleet::new(broker, scratch, &pool);
    let url = format!("mqtt://127.0.0.1:{}", tap.port);
    fleet.start_idle(idle + 1, |member| {
        let mut command = member.supervised();
        command.env("MQTT_URL", &url);
        command
    });
    std::thread::sleep(PAUSE);
    let before = tap.messages();
    one_by_one(&mut fleet, JOBS);
    let after = tap.messages();
    let per_job = |before: u64, after: u64| (after - before) as f64 / JOBS as f64;
    let visits = tap.visits(&pool);
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let gap = |pair: &[Visit]| Some(milliseconds(pair[1].begun - pair[0].ended?));
    Turns {
        gaps: visits.windows(2).filter_map(gap).collect(),
        sent: per_job(before.0, after.0),
        delivered: per_job(before.1, after.1),
    }
}

/// Per second and member, while there is no job.
fn wake_ups(broker: &Broker, scratch: &Scratch) -> [Sample; 3] {
    let fleets = IDLE.map(|idle| {
        let mut fleet = Fleet::new(broker, scratch, &format!("idle-{idle}"));
        fleet.start_idle(idle + 1, |member| member.command());
        fleet
    });
    std::thread::sleep(SETTLING);
    let sleeps = |fleet: &Fleet<'_>| -> Vec<f64> {
        fleet.members.iter().map(|member| member.sleeps()).collect()
    };
    let before = fleets.each_ref().map(sleeps);
    std::thread::sleep(WATCHED);
    let mut before = before.into_iter();
    fleets.each_ref().map(|fleet| {
        let before = before.next().unwrap_or_default();
        let rate = |(before, after)| (after - before) / WATCHED.as_secs_f64();
        before.into_iter().zip(sleeps(fleet)).map(rate).collect()
    })
}

/// Tries for the lock on `head.lock`, per job; `None` where nobody can count them.
fn lock_tries(broker: &Broker, scratch: &Scratch, idle: usize) -> Option<f64> {
    let mut strace = Command::new("strace");
    strace.arg("--version").stdout(Stdio::null());
    strace.status().ok().filter(|status| status.success())?;
    let traces = scratch.dir("traces");
    let mut fleet = Fleet::new(broker, scratch, &format!("tries-{idle}"));
    fleet.start_idle(idle + 1, |member| {
        let mut traced = member.command_of("strace");
        // as a grandchild, so that the child that we end is the supervisor
        traced.args([
            "-D",
            "-f",
            "--seccomp-bpf",
            "-ttt",
            "-y",
            "-e",
            "trace=flock",
            "-o",
        ]);
        traced
            .arg(traces.join(member.name()))
            .arg(program())
            .arg("supervise");
        traced
    });
    std::thread::sleep(PAUSE * 20);
    let begin = since_1970();
    one_by_one(&mut fleet, TRACED_JOBS);
    let end = since_1970();
    let tries: usize = fs::read_dir(&traces)
        .expect("the traces")
        .flatten()
        .map(|trace| tries_in(&trace.path(), begin..end))
        .sum();
    Some(tries as f64 / TRACED_JOBS as f64)
}

fn since_1970() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0.0, |since| since.as_secs_f64())
}

/// A line is `PID TIME flock(7</.../head.lock>, LOCK_EX|LOCK_NB) = 0`.
fn tries_in(trace: &Path, times: Range<f64>) -> usize {
    let text = fs::read_to_string(trace).expect("a trace");
    let is_within = |line: &&str| {
        let time = line.split_whitespace().nth(1);
        time.and_then(|time| time.parse().ok())
            .is_some_and(|time| times.contains(&time))
    };
    text.lines()
        .filter(|line| line.contains("head.lock>, LOCK_EX"))
        .filter(is_within)
        .count()
}

/// Each job after the result of the one before, when all members wait again.
fn one_by_one(fleet: &mut Fleet<'_>, jobs: usize) {
    for _ in 0..jobs {
        fleet.submit("true");
        fleet.await_results(1);
        std::thread::sleep(PAUSE);
    }
}

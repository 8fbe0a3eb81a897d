//! What a pool takes: a member's cycle and its growth with the queue, its throughput, and its members that wait.

use crate::Place;
use crate::load;
use crate::mqtt::{Client, Watch};
use crate::plots::{BEST, Line, OURS, Plot, THEIRS};
use crate::report::{Budget::AtLeast, Budget::AtMost, Figure, Part, Sample, table};
use crate::worker::{Running, command, program, time};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const LENGTHS: [usize; 5] = [1, 10, 100, 1_000, 10_000];
const CYCLES: usize = 40;

const ROUNDS: usize = 3;
const JOBS: usize = 1_000;

const IDLE: [usize; 3] = [1, 8, 32];
const TURNS: usize = 60;
/// Until the member that had the last job waits again.
const PAUSE: Duration = Duration::from_millis(30);
const WATCHED: Duration = Duration::from_secs(5);
/// Until a new head looks for claims as seldom as it ever will.
const SETTLING: Duration = Duration::from_secs(7);

/// A pool, and the controller that has work for it.
struct Pool<'a> {
    at: &'a Place,
    /// Of the pool, its session, and its topics.
    name: String,
    root: PathBuf,
    controller: Client,
    results: Client,
    submitted: usize,
    members: Vec<Running>,
}

impl<'a> Pool<'a> {
    /// A pool without members.
    fn new(at: &'a Place, name: &str) -> Self {
        at.broker.open_queue(name);
        let root = at.memory.dir(name);
        // a pool takes over the session of another one only where its directory is there
        std::fs::create_dir_all(root.join(".job-worker").join(name)).expect("a directory");
        let client = |role: &str| at.broker.client(&format!("{name}-{role}"));
        let (controller, mut results) = (client("controller"), client("results"));
        results.subscribe(&format!("{name}/results/+"));
        Self {
            at,
            name: name.to_owned(),
            root,
            controller,
            results,
            submitted: 0,
            members: Vec::new(),
        }
    }

    fn submit(&mut self, step: &str) {
        let dir = self.root.join(self.submitted.to_string());
        self.submitted += 1;
        std::fs::create_dir(&dir).expect("a directory");
        self.controller.submit(&self.name, &dir, step);
    }

    fn member(&self, number: usize) -> Command {
        let mut command = command(program(), &self.at.broker, &self.name);
        command
            .env("WORKER_ID", format!("{}-{number}", self.name))
            .env("JOB_POOL", &self.name)
            .env("JOB_ROOT", &self.root);
        command
    }

    fn start(&mut self, members: usize, arguments: &[&str]) {
        for number in 0..members {
            let mut member = self.member(number);
            self.members.push(Running::start(member.args(arguments)));
        }
    }

    /// The same, and waits until all of them wait for a job.
    fn start_idle(&mut self, members: usize, arguments: &[&str]) {
        let mut presence = self.at.broker.client(&format!("{}-presence", self.name));
        presence.subscribe(&format!("{}/workers/+", self.name));
        self.start(members, arguments);
        let mut idle = 0;
        while idle < members {
            idle += usize::from(presence.message().contains("\"idle\""));
        }
        std::thread::sleep(PAUSE);
    }
}

/// The cost of a cycle must not grow with what waits behind it.
pub fn growth(at: &Place) -> Part {
    let mut client = at.broker.client("filler");
    let mut submit = |id: &str, number: usize| {
        let dir = at.memory.dir(&format!("{id}-{number}"));
        client.submit(id, &dir, "true");
    };
    let mut queues = LENGTHS.map(|length| {
        let own = format!("queue-{length}");
        at.broker.open_queue(&own);
        let mut pool = Pool::new(at, &format!("pool-queue-{length}"));
        for number in 0..length {
            submit(&own, number);
            pool.submit("true");
        }
        (length, own, pool, <[Sample; 3]>::default())
    });
    for round in 0..CYCLES {
        for (length, own, pool, [cycles, members, hand_outs]) in &mut queues {
            hand_outs.0.push(at.broker.hand_out(own));
            cycles
                .0
                .push(time(&mut command(program(), &at.broker, own)));
            submit(own, *length + round); // as many as before
            members.0.push(time(&mut pool.member(0)));
            pool.submit("true");
        }
    }
    let samples = queues.map(|(.., samples)| samples);
    let [[cycles, shortest, _], .., [_, longest, _]] = &samples;
    let figures = vec![
        Figure::new(
            "whole cycle of a pool's member",
            AtMost(1.25),
            "× that of an own queue",
            &shortest.over(cycles),
            "the claim on the drive and a second connection cost each job of a pool more than we want",
        ),
        Figure::new(
            "whole cycle of a pool's member with 10,000 queued jobs",
            AtMost(1.2),
            "× that with 1",
            &longest.over(shortest),
            "a pool slows down behind a long queue; most of it is Mosquitto, which connects a client with 10,000 messages",
        ),
    ];
    let titles = [
        "queued jobs",
        "whole cycle, ms",
        "whole cycle of a pool's member, ms",
        "part of both: connecting and getting the request, ms",
    ];
    let rows = LENGTHS.iter().zip(&samples).map(|(length, samples)| {
        let [cycles, members, hand_outs] = samples.each_ref().map(ToString::to_string);
        [length.to_string(), cycles, members, hand_outs]
    });
    let line = |name: &str, colour, of: usize| Line {
        name: name.to_owned(),
        colour,
        points: LENGTHS
            .iter()
            .zip(&samples)
            .map(|(length, samples)| (*length as f64, samples[of].median()))
            .collect(),
    };
    let lines = vec![
        line("member of a pool", THEIRS, 1),
        line("own queue", OURS, 0),
        line("Mosquitto's part", BEST, 2),
    ];
    Part {
        figures,
        tables: table(&titles, rows),
        plot: Some(Plot::lines(
            "queue",
            "One cycle, with a queue behind it",
            (("queued jobs", Some(10.0)), ("milliseconds", None)),
            &[("from process start to exit", lines)],
        )),
    }
}

/// Jobs per second.
pub fn throughput(at: &Place) -> Part {
    let (mut own, mut short, mut sleeps) = <(Sample, Sample, Sample)>::default();
    for round in 0..ROUNDS {
        let rate = |size: usize, step: &str, jobs: usize| {
            let mut pool = Pool::new(at, &format!("pool-{size}-{round}"));
            (0..jobs).for_each(|_| pool.submit(step));
            let started = Instant::now();
            pool.start(size, &["supervise"]);
            pool.results.await_successes(jobs);
            jobs as f64 / started.elapsed().as_secs_f64()
        };
        let alone = format!("alone-{round}");
        own.0.push(load::rate(at, &program(), &alone, JOBS));
        short.0.push(rate(4, "true", JOBS));
        sleeps.0.push(rate(8, "sleep 1", 32));
    }
    let titles = ["workers and jobs", "jobs per second"];
    let rows = [
        ("one worker, a queue of its own, `true`", &own),
        ("pool of 4, `true`", &short),
        ("pool of 8, `sleep 1`", &sleeps),
    ];
    let rows = rows.map(|(name, sample)| [name.to_owned(), sample.to_string()]);
    let figures = vec![
        Figure::new(
            &format!("pool of 4 under `supervise`, queue of {JOBS} `true` jobs"),
            AtLeast(1.0),
            "× one worker's own queue",
            &short.over(&own),
            "with jobs as short as this a pool is slower than one worker, because its turns are one after the other",
        ),
        Figure::new(
            "pool of 8 under `supervise`, jobs of `sleep 1`",
            AtLeast(7.6),
            "jobs per second, of at most 8",
            &sleeps,
            "members wait for each other",
        ),
    ];
    let (tables, plot) = (table(&titles, rows), None);
    Part {
        figures,
        tables,
        plot,
    }
}

/// With 1, 8 and 32 members that have nothing to do: how long the pool is without a head, and wake-ups.
pub fn turns(at: &Place) -> Part {
    let pools = IDLE.map(|idle| {
        let mut pool = Pool::new(at, &format!("idle-{idle}"));
        pool.start_idle(idle + 1, &[]);
        pool
    });
    std::thread::sleep(SETTLING);
    let sleeps = |pool: &Pool<'_>| pool.members.iter().map(Running::sleeps).collect::<Vec<_>>();
    let before = pools.each_ref().map(sleeps);
    std::thread::sleep(WATCHED);
    let after = pools.each_ref().map(sleeps);
    let mut figures = Vec::new();
    for ((idle, before), after) in IDLE.into_iter().zip(before).zip(after) {
        let rates = before
            .iter()
            .zip(after)
            .map(|(before, after)| (after - before) / WATCHED.as_secs_f64());
        let mut rates: Vec<f64> = rates.collect();
        rates.sort_by(f64::total_cmp);
        rates.pop(); // the head's, which looks at the directory every 2 s
        figures.push(Figure::new(
            &format!("pool, from the end of a head's turn to the next head, {idle} idle"),
            AtMost(10.0),
            "ms",
            &gaps(at, idle),
            "for so long no member takes the next request",
        ));
        figures.push(Figure::new(
            &format!("wake-ups of an idle member of a pool, {idle} idle, median of the members"),
            AtMost(0.0),
            "a second, but keep-alive",
            &rates.into_iter().collect(),
            "an idle member costs a little power",
        ));
    }
    Part {
        figures,
        ..Part::default()
    }
}

/// In milliseconds, with one job at a time.
fn gaps(at: &Place, idle: usize) -> Sample {
    let watch = Watch::start(&at.broker);
    let mut pool = Pool::new(at, &format!("turns-{idle}"));
    pool.start_idle(idle + 1, &["supervise"]);
    for _ in 0..TURNS {
        pool.submit("true");
        pool.results.await_successes(1);
        std::thread::sleep(PAUSE);
    }
    Sample(watch.gaps(&pool.name))
}

//! What a pool takes: its throughput, and its cost over a queue of one's own.

use crate::fleet::Fleet;
use crate::load::jobs_per_second;
use crate::mqtt::Broker;
use crate::pictures;
use crate::plot::Picture;
use crate::report::{Figure, Table};
use crate::scratch::Scratch;
use crate::statistics::Sample;
use std::time::Instant;

const ROUNDS: usize = 3;
const SIZES: [usize; 4] = [1, 2, 4, 8];
/// The one with a budget, and its queue.
const BUDGETED: usize = 4;
const JOBS: usize = 1_000;
/// The queue of the others.
const FEWER_JOBS: usize = 300;

/// Of the jobs that only wait, those that the picture shows.
const NAP: f64 = 0.2;
const NAPS: usize = 12;
/// And those that have a budget, each of which takes a second.
const SLEEPERS: usize = 8;
const SLEEPS: usize = 4;

/// Jobs per second.
pub fn measure(broker: &Broker, scratch: &Scratch) -> (Vec<Figure>, Table, Picture) {
    let (mut own, mut ratio) = (Sample::default(), Sample::default());
    let (mut short, mut naps) = <([Sample; 4], [Sample; 4])>::default();
    let mut sleeps = Sample::default();
    for round in 0..ROUNDS {
        let alone = jobs_per_second(
            broker,
            scratch,
            &format!("alone-{round}"),
            JOBS as u32,
            "on",
        );
        own.push(alone);
        for (size, (short, naps)) in SIZES.into_iter().zip(short.iter_mut().zip(&mut naps)) {
            let rate = |what: &str, step: &str, jobs| {
                let id = format!("pool-{what}-{size}-{round}");
                throughput(broker, scratch, &id, size, step, jobs)
            };
            if size == BUDGETED {
                short.push(rate("short", "true", JOBS));
                ratio.push(short.last() / alone);
            } else {
                short.push(rate("short", "true", FEWER_JOBS));
            }
            naps.push(rate("naps", &format!("sleep {NAP}"), NAPS * size));
        }
        let id = format!("pool-sleeps-{round}");
        let rate = throughput(broker, scratch, &id, SLEEPERS, "sleep 1", SLEEPS * SLEEPERS);
        sleeps.push(rate / SLEEPERS as f64);
    }
    let figures = vec![
        Figure::at_least(
            &format!("pool of {BUDGETED} under `supervise`, queue of {JOBS} `true` jobs"),
            0.7,
            "× one worker's own queue",
            &ratio,
        ),
        Figure::at_least(
            &format!("pool of {SLEEPERS} under `supervise`, jobs of `sleep 1`"),
            0.95,
            &format!("× {SLEEPERS} jobs/s"),
            &sleeps,
        ),
    ];
    let mut table = Table::new(&[
        "members",
        "`true`, jobs/s",
        &format!("`sleep {NAP}`, jobs/s"),
        "at most possible",
    ]);
    table.row([
        "one worker, a queue of its own".to_owned(),
        own.to_string(),
        "–".to_owned(),
        "–".to_owned(),
    ]);
    for (size, (short, naps)) in SIZES.iter().zip(short.iter().zip(&naps)) {
        let most = format!("{:.0}", *size as f64 / NAP);
        table.row([size.to_string(), short.to_string(), naps.to_string(), most]);
    }
    let points = |samples: &[Sample]| -> Vec<(f64, f64)> {
        let medians = samples.iter().map(Sample::median);
        SIZES.iter().map(|size| *size as f64).zip(medians).collect()
    };
    let picture = pictures::members(NAP, &points(&naps), &points(&short), own.median());
    (figures, table, picture)
}

/// Jobs per second from the start of the members to the last result.
fn throughput(
    broker: &Broker,
    scratch: &Scratch,
    id: &str,
    members: usize,
    step: &str,
    jobs: usize,
) -> f64 {
    let mut fleet = Fleet::new(broker, scratch, id);
    (0..jobs).for_each(|_| fleet.submit(step));
    let started = Instant::now();
    fleet.start(members, |member| member.supervised());
    fleet.await_results(jobs);
    jobs as f64 / started.elapsed().as_secs_f64()
}

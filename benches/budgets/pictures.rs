//! The pictures of BENCHMARKS.md.

use crate::plot::{Colour, Panel, Picture, Row, Scale, Series, rows_height};
use crate::statistics::Sample;

/// The whole cycle of those who do the same job.
pub fn cycle(rows: Vec<(String, Colour, Sample)>) -> Picture {
    let rows: Vec<Row> = rows
        .into_iter()
        .map(|(name, colour, sample)| Row {
            name,
            colour,
            sample,
        })
        .collect();
    let told: Vec<String> = rows
        .iter()
        .map(|row| format!("{}: {}", row.name, milliseconds(row.sample.median())))
        .collect();
    let mut picture = Picture::new(
        "cycle",
        (760, rows_height(rows.len())),
        "One job of one step, from process start to exit",
        &format!(
            "Medians and quartiles on a logarithmic axis: {}.",
            told.join("; ")
        ),
    );
    let medians = || rows.iter().map(|row| row.sample.median());
    let (lowest, highest) = (
        medians().fold(f64::MAX, f64::min),
        medians().fold(f64::MIN, f64::max),
    );
    let scale = Scale::logarithmic(10.0, lowest, highest, (300.0, 670.0));
    picture.rows(scale, milliseconds, &rows);
    picture
}

/// The pauses between two short jobs, in milliseconds.
pub fn pauses(docker: &[f64], supervise: &[f64]) -> Picture {
    let seconds = |pauses: &[f64]| pauses.iter().sum::<f64>() / 1e3;
    let jobs = docker.len() + 1;
    let all = [docker, supervise].map(|pauses| milliseconds(seconds(pauses) * 1e3));
    let [docker_all, supervise_all] = &all;
    let mut picture = Picture::new(
        "pauses",
        (760, 380),
        &format!("Pauses between {jobs} short jobs"),
        &format!(
            "Logarithmic axis. Docker's restart: always pauses for {} at first, and twice as long each time, up to a minute: {docker_all} in \
             all. supervise pauses for milliseconds: {supervise_all} in all.",
            milliseconds(docker[0])
        ),
    );
    let panel = Panel {
        x: Scale::counted(jobs - 1, (76.0, 590.0)),
        y: Scale::logarithmic(10.0, 1.0, 100_000.0, (310.0, 80.0)),
        heading: "from the end of one job to the start of the next",
        below: "pause",
        x_label: |number| format!("{number:.0}"),
        y_label: milliseconds,
    };
    let series = |name: &str, all: &str, colour, pauses: &[f64]| Series {
        name: format!("{name}\n{all} in all"),
        colour,
        has_dots: true,
        points: (1..).map(f64::from).zip(pauses.iter().copied()).collect(),
    };
    picture.lines(
        &panel,
        &[
            series("restart: always", docker_all, Colour::Theirs, docker),
            series("supervise", supervise_all, Colour::Ours, supervise),
        ],
    );
    picture
}

/// What a cycle takes, in milliseconds, with as many jobs in the queue.
pub fn queues(lengths: &[f64], own: &[f64], pool: &[f64], broker: &[f64]) -> Picture {
    let ends = |line: &[f64]| {
        let last = line.len() - 1;
        format!("{} to {}", milliseconds(line[0]), milliseconds(line[last]))
    };
    let mut picture = Picture::new(
        "queue",
        (760, 340),
        "One cycle, with a queue behind it",
        &format!(
            "From 1 to 10,000 queued jobs, a worker with a queue of its own takes {}, a member of a pool {}. Of that, {} are \
             Mosquitto's.",
            ends(own),
            ends(pool),
            ends(broker)
        ),
    );
    let highest = own.iter().chain(pool).copied().fold(0.0, f64::max);
    let panel = Panel {
        x: Scale::logarithmic(10.0, 1.0, 10_000.0, (76.0, 590.0)),
        y: Scale::linear(highest, (270.0, 80.0)),
        heading: "from process start to exit",
        below: "queued jobs",
        x_label: thousands,
        y_label: milliseconds,
    };
    let series = |name: &str, colour, line: &[f64]| Series {
        name: name.to_owned(),
        colour,
        has_dots: true,
        points: lengths.iter().copied().zip(line.iter().copied()).collect(),
    };
    picture.lines(
        &panel,
        &[
            series("member of a pool", Colour::Theirs, pool),
            series("own queue", Colour::Ours, own),
            series("Mosquitto's part", Colour::Reference, broker),
        ],
    );
    picture
}

/// Jobs per second over the members of a pool: of jobs that sleep for so many seconds, and of `true`.
pub fn members(seconds: f64, sleeping: &[(f64, f64)], short: &[(f64, f64)], own: f64) -> Picture {
    let told = |points: &[(f64, f64)]| {
        points
            .iter()
            .map(|(members, rate)| format!("{members} members: {rate:.0}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut picture = Picture::new(
        "members",
        (760, 360),
        "Jobs per second of a pool",
        &format!(
            "Jobs of sleep {seconds}, by members: {}. Jobs of true: {}; one worker with a queue of its own: {own:.0}.",
            told(sleeping),
            told(short)
        ),
    );
    let line = |name: &str, colour, has_dots, points: Vec<(f64, f64)>| Series {
        name: name.to_owned(),
        colour,
        has_dots,
        points,
    };
    let highest = |points: &[(f64, f64)]| points.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
    let most = sleeping.last().map_or(1.0, |(members, _)| *members);
    let mut panel = |heading, pixels, top: f64, lines: &[Series]| {
        let panel = Panel {
            x: Scale::logarithmic(2.0, 1.0, most, pixels),
            y: Scale::linear(top, (290.0, 90.0)),
            heading,
            below: "members",
            x_label: thousands,
            y_label: thousands,
        };
        picture.lines(&panel, lines);
    };
    let best: Vec<_> = sleeping
        .iter()
        .map(|(members, _)| (*members, members / seconds))
        .collect();
    panel(
        "jobs that wait (sleep 0.2)",
        (60.0, 270.0),
        highest(&best),
        &[
            line("the most\npossible", Colour::Reference, false, best),
            line("pool", Colour::Ours, true, sleeping.to_vec()),
        ],
    );
    panel(
        "jobs that end at once (true)",
        (440.0, 640.0),
        own.max(highest(short)),
        &[
            line(
                "own queue,\none worker",
                Colour::Reference,
                false,
                vec![(1.0, own), (most, own)],
            ),
            line("pool", Colour::Ours, true, short.to_vec()),
        ],
    );
    picture
}

/// A time for people, from one in milliseconds.
fn milliseconds(time: f64) -> String {
    let (value, unit) = match time < 1_000.0 {
        true => (time, "ms"),
        false => (time / 1e3, "s"),
    };
    let digits = usize::from(value < 10.0 && value.fract() > 0.001);
    match value < 0.1 && value > 0.0 {
        true => format!("{value:.2} {unit}"),
        false => format!("{value:.digits$} {unit}"),
    }
}

fn thousands(number: f64) -> String {
    let number = number.round() as u64;
    match number {
        0..1_000 => number.to_string(),
        _ => format!("{},{:03}", number / 1_000, number % 1_000),
    }
}

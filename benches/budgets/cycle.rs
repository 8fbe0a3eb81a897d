//! The whole cycle of one job: process start → request → one `true` step → result acknowledged → exit.

use crate::Place;
use crate::machine::{Scratch, first_line};
use crate::mqtt::Client;
use crate::phases;
use crate::plots::{BEST, OURS, Plot, THEIRS};
use crate::report::{Budget::AtMost, Figure, Part, Sample, table};
use crate::worker::{
    HOW_EARLIER, HOW_STATIC, built_program, command, earlier_program, static_program, time,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const ROUNDS: usize = 200;
/// mqtt.js takes long; in this many rounds it has its turn once.
const NODE_ROUNDS: usize = 8;

/// One of those who do the same job.
struct Contender<'a> {
    id: &'static str,
    /// In the table.
    name: String,
    command: Command,
    /// Where its jobs are.
    scratch: &'a Scratch,
    every: usize,
    times: Vec<Option<f64>>,
}

pub fn measure(at: &Place) -> Part {
    let mut contenders = contenders(at);
    for contender in &contenders {
        at.broker.open_queue(contender.id);
    }
    let mut client = at.broker.client("controller");
    let mut bare: [Vec<f64>; 3] = Default::default();
    for round in 0..ROUNDS {
        let spawn = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            time(command.args(arguments).env_clear().stdin(Stdio::null()))
        };
        bare[0].push(spawn("/bin/sh", &["-c", "true"]));
        bare[1].push(spawn("/bin/true", &[]));
        let round_trips = (0..3).map(|_| client.publish("reference", &[b'x'; 256]));
        bare[2].push(round_trips.sum());
        // each comes first in turn: the first one after a pause is slower
        let count = contenders.len();
        for turn in 0..count {
            let contender = &mut contenders[(round + turn) % count];
            let is_its_turn = round.is_multiple_of(contender.every);
            let time = is_its_turn.then(|| contender.cycle(&mut client));
            contender.times.push(time);
        }
    }
    let together: Vec<f64> = (0..ROUNDS)
        .map(|round| bare.iter().map(|part| part[round]).sum())
        .collect();
    // in the rounds in which both had their turn
    let ratio = |times: &[Option<f64>], others: &[Option<f64>]| -> Sample {
        let pairs = times.iter().zip(others);
        pairs.filter_map(|(a, b)| Some((*a)? / (*b)?)).collect()
    };
    let all = |times: &[f64]| times.iter().copied().map(Some).collect::<Vec<_>>();
    let together = all(&together);
    let [shell, process, trips] = bare.each_ref().map(|part| all(part));
    let parts = [
        ("spawn of `sh -c true`", &shell),
        ("spawn of `/bin/true`", &process),
        ("three round trips to the broker", &trips),
        ("these together", &together),
    ];
    let named = contenders
        .iter()
        .map(|contender| (contender.name.as_str(), &contender.times));
    let rows = parts.into_iter().chain(named).map(|(name, times)| {
        let sample: Sample = times.iter().flatten().copied().collect();
        let rounds = sample.0.len().to_string();
        let against = ratio(times, &together).to_string();
        [name.to_owned(), sample.to_string(), against, rounds]
    });
    let titles = [
        "",
        "milliseconds",
        "× two spawns and three round trips",
        "rounds",
    ];
    let mut tables = table(&titles, rows);
    let times = |id| contenders.iter().find(|it| it.id == id).map(|it| &it.times);
    let figure =
        |what: &str, limit, unit: &str, one, other: Option<&Vec<_>>, how: &str, means| match (
            times(one),
            other,
        ) {
            (Some(one), Some(other)) => {
                Figure::new(what, AtMost(limit), unit, &ratio(one, other), means)
            }
            _ => Figure::skipped(what, how),
        };
    let figures = vec![
        figure(
            "whole cycle (process start → job of one `true` step → result acknowledged → exit), static",
            0.9,
            "× the first version",
            "static",
            times("earlier"),
            HOW_EARLIER,
            "each job takes that much more of a small machine than it could, some 0.2 ms on this one",
        ),
        figure(
            "the same",
            1.4,
            "× (spawn of `sh -c true` + spawn of `/bin/true` + 3 round trips)",
            "static",
            Some(&together),
            HOW_STATIC,
            "what the worker adds to what a job costs at least; a job of 1 s does not notice it",
        ),
        figure(
            "the same",
            0.4,
            "× a `mosquitto_sub -C 1` + `sh` + `mosquitto_pub` script",
            "static",
            times("shell"),
            HOW_STATIC,
            "the script is closer than it should be; it still loses the job that it dies in",
        ),
    ];
    let shown = [
        ("static", "job-worker, static", OURS),
        ("glibc", "job-worker, with glibc", OURS),
        ("shell", "mosquitto_sub + sh + mosquitto_pub", THEIRS),
        ("node", "a one-shot worker on mqtt.js", THEIRS),
    ];
    let median =
        |times: &[Option<f64>]| times.iter().flatten().copied().collect::<Sample>().median();
    let reference = "two spawns and three round trips";
    let mut bars = vec![(reference.to_owned(), BEST, median(&together))];
    bars.extend(
        shown
            .into_iter()
            .filter_map(|(id, name, colour)| Some((name.to_owned(), colour, median(times(id)?)))),
    );
    let plot = Plot::bars(
        "cycle",
        "One job of one step, from process start to exit",
        "Medians in milliseconds, on a logarithmic axis.",
        &bars,
    );
    tables += &phases::table(at);
    Part {
        figures,
        tables,
        plot: Some(plot),
    }
}

impl Contender<'_> {
    /// One job, in milliseconds.
    fn cycle(&mut self, client: &mut Client) -> f64 {
        let dir = self.scratch.dir(&format!("cycle-{}", self.id));
        match self.id {
            "shell" => _ = client.publish("shell/pending", dir.display().to_string().as_bytes()),
            id => client.submit(id, &dir, &["true"], ""),
        }
        let needed = time(&mut self.command);
        let status = fs::read_to_string(dir.join("job.status.json")).unwrap_or_default();
        assert!(status.contains("\"success\""), "{}: {status}", self.name);
        needed
    }
}

fn contenders(at: &Place) -> Vec<Contender<'_>> {
    let contender = |id, name: String, program: &Path| Contender {
        id,
        name,
        command: command(program, &at.broker, id),
        scratch: &at.memory,
        every: 1,
        times: Vec::new(),
    };
    let mut all = Vec::new();
    if let Some(program) = static_program() {
        all.push(contender(
            "static",
            "**job-worker, static**".into(),
            &program,
        ));
        let mut by_name = contender(
            "by-name",
            "the same, broker by name (`mqtt://localhost`)".into(),
            &program,
        );
        let url = format!("mqtt://localhost:{}", at.broker.port);
        by_name.command.env("MQTT_URL", url);
        all.push(by_name);
        let on_disk = format!("the same, jobs in {}", at.disk.describe());
        all.push(Contender {
            scratch: &at.disk,
            ..contender("on-disk", on_disk, &program)
        });
    }
    if let Some(program) = earlier_program() {
        let name = format!(
            "{}, static",
            first_line(&program.display().to_string(), "--version")
        );
        all.push(contender("earlier", name, &program));
    }
    all.push(contender(
        "glibc",
        "job-worker, with glibc".into(),
        &built_program(),
    ));
    let script = "`mosquitto_sub -C 1` + `sh` + `mosquitto_pub` (one-shot.sh)";
    let mut shell = contender("shell", script.into(), Path::new("/bin/sh"));
    shell.command.arg(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/benches/budgets/one-shot.sh"
    ));
    all.push(shell);
    if let Some(script) = install_mqtt_js(&at.memory) {
        let version = first_line("node", "--version");
        let name = format!("one-shot worker on mqtt.js (one-shot.mjs), Node.js {version}");
        let mut node = contender("node", name, Path::new("node"));
        node.command.arg(script);
        node.every = NODE_ROUNDS;
        all.push(node);
    }
    all
}

/// The script, beside a mqtt.js that it finds; `None`, with a word, where that cannot be had.
fn install_mqtt_js(scratch: &Scratch) -> Option<PathBuf> {
    let dir = scratch.dir("node");
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"])
        .arg(&dir)
        .arg("mqtt@5");
    match npm.stdin(Stdio::null()).stdout(Stdio::null()).status() {
        Ok(status) if status.success() => {
            let script = dir.join("one-shot.mjs");
            fs::write(&script, include_str!("one-shot.mjs")).expect("a script");
            Some(script)
        }
        trouble => {
            eprintln!("mqtt.js is skipped: npm install mqtt: {trouble:?}");
            None
        }
    }
}

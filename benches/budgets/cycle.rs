//! The whole cycle of one job: process start → request → one `true` step → result acknowledged → exit.

use crate::Place;
use crate::machine::{Scratch, first_line};
use crate::phases;
use crate::plots::{BEST, OURS, Plot, RGBColor, THEIRS};
use crate::report::{Budget::AtMost, Figure, Part, Sample, table};
use crate::worker::{built_program, command, earlier_program, how, static_program, time};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const ROUNDS: usize = 200;
/// mqtt.js takes long; in this many rounds it has its turn once.
const NODE_ROUNDS: usize = 8;

/// One of those who do the same job, or a part of what a job costs at least.
struct Row<'a> {
    id: &'static str,
    /// In the table.
    name: String,
    /// What it takes in a round, in milliseconds.
    turn: Box<dyn FnMut() -> f64 + 'a>,
    times: Vec<Option<f64>>,
}

impl Row<'_> {
    fn sample(&self) -> Sample {
        self.times.iter().flatten().copied().collect()
    }

    /// In the rounds in which both had their turn.
    fn over(&self, other: &Self) -> Sample {
        let pairs = self.times.iter().zip(&other.times);
        pairs.filter_map(|(a, b)| Some((*a)? / (*b)?)).collect()
    }
}

pub fn measure(at: &Place) -> Part {
    let mut rows = rows(at);
    let first = rows.iter().position(|row| row.id == "all").expect("one");
    for round in 0..ROUNDS {
        // each contender comes first in turn: the first one after a pause is slower; and behind either neighbour
        let contenders = rows.len() - first - 1;
        let forth = round.is_multiple_of(2);
        let step = |turn| if forth { turn } else { contenders - turn };
        let order = (0..contenders).map(|turn| first + 1 + (round + step(turn)) % contenders);
        for at in (0..first).chain(order) {
            let is_its_turn = rows[at].id != "node" || round.is_multiple_of(NODE_ROUNDS);
            let time = is_its_turn.then(|| (rows[at].turn)());
            rows[at].times.push(time);
        }
        let sum = rows[..first].iter().map(|part| part.times[round]).sum();
        rows[first].times.push(sum);
    }
    let all = &rows[first];
    let cells = rows.iter().map(|row| {
        let rounds = row.sample().0.len().to_string();
        let (name, against) = (row.name.clone(), row.over(all).to_string());
        [name, row.sample().to_string(), against, rounds]
    });
    let titles = ["what runs", "milliseconds", "× the least", "rounds"];
    let by = |id: &str| rows.iter().find(|row| row.id == id);
    let figure = |what, limit, unit, other, means| match (by("static"), by(other)) {
        (Some(ours), Some(other)) => {
            Figure::new(what, AtMost(limit), unit, &ours.over(other), means)
        }
        _ => Figure::skipped(what, how()),
    };

    let figures = vec![
        figure(
            "whole cycle",
            0.9,
            "× the first version",
            "earlier",
            "a very short job takes longer on a small machine than we want; with a job of a second you do not notice it",
        ),
        figure(
            "whole cycle, beside the least",
            1.4,
            "× the least",
            "all",
            "the worker adds more than we want to what a job costs at least",
        ),
        figure(
            "whole cycle, beside the script",
            0.4,
            "× the script",
            "shell",
            "the worker is not as far ahead of the script as we want",
        ),
    ];
    let shown: [(_, _, RGBColor); 5] = [
        ("all", "two spawns and three round trips", BEST),
        ("static", "job-worker, static", OURS),
        ("glibc", "job-worker, with glibc", OURS),
        ("shell", "mosquitto_sub + sh + mosquitto_pub", THEIRS),
        ("node", "a one-shot worker on mqtt.js", THEIRS),
    ];
    let bars = shown.into_iter().filter_map(|(id, name, colour)| {
        Some((name.to_owned(), colour, by(id)?.sample().median()))
    });
    let title = "One job of one step, from process start to exit";
    let plot = Plot::bars("cycle", title, &bars.collect::<Vec<_>>());
    Part {
        figures,
        tables: table(&titles, cells) + &phases::tables(at),
        plot: Some(plot),
    }
}

fn rows(at: &Place) -> Vec<Row<'_>> {
    fn row<'a>(id: &'static str, name: &str, turn: impl FnMut() -> f64 + 'a) -> Row<'a> {
        let (name, turn, times) = (name.to_owned(), Box::new(turn), Vec::new());
        Row {
            id,
            name,
            turn,
            times,
        }
    }
    let spawn = |program: &'static str, arguments: &'static [&str]| {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().stdin(Stdio::null());
        move || time(&mut command)
    };
    let cycle = |id: &'static str, mut command: Command, scratch: &'static str| {
        at.broker.open_queue(id);
        let mut client = at.broker.client(&format!("controller-{id}"));
        move || {
            let place = if scratch == "disk" {
                &at.disk
            } else {
                &at.memory
            };
            let dir = place.dir(&format!("cycle-{id}"));
            match id {
                "shell" => _ = client.publish("shell/pending", dir.as_os_str().as_encoded_bytes()),
                id => client.submit(id, &dir, "true"),
            }
            let needed = time(&mut command);
            let status = fs::read_to_string(dir.join("job.status.json")).unwrap_or_default();
            assert!(status.contains("\"success\""), "{id}: {status}");
            needed
        }
    };
    let command = |id, program: &Path| command(program, &at.broker, id);
    let mut client = at.broker.client("reference");
    let trips = move || {
        (0..3)
            .map(|_| client.publish("reference", &[b'x'; 256]))
            .sum()
    };
    let mut rows = vec![
        row(
            "",
            "spawn of `sh -c true`",
            spawn("/bin/sh", &["-c", "true"]),
        ),
        row("", "spawn of `/bin/true`", spawn("/bin/true", &[])),
        row("", "three round trips to the broker", trips),
        row("all", "these together: the least", || f64::NAN),
    ];
    let mut add =
        |id, name: &str, command, place| rows.push(row(id, name, cycle(id, command, place)));
    // beside the two that are compared are others of their kind
    add(
        "glibc",
        "job-worker, with glibc",
        command("glibc", &built_program()),
        "memory",
    );
    if let Some(program) = earlier_program() {
        let version = first_line(&program.display().to_string(), "--version");
        add(
            "earlier",
            &format!("{version}, static"),
            command("earlier", &program),
            "memory",
        );
    }
    if let Some(program) = static_program() {
        add(
            "static",
            "**job-worker, static**",
            command("static", &program),
            "memory",
        );
        let mut by_name = command("by-name", &program);
        by_name.env("MQTT_URL", format!("mqtt://localhost:{}", at.broker.port));
        add(
            "by-name",
            "the same, broker by name (`mqtt://localhost`)",
            by_name,
            "memory",
        );
        let name = format!("the same, jobs in {}", at.disk.describe());
        add("on-disk", &name, command("on-disk", &program), "disk");
    }
    let mut shell = command("shell", Path::new("/bin/sh"));
    shell.arg(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/benches/budgets/one-shot.sh"
    ));
    let name = "`mosquitto_sub -C 1` + `sh` + `mosquitto_pub` (one-shot.sh)";
    add("shell", name, shell, "memory");
    if let Some(script) = install_mqtt_js(&at.memory) {
        let mut node = command("node", Path::new("node"));
        node.arg(script);
        let version = first_line("node", "--version");
        let name = format!("one-shot worker on mqtt.js (one-shot.mjs), Node.js {version}");
        add("node", &name, node, "memory");
    }
    rows
}

/// The script, beside a mqtt.js that it finds; `None`, with a word, where that cannot be had.
fn install_mqtt_js(scratch: &Scratch) -> Option<PathBuf> {
    let dir = scratch.dir("node");
    let mut npm = Command::new("npm");
    npm.args([
        "install",
        "--silent",
        "--no-audit",
        "--no-fund",
        "mqtt@5",
        "--prefix",
    ])
    .arg(&dir);
    let status = npm.stdin(Stdio::null()).stdout(Stdio::null()).status();
    if !status.is_ok_and(|status| status.success()) {
        eprintln!("mqtt.js is skipped: npm install mqtt does not work");
        return None;
    }
    let script = dir.join("one-shot.mjs");
    fs::write(&script, include_str!("one-shot.mjs")).expect("a script");
    Some(script)
}

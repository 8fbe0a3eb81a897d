//! The whole cycle of one job: process start → request → one `true` step → result acknowledged → exit.

use crate::mqtt::{Broker, Client};
use crate::pictures;
use crate::plot::{Colour, Picture};
use crate::report::{Figure, Table};
use crate::scratch::Scratch;
use crate::statistics::Sample;
use crate::support::mosquitto::tool;
use crate::worker::{
    HOW_EARLIER, HOW_STATIC, command, earlier_program, program, static_program, time,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const ROUNDS: usize = 200;
/// mqtt.js takes long; in this many rounds it has its turn once.
const NODE_ROUNDS: usize = 8;

/// One of those who do the same job.
struct Contender<'a> {
    name: String,
    id: &'static str,
    command: Command,
    /// Where its jobs are.
    scratch: &'a Scratch,
    request: fn(&Path) -> String,
    every: usize,
}

/// What each contender needed in one round, and the limit's parts.
struct Round {
    shell: f64,
    process: f64,
    round_trips: f64,
    times: Vec<Option<f64>>,
}

impl Round {
    fn reference(&self) -> f64 {
        self.shell + self.process + self.round_trips
    }
}

pub fn measure(
    broker: &Broker,
    scratch: &Scratch,
    disk: &Scratch,
) -> (Vec<Figure>, Table, Picture) {
    let mut contenders = contenders(broker, scratch, disk);
    for contender in &contenders {
        open_session(broker, contender.id);
    }
    let mut client = broker.client("controller");
    let rounds: Vec<Round> = (0..ROUNDS)
        .map(|round| measure_round(round, &mut contenders, &mut client))
        .collect();

    let of = |index: usize| {
        rounds
            .iter()
            .filter_map(move |round| Some((round, round.times[index]?)))
    };
    let sample = |index| of(index).map(|(_, time)| time).collect::<Sample>();
    let to_reference = |index| {
        of(index)
            .map(|(round, time)| time / round.reference())
            .collect::<Sample>()
    };
    let mut table = Table::new(&[
        "",
        "milliseconds",
        "× two spawns and three round trips",
        "rounds",
    ]);
    let mut part = |name: &str, time: fn(&Round) -> f64| {
        let (sample, ratio): (Sample, Sample) = rounds
            .iter()
            .map(|r| (time(r), time(r) / r.reference()))
            .unzip();
        table.row([
            name.to_owned(),
            sample.to_string(),
            ratio.to_string(),
            sample.len().to_string(),
        ]);
    };
    part("spawn of `sh -c true`", |round| round.shell);
    part("spawn of `/bin/true`", |round| round.process);
    part("three round trips to the broker", |round| round.round_trips);
    part("these together", Round::reference);
    for (index, contender) in contenders.iter().enumerate() {
        let sample = sample(index);
        table.row([
            contender.name.clone(),
            sample.to_string(),
            to_reference(index).to_string(),
            sample.len().to_string(),
        ]);
    }

    let index = |id: &str| contenders.iter().position(|contender| contender.id == id);
    let compare = |one: usize, other: usize| {
        of(other)
            .filter_map(|(round, time)| Some(round.times[one]? / time))
            .collect::<Sample>()
    };
    let against = |other| compare(0, other);
    let limit = "× (spawn of `sh -c true` + spawn of `/bin/true` + 3 round trips)";
    let cycle = "whole cycle: process start → job of one `true` step → result acknowledged → exit";
    let shell = "the same against a `mosquitto_sub -C 1` + `sh` + `mosquitto_pub` script";
    let node = "the same against a one-shot worker on mqtt.js";
    let earlier = "the same, static musl, against an earlier static program";
    let figures = vec![
        Figure::at_most(cycle, 1.75, limit, &to_reference(0)),
        match index("static") {
            Some(index) => {
                Figure::at_most("the same, static musl", 1.45, "×", &to_reference(index))
            }
            None => Figure::skipped("the same, static musl", HOW_STATIC),
        },
        match (index("static"), index("earlier")) {
            (Some(now), Some(before)) => Figure::at_most(earlier, 1.02, "×", &compare(now, before)),
            _ => Figure::skipped(earlier, HOW_EARLIER),
        },
        match index("shell") {
            Some(index) => Figure::at_most(shell, 0.4, "×", &against(index)),
            None => Figure::skipped(shell, "no Mosquitto clients"),
        },
        match index("node") {
            Some(index) => Figure::told(node, "×", &against(index)),
            None => Figure::skipped(node, "npm is missing, or has no mqtt.js for us"),
        },
    ];
    let reference = rounds.iter().map(Round::reference).collect();
    let mut rows = vec![(
        "two spawns and three round trips".to_owned(),
        Colour::Reference,
        reference,
    )];
    let shown = [
        ("static", "job-worker, static", Colour::Ours),
        ("worker", "job-worker, with glibc", Colour::Ours),
        (
            "shell",
            "mosquitto_sub + sh + mosquitto_pub",
            Colour::Theirs,
        ),
        ("node", "a one-shot worker on mqtt.js", Colour::Theirs),
    ];
    for (id, name, colour) in shown {
        rows.extend(index(id).map(|index| (name.to_owned(), colour, sample(index))));
    }
    (figures, table, pictures::cycle(rows))
}

fn measure_round(round: usize, contenders: &mut [Contender], client: &mut Client) -> Round {
    let milliseconds = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    let bare = |program: &str, arguments: &[&str]| {
        milliseconds(time(
            Command::new(program)
                .args(arguments)
                .env_clear()
                .stdin(Stdio::null())
                .stdout(Stdio::null()),
        ))
    };
    let (shell, process) = (bare("/bin/sh", &["-c", "true"]), bare("/bin/true", &[]));
    let round_trips = (0..3)
        .map(|_| milliseconds(client.publish("reference", &[b'x'; 256])))
        .sum();
    let mut times = Vec::new();
    for contender in contenders.iter_mut() {
        times.push((round.is_multiple_of(contender.every)).then(|| {
            let dir = contender.scratch.dir(&format!("cycle-{}", contender.id));
            client.publish(
                &format!("{}/pending", contender.id),
                (contender.request)(&dir).as_bytes(),
            );
            let needed = milliseconds(time(&mut contender.command));
            let status = fs::read_to_string(dir.join("job.status.json")).unwrap_or_default();
            assert!(
                status.contains("\"success\""),
                "{} has not done its job: {status}",
                contender.name
            );
            needed
        }));
    }
    Round {
        shell,
        process,
        round_trips,
        times,
    }
}

fn contenders<'a>(broker: &Broker, scratch: &'a Scratch, disk: &'a Scratch) -> Vec<Contender<'a>> {
    let contender = |name: &str, id, program: &Path| Contender {
        name: name.to_owned(),
        id,
        command: command(program, broker, id),
        scratch,
        request,
        every: 1,
    };
    let worker = |name, id| contender(name, id, &program());
    let mut all = vec![worker("**job-worker**", "worker")];
    let mut by_name = worker("job-worker, broker by name (`mqtt://localhost`)", "by-name");
    by_name
        .command
        .env("MQTT_URL", format!("mqtt://localhost:{}", broker.port));
    all.push(by_name);
    all.push(Contender {
        scratch: disk,
        ..worker(
            &format!("job-worker, jobs in {}", disk.describe()),
            "on-disk",
        )
    });
    if let Some(program) = static_program() {
        all.push(contender("job-worker, static (musl)", "static", &program));
    }
    if let Some(program) = earlier_program() {
        all.push(contender(
            "an earlier job-worker, static (musl)",
            "earlier",
            &program,
        ));
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/budgets/one-shot.sh");
    let mut shell = contender(
        "`mosquitto_sub -C 1` + `sh` + `mosquitto_pub` (one-shot.sh)",
        "shell",
        Path::new("/bin/sh"),
    );
    shell.command.arg(script);
    all.push(Contender {
        request: |dir| dir.display().to_string(),
        ..shell
    });
    if let Some(script) = install_mqtt_js(scratch) {
        let name = format!(
            "one-shot worker on mqtt.js (one-shot.mjs), Node.js {}",
            crate::machine::first_line("node", "--version")
        );
        let mut node = contender(&name, "node", Path::new("node"));
        node.command.arg(script);
        all.push(Contender {
            every: NODE_ROUNDS,
            ..node
        });
    }
    all
}

fn request(dir: &Path) -> String {
    format!(
        r#"{{"id":"a","workDir":"{}","steps":["true"]}}"#,
        dir.display()
    )
}

/// Makes the session that keeps requests for this client until it comes.
pub fn open_session(broker: &Broker, id: &str) {
    let mut subscribe = Command::new(tool("mosquitto_sub"));
    subscribe.args([
        "-h",
        "127.0.0.1",
        "-p",
        &broker.port.to_string(),
        "-V",
        "mqttv5",
        "-x",
        "4294967295",
    ]);
    subscribe.args([
        "-c",
        "-E",
        "-i",
        id,
        "-q",
        "1",
        "-t",
        &format!("{id}/pending"),
    ]);
    time(&mut subscribe);
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

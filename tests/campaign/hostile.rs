//! Hostile input: whatever comes is answered, and the worker lives on (docs/reference.md, "Bad input"). The mutations
//! have a fixed seed;
//! `HOSTILE_CASES` sets their number, 1,000 unless set; a worker gets a quarter of it. The fuzz targets in `fuzz/` go further.

use crate::support;

use std::fs;
use std::path::Path;
use std::process::Command;

use job_worker::contract::{Definition, EarlierRun};
use serde_json::json;
use support::corpus;
use support::properties;
use support::random::{Random, number};
use support::site::{Site, names};
use support::wait;

fn cases() -> usize {
    number("HOSTILE_CASES", 1000) as usize
}

/// What the fuzz targets start from, and what they have found.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let files = names(&dir.join(target)).into_iter();
    let seeds = files.map(|name| fs::read(dir.join(target).join(name)).expect("a seed"));
    seeds.collect()
}

fn try_all(target: &str, holds: fn(&[u8])) {
    let good = seeds(target);
    assert!(!good.is_empty());
    let mut random = Random::new(target.len() as u64);
    good.iter().for_each(|input| holds(input));
    for _ in 0..cases() * 20 {
        holds(&random.mutate(&good));
    }
}

#[test]
fn mutated_requests_are_parsed_or_refused() {
    try_all("request", properties::request);
    let corpus = corpus::each(corpus::REQUESTS).chain(corpus::each(corpus::NAMELESS));
    corpus.for_each(|(_, text)| properties::request(text.as_bytes()));
    corpus::BYTES.into_iter().for_each(properties::request);
}

#[test]
fn mutated_definitions_are_parsed_or_refused() {
    try_all("definition", properties::definition);
}

#[test]
fn mutated_journals_never_answer_for_another_job() {
    try_all("journal", properties::journal);
}

#[test]
fn mutated_environments_are_read_or_refused_without_a_password_in_sight() {
    try_all("environment", properties::environment);
}

#[test]
fn a_mebibyte_of_anything_is_dealt_with() {
    const MEBIBYTE: usize = 1 << 20;
    let tokens = "{ [ \" \\ [[ {\"a\": [{\"a\":[ 1 \0 \u{feff} - é {\"id\":\"a\",";
    for token in tokens.split(' ').chain([" "]) {
        let mut text = token.repeat(MEBIBYTE / token.len());
        for close in ["", "]}"] {
            text.push_str(close);
            properties::request(text.as_bytes());
            properties::definition(text.as_bytes());
            properties::journal(text.as_bytes());
            let fields = "id workDir steps env timeoutSeconds maxAttempts unknown";
            for field in fields.split(' ') {
                let inside = format!("{{\"id\":\"a\",\"workDir\":\"d\",\"{field}\":{text}}}");
                properties::request(inside.as_bytes());
            }
        }
    }
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let inside = format!(
        "{{\"id\":\"a\",\"workDir\":\"d\",\"x\":{}}}",
        nested(500_000)
    );
    properties::request(inside.as_bytes());
    let many = format!("{{\"steps\":[{}\"\"]}}", "\"\",".repeat(300_000));
    let definition = Definition::parse(many.as_bytes()).expect("as many steps as fit");
    assert_eq!(definition.steps.map(|steps| steps.len()), Some(300_001));
    let id = job_worker::contract::JobId::from_text("a").expect("a good id");
    let deep = format!(
        "{{\"id\":\"a\",\"status\":\"success\",\"x\":{}}}",
        nested(100_000)
    );
    assert!(EarlierRun::read(deep.as_bytes(), &id).is_some());
}

/// Each of many mutated requests is answered exactly once, and then a good job is run.
fn a_worker_survives_them(version: &str) {
    let site = Site::start();
    let root = site.directory("root");
    site.prepare("root/good", json!({ "steps": ["true"] }));
    let configure = |command: &mut Command| {
        command.envs([
            // nothing of a mutated command line is run
            ("JOB_PAYLOAD_STEPS", "deny"),
            ("JOB_DIR_WAIT", "0"),
            ("MQTT_PROTOCOL_VERSION", version),
            ("RUST_LOG", "warn,job_worker=warn"),
        ]);
        command.env("JOB_ROOT", &root);
    };
    site.open_queue(configure);
    let (mut random, good) = (Random::new(5), seeds("request"));
    let count = cases() / 4;
    for _ in 0..count {
        site.controller
            .publish("jobs/pending", random.mutate(&good));
    }
    let mut supervisor = site.worker(|command| {
        command.arg("supervise");
        configure(command);
    });
    site.request(json!({ "id": "the last one", "workDir": "good" }));
    let results = || site.controller.heard("jobs/results/");
    let answered = || results().len() + site.controller.heard("jobs/rejected").len();
    for number in 1..=count {
        wait::until(&format!("answer {number}"), || answered() >= number);
    }
    site.succeeds("the last one");
    assert_eq!(answered(), count + 1, "each is answered once");
    assert!(results().len() > count / 10, "some of them have an id");
    let log = supervisor.stderr();
    let is_sound = !log.contains("defect") && !log.contains("the worker ended with status");
    assert!(is_sound, "{log}");
    supervisor.stop();
}

on_both_protocols!(a_worker_survives_them);

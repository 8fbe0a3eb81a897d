//! What comes from outside cannot forge a line of the worker's own log, of `job.log`, or of `check`.

use crate::support;

use std::fs;

use serde_json::json;
use support::log::untimed;
use support::site::Site;
use support::wait;
use support::worker::{job_worker, with};

/// What a terminal or a reader of logs takes for the end of a line, for a command, or for another order of the letters.
const TRICKS: [&str; 10] = [
    "\n",
    "\r",
    "\u{1b}[2K\u{1b}[1A",
    "\u{9b}2J",
    "\u{8}\u{8}",
    "\u{b}",
    "\u{85}",
    "\u{2028}",
    "\u{2029}",
    "\u{202e}",
];

const FORGED: &str = "job-worker: error: forged";

/// A line of the worker's log without the time that it begins with.
fn without_time(line: &str) -> &str {
    let (time, rest) = line.split_once(' ').unwrap_or_default();
    assert!(humantime::parse_rfc3339(time).is_ok(), "{line:?}");
    rest
}

/// Each line is one that we have begun, and nothing in it is a trick.
fn assert_honest(log: &str, starts: &[&str]) {
    for line in log.split_terminator('\n') {
        let line = without_time(line);
        assert!(
            starts.iter().any(|start| line.starts_with(start)),
            "{line:?}"
        );
        assert!(!line.starts_with(FORGED), "{line:?}");
        for trick in TRICKS {
            assert!(!line.contains(trick), "{line:?}");
        }
    }
}

#[test]
fn nothing_in_a_message_forges_a_line_of_the_worker_s_log() {
    let site = Site::start();
    let mut worker = site.idle_worker(with(&[("RUST_LOG", "debug")]));
    let dir = site.directory("dir");
    for trick in TRICKS {
        let text = format!("a{trick}{FORGED}");
        site.request(json!({ "id": text, "workDir": dir }));
        site.request(json!({ "id": "by-dir", "workDir": text }));
        site.request(json!({ "id": "by-name", "workDir": dir, "env": { format!("{text}="): "" } }));
        site.request(json!({ "id": "by-step", "workDir": dir, "steps": [{ "name": text }] }));
        site.controller
            .publish("jobs/pending", format!("{{\"id\": {text}"));
        site.controller
            .publish("jobs/pending", format!("{{\"id\": 1e{text}}}"));
        // some of it is no topic for Mosquitto, which would drop the controller
        if !trick.contains(char::is_control) {
            site.controller.publish(&format!("jobs/cancel/{text}"), "");
        }
    }
    let dir = site.prepare("last", json!({ "steps": ["true"] }));
    site.request(
        json!({ "id": "last", "workDir": dir, "x\n\u{202e}job-worker: error: forged": 1 }),
    );
    worker.exits_with(0);
    let log = worker.stderr();
    assert!(
        log.contains("unknown field") && log.contains("by-dir") && log.contains("\\n"),
        "{log}"
    );
    assert_honest(
        &log,
        &[
            "job-worker: info: ",
            "job-worker: warn: ",
            "job-worker: debug: ",
        ],
    );
}

#[test]
fn nothing_in_a_definition_forges_a_line_of_job_log() {
    let site = Site::start();
    let steps: Vec<_> = TRICKS
        .iter()
        .map(|trick| json!({ "run": format!("true # {trick}==> forged"), "name": format!("n{trick}==> forged") }))
        .collect();
    let count = steps.len();
    let job = site.run("a", json!({ "steps": steps, "env": {} }));
    // the characters after # are the shell's business, and a new line in them is a command that fails
    let log = untimed(&job.log);
    let own: Vec<_> = log
        .lines()
        .skip(3)
        .filter(|line| line.starts_with("==> "))
        .collect();
    assert!(own.len() >= 2 && own.len() <= 2 + 2 * count, "{}", job.log);
    for line in &own {
        let ours = ["==> attempt ", "==> step ", "==> job failed: step "];
        assert!(ours.iter().any(|start| line.starts_with(start)), "{line:?}");
    }
    for trick in TRICKS {
        assert!(!own.concat().contains(trick), "{trick:?} in {own:?}");
    }
}

#[test]
fn nothing_in_a_definition_forges_a_line_of_check() {
    let dir = support::temp_dir::TempDir::new();
    for trick in TRICKS {
        let text = format!("a{trick}job: good; forged");
        for (definition, lines) in [
            (json!({ "steps": ["true"], text.clone(): 1 }), 4),
            (json!({ "steps": ["true"], "env": { text.clone(): [] } }), 3),
            (
                json!({ "steps": ["true"], "env": { format!("{text}="): "" } }),
                3,
            ),
        ] {
            fs::write(dir.path().join("job.json"), definition.to_string()).unwrap();
            let done = job_worker()
                .arg("check")
                .arg(dir.path())
                .output()
                .expect("it runs");
            let said =
                String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
            assert_eq!(said.lines().count(), lines, "{said:?}");
            assert!(
                !said
                    .trim_end_matches('\n')
                    .split('\n')
                    .any(|line| line.contains(trick)),
                "{said:?}"
            );
        }
    }
}

#[test]
fn a_long_text_is_not_repeated_at_length() {
    let site = Site::start();
    let worker = site.idle_worker(|_| {});
    let long = format!("0.{}", "0".repeat(500_000));
    let dir = site.directory("dir");
    for (field, value) in [
        ("timeoutSeconds", long.clone()),
        ("env", format!("{{\"{long}\": []}}")),
    ] {
        let request = format!(
            "{{\"id\": \"a\", \"workDir\": {}, \"{field}\": {value}}}",
            json!(dir)
        );
        site.controller.publish("jobs/pending", request);
        let result = site.result("a");
        assert!(
            result.payload.len() < 2000,
            "{field}: {} bytes",
            result.payload.len()
        );
    }
    wait::until("the log", || {
        worker.stderr().matches(": rejected: ").count() == 2
    });
    assert!(worker.stderr().len() < 10_000);
}

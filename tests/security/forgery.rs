//! What comes from outside cannot forge a line of the worker's own log, of `job.log`, or of `check`.

use std::fs;

use crate::support::log::untimed;
use crate::support::site::Site;
use crate::support::temp_dir::TempDir;
use crate::support::wait;
use crate::support::worker::{job_worker, said, with};
use serde_json::json;

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
        for payload in [format!("{{\"id\": {text}"), format!("{{\"id\": 1e{text}}}")] {
            site.controller.publish("jobs/pending", payload);
        }
        // some of it is no topic for Mosquitto, which would drop the controller
        if !trick.contains(char::is_control) {
            site.controller.publish(&format!("jobs/cancel/{text}"), "");
        }
    }
    let dir = site.prepare("last", json!({ "steps": ["true"] }));
    let field = format!("x\n\u{202e}{FORGED}");
    site.request(json!({ "id": "last", "workDir": dir, field: 1 }));
    worker.exits_with(0);
    let log = worker.stderr();
    for word in ["unknown field", "by-dir", "\\n"] {
        assert!(log.contains(word), "{word}: {log}");
    }
    // each line is one that the worker has begun, and nothing in it is a trick
    for line in log.split_terminator('\n') {
        let (time, text) = line.split_once(' ').unwrap_or_default();
        assert!(humantime::parse_rfc3339(time).is_ok(), "{line:?}");
        let level = text
            .strip_prefix("job-worker: ")
            .and_then(|rest| rest.split_once(": "));
        let is_ours = level.is_some_and(|(level, _)| ["info", "warn", "debug"].contains(&level));
        let is_trick = TRICKS.iter().any(|trick| line.contains(trick));
        assert!(is_ours && !is_trick, "{line:?}");
    }
}

#[test]
fn nothing_in_a_definition_forges_a_line_of_job_log() {
    let site = Site::start();
    let forged = TRICKS.map(|trick| format!("{trick}==> forged"));
    let step = |text| json!({ "run": format!("true # {text}"), "name": format!("n{text}") });
    let steps: Vec<_> = forged.iter().map(step).collect();
    let job = site.run("a", json!({ "steps": steps, "env": {} }));
    // the characters after # are the shell's business, and a new line in them is a command that fails
    let log = untimed(&job.log);
    let own = log.lines().skip(3).filter(|line| line.starts_with("==> "));
    let own: Vec<_> = own.collect();
    let expected = 2..=2 + 2 * steps.len();
    assert!(expected.contains(&own.len()), "{}", job.log);
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
    let dir = TempDir::new();
    let steps = ["true"];
    for trick in TRICKS {
        let text = format!("a{trick}job: good; forged");
        let named = format!("{text}=");
        for (definition, lines) in [
            (json!({ "steps": steps, text.clone(): 1 }), 4),
            (json!({ "steps": steps, "env": { text.clone(): [] } }), 3),
            (json!({ "steps": steps, "env": { named: "" } }), 3),
        ] {
            fs::write(dir.path().join("job.json"), definition.to_string()).unwrap();
            let (good, wrong, _) = said(job_worker().arg("check").arg(dir.path()));
            let said = good + &wrong;
            let mut found = said.split_terminator('\n');
            assert_eq!(said.lines().count(), lines, "{said:?}");
            assert!(!found.any(|line| line.contains(trick)), "{said:?}");
        }
    }
}

#[test]
fn a_long_text_is_not_repeated_at_length() {
    let site = Site::start();
    let worker = site.idle_worker(|_| {});
    let long = format!("0.{}", "0".repeat(500_000));
    let dir = json!(site.directory("dir"));
    for field in [
        format!("\"timeoutSeconds\": {long}"),
        format!("\"env\": {{\"{long}\": []}}"),
    ] {
        let request = format!("{{\"id\": \"a\", \"workDir\": {dir}, {field}}}");
        site.controller.publish("jobs/pending", request);
        let bytes = site.result("a").payload.len();
        assert!(bytes < 2000, "{bytes} bytes");
    }
    wait::until("the log", || {
        worker.stderr().matches(": rejected: ").count() == 2
    });
    assert!(worker.stderr().len() < 10_000);
}

//! What the Debian package says of the program: its settings (`/etc/default/job-worker`) and its man page.

use crate::docs::{blocks, help, variables};
use crate::support::mosquitto::Mosquitto;
use crate::support::site::read;
use crate::support::temp_dir::TempDir;
use crate::support::worker::{job_worker, said};
use crate::{file, output, text};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

const DEFAULT: &str = "packaging/debian/default";

/// The variables and what the file shows for each, which is a comment.
fn settings() -> BTreeMap<String, String> {
    let file = text(DEFAULT);
    let lines = file.lines().filter_map(|line| line.strip_prefix('#'));
    let settings = lines.filter_map(|line| line.split_once('='));
    let ours = settings.filter(|(name, _)| variables(name).contains(*name));
    ours.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// As the help shows them: `NAME=default`. The unit sets two.
#[test]
fn the_settings_are_those_of_the_program_with_their_defaults_and_set_none() {
    let (help, settings) = (help(), settings());
    let shown: BTreeSet<_> = settings.keys().cloned().collect();
    assert_eq!(shown, variables(&help));
    let file = text(DEFAULT);
    assert!(file.lines().all(|l| l.is_empty() || l.starts_with('#')));
    for (name, value) in &settings {
        let shown = help.split_once(&format!("  {name}="));
        let default = shown.and_then(|(_, rest)| rest.split(' ').next());
        if !["WORKER_ID", "JOB_ROOT"].contains(&&**name) {
            assert_eq!(default, Some(&**value), "{name}");
        }
    }
    let dir = TempDir::new();
    let mut check = job_worker();
    check.arg("check").envs(settings);
    let (_, wrong, status) = said(check.env("JOB_ROOT", dir.path()));
    assert_eq!((&*wrong, status), ("", Some(0)));
}

#[test]
fn the_man_page_has_every_command_and_every_variable() {
    let dir = TempDir::new();
    let help = help();
    let shown = dir.path().join("help");
    fs::write(&shown, &help).expect("the directory can be written");
    let mut awk = Command::new("awk");
    awk.args(["-v", "version=1", "-v", "date=2026-01-01", "-f"]);
    awk.arg(file("packaging/debian/man.awk"));
    let page = output(awk.arg(shown).arg(file(DEFAULT))).replace("\\-", "-");
    for name in settings().keys() {
        assert!(page.contains(&format!(".B {name}=")), "{name}:\n{page}");
    }
    let usage = help.lines().filter_map(|line| line.strip_prefix("  "));
    let commands = usage.filter(|line| line.starts_with("job-worker"));
    let commands: Vec<_> = commands
        .filter_map(|line| line.split("  ").next())
        .collect();
    assert!(commands.len() > 3, "only {commands:?}");
    for command in commands {
        assert_eq!(page.matches(&format!(".B {command}\n")).count(), 2);
    }
}

/// Those that a queue needs: alone for a broker of the system, with others in the examples and in all these tests, and in the
/// documents.
#[test]
fn the_lines_for_mosquitto_are_the_same_everywhere() {
    let settings = |text: &str| -> BTreeSet<String> {
        let lines = text.lines();
        let settings = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        settings.map(str::to_owned).collect()
    };
    let wanted = settings(&text("examples/mosquitto/job-worker.conf"));
    let examples =
        ["mosquitto.conf", "secure.conf"].map(|name| file(&format!("examples/mosquitto/{name}")));
    let broker = Mosquitto::start();
    let tested = broker.dir().join("mosquitto.conf");
    for whole in examples.into_iter().chain([tested]) {
        let whole = settings(&read(&whole));
        assert!(whole.is_superset(&wanted), "{whole:?}");
    }
    let blocks = blocks(&text("docs/operators.md"), "conf");
    assert_eq!(settings(&blocks[0].1), wanted);
    let readme = text("README.md");
    for line in wanted {
        assert!(readme.contains(&format!("`{line}`")), "{line}");
    }
}

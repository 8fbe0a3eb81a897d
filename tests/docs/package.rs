//! What the Debian package says of the program: its settings (`/etc/default/job-worker`) and its man page.

use crate::support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::temp_dir::TempDir;
use support::worker::job_worker;

fn packaging(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging/debian")
        .join(file)
}

fn help() -> String {
    let output = job_worker().arg("--help").output().expect("it runs");
    String::from_utf8(output.stdout).expect("the help is text")
}

fn is_variable(word: &str) -> bool {
    ["MQTT_", "JOB_", "WORKER_", "RUST_"]
        .iter()
        .any(|start| word.starts_with(start))
}

/// The variables and what the file shows for each, which is a comment.
fn settings() -> BTreeMap<String, String> {
    let file = fs::read_to_string(packaging("default")).expect("the file is there");
    let lines = file.lines().filter_map(|line| line.strip_prefix('#'));
    lines
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| is_variable(name) && !name.contains(' '))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn the_settings_have_every_variable_of_the_program_and_set_none() {
    let help = help();
    let words = help.split(|c: char| !c.is_ascii_uppercase() && c != '_');
    let of_the_program: BTreeSet<_> = words.filter(|word| is_variable(word)).collect();
    let settings = settings();
    let shown: BTreeSet<_> = settings.keys().map(String::as_str).collect();
    assert_eq!(shown, of_the_program);
    let file = fs::read_to_string(packaging("default")).expect("the file is there");
    assert!(file.lines().all(|l| l.is_empty() || l.starts_with('#')));
}

/// As the help shows them: `NAME=default`. The unit sets two.
#[test]
fn the_settings_show_the_defaults() {
    let help = help();
    for (name, value) in settings() {
        let shown = help.split_once(&format!("  {name}="));
        let default = shown.and_then(|(_, rest)| rest.split(' ').next());
        if !["WORKER_ID", "JOB_ROOT"].contains(&&*name) {
            assert_eq!(default, Some(&*value), "{name}");
        }
    }
}

#[test]
fn the_program_takes_the_settings_as_they_are_shown() {
    let dir = TempDir::new();
    let mut check = job_worker();
    check.arg("check").envs(settings());
    let output = check.env("JOB_ROOT", dir.path()).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn the_man_page_has_every_command_and_every_variable() {
    let dir = TempDir::new();
    let help = help();
    let file = dir.path().join("help");
    fs::write(&file, &help).expect("the directory can be written");
    let mut awk = Command::new("awk");
    awk.args(["-v", "version=1", "-v", "date=2026-01-01", "-f"])
        .arg(packaging("man.awk"))
        .arg(file)
        .arg(packaging("default"));
    let output = awk.output().expect("awk is there");
    assert!(output.status.success(), "{output:?}");
    let page = String::from_utf8(output.stdout).expect("a man page is text");
    let page = page.replace("\\-", "-");
    for name in settings().keys() {
        assert!(page.contains(&format!(".B {name}=")), "{name}:\n{page}");
    }
    let usage = help.lines().filter_map(|line| line.strip_prefix("  "));
    let commands = usage.filter(|line| line.starts_with("job-worker"));
    let mut count = 0;
    for command in commands.filter_map(|line| line.split("  ").next()) {
        assert_eq!(page.matches(&format!(".B {command}\n")).count(), 2);
        count += 1;
    }
    assert!(count > 3, "only {count} commands");
}

/// Those that a queue needs: alone for a broker of the system, with others in the examples, and in the documents.
#[test]
fn the_lines_for_mosquitto_are_the_same_everywhere() {
    let read = |file: &str| {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("it is there")
    };
    let settings = |text: &str| -> BTreeSet<String> {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    };
    let wanted = settings(&read("examples/mosquitto/job-worker.conf"));
    for whole in ["mosquitto.conf", "secure.conf"] {
        let whole = settings(&read(&format!("examples/mosquitto/{whole}")));
        assert!(whole.is_superset(&wanted), "{whole:?}");
    }
    let operators = read("docs/operators.md");
    let (_, block) = operators.split_once("```conf\n").expect("a block");
    let (block, _) = block.split_once("```").expect("its end");
    assert_eq!(settings(block), wanted);
    let readme = read("README.md");
    for line in wanted {
        assert!(readme.contains(&format!("`{line}`")), "{line}");
    }
}

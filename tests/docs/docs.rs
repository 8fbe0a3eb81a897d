//! README.md, CONTRIBUTING.md, SECURITY.md and docs/*.md: every command in a `sh` block is run, every message that they
//! explain is in the code, every link leads somewhere. Commands that no test can run are in blocks marked `console`.
//!
//! The `sh` blocks of a page are one script, run by `sh -eu` in an empty directory, with a broker of its own on which
//! the Mosquitto clients and the worker find each other as if it were on localhost:1883. `examples` is there, too.

use crate::support::mosquitto::{Mosquitto, tool};
use crate::support::site::{names, read, read_json};
use crate::support::temp_dir::TempDir;
use crate::support::worker::{Worker, binary, job_worker, without_configuration};
use crate::{file, output, text};
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

fn path() -> OsString {
    let others = std::env::var_os("PATH").unwrap();
    let ours = binary().parent().unwrap().as_os_str().to_owned();
    [ours, others].join(":".as_ref())
}

/// The names of the pages, with what is in them.
fn pages() -> Vec<(String, String)> {
    let docs = names(&file("docs")).into_iter();
    let docs = docs.filter(|name| name.ends_with(".md"));
    let docs = docs.map(|name| format!("docs/{name}"));
    let others = ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(str::to_owned);
    let all = others.into_iter().chain(docs);
    all.map(|name| (name.clone(), text(&name))).collect()
}

/// The blocks with this info string: line number and text.
pub fn blocks(page: &str, info: &str) -> Vec<(usize, String)> {
    let parts: Vec<_> = page.split("```").collect();
    assert!(parts.len() % 2 == 1, "a block without an end");
    let mut found = Vec::new();
    for (number, part) in parts.iter().enumerate().skip(1).step_by(2) {
        let (its_info, text) = part.split_once('\n').expect("a first line");
        if its_info.trim() == info {
            let lines = parts[..number].concat().matches('\n').count();
            found.push((lines + 2, text.trim_end_matches(' ').to_owned()));
        }
    }
    found
}

/// Runs a script with all that it starts, and returns its output; what it leaves behind is ended.
fn run(script: &str, page: &str) -> String {
    let (broker, home, dir) = (Mosquitto::start(), TempDir::new(), TempDir::new());
    for client in ["mosquitto_pub", "mosquitto_sub", "mosquitto_rr"] {
        let options = format!("-h 127.0.0.1\n-p {}\n", broker.port());
        fs::write(home.path().join(client), options).unwrap();
    }
    symlink(file("examples"), dir.path().join("examples")).unwrap();
    let mut command = Command::new("sh");
    without_configuration(&mut command);
    command
        .args(["-eu", "-c", &format!("exec >&2\n{script}")])
        .current_dir(dir.path())
        .env("PATH", path())
        .env("XDG_CONFIG_HOME", home.path())
        .env("MQTT_URL", broker.url())
        .stdin(Stdio::null())
        .process_group(0);
    let mut process = Worker::start(command, home.path());
    let _group = Group(Pid::from_raw(process.pid() as i32).expect("a pid"));
    let status = process.wait();
    let shown = process.stderr();
    assert!(status.success(), "{page}: {status}\n{shown}");
    shown
}

/// A process group that is ended with the test.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // TERM, so that a supervisor takes its worker with it; ESRCH: all have ended
        let _ = kill_process_group(self.0, Signal::TERM);
    }
}

#[test]
fn every_command_runs() {
    tool("mosquitto_sub");
    let continuous = text(".ci/run");
    let mut count = 0;
    for (name, page) in pages() {
        let mut script = String::new();
        for (number, block) in blocks(&page, "sh") {
            count += 1;
            // these would run the tests within the tests; that they are run is .ci/run's business
            if block.lines().all(|line| line.starts_with("cargo ")) {
                for line in block.lines() {
                    let is_run = continuous.lines().any(|step| {
                        let words: Vec<_> = step.split(' ').collect();
                        line.split(' ').all(|word| words.contains(&word))
                    });
                    assert!(is_run, ".ci/run does not run: {line}");
                }
                continue;
            }
            script += &format!("echo '== line {number}'\n{block}");
        }
        if !script.is_empty() {
            println!("{name}\n{}", run(&script, &name));
        }
    }
    assert!(count >= 8, "only {count} blocks");
}

fn sources(dir: &Path) -> String {
    let paths = names(dir).into_iter().map(|name| dir.join(name));
    let texts = paths.map(|path| match path.is_dir() {
        true => sources(&path),
        false => read(&path),
    });
    texts.collect()
}

#[test]
fn every_message_is_that_of_the_code() {
    let code = sources(&file("src"));
    // string literals may go on in the next line
    let parts = code.split("\\\n").map(str::trim_start);
    let code: String = parts.collect();
    let page = text("docs/troubleshooting.md");
    let headings = page
        .lines()
        .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'));
    let headings: Vec<_> = headings.collect();
    assert!(headings.len() > 20, "only {} messages", headings.len());
    for heading in headings {
        let fragments = heading
            .split('…')
            .map(|part| part.trim_matches([' ', ':', ';']));
        for fragment in fragments.filter(|part| part.len() > 2) {
            let is_said = code.contains(fragment);
            assert!(is_said, "{heading}: no {fragment:?} in src/");
        }
    }
}

/// The headings that comments name: `docs/reference.md, "Topics", "Request" and "Delivery"`, also over several lines.
fn headings_named_in(code: &str) -> Vec<String> {
    let lines = code.lines().map(|line| {
        let line = line.trim_start();
        let comment = ["//! ", "/// ", "// "]
            .iter()
            .find_map(|start| line.strip_prefix(start));
        comment.unwrap_or(line)
    });
    let text = lines.collect::<Vec<_>>().join(" ");
    let mut named = Vec::new();
    // in two parts, or this line would name one
    for mut rest in text.split(concat!("docs/reference.md", ", \"")).skip(1) {
        while let Some((heading, behind)) = rest.split_once('"') {
            named.push(heading.to_owned());
            let next = [", \"", " and \""]
                .iter()
                .find_map(|link| behind.strip_prefix(link));
            match next {
                Some(next) => rest = next,
                None => break,
            }
        }
    }
    named
}

#[test]
fn every_heading_that_a_comment_names_is_in_the_reference() {
    let reference = text("docs/reference.md");
    let headings = reference
        .lines()
        .filter_map(|line| line.strip_prefix("## "));
    let headings: Vec<_> = headings.collect();
    let mut count = 0;
    for dir in ["src", "tests", "benches", "fuzz/fuzz_targets"] {
        let code = sources(&file(dir));
        for heading in headings_named_in(&code) {
            assert!(headings.contains(&&*heading), "{dir}: no {heading:?}");
            count += 1;
        }
    }
    assert!(count > 20, "only {count} headings are named");
}

fn section_of_the_reference(heading: &str) -> String {
    let reference = text("docs/reference.md");
    let mut sections = reference.split("\n## ");
    let section = sections.find_map(|section| section.strip_prefix(&format!("{heading}\n")));
    section.expect("the heading is there").to_owned()
}

/// The recording has the commands of the first block of the README, and what came of them.
fn assert_shows_the_first_screen(picture: &Path) {
    let svg = read(picture);
    assert!(svg.len() < 60_000, "{} bytes", svg.len());
    let text_of = |line: &str| {
        let text = line.split_once('>')?.1.strip_suffix("</text>")?;
        let text = text.replace("&lt;", "<").replace("&gt;", ">");
        Some(text.replace("&amp;", "&"))
    };
    let lines: Vec<_> = svg.lines().filter_map(text_of).collect();
    let (_, first) = blocks(&text("README.md"), "console").swap_remove(0);
    let commands = first.lines().map(|line| line.split("   ").next().unwrap());
    let commands: Vec<_> = commands.collect();
    assert!(commands.len() > 3, "{commands:?}");
    let shown: Vec<_> = lines.iter().filter(|line| line.starts_with("$ ")).collect();
    assert_eq!(
        shown, commands,
        "the README is another one: run docs/record.py"
    );
    let last = lines.last().unwrap();
    assert!(
        last.starts_with("==> ") && last.contains("job success"),
        "{last}"
    );
}

#[test]
fn the_recording_is_that_of_the_first_screen() {
    assert_shows_the_first_screen(&file("docs/first-screen.svg"));
}

#[test]
#[ignore = "needs python3"]
fn the_recording_can_be_made_anew() {
    tool("mosquitto_sub");
    let dir = TempDir::new();
    let picture = dir.path().join("picture.svg");
    let mut command = Command::new("python3");
    command.arg(file("docs/record.py")).arg(&picture);
    output(command.env("PATH", path()));
    assert_shows_the_first_screen(&picture);
}

pub fn help() -> String {
    output(job_worker().arg("--help"))
}

pub fn variables(text: &str) -> BTreeSet<String> {
    let starts = ["MQTT_", "JOB_", "WORKER_", "RUST_"];
    let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
    let ours = words.filter(|word| starts.iter().any(|start| word.starts_with(start)));
    ours.map(str::to_owned).collect()
}

/// These words stand in a text as code.
#[track_caller]
fn names_each(text: &str, words: impl IntoIterator<Item = String>) {
    let words: Vec<_> = words.into_iter().collect();
    for word in &words {
        assert!(text.contains(&format!("`{word}`")), "no {word} in:\n{text}");
    }
    assert!(words.len() > 2, "only {words:?}");
}

#[test]
fn the_reference_has_every_variable_command_and_field() {
    let help = help();
    let configuration = section_of_the_reference("Configuration");
    let rows = configuration.lines().filter(|line| line.starts_with("| `"));
    let first_cells: Vec<_> = rows.filter_map(|row| row.split('|').nth(1)).collect();
    assert_eq!(variables(&first_cells.join(" ")), variables(&help));
    let usage = help
        .lines()
        .filter(|line| line.starts_with("  job-worker "));
    let commands = usage.filter_map(|line| line.trim_start().split("  ").next());
    let commands = commands.filter(|command| command.contains(' ') && !command.contains('|'));
    let section = section_of_the_reference("Commands");
    names_each(&section, commands.map(str::to_owned));
    // whoever comes from another system is not sent to what does not exist
    let named = variables(&text("docs/words.md"));
    names_each(&text("docs/reference.md"), named);
    for (schema, heading) in [
        ("request", "Request"),
        ("job", "Job definition"),
        ("status", "Status document"),
    ] {
        let schema = read_json(&file(&format!("docs/schema/{schema}.json")));
        let fields = schema["properties"].as_object().unwrap();
        names_each(&section_of_the_reference(heading), fields.keys().cloned());
    }
}

#[test]
fn every_link_to_a_file_of_ours_leads_there() {
    for (name, page) in pages() {
        let targets = page
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            let (to, anchor) = target.split_once('#').unwrap_or((target, ""));
            let page = file(&name);
            let to = match to {
                "" => page,
                _ => page.parent().unwrap().join(to),
            };
            assert!(to.exists(), "{name}: {target}");
            if !anchor.is_empty() {
                let text = read(&to);
                let headings = text.lines().filter(|line| line.starts_with('#'));
                let mut anchors = headings.map(anchor_of);
                assert!(anchors.any(|found| found == anchor), "{name}: {target}");
            }
        }
    }
}

/// What stands in backquotes and begins like a path of this repository.
#[test]
fn every_file_of_ours_that_is_named_is_there() {
    let starts = ["src/", "tests/", "docs/", "examples/", "benches/", ".ci/"];
    let mut count = 0;
    for (name, page) in pages() {
        let words = page.split(['`', ' ', '\n', '(', ')', ',']);
        let ours = words.filter(|word| starts.iter().any(|start| word.starts_with(start)));
        let paths = ours.filter_map(|word| word.split('#').next());
        for path in paths.filter(|path| !path.contains('*')) {
            let path = path.trim_end_matches(['.', ':', ';', ']', '\'']);
            assert!(file(path).exists(), "{name}: no {path}");
            count += 1;
        }
    }
    assert!(count > 30, "only {count} files are named");
}

/// As GitHub makes it.
fn anchor_of(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_ascii_lowercase();
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    heading.replace(' ', "-").chars().filter(kept).collect()
}

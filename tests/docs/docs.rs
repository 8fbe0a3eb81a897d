//! README.md, CONTRIBUTING.md, SECURITY.md and docs/*.md: every command in a `sh` block is run, every message that they
//! explain is in the code, every link leads somewhere. Commands that no test can run are in blocks marked `console`.
//!
//! The `sh` blocks of a page are one script, run by `sh -eu` in an empty directory, with a broker of its own on which
//! the Mosquitto clients and the worker find each other as if it were on localhost:1883. `examples` is there, too.

use crate::support;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::mosquitto::{Mosquitto, tool};
use support::temp_dir::TempDir;
use support::wait;
use support::worker::{binary, job_worker};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<PathBuf> {
    let entries = fs::read_dir(repository().join("docs"))
        .expect("docs")
        .map(|entry| entry.unwrap().path());
    let mut pages: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect();
    for page in ["README.md", "CONTRIBUTING.md", "SECURITY.md"] {
        pages.push(repository().join(page));
    }
    pages
}

/// The blocks with this info string: line number and text.
fn blocks(page: &str, info: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(String, usize, String)> = None;
    for (number, line) in page.lines().enumerate() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (None, Some(info)) => open = Some((info.trim().to_owned(), number + 2, String::new())),
            (None, None) => {}
            (Some(_), Some(_)) => {
                let (block_info, number, text) = open.take().unwrap();
                if block_info == info {
                    found.push((number, text));
                }
            }
            (Some((_, _, text)), None) => *text += &format!("{line}\n"),
        }
    }
    assert!(open.is_none(), "a block without an end");
    found
}

/// Runs a script with all that it starts, and returns its output; what it leaves behind is ended.
fn run(script: &str, page: &str) -> String {
    let (broker, home, dir) = (Mosquitto::start(), TempDir::new(), TempDir::new());
    for client in ["mosquitto_pub", "mosquitto_sub", "mosquitto_rr"] {
        fs::write(
            home.path().join(client),
            format!("-h 127.0.0.1\n-p {}\n", broker.port()),
        )
        .unwrap();
    }
    symlink(repository().join("examples"), dir.path().join("examples")).unwrap();
    let bin = binary();
    let path = [
        bin.parent().unwrap().as_os_str(),
        &std::env::var_os("PATH").unwrap(),
    ]
    .join(":".as_ref());
    let output = home.path().join("output");
    let mut command = Command::new("sh");
    for (name, _) in job_worker().get_envs() {
        command.env_remove(name);
    }
    command
        .args(["-eu", "-c", script])
        .current_dir(dir.path())
        .env("PATH", path);
    command
        .env("XDG_CONFIG_HOME", home.path())
        .env("MQTT_URL", broker.url());
    let file = File::create(&output).unwrap();
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .process_group(0);
    let mut process = command.spawn().expect("sh can be started");
    let shown = || String::from_utf8_lossy(&fs::read(&output).unwrap()).into_owned();
    let group = Group(Pid::from_child(&process));
    let end = Instant::now() + 3 * wait::DEADLINE;
    let status = loop {
        if let Some(status) = process.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < end, "{page} does not end:\n{}", shown());
        std::thread::sleep(Duration::from_millis(10));
    };
    drop(group);
    assert!(status.success(), "{page}: {status}\n{}", shown());
    shown()
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
    let continuous = fs::read_to_string(repository().join(".ci/run")).unwrap();
    let mut count = 0;
    for path in pages() {
        let page = fs::read_to_string(&path).unwrap();
        let mut script = String::new();
        for (number, block) in blocks(&page, "sh") {
            count += 1;
            // these would run the tests within the tests; that they are run is .ci/run's business
            if block.lines().all(|line| line.starts_with("cargo ")) {
                for line in block.lines() {
                    let runs = |step: &str| {
                        line.split(' ')
                            .all(|word| step.split(' ').any(|other| other == word))
                    };
                    assert!(continuous.lines().any(runs), ".ci/run does not run: {line}");
                }
                continue;
            }
            script += &format!("echo '== line {number}'\n{block}");
        }
        if !script.is_empty() {
            let output = run(&script, &path.display().to_string());
            println!("{}\n{output}", path.display());
        }
    }
    assert!(count >= 8, "only {count} blocks");
}

#[test]
fn a_command_that_fails_is_noticed() {
    let page = "```sh\ntrue\n```\n```console\n$ false\n```\n```sh\nno-such-command\n```\n";
    assert_eq!(
        blocks(page, "sh"),
        [
            (2, "true\n".to_owned()),
            (8, "no-such-command\n".to_owned())
        ]
    );
    let failed = std::panic::catch_unwind(|| run("no-such-command", "page"));
    assert!(failed.is_err());
}

/// The settings that the page for operators asks for are those under which all these tests run.
#[test]
fn the_settings_of_mosquitto_are_tested() {
    let page = fs::read_to_string(repository().join("docs/operators.md")).unwrap();
    let broker = Mosquitto::start();
    let used = fs::read_to_string(broker.dir().join("mosquitto.conf")).unwrap();
    let blocks = blocks(&page, "conf");
    let settings: Vec<_> = blocks.iter().flat_map(|(_, block)| block.lines()).collect();
    assert!(!settings.is_empty());
    for setting in settings {
        assert!(
            used.lines().any(|line| line == setting),
            "{setting} is not in:\n{used}"
        );
    }
}

fn sources(dir: &Path) -> String {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            if path.is_dir() {
                sources(&path)
            } else {
                fs::read_to_string(path).unwrap()
            }
        })
        .collect()
}

#[test]
fn every_message_is_that_of_the_code() {
    let code = sources(&repository().join("src"));
    // string literals may go on in the next line
    let code: String = code
        .split("\\\n")
        .enumerate()
        .map(|(i, part)| if i == 0 { part } else { part.trim_start() })
        .collect();
    let page = fs::read_to_string(repository().join("docs/troubleshooting.md")).unwrap();
    let headings: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'))
        .collect();
    assert!(headings.len() > 20, "only {} messages", headings.len());
    for heading in headings {
        for fragment in heading
            .split('…')
            .map(|part| part.trim_matches([' ', ':', ';']))
            .filter(|part| part.len() > 2)
        {
            assert!(
                code.contains(fragment),
                "{heading}: no {fragment:?} in src/"
            );
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
    let reference = fs::read_to_string(repository().join("docs/reference.md")).unwrap();
    let headings: Vec<_> = reference
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    let mut count = 0;
    for dir in ["src", "tests", "benches", "fuzz/fuzz_targets"] {
        let code = sources(&repository().join(dir));
        for elsewhere in [concat!("ontract", " section"), concat!("contract", ".md")] {
            assert!(!code.contains(elsewhere), "{dir}: {elsewhere} is not here");
        }
        for heading in headings_named_in(&code) {
            assert!(headings.contains(&&*heading), "{dir}: no {heading:?}");
            count += 1;
        }
    }
    assert!(count > 20, "only {count} headings are named");
}

/// The text between a heading of the reference and the next one.
fn section_of_the_reference(heading: &str) -> String {
    let reference = fs::read_to_string(repository().join("docs/reference.md")).unwrap();
    let mut sections = reference.split("\n## ");
    let section = sections.find_map(|section| section.strip_prefix(&format!("{heading}\n")));
    section.expect("the heading is there").to_owned()
}

/// The recording has the commands of the first block of the README, and what came of them.
fn assert_shows_the_first_screen(picture: &Path) {
    let svg = fs::read_to_string(picture).unwrap();
    assert!(svg.len() < 60_000, "{} bytes", svg.len());
    let text = |line: &str| {
        let text = line.split_once('>')?.1.strip_suffix("</text>")?;
        let text = text.replace("&lt;", "<").replace("&gt;", ">");
        Some(text.replace("&amp;", "&"))
    };
    let lines: Vec<_> = svg.lines().filter_map(text).collect();
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let (_, first) = blocks(&readme, "console").swap_remove(0);
    let commands: Vec<_> = first
        .lines()
        .map(|line| line.split("   ").next().unwrap())
        .collect();
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
    assert_shows_the_first_screen(&repository().join("docs/first-screen.svg"));
}

#[test]
#[ignore = "needs python3"]
fn the_recording_can_be_made_anew() {
    tool("mosquitto_sub");
    let dir = TempDir::new();
    let picture = dir.path().join("picture.svg");
    let bin = binary();
    let path = [
        bin.parent().unwrap().as_os_str(),
        &std::env::var_os("PATH").unwrap(),
    ]
    .join(":".as_ref());
    let mut command = Command::new("python3");
    command
        .arg(repository().join("docs/record.py"))
        .arg(&picture)
        .env("PATH", path);
    assert!(command.status().unwrap().success());
    assert_shows_the_first_screen(&picture);
}

#[test]
fn the_reference_has_every_variable_and_every_command_of_the_help() {
    let output = job_worker().arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let is_variable = |word: &&str| {
        ["MQTT_", "JOB_", "WORKER_", "RUST_"]
            .iter()
            .any(|start| word.starts_with(start))
    };
    let words = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
        words.filter(is_variable).map(str::to_owned).collect()
    };
    let configuration = section_of_the_reference("Configuration");
    let rows = configuration.lines().filter(|line| line.starts_with("| `"));
    let first_cells: Vec<_> = rows.filter_map(|row| row.split('|').nth(1)).collect();
    assert_eq!(words(&first_cells.join(" ")), words(&help));
    let commands = section_of_the_reference("Commands");
    let shown = help.lines().filter_map(|line| {
        let command = line.strip_prefix("  job-worker ")?;
        command.split("  ").next()
    });
    let mut count = 0;
    for command in shown.filter(|command| !command.is_empty() && !command.contains('|')) {
        assert!(
            commands.contains(&format!("`job-worker {command}`")),
            "no {command}"
        );
        count += 1;
    }
    assert!(count > 2, "only {count} commands");
}

/// Whoever comes from another system is not sent to what does not exist.
#[test]
fn the_reference_has_every_variable_of_the_page_of_words() {
    let page = fs::read_to_string(repository().join("docs/words.md")).unwrap();
    let reference = fs::read_to_string(repository().join("docs/reference.md")).unwrap();
    let mut count = 0;
    for word in page.split(|c: char| !c.is_ascii_uppercase() && c != '_') {
        if word.starts_with("JOB_") || word.starts_with("MQTT_") {
            assert!(reference.contains(&format!("`{word}`")), "no {word}");
            count += 1;
        }
    }
    assert!(count > 5, "only {count} variables");
}

#[test]
fn the_reference_has_every_field_of_the_schemas() {
    for (schema, heading) in [
        ("request", "Request"),
        ("job", "Job definition"),
        ("status", "Status document"),
    ] {
        let file = repository().join(format!("docs/schema/{schema}.json"));
        let schema: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let section = section_of_the_reference(heading);
        for field in schema["properties"].as_object().unwrap().keys() {
            assert!(
                section.contains(&format!("`{field}`")),
                "{heading}: no {field}"
            );
        }
    }
}

#[test]
fn headings_are_found_in_comments_of_several_lines() {
    let code = concat!(
        "//! One (docs/reference.md",
        ", \"Job\n//! definition\", \"Topics\" and \"Limits\"), \"not this\"\n",
        "    /// docs/reference.md",
        ", \"Request\".\n"
    );
    assert_eq!(
        headings_named_in(code),
        ["Job definition", "Topics", "Limits", "Request"]
    );
}

#[test]
fn every_link_to_a_file_of_ours_leads_there() {
    for path in pages() {
        let page = fs::read_to_string(&path).unwrap();
        for target in page
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() {
                path.clone()
            } else {
                path.parent().unwrap().join(file)
            };
            assert!(file.exists(), "{}: {target}", path.display());
            if !anchor.is_empty() {
                let text = fs::read_to_string(&file).unwrap();
                let headings = text.lines().filter(|line| line.starts_with('#'));
                let mut anchors =
                    headings.map(|line| anchor_of(line.trim_start_matches('#').trim()));
                assert!(
                    anchors.any(|found| found == anchor),
                    "{}: {target}",
                    path.display()
                );
            }
        }
    }
}

/// What stands in backquotes and begins like a path of this repository.
#[test]
fn every_file_of_ours_that_is_named_is_there() {
    let mut count = 0;
    for path in pages() {
        let page = fs::read_to_string(&path).unwrap();
        for word in page.split(['`', ' ', '\n', '(', ')', ',']) {
            let is_ours = ["src/", "tests/", "docs/", "examples/", "benches/", ".ci/"]
                .iter()
                .any(|start| word.starts_with(start));
            let file = word.split('#').next().unwrap_or(word);
            let file = file.trim_end_matches(['.', ':', ';', ']', '\'']);
            if is_ours && !file.contains('*') {
                assert!(
                    repository().join(file).exists(),
                    "{}: no {file}",
                    path.display()
                );
                count += 1;
            }
        }
    }
    assert!(count > 30, "only {count} files are named");
}

/// As GitHub makes it.
fn anchor_of(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| {
        if c == ' ' {
            '-'
        } else {
            c.to_ascii_lowercase()
        }
    })
    .collect()
}

//! docs/reference.md, "Steps and their environment": how steps run, and what they find.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::log::{first_attempt, untimed};
use crate::support::site::Site;
use serde_json::{Value, json};

const RULE: &str = "----------------------------------------";

fn is_time(text: &str) -> bool {
    let seconds = text.strip_suffix('s');
    seconds.is_some_and(|seconds| seconds.parse::<f64>().is_ok())
}

#[test]
fn the_log_starts_with_a_header_frames_each_step_and_ends_with_the_outcome() {
    let site = Site::start();
    let steps = json!(["echo one", { "run": "echo two; exit 3", "name": "tests" }, "echo three"]);
    let job = site.run("framed", json!({ "steps": steps }));
    // the times of the steps are left out
    let log = untimed(&job.log);
    let log: Vec<&str> = log
        .lines()
        .map(|line| match line.split_once(" in ") {
            Some((start, seconds)) if is_time(seconds) => start,
            _ => line,
        })
        .collect();
    let dir = format!("Working Directory: {}", job.dir.display());
    let expected = [
        "Job ID: framed",
        &dir,
        RULE,
        &first_attempt("node-worker-01"),
        "==> step 1/3: echo one",
        "one",
        "==> step 1/3: exit 0",
        "==> step 2/3: tests (echo two; exit 3)",
        "two",
        "==> step 2/3: exit 3",
        "==> step 3/3: skipped",
        "==> job failed: step 2/3 (tests) ended with exit code 3",
    ];
    assert_eq!(log, expected);

    let job = site.run("good", json!({ "steps": ["true"] }));
    let last = job.log.lines().last().unwrap_or_default();
    let seconds = last.split_once(" job success in ").unwrap_or_default().1;
    assert!(is_time(seconds), "{last}");
}

#[test]
fn stdout_and_stderr_are_one_open_append_handle_of_the_log() {
    let site = Site::start();
    // Two handles of the same file would differ in their position once something went through one of them.
    let step = "echo moved; out=$(cat /proc/$$/fdinfo/1); err=$(cat /proc/$$/fdinfo/2); \
                [ \"$out\" = \"$err\" ] && echo \"$out\" > fdinfo; \
                targets=$(readlink /proc/$$/fd/1 /proc/$$/fd/2); echo \"$targets\" > targets";
    let job = site.run("handle", json!({ "steps": [step] }));
    let log_file = job.dir.join("job.log").display().to_string();
    assert_eq!(job.read("targets"), format!("{log_file}\n{log_file}\n"));
    let fdinfo = job.read("fdinfo");
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|text| u32::from_str_radix(text.trim(), 8).ok());
    let is_append = flags.is_some_and(|flags| flags & 0o2000 != 0);
    assert!(is_append, "O_APPEND is set in {fdinfo}");
}

#[test]
fn what_a_step_finds_and_leaves() {
    let site = Site::start();
    let shell = site.drive.path().join("own-shell");
    fs::write(&shell, "#!/bin/sh\necho \"$#|$1|$2\"\n").unwrap();
    fs::set_permissions(&shell, fs::Permissions::from_mode(0o755)).unwrap();
    let good = json!(["success", "", 0]);
    let always = |run: &str| json!({ "run": run, "always": true });
    // a log of before, which a first attempt empties
    fs::write(site.directory("job-0").join("job.log"), "stale\n").unwrap();
    let jobs = site.jobs(&json!([
        { "job": { "steps": ["echo \"${PWD##*/}\"; cd /", "echo \"${PWD##*/}\""] }, "ends": good,
            "output": "job-0\njob-0\n" },
        { "job": { "steps": ["readlink /proc/$$/fd/0", "cat"] }, "ends": good, "output": "/dev/null\n" },
        { "job": { "steps": ["one  line; exit 1", "two"] }, "env": { "JOB_SHELL": shell }, "ends": good,
            "output": "2|-c|one  line; exit 1\n2|-c|two\n" },
        { "job": { "steps": ["echo one", "exit 7", "touch ran", always("echo first; exit 9"), always("echo second")] },
            "ends": ["failed", "step", 7], "codes": [0, 7, null, 9, 0], "output": "one\nfirst\nsecond\n" },
        // a handle without O_APPEND would leave a hole of zeros where the file was cut
        { "job": { "steps": ["echo gone; : > job.log; echo kept"] }, "ends": good },
        { "job": { "steps": [r"printf '\377\000\376\n'"] }, "ends": good },
    ]));
    assert!(!jobs[0].log.contains("stale"), "{}", jobs[0].log);
    assert!(jobs[3].result["error"].is_string());
    let steps = &jobs[3].result["steps"];
    let statuses = [0, 1, 2, 3, 4].map(|step| steps[step]["status"].clone());
    let expected = ["success", "failed", "skipped", "failed", "success"];
    assert_eq!(statuses, expected);
    assert!(steps[1]["startedAt"].is_string() && steps[2]["startedAt"].is_null());
    assert!(jobs[4].log.starts_with("kept\n"), "{:?}", jobs[4].log);
    let log = fs::read(jobs[5].dir.join("job.log")).expect("a log");
    assert!(log.windows(4).any(|window| window == b"\xff\0\xfe\n"));
}

#[test]
fn the_exit_code_is_that_of_the_step_or_128_plus_the_signal() {
    let site = Site::start();
    for (step, code, signal) in [
        ("exit 3", 3, Value::Null),
        ("exit 255", 255, Value::Null),
        ("false", 1, Value::Null),
        ("no-such-command-anywhere", 127, Value::Null),
        ("echo true > text; ./text", 126, Value::Null),
        ("if then", 2, Value::Null),
        ("kill -9 $$", 137, json!("SIGKILL")),
        ("kill -TERM $$", 143, json!("SIGTERM")),
        ("kill -SEGV $$", 139, json!("SIGSEGV")),
    ] {
        let job = site.run("a", json!({ "steps": [step] }));
        assert_eq!(job.verdict(), ("failed", "step", code), "{step}");
        let ended = &job.result["steps"][0];
        assert_eq!(ended["exitCode"], code, "{step}");
        assert_eq!(ended["signal"], signal, "{step}");
        let how = match signal.as_str() {
            Some(name) => format!("step 1/1 ({step}) was ended by {name}"),
            None => format!("step 1/1 ({step}) ended with exit code {code}"),
        };
        assert_eq!(job.result["error"], how);
    }
}

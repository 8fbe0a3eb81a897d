//! docs/reference.md, "Steps and their environment": how steps run, and what they find.

use crate::support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use support::log::{first_attempt, untimed};
use support::site::Site;

const RULE: &str = "----------------------------------------";

/// `line` is `start`, then seconds such as `1.2s`.
fn is_timed(line: &str, start: &str) -> bool {
    let seconds = line
        .strip_prefix(start)
        .and_then(|rest| rest.strip_suffix('s'));
    seconds.is_some_and(|seconds| seconds.parse::<f64>().is_ok())
}

#[test]
fn the_log_starts_with_a_header_frames_each_step_and_ends_with_the_outcome() {
    let site = Site::start();
    let finished = site.run(
        "framed",
        json!({ "steps": ["echo one", { "run": "echo two; exit 3", "name": "tests" }, "echo three"] }),
    );
    let log = untimed(&finished.log);
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[0], "Job ID: framed");
    assert_eq!(
        lines[1],
        format!("Working Directory: {}", finished.dir.display())
    );
    assert_eq!(lines[2], RULE);
    assert_eq!(lines[3], first_attempt("node-worker-01"));
    assert_eq!(lines[4], "==> step 1/3: echo one");
    assert_eq!(lines[5], "one");
    assert!(is_timed(lines[6], "==> step 1/3: exit 0 in "), "{log}");
    assert_eq!(lines[7], "==> step 2/3: tests (echo two; exit 3)");
    assert_eq!(lines[8], "two");
    assert!(is_timed(lines[9], "==> step 2/3: exit 3 in "), "{log}");
    assert_eq!(lines[10], "==> step 3/3: skipped");
    let last = "==> job failed: step 2/3 (tests) ended with exit code 3";
    assert_eq!(lines[11..], [last]);

    let finished = site.run("good", json!({ "steps": ["true"] }));
    let log = untimed(&finished.log);
    let last = log.lines().last().unwrap_or_default();
    assert!(is_timed(last, "==> job success in "), "{log}");
}

#[test]
fn stdout_and_stderr_are_one_open_append_handle_of_the_log() {
    let site = Site::start();
    // Two handles of the same file would differ in their position once something went through one of them.
    let step = "echo moved; out=$(cat /proc/$$/fdinfo/1); err=$(cat /proc/$$/fdinfo/2); \
                [ \"$out\" = \"$err\" ] && echo \"$out\" > fdinfo; \
                targets=$(readlink /proc/$$/fd/1 /proc/$$/fd/2); echo \"$targets\" > targets";
    let finished = site.run("handle", json!({ "steps": [step] }));
    let log_file = finished.dir.join("job.log").display().to_string();
    assert_eq!(
        finished.read("targets"),
        format!("{log_file}\n{log_file}\n")
    );
    let fdinfo = finished.read("fdinfo");
    let flags = fdinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .expect("flags in fdinfo");
    let flags = u32::from_str_radix(flags.trim(), 8).expect("octal flags");
    assert_ne!(flags & 0o2000, 0, "O_APPEND is set in {fdinfo}");
}

#[test]
fn a_log_emptied_by_a_step_is_appended_to() {
    let site = Site::start();
    // A handle without O_APPEND would leave a hole of zeros where the file was cut.
    let finished = site.run(
        "emptied",
        json!({ "steps": ["echo gone; : > job.log; echo kept"] }),
    );
    assert!(finished.log.starts_with("kept\n"), "{:?}", finished.log);
}

#[test]
fn stdin_is_the_null_device() {
    let site = Site::start();
    let finished = site.run(
        "stdin",
        json!({ "steps": ["readlink /proc/$$/fd/0", "cat"] }),
    );
    assert_eq!(finished.output(), "/dev/null\n");
    assert_eq!(finished.result["status"], "success");
}

#[test]
fn the_current_directory_of_each_step_is_the_work_dir() {
    let site = Site::start();
    let finished = site.run("cwd", json!({ "steps": ["pwd; cd /", "pwd"] }));
    assert_eq!(
        finished.output(),
        format!("{0}\n{0}\n", finished.dir.display())
    );
}

#[test]
fn the_exit_code_is_that_of_the_step_or_128_plus_the_signal() {
    let cases = [
        ("exit 3", 3, None),
        ("exit 255", 255, None),
        ("false", 1, None),
        ("no-such-command-anywhere", 127, None),
        ("./not-executable", 126, None),
        ("if then", 2, None),
        ("kill -9 $$", 137, Some("SIGKILL")),
        ("kill -TERM $$", 143, Some("SIGTERM")),
        ("kill -SEGV $$", 139, Some("SIGSEGV")),
    ];
    let site = Site::start();
    for (number, (step, code, signal)) in cases.into_iter().enumerate() {
        let id = format!("exit-{number}");
        fs::write(site.directory(&id).join("not-executable"), "true\n").unwrap();
        let finished = site.run(&id, json!({ "steps": [step] }));
        let result = &finished.result;
        assert_eq!(result["status"], "failed", "{step}: {result}");
        assert_eq!(result["exitCode"], code, "{step}: {result}");
        assert_eq!(result["reason"], "step", "{step}: {result}");
        assert_eq!(result["steps"][0]["exitCode"], code, "{step}: {result}");
        assert_eq!(
            result["steps"][0]["signal"].as_str(),
            signal,
            "{step}: {result}"
        );
    }
}

#[test]
fn the_first_step_that_fails_ends_the_job_and_always_steps_do_not_hide_it() {
    let site = Site::start();
    let steps = json!([
        "echo one",
        "exit 7",
        "touch ran",
        { "run": "echo first; exit 9", "always": true },
        { "run": "echo second", "always": true },
    ]);
    let finished = site.run("failing", json!({ "steps": steps }));
    assert_eq!(finished.verdict(), ("failed", "step", 7));
    assert!(finished.result["error"].is_string());
    let steps = finished.result["steps"].as_array().unwrap();
    let statuses: Vec<_> = steps.iter().map(|step| &step["status"]).collect();
    let expected = ["success", "failed", "skipped", "failed", "success"];
    assert_eq!(statuses, expected);
    assert!(steps[1]["startedAt"].is_string() && steps[2]["startedAt"].is_null());
    assert_eq!(steps[3]["exitCode"], 9);
    assert_eq!(finished.output(), "one\nfirst\nsecond\n");
    assert!(!finished.dir.join("ran").exists());
}

#[test]
fn the_configured_shell_gets_each_step_after_a_c() {
    let site = Site::start();
    let shell = site.drive.path().join("own-shell");
    fs::write(&shell, "#!/bin/sh\necho \"$#|$1|$2\"\n").unwrap();
    fs::set_permissions(&shell, fs::Permissions::from_mode(0o755)).unwrap();
    let worker = site.idle_worker(|command| _ = command.env("JOB_SHELL", &shell));
    let finished = site.run_on(
        worker,
        "shell",
        json!({ "steps": ["one  line; exit 1", "two"] }),
    );
    assert_eq!(finished.output(), "2|-c|one  line; exit 1\n2|-c|two\n");
    assert_eq!(finished.result["status"], "success");
}

#[test]
fn a_first_attempt_truncates_an_old_log() {
    let site = Site::start();
    fs::write(
        site.directory("again").join("job.log"),
        "stale\n".repeat(100),
    )
    .unwrap();
    let finished = site.run("again", json!({ "steps": ["echo fresh"] }));
    assert!(
        finished.log.starts_with("Job ID: again\n"),
        "{}",
        finished.log
    );
    assert!(!finished.log.contains("stale"));
}

#[test]
fn output_that_is_not_utf_8_passes_untouched() {
    let site = Site::start();
    let finished = site.run("bytes", json!({ "steps": [r"printf '\377\000\376\n'"] }));
    let log = fs::read(finished.dir.join("job.log")).expect("a log");
    assert!(log.windows(4).any(|window| window == b"\xff\0\xfe\n"));
}

//! docs/reference.md, "Steps and their environment": how steps run, what they find, and that the worker's secrets are not there.

use crate::support::log::{first_attempt, untimed};
use crate::support::site::{Finished, Site, read};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

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

const SECRET: &str = "hunter2-do-not-tell";

/// Environment as a step sees it, without what the shell adds.
fn environment(job: &Finished, file: &str) -> BTreeMap<String, String> {
    let text = job.read(file);
    let variables = text
        .split('\0')
        .filter_map(|variable| variable.split_once('='));
    let of_the_shell = ["PWD", "OLDPWD", "SHLVL", "_"];
    let others = variables.filter(|(name, _)| !of_the_shell.contains(name));
    others.map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
}

#[test]
fn steps_get_the_worker_s_environment_without_its_configuration() {
    let site = Site::scripted();
    // and whether steps have it, too
    let of_the_worker = [
        ("PATH", std::env::var("PATH").unwrap(), true),
        ("TEST_SITE", site.drive.path().display().to_string(), true),
        ("PASSED_ON", "yes".into(), true),
        ("KEPT", "worker's".into(), true),
        ("MQTTX", "no variable of ours".into(), true),
        ("MQTT_PORT", "tcp://10.0.0.1:1883".into(), true),
        ("JOB_WORKER_SERVICE_HOST", "10.0.0.1".into(), true),
        ("WORKER_ID", "w".into(), true),
        ("MQTT_URL", site.broker.url(), false),
        ("MQTT_PASSWORD", SECRET.into(), false),
        ("MQTT_USERNAME", "me".into(), false),
        ("JOB_TIMEOUT", "1000".into(), false),
        ("RUST_LOG", "info".into(), false),
    ];
    let worker = site.idle_worker(|worker| {
        let variables = of_the_worker.iter().map(|(name, value, _)| (name, value));
        worker.env_clear().envs(variables);
    });
    let binary = crate::support::worker::binary().display().to_string();
    let definition = json!({
        "steps": [format!("cat /proc/self/environ > first; {binary} check 2> warnings"), "cat /proc/self/environ > second"],
        "env": { "FROM_FILE": "file", "KEPT": "job's", "JOB_ID": "forged", "WORKER_ID": "forged", "MQTT_OWN": "job's" }
    });
    let job = site.run_on(worker, "a", definition);
    assert_eq!(job.verdict(), ("success", "", 0));
    let dir = job.dir.display().to_string();
    let ours = [
        ("JOB_ID", "a".into()),
        ("JOB_WORK_DIR", dir.clone()),
        ("JOB_LOG", format!("{dir}/job.log")),
        ("JOB_STEP", "1".into()),
        ("JOB_STEPS", "2".into()),
        ("JOB_ATTEMPT", "1".into()),
        ("WORKER_ID", "w".into()),
    ];
    let reference = include_str!("../../docs/reference.md");
    let (_, table) = reference
        .split_once("| variable | what it holds |")
        .unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let names = table.lines().filter_map(|row| row.split('|').nth(1));
    let names = names.flat_map(|names| names.split('`').skip(1).step_by(2));
    assert!(names.eq(ours.iter().map(|(name, _)| *name)), "{table}");
    let passed_on = of_the_worker
        .into_iter()
        .filter(|(_, _, is_passed)| *is_passed);
    let passed_on = passed_on.map(|(name, value, _)| (name, value));
    let of_the_job = [
        ("KEPT", "job's"),
        ("FROM_FILE", "file"),
        ("MQTT_OWN", "job's"),
    ];
    let of_the_job = of_the_job.map(|(name, value)| (name, value.to_owned()));
    let wanted = passed_on.chain(of_the_job).chain(ours); // the last one counts
    let wanted = wanted.map(|(name, value)| (name.to_owned(), value));
    let mut wanted: BTreeMap<_, _> = wanted.collect();
    assert_eq!(environment(&job, "first"), wanted);
    // what a step finds is no misspelt setting to a worker that it starts; what the job sets may be one
    let said = "warning: configuration: unknown variables are ignored: MQTT_OWN\n";
    assert_eq!(job.read("warnings"), said);
    wanted.insert("JOB_STEP".into(), "2".into());
    assert_eq!(environment(&job, "second"), wanted);
}

#[test]
fn a_password_is_nowhere() {
    let site = Site::scripted();
    let password_file = site.drive.path().join("password");
    fs::write(&password_file, SECRET).unwrap();
    let login = format!("mqtt://me:{SECRET}@");
    let with_url = site.broker.url().replace("mqtt://", &login);
    for (name, value) in [
        ("MQTT_URL", with_url.as_str()),
        ("MQTT_PASSWORD", SECRET),
        ("MQTT_PASSWORD_FILE", password_file.to_str().unwrap()),
    ] {
        // command line and stdout are looked at from inside a step; a parent may read its environment, the job may not
        let steps = json!(["env; cat /proc/$PPID/cmdline", "exit 3"]);
        let variables = [
            ("MQTT_USERNAME", "me"),
            ("RUST_LOG", "trace"),
            (name, value),
        ];
        let job = site.run_with(&variables, name, json!({ "steps": steps }));
        let said = job.worker.stderr();
        assert!(said.contains("debug: "), "the log tells all it has");
        let status = job.read("job.status.json");
        for text in [&said, &job.worker.stdout(), &job.log, &status] {
            assert!(!text.contains(SECRET), "{name}: {text}");
        }
    }
    for message in site.broker.received("#") {
        assert!(!message.text().contains(SECRET), "{}", message.topic);
    }
}

#[test]
fn signals_are_as_a_program_expects_them() {
    let site = Site::scripted();
    // rust ignores SIGPIPE, and an ignored signal is inherited: `yes | head` would not end in silence
    // the shell blocks and unblocks some for what it starts, and so it starts nothing here
    let step = "while read -r line; do case $line in Sig[IB]*) echo \"$line\";; esac; done < /proc/self/status";
    let job = site.run("a", json!({ "steps": [step] }));
    let mask = |status: &str, name: &str| {
        let digits = status.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(digits.unwrap().trim(), 16).unwrap()
    };
    let masks = ["SigIgn:", "SigBlk:"].map(|name| mask(&job.log, name));
    for signal in [1, 2, 13, 15, 17, 22] {
        let here = masks.map(|mask| (mask >> (signal - 1)) & 1);
        assert_eq!(here, [0, 0], "signal {signal}");
    }
}

#[test]
#[ignore = "needs python3"]
fn ignored_and_blocked_signals_of_a_parent_do_no_harm() {
    for python in [
        "for s in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT): signal.signal(s, signal.SIG_IGN)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT})",
    ] {
        let site = Site::scripted();
        let start = || {
            let binary = crate::support::worker::binary();
            let mut command = Command::new("python3");
            let exec = format!("os.execv({binary:?}, ['job-worker'])");
            command.args(["-c", &format!("import os, signal\n{python}\n{exec}")]);
            site.equip(&mut command);
            command.env("JOB_STOP_GRACE", "30");
            site.idle(command)
        };
        let steps = json!(["(true &); sleep 0", { "run": "sleep 1000", "timeoutSeconds": 0.1 }, { "run": "exit 4", "always": true }]);
        let job = site.run_on(start(), "a", json!({ "steps": steps }));
        assert_eq!(job.verdict(), ("failed", "timeout", 124));
        let steps = &job.result["steps"];
        assert_eq!(steps[1]["signal"], "SIGTERM");
        assert_eq!(steps[2]["exitCode"], 4);
        start().stop();
    }
}

#[test]
fn a_step_has_no_terminal_and_a_group_of_its_own() {
    let site = Site::scripted();
    let look = "(: < /dev/tty) 2> tty || echo no terminal; for of in sid pgid; do ps -o $of= -p $$ | tr -d ' ' > $of; done; echo $$ > pid";
    let finished = site.run("plain", json!({ "steps": [look] }));
    let ids = |dir: &Path| ["pid", "pgid", "sid"].map(|of| read(&dir.join(of)));
    let [pid, group, _] = ids(&finished.dir);
    assert_eq!(group, pid);

    let dir = site.prepare("a", json!({ "steps": [look] }));
    // script(1) gives the worker a terminal
    let binary = crate::support::worker::binary();
    let run = format!("{} run {}", binary.display(), dir.display());
    let mut command = Command::new("script");
    site.equip(command.args(["-qec", &run, "/dev/null"]));
    site.start_as(command).exits_with(0);
    assert!(read(&dir.join("job.log")).contains("\nno terminal\n"));
    let tty = read(&dir.join("tty"));
    assert!(tty.contains("No such device or address"), "{tty}");
    let [pid, group, session] = ids(&dir);
    assert_eq!((&group, &session), (&pid, &pid));
}

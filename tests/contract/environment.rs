//! What the steps find in their environment, and that the worker's secrets are not there (docs/reference.md,
//! "Steps and their environment").

use crate::support::site::{Finished, Site, read};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

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

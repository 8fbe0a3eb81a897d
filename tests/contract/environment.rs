//! What the steps find in their environment, and that the worker's secrets are not there (docs/reference.md,
//! "Steps and their environment").

use crate::support;

use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use support::site::{Finished, Site, read, verdict};

const SECRET: &str = "hunter2-do-not-tell";

/// Environment as a step sees it, without what the shell adds.
fn environment(finished: &Finished, file: &str) -> BTreeMap<String, String> {
    let variables = read(&finished.dir.join(file));
    let variables = variables
        .split('\0')
        .filter_map(|variable| variable.split_once('='));
    let of_the_shell = ["PWD", "OLDPWD", "SHLVL", "_"];
    variables
        .filter(|(name, _)| !of_the_shell.contains(name))
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .collect()
}

#[test]
fn steps_get_the_worker_s_environment_without_its_configuration() {
    let site = Site::scripted();
    let worker = support::worker::binary().display().to_string();
    let definition = json!({
        "steps": [format!("cat /proc/self/environ > first; {worker} check 2> warnings"), "cat /proc/self/environ > second"],
        "env": { "FROM_FILE": "file", "KEPT": "job's", "JOB_ID": "forged", "WORKER_ID": "forged", "MQTT_OWN": "job's" }
    });
    let finished = site.run_on(
        site.idle_worker(|worker| {
            worker
                .env_clear()
                .env("PATH", std::env::var_os("PATH").unwrap());
            worker
                .env("TEST_SITE", site.drive.path())
                .env("WORKER_ID", "w")
                .env("MQTT_URL", site.broker.url());
            worker
                .env("KEPT", "worker's")
                .env("PASSED_ON", "yes")
                .env("MQTTX", "no variable of ours");
            worker
                .env("MQTT_PASSWORD", SECRET)
                .env("MQTT_USERNAME", "me")
                .env("MQTT_PORT", "tcp://10.0.0.1:1883");
            worker
                .env("JOB_TIMEOUT", "1000")
                .env("JOB_WORKER_SERVICE_HOST", "10.0.0.1")
                .env("RUST_LOG", "info");
        }),
        "a",
        definition,
    );
    assert_eq!(finished.verdict(), ("success", "", 0));
    let dir = finished.dir.display().to_string();
    let ours = [
        ("JOB_ID", "a".into()),
        ("JOB_WORK_DIR", dir.clone()),
        ("JOB_LOG", format!("{dir}/job.log")),
        ("JOB_STEP", "1".into()),
        ("JOB_STEPS", "2".into()),
        ("JOB_ATTEMPT", "1".into()),
        ("WORKER_ID", "w".into()),
    ];
    let (_, table) = include_str!("../../docs/reference.md")
        .split_once("| variable | what it holds |")
        .unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let names = table.lines().filter_map(|row| row.split('|').nth(1));
    let names = names.flat_map(|names| names.split('`').skip(1).step_by(2));
    assert!(names.eq(ours.iter().map(|(name, _)| *name)), "{table}");
    let others = [
        ("PATH", std::env::var("PATH").unwrap()),
        ("TEST_SITE", site.drive.path().display().to_string()),
        ("KEPT", "job's".into()),
        ("PASSED_ON", "yes".into()),
        ("MQTTX", "no variable of ours".into()),
        ("FROM_FILE", "file".into()),
        ("MQTT_OWN", "job's".into()),
        ("MQTT_PORT", "tcp://10.0.0.1:1883".into()),
        ("JOB_WORKER_SERVICE_HOST", "10.0.0.1".into()),
    ];
    let wanted = ours.into_iter().chain(others);
    let mut wanted: BTreeMap<String, String> = wanted
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    assert_eq!(environment(&finished, "first"), wanted);
    // what a step finds is no misspelt setting to a worker that it starts; what the job sets may be one
    let warnings = read(&finished.dir.join("warnings"));
    let said = "warning: configuration: unknown variables are ignored: MQTT_OWN\n";
    assert_eq!(warnings, said);
    wanted.insert("JOB_STEP".into(), "2".into());
    assert_eq!(environment(&finished, "second"), wanted);
}

#[test]
fn a_password_is_nowhere() {
    let site = Site::scripted();
    let password_file = site.drive.path().join("password");
    fs::write(&password_file, SECRET).unwrap();
    let with_url = site
        .broker
        .url()
        .replace("mqtt://", &format!("mqtt://me:{SECRET}@"));
    for (number, (name, value)) in [
        ("MQTT_URL", with_url.as_str()),
        ("MQTT_PASSWORD", SECRET),
        ("MQTT_PASSWORD_FILE", password_file.to_str().unwrap()),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("job{number}");
        // command line and stdout are looked at from inside a step; a parent may read its environment, the job may not
        let steps = json!(["env; cat /proc/$PPID/cmdline", "exit 3"]);
        let mut worker = site.idle_worker(|worker| {
            worker
                .env("MQTT_USERNAME", "me")
                .env(name, value)
                .env("RUST_LOG", "trace");
        });
        let dir = site.submit(&id, json!({ "steps": steps }));
        site.result(&id).json();
        worker.exits_with(0);
        let texts = [
            worker.stderr(),
            worker.stdout(),
            read(&dir.join("job.log")),
            read(&dir.join("job.status.json")),
        ];
        assert!(texts[0].contains("debug: "), "the log tells all it has");
        for text in texts {
            assert!(!text.contains(SECRET), "{name}: {text}");
        }
    }
    let published = site.broker.received("#");
    assert!(
        published
            .iter()
            .all(|message| !String::from_utf8_lossy(&message.payload).contains(SECRET))
    );
}

#[test]
fn signals_are_as_a_program_expects_them() {
    let site = Site::scripted();
    // rust ignores SIGPIPE, and an ignored signal is inherited: `yes | head` would not end in silence
    let finished = site.run(
        "a",
        json!({ "steps": ["grep -E '^Sig(Ign|Blk)' /proc/self/status"] }),
    );
    let mask = |status: &str, name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    // whoever runs the tests may have us ignore some, as `nohup` does
    let ours = mask(&fs::read_to_string("/proc/self/status").unwrap(), "SigIgn") & !(1 << 12);
    let (ignored, blocked) = (
        mask(&finished.log, "SigIgn") & !ours,
        mask(&finished.log, "SigBlk"),
    );
    for signal in [1, 2, 13, 15, 17] {
        assert_eq!(
            ((ignored >> (signal - 1)) & 1, (blocked >> (signal - 1)) & 1),
            (0, 0),
            "signal {signal}"
        );
    }
}

/// The worker as it is started by a parent that has changed what a child inherits.
fn with_inherited(python: &str) {
    let site = Site::scripted();
    let mut command = std::process::Command::new("python3");
    let start = format!(
        "import os, signal\n{python}\nos.execv({:?}, ['job-worker'])",
        support::worker::binary()
    );
    command.args(["-c", &start]);
    site.equip(&mut command);
    command.env("JOB_STOP_GRACE", "30");
    let again = || {
        let mut command = std::process::Command::new("python3");
        command.args(["-c", &start]);
        site.equip(&mut command);
        command
    };
    let mut worker = site.start_as(command);
    site.await_idle(0);
    let steps = json!(["(true &); sleep 0", { "run": "sleep 1000", "timeoutSeconds": 0.1 }, { "run": "exit 4", "always": true }]);
    site.submit("a", json!({ "steps": steps }));
    let result = site.result("a").json();
    assert_eq!(verdict(&result), ("failed", "timeout", 124));
    assert_eq!(
        (
            &result["steps"][1]["signal"],
            &result["steps"][2]["exitCode"]
        ),
        (&json!("SIGTERM"), &json!(4))
    );
    worker.exits_with(0);

    let states = site.mark();
    let mut worker = site.start_as(again());
    site.await_idle(states);
    worker.signal(rustix::process::Signal::TERM);
    worker.exits_with(0);
}

#[test]
#[ignore = "needs python3"]
fn ignored_signals_of_a_parent_do_no_harm() {
    with_inherited(
        "for s in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT): signal.signal(s, signal.SIG_IGN)",
    );
}

#[test]
#[ignore = "needs python3"]
fn blocked_signals_of_a_parent_do_no_harm() {
    with_inherited(
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT})",
    );
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
    let run = format!(
        "{} run {}",
        support::worker::binary().display(),
        dir.display()
    );
    let mut command = std::process::Command::new("script");
    command.args(["-qec", &run, "/dev/null"]);
    site.equip(&mut command);
    let mut script = site.start_as(command);
    script.exits_with(0);
    assert!(read(&dir.join("job.log")).contains("\nno terminal\n"));
    let tty = read(&dir.join("tty"));
    assert!(tty.contains("No such device or address"), "{tty}");
    let [pid, group, session] = ids(&dir);
    assert_eq!((&group, &session), (&pid, &pid));
}

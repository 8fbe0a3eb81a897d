//! `job-worker check [DIR]` (docs/reference.md, "Commands").

use crate::support;

use rustix::process::Signal;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use support::broker::{Broker, Entry, Packet, Verdict};
use support::site::{Site, WORKER};
use support::wait::DEADLINE;
use support::worker::{job_worker, with};

fn check(site: &Site<Broker>, dir: Option<&str>, configure: impl FnOnce(&mut Command)) -> Output {
    let mut command = site.command(["check"].into_iter().chain(dir));
    configure(&mut command);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// All files below, with their content.
fn contents(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
        .into_iter()
        .map(|path| (path.clone(), fs::read(&path).unwrap_or_default()))
        .collect()
}

#[test]
fn a_good_configuration_and_a_good_job() {
    let site = Site::scripted();
    let output = check(&site, None, |_| {});
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(0), String::new())
    );
    let said = text(&output.stdout);
    assert!(said.contains("jobs/pending"), "{said}");
    let first = said.lines().next().unwrap_or_default();
    assert!(
        first.starts_with("settings: from this environment: MQTT_URL, "),
        "{said}"
    );

    let definition = json!({ "steps": ["touch ran", { "run": "touch ran", "allways": true }] });
    let dir = site.prepare("a", definition);
    let before = contents(&dir);
    let output = check(&site, Some("a"), |_| {});
    let warning = "warning: job: unknown fields in job.json are ignored: steps[].allways (did you mean always?)\n";
    assert_eq!(
        (output.status.code(), &*text(&output.stderr)),
        (Some(0), warning)
    );
    assert!(
        text(&output.stdout).contains("job: good; steps: 2"),
        "{output:?}"
    );
    assert_eq!(contents(&dir), before, "nothing is run, nothing is written");
    assert!(site.broker.log().is_empty(), "nobody is asked");
}

#[test]
fn every_fault_of_configuration_and_job_is_named_at_once() {
    let site = Site::scripted();
    let output = check(
        &site,
        Some("missing"),
        with(&[
            ("JOB_TIMEOUT", "soon"),
            ("RUST_LOG", "dbug"),
            ("JOB_ON_STOP", "never"),
            ("MQTT_URL", "mqtt://me:hunter2@host:x"),
        ]),
    );
    assert_eq!(output.status.code(), Some(78));
    let said = text(&output.stderr);
    for word in [
        "JOB_TIMEOUT",
        "soon",
        "JOB_ON_STOP",
        "never",
        "requeue or finish",
        "MQTT_URL",
        "configuration: RUST_LOG=\"dbug\": expected off, error, warn,",
        "job: ",
        "missing does not exist",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn a_fault_of_the_job_is_named() {
    let site = Site::scripted();
    fs::create_dir(site.drive.path().join("empty")).unwrap();
    fs::write(site.drive.path().join("file"), "").unwrap();
    site.prepare("no-steps", json!({ "env": {} }));
    site.prepare(
        "wrong-step",
        json!({ "steps": ["true", 7, {}], "maxAttempts": 0 }),
    );
    site.prepare("wrong-time", json!({ "steps": [], "timeoutSeconds": -1 }));
    fs::write(site.prepare("no-json", json!({})).join("job.json"), "{").unwrap();
    for (dir, word) in [
        ("missing", "does not exist"),
        ("file", "not a directory"),
        ("empty", "job.json does not exist"),
        ("no-steps", "no `steps`"),
        ("wrong-step", "item 2"),
        ("wrong-step", "\njob: job.json: `steps` item 3"),
        ("wrong-step", "\njob: job.json: `maxAttempts`"),
        ("wrong-time", "timeoutSeconds"),
        ("no-json", "job.json"),
    ] {
        let output = check(&site, Some(dir), |_| {});
        assert_ne!(output.status.code(), Some(0), "{dir}");
        let said = text(&output.stderr);
        assert!(
            said.starts_with("job: ") && said.contains(word),
            "{dir}: {said}"
        );
    }
}

#[test]
#[ignore = "needs root to become another user"]
fn whether_this_user_may_write_there_is_told() {
    let site = Site::scripted();
    site.prepare("a", json!({ "steps": ["true"] }));
    // not in the drive, which only its owner may enter
    let program = Path::new("/tmp").join(format!("check-{}", std::process::id()));
    fs::copy(support::worker::binary(), &program).unwrap();
    let private = site.directory("private");
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    let private = private.to_str().unwrap();
    for (dir, root, pool, expected) in [
        ("/", "", "", "job: / cannot be written: "),
        (
            "/",
            "/",
            "p",
            "pool p: /.job-worker/p cannot be written by this user (uid 65534, ",
        ),
        (
            "/usr",
            private,
            "",
            "JOB_ROOT=\"{private}\" cannot be opened: Permission denied",
        ),
    ] {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--clear-groups"])
            .arg(&program);
        command.args(["check", dir]);
        site.equip(&mut command);
        command.env("JOB_ROOT", root).env("JOB_POOL", pool);
        let output = command.current_dir("/").output().expect("setpriv runs");
        let said = text(&output.stderr);
        let expected = expected.replace("{private}", private);
        assert!(said.contains(&expected) && said.contains("65534"), "{said}");
        assert_eq!(output.status.code(), Some(78));
    }
    fs::remove_file(&program).unwrap();
}

#[test]
fn a_withdrawn_job_is_told() {
    let site = Site::scripted();
    let dir = site.prepare("a", json!({ "steps": ["true"] }));
    fs::write(dir.join("job.cancel"), "").unwrap();
    let output = check(&site, Some("a"), |_| {});
    let (good, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.starts_with("warning: job: withdrawn by ") && said.contains("a/job.cancel"));
    assert!(good.contains("job: good; steps: 1"), "{good}");
}

#[test]
fn unknown_variables_are_named_by_check_and_at_start() {
    let site = Site::scripted();
    site.prepare("a", json!({ "steps": [] }));
    let said = "unknown variables are ignored: JOB_MAXATTEMPTS (did you mean JOB_MAX_ATTEMPTS?), MQTT_HOST (did you mean MQTT_URL?)";
    let configure = |command: &mut Command| {
        command
            .env("JOB_MAXATTEMPTS", "2")
            .env("MQTT_HOST", "hunter2");
    };
    let output = check(&site, None, configure);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        text(&output.stderr),
        format!("warning: configuration: {said}\n")
    );
    for arguments in [&["supervise"][..], &["run", "a"], &[]] {
        let mut command = site.command(arguments);
        configure(&mut command);
        let mut process = site.start_as(command);
        process.await_stderr(said);
        if arguments != ["run", "a"] {
            site.await_idle(site.mark().saturating_sub(1));
            process.signal(Signal::TERM);
        }
        process.exits_with(0);
        let log = process.stderr();
        assert_eq!(log.matches("JOB_MAXATTEMPTS").count(), 1, "{log}");
    }
}

/// The lines of `check --connect` on stdout and stderr, in this order, and its exit status.
fn connect(url: &str, configure: impl FnOnce(&mut Command)) -> (String, String, Option<i32>) {
    let mut command = job_worker();
    command.args(["check", "--connect"]).env("MQTT_URL", url);
    configure(&mut command);
    let output = command.output().unwrap();
    (
        text(&output.stdout),
        text(&output.stderr),
        output.status.code(),
    )
}

#[test]
fn connect_tells_each_step_and_leaves_no_trace() {
    for version in ["5", "4"] {
        let site = Site::start();
        let mark = site.controller.mark();
        let (good, wrong, status) = connect(
            &site.broker.url(),
            with(&[("MQTT_PROTOCOL_VERSION", version)]),
        );
        assert_eq!((status, &*wrong), (Some(0), ""));
        let version = if version == "5" { "5" } else { "3.1.1" };
        for line in [
            "broker: name: 127.0.0.1 is 127.0.0.1".to_owned(),
            format!("broker: TCP: 127.0.0.1:{} answers", site.broker.port()),
            format!("broker: login: accepted without a user name, MQTT {version}"),
            "broker: subscriptions: granted to jobs/pending and jobs/cancel/+".to_owned(),
        ] {
            assert!(good.lines().any(|said| said == line), "{line}: {good}");
        }
        let last = good.lines().last().unwrap_or_default();
        assert!(last.starts_with("broker: not checked: "), "{good}");
        // a worker that comes now has no session, and what was published meanwhile is in none
        let heard = site.controller.heard_since(mark, "jobs/");
        assert!(heard.is_empty(), "{heard:?}");
        let log = site.broker.log();
        assert!(log.contains("node-worker-01-check-"), "{log}");
        assert!(log.contains("disconnected"), "{log}");
    }
}

#[test]
fn connect_tries_each_of_several_brokers_and_tells_what_one_does_not_have() {
    let brokers = [Broker::start(), Broker::start()];
    brokers[1].offer(&[0x25, 0, 0x11, 0, 0, 0, 60]); // Retain Available, Session Expiry Interval
    let [one, two] = [brokers[0].port(), brokers[1].port()];
    let url = format!("mqtt://127.0.0.1:{one},127.0.0.1:1,127.0.0.1:{two}");
    let (good, wrong, status) = connect(&url, |_| {});
    assert_eq!(status, Some(78));
    for port in [one, two] {
        let line = format!("broker 127.0.0.1:{port}: subscriptions: granted to ");
        assert!(good.contains(&line), "{line}: {good}");
    }
    let wrong: Vec<_> = wrong.lines().collect();
    let warning = format!("warning: broker 127.0.0.1:{two}: login: the broker ");
    for (line, (start, word)) in wrong.iter().zip([
        ("broker 127.0.0.1:1: TCP: ", "refused"),
        (&*warning, "60 s"),
        (&*warning, "retains no message"),
    ]) {
        assert!(line.starts_with(start) && line.contains(word), "{line}");
    }
    assert_eq!(wrong.len(), 3, "{wrong:?}");
}

#[test]
fn connect_says_which_step_goes_wrong() {
    let (good, wrong, status) = connect("mqtt://no-such-host.invalid", |_| {});
    assert_eq!(status, Some(78));
    assert!(
        wrong.starts_with("broker: name no-such-host.invalid: "),
        "{wrong}"
    );
    assert!(!good.contains("TCP"), "{good}");

    let (good, wrong, status) = connect("mqtt://127.0.0.1:1", |_| {});
    assert_eq!(status, Some(78));
    assert!(wrong.starts_with("broker: TCP: 127.0.0.1:1: "), "{wrong}");
    assert!(good.contains("broker: name: "), "{good}");

    let (_, wrong, status) = connect("mqtt://127.0.0.1:1", with(&[("JOB_SYNC", "maybe")]));
    assert_eq!(status, Some(78));
    assert!(wrong.contains("broker: not tried"), "{wrong}");
}

#[test]
fn connect_names_a_subscription_that_is_denied() {
    let broker = Broker::scripted(|step| match *step.packet {
        Packet::SubAck { pkid, .. } => Verdict::Replace(Packet::SubAck {
            pkid,
            codes: vec![1, 0x87],
        }),
        _ => Verdict::Pass,
    });
    let (good, wrong, status) = connect(&broker.url(), |_| {});
    assert_eq!(status, Some(78), "{good}");
    let said = "broker: subscriptions: the broker denies the subscription to jobs/cancel/+";
    assert!(wrong.starts_with(said), "{wrong}");
    assert!(good.contains("broker: login: accepted"), "{good}");
}

#[test]
fn connect_says_nothing_to_anybody_and_takes_no_request() {
    for version in ["5", "4"] {
        let site = Site::scripted();
        site.idle_worker(|_| {}).signal(Signal::TERM);
        site.broker.wait_for_connected(WORKER, false, DEADLINE);
        let before = site.broker.log().len();
        // requests come as soon as there is somebody to take them
        let url = site.broker.url();
        site.broker.publish_retained("jobs/pending", "{}");
        let (good, wrong, status) = connect(&url, |command| {
            command
                .env("WORKER_ID", WORKER)
                .env("MQTT_PROTOCOL_VERSION", version);
        });
        assert_eq!((status, &*wrong), (Some(0), ""), "{good}");
        let mut clients = Vec::new();
        for entry in &site.broker.log()[before..] {
            let Entry::Packet {
                from_client: true,
                packet,
                ..
            } = entry
            else {
                continue;
            };
            match packet {
                Packet::Connect {
                    client_id, will, ..
                } => {
                    assert_eq!(*will, None);
                    clients.push(client_id.clone());
                }
                Packet::Subscribe { .. } | Packet::Disconnect { code: 0 } => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(!clients.is_empty() && !clients.contains(&WORKER.to_owned()));
        site.broker.wait_for_queued(WORKER, 1, DEADLINE);
        for client in clients {
            site.broker.wait_for_connected(&client, false, DEADLINE);
            assert!(!site.broker.has_session(&client), "{client}");
        }
    }
}

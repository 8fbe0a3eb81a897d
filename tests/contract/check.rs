//! `job-worker check [DIR]` (docs/reference.md, "Commands").

use crate::support::broker::{Broker, Packet, Verdict};
use crate::support::site::{Site, WORKER, names, read_json};
use crate::support::wait::DEADLINE;
use crate::support::worker::{binary, said};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const CONNECT: Option<&str> = Some("--connect");

fn check(
    site: &Site<Broker>,
    argument: Option<&str>,
    variables: &[(&str, &str)],
) -> (String, String, Option<i32>) {
    let mut command = site.command(["check"].into_iter().chain(argument));
    said(command.envs(variables.iter().copied()))
}

#[test]
fn a_good_configuration_and_a_good_job() {
    let site = Site::scripted();
    let (good, wrong, status) = check(&site, None, &[]);
    assert_eq!((status, &*wrong), (Some(0), ""));
    assert!(good.contains("jobs/pending"), "{good}");
    let settings = "settings: from this environment: MQTT_URL, ";
    assert!(good.starts_with(settings), "{good}");

    let steps = json!(["touch ran", { "run": "touch ran", "allways": true, "timeoutSeconds": 9 }]);
    let definition = json!({ "steps": steps, "timeoutSeconds": 8 });
    let dir = site.prepare("a", definition.clone());
    let bounds = [("JOB_TIMEOUT", "7"), ("JOB_ROOT", "/usr")];
    let (good, wrong, status) = check(&site, Some("a"), &bounds);
    let outside = format!("workDir {} lies outside of JOB_ROOT /usr", dir.display());
    let warnings = [
        &*outside,
        "unknown fields in job.json are ignored: steps[].allways (did you mean always?)",
        "asks for timeoutSeconds 8, more than JOB_TIMEOUT allows: 7",
        "step 2 asks for timeoutSeconds 9, more than JOB_TIMEOUT allows: 7",
    ];
    let warnings = warnings.map(|warning| format!("warning: job: {warning}\n"));
    assert_eq!((status, wrong), (Some(0), warnings.concat()));
    assert!(good.contains("job: good; steps: 2"), "{good}");
    assert_eq!(names(&dir), ["job.json"], "nothing is run");
    assert_eq!(read_json(&dir.join("job.json")), definition);
    assert!(site.broker.log().is_empty(), "nobody is asked");

    fs::write(dir.join("job.cancel"), "").unwrap();
    let (good, wrong, status) = check(&site, Some("a"), &[]);
    assert_eq!(status, Some(0), "{wrong}");
    let withdrawn = wrong.contains("warning: job: withdrawn by ");
    assert!(withdrawn && wrong.contains("a/job.cancel"), "{wrong}");
    assert!(good.contains("job: good; steps: 2"), "{good}");
}

#[test]
fn every_fault_of_configuration_and_job_is_named_at_once() {
    let site = Site::scripted();
    let variables = [
        ("JOB_TIMEOUT", "soon"),
        ("RUST_LOG", "dbug"),
        ("JOB_ON_STOP", "never"),
        ("MQTT_URL", "mqtt://me:hunter2@host:x"),
    ];
    let (_, wrong, status) = check(&site, Some("missing"), &variables);
    assert_eq!(status, Some(78));
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
        assert!(wrong.contains(word), "{word}: {wrong}");
    }
    assert!(!wrong.contains("hunter2"), "{wrong}");
}

#[test]
#[ignore = "needs root to become another user"]
fn whether_this_user_may_write_there_is_told() {
    let site = Site::scripted();
    // not in the drive, which only its owner may enter
    let program = Path::new("/tmp").join(format!("check-{}", std::process::id()));
    // by another process: a child that another test starts now would have the file open for writing
    let mut copy = Command::new("cp");
    copy.arg(binary()).arg(&program);
    assert!(copy.status().unwrap().success());
    let private = site.directory("private");
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    let private = private.to_str().unwrap();
    let of_pool = "pool p: /.job-worker/p cannot be written by this user (uid 65534, ";
    let of_root = format!("JOB_ROOT={private:?} cannot be opened: Permission denied");
    for (dir, root, pool, told) in [
        ("/", "", "", "job: / cannot be written: "),
        ("/", "/", "p", of_pool),
        ("/usr", private, "", &of_root),
    ] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--clear-groups"]);
        site.equip(command.arg(&program).args(["check", dir]));
        command.env("JOB_ROOT", root).env("JOB_POOL", pool);
        let (_, wrong, status) = said(command.current_dir("/"));
        assert!(wrong.contains(told) && wrong.contains("65534"), "{wrong}");
        assert_eq!(status, Some(78));
    }
    fs::remove_file(&program).unwrap();
}

#[test]
fn unknown_variables_are_named_by_check_and_at_start() {
    let site = Site::scripted();
    site.prepare("a", json!({ "steps": [] }));
    let told = "unknown variables are ignored: JOB_MAXATTEMPTS (did you mean JOB_MAX_ATTEMPTS?), MQTT_HOST (did you mean MQTT_URL?)";
    let variables = [("JOB_MAXATTEMPTS", "2"), ("MQTT_HOST", "hunter2")];
    let (_, wrong, status) = check(&site, None, &variables);
    assert_eq!(status, Some(0));
    assert_eq!(wrong, format!("warning: configuration: {told}\n"));
    for arguments in [&["supervise"][..], &["run", "a"], &[]] {
        let mut command = site.command(arguments);
        command.envs(variables);
        let is_run = arguments == ["run", "a"];
        let mut process = match is_run {
            true => site.start_as(command),
            false => site.idle(command),
        };
        process.await_stderr(told);
        if !is_run {
            process.sigterm();
        }
        process.exits_with(0);
        let log = process.stderr();
        assert_eq!(log.matches("JOB_MAXATTEMPTS").count(), 1, "{log}");
    }
}

#[test]
fn connect_tries_each_of_several_brokers_and_tells_what_one_does_not_have() {
    let (site, other) = (Site::scripted(), Broker::start());
    other.offer(&[0x25, 0, 0x11, 0, 0, 0, 60]); // Retain Available, Session Expiry Interval
    let [one, two] = [site.broker.port(), other.port()];
    let url = format!("mqtt://127.0.0.1:{one},127.0.0.1:1,127.0.0.1:{two}");
    let (good, wrong, status) = check(&site, CONNECT, &[("MQTT_URL", &url)]);
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
    let site = Site::scripted();
    site.broker.set_script(|step| match *step.packet {
        Packet::SubAck { pkid, .. } => Verdict::Replace(Packet::SubAck {
            pkid,
            codes: vec![1, 0x87],
        }),
        _ => Verdict::Pass,
    });
    let denied = "broker: subscriptions: the broker denies the subscription to jobs/cancel/+";
    let (nowhere, unknown) = ("mqtt://none.invalid", "broker: name none.invalid: ");
    let nobody = "mqtt://127.0.0.1:1";
    for (url, before, told) in [
        (nowhere, "configuration: ", unknown),
        (nobody, "broker: name: ", "broker: TCP: 127.0.0.1:1: "),
        (&site.broker.url(), "broker: login: accepted", denied),
    ] {
        let (good, wrong, status) = check(&site, CONNECT, &[("MQTT_URL", url)]);
        assert_eq!(status, Some(78), "{good}");
        assert!(wrong.starts_with(told), "{wrong}");
        let last = good.lines().last().unwrap_or_default();
        assert!(last.starts_with(before), "no further step: {good}");
    }
    let (_, wrong, status) = check(&site, CONNECT, &[("JOB_SYNC", "maybe")]);
    assert_eq!(status, Some(78));
    assert!(wrong.contains("broker: not tried"), "{wrong}");
}

#[test]
fn connect_tells_each_step_says_nothing_to_anybody_and_takes_no_request() {
    for version in ["5", "4"] {
        let site = Site::scripted();
        site.idle_worker(|_| {}).stop();
        site.broker.wait_for_connected(WORKER, false, DEADLINE);
        let before = site.broker.sent().len();
        // requests come as soon as there is somebody to take them
        site.broker.publish_retained("jobs/pending", "{}");
        let variables = [("WORKER_ID", WORKER), ("MQTT_PROTOCOL_VERSION", version)];
        let (good, wrong, status) = check(&site, CONNECT, &variables);
        assert_eq!((status, &*wrong), (Some(0), ""), "{good}");
        let shown = if version == "5" { "5" } else { "3.1.1" };
        let told: Vec<_> = good
            .lines()
            .filter(|line| line.starts_with("broker: "))
            .collect();
        let expected = [
            "broker: name: 127.0.0.1 is 127.0.0.1",
            &format!("broker: TCP: 127.0.0.1:{} answers", site.broker.port()),
            &format!("broker: login: accepted without a user name, MQTT {shown}"),
            "broker: subscriptions: granted to jobs/pending and jobs/cancel/+",
        ];
        assert_eq!(told[..4], expected);
        assert!(told[4].starts_with("broker: not checked: "), "{good}");
        let mut clients = Vec::new();
        for packet in &site.broker.sent()[before..] {
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
        assert!(!clients.is_empty());
        site.broker.wait_for_queued(WORKER, 1, DEADLINE);
        for client in clients {
            assert!(client.starts_with("node-worker-01-check-"), "{client}");
            site.broker.wait_for_connected(&client, false, DEADLINE);
            assert!(!site.broker.has_session(&client), "{client}");
        }
    }
}

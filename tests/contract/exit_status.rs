//! docs/reference.md, "Exit status" and "Configuration": how the worker ends where there is no job to report.

use crate::support;

use std::process::Command;

use support::controller::Controller;
use support::mosquitto::Mosquitto;
use support::site::{Site, WORKER};
use support::temp_dir::TempDir;
use support::wait;
use support::worker::{Worker, job_worker};

/// Runs the worker to its end; nothing that it is asked here may make it wait.
fn output(configure: impl FnOnce(&mut Command)) -> (Option<i32>, String) {
    let dir = TempDir::new();
    let mut command = job_worker();
    // Nobody listens on port 1: a worker that took the configuration would retry until the deadline.
    command
        .current_dir(dir.path())
        .env("MQTT_URL", "mqtt://127.0.0.1:1");
    configure(&mut command);
    let mut worker = Worker::start(command, dir.path());
    let status = worker.wait();
    (status.code(), worker.stderr())
}

#[test]
fn credentials_are_taken_from_each_of_their_places() {
    const PASSWORD: &str = "p@ss:w/rd %é";
    let mut broker = Mosquitto::prepare().only_user("w@rker", PASSWORD);
    broker.restart();
    let port = broker.port();
    let secret_file = broker.dir().join("secret");
    // with the mark at its beginning that an editor on Windows writes
    std::fs::write(&secret_file, format!("\u{feff}{PASSWORD}\n")).expect("a file");
    let controller = Controller::connect_as(&broker, "controller", Some(("w@rker", PASSWORD)));
    type Configure<'a> = &'a dyn Fn(&mut Command);
    let places: [(&str, Configure); 4] = [
        ("the URL", &|command| {
            command.env(
                "MQTT_URL",
                format!("mqtt://w%40rker:p%40ss%3Aw%2Frd%20%25%C3%A9@127.0.0.1:{port}"),
            );
        }),
        ("the variables", &|command| {
            command
                .env("MQTT_USERNAME", "w@rker")
                .env("MQTT_PASSWORD", PASSWORD);
        }),
        ("the variables before the URL", &|command| {
            command.env(
                "MQTT_URL",
                format!("mqtt://nobody:nothing@127.0.0.1:{port}"),
            );
            command
                .env("MQTT_USERNAME", "w@rker")
                .env("MQTT_PASSWORD", PASSWORD);
        }),
        ("the file, as Docker and an editor leave it", &|command| {
            command
                .env("MQTT_USERNAME", "w@rker")
                .env("MQTT_PASSWORD_FILE", &secret_file);
        }),
    ];
    for (place, configure) in places {
        let mark = controller.mark();
        let mut worker = Worker::spawn(&broker, configure);
        wait::until(&format!("a worker with its credentials in {place}"), || {
            assert_eq!(
                worker.ended(),
                None,
                "credentials in {place}:\n{}",
                worker.stderr()
            );
            let heard = controller.heard_since(mark, "jobs/workers/node-worker-01");
            heard
                .iter()
                .any(|message| message.json()["state"] == "idle")
        });
        worker.stop();
    }
}

/// A drive that is mounted later than the service starts.
#[test]
fn a_missing_job_root_is_waited_for() {
    let site = Site::scripted();
    let root = site.drive.path().join("mnt/jobs");
    for (command, pool) in [("supervise", None), ("", Some("p"))] {
        let _ = std::fs::remove_dir_all(site.drive.path().join("mnt"));
        let configure = |command: &mut Command| {
            command.env("JOB_ROOT", &root);
            pool.map(|pool| command.env("JOB_POOL", pool).env("WORKER_ID", WORKER));
        };
        let mut check = site.command(["check"]);
        configure(&mut check);
        let output = check.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78));
        assert!(said.contains("does not exist; a worker waits"), "{said}");

        let start = || {
            let mut command = site.command(Some(command).filter(|command| !command.is_empty()));
            configure(&mut command);
            let worker = site.start_as(command);
            worker.await_stderr("does not exist: waiting until it is there");
            worker
        };
        let mut worker = start();
        worker.stop();
        let states = site.mark();
        let mut worker = start();
        std::fs::create_dir_all(&root).unwrap();
        site.await_idle(states);
        worker.stop();
    }
}

#[test]
fn an_unusable_value_is_exit_78_and_names_variable_and_value() {
    // all of them are in the unit tests of `src/config`
    let cases = [
        ("MQTT_URL", "http://broker:1883"),
        ("MQTT_PASSWORD_FILE", "/nowhere/secret"),
        ("WORKER_ID", "a/b"),
        ("JOB_TIMEOUT", "1h"),
    ];
    for (variable, value) in cases {
        let (code, stderr) = output(|command| _ = command.env(variable, value));
        assert_eq!(code, Some(78), "{variable}={value}:\n{stderr}");
        assert!(
            stderr.contains(variable),
            "{variable}={value} is named in:\n{stderr}"
        );
        assert!(
            stderr.contains(value),
            "the value of {variable}={value} is shown in:\n{stderr}"
        );
    }
}

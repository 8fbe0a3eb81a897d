//! docs/reference.md, "Exit status" and "Configuration": how the worker ends where there is no job to report.

use std::process::Command;

use crate::support::controller::Controller;
use crate::support::mosquitto::Mosquitto;
use crate::support::site::{Site, WORKER};
use crate::support::worker::with;

#[test]
fn credentials_are_taken_from_each_of_their_places() {
    const PASSWORD: &str = "p@ss:w/rd %é";
    let mut broker = Mosquitto::prepare().only_user("w@rker", PASSWORD);
    broker.restart();
    let at = format!("127.0.0.1:{}", broker.port());
    let secret_file = broker.dir().join("secret");
    // with the mark at its beginning that an editor on Windows writes, and with the end that Docker has
    std::fs::write(&secret_file, format!("\u{feff}{PASSWORD}\n")).expect("a file");
    let controller = Controller::connect_as(&broker, "controller", Some(("w@rker", PASSWORD)));
    let site = Site::with(broker, controller);
    let in_url = format!("mqtt://w%40rker:p%40ss%3Aw%2Frd%20%25%C3%A9@{at}");
    let of_another = format!("mqtt://nobody:nothing@{at}");
    let (user, password) = (("MQTT_USERNAME", "w@rker"), ("MQTT_PASSWORD", PASSWORD));
    let file = ("MQTT_PASSWORD_FILE", secret_file.to_str().unwrap());
    let places: [&[(&str, &str)]; 4] = [
        &[("MQTT_URL", &in_url)],
        &[user, password],
        &[user, password, ("MQTT_URL", &of_another)],
        &[user, file],
    ];
    for place in places {
        site.idle_worker(with(place)).stop();
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

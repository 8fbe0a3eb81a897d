//! The script that a user would write, run against the built binary.

use crate::support::mosquitto::{Mosquitto, tool};
use crate::support::worker::binary;
use crate::{file, output};
use std::process::Command;

fn smoke() -> Command {
    tool("mosquitto_sub");
    let mut command = Command::new("sh");
    command.arg(file("tests/smoke.sh"));
    for name in ["MQTT_HOST", "MQTT_PORT", "SMOKE_DRIVE"] {
        command.env_remove(name);
    }
    command.env("JOB_WORKER", binary());
    command
}

#[test]
fn all_is_well_with_a_broker_of_its_own_and_with_one_that_is_there() {
    let broker = Mosquitto::start();
    let mut with_ours = smoke();
    with_ours.env("MQTT_HOST", "127.0.0.1");
    with_ours.env("MQTT_PORT", broker.port().to_string());
    for mut command in [smoke(), with_ours] {
        let said = output(&mut command);
        assert!(said.ends_with("all is well\n"), "{said}");
    }
}

#[test]
fn smoke_test_fails_where_the_worker_does_nothing() {
    let mut command = smoke();
    command.env("JOB_WORKER", "true");
    let output = command.output().expect("sh can be started");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("FAILED the worker has ended"));
}

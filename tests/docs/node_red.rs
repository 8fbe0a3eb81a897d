//! The flow of `examples/node-red` in a real Node-RED; what is checked is written in `tests/node-red.mjs`.

use crate::support;

use std::path::Path;
use std::process::{Command, Stdio};
use support::mosquitto::tool;
use support::worker::binary;

#[test]
fn the_flow_is_a_whole_controller() {
    let found = |program| {
        Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
    };
    if found("node").is_err() || found("npm").is_err() {
        eprintln!("skipped: Node-RED needs `node` and `npm`, which are missing here");
        return;
    }
    tool("mosquitto");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node-red.mjs");
    let output = Command::new("node")
        .arg(script)
        .env("JOB_WORKER", binary())
        .output()
        .expect("node can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.code() == Some(77) {
        eprintln!("{text}");
        return;
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.ends_with("all is well\n"),
        "{}\n{text}{errors}",
        output.status
    );
}

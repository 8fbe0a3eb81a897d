//! The flow of `examples/node-red` in a real Node-RED; what is checked is written in `tests/node-red.mjs`.

use crate::support;

use std::path::Path;
use std::process::Command;
use support::mosquitto::tool;
use support::worker::binary;

#[test]
#[ignore = "needs node and npm"]
fn the_flow_is_a_whole_controller() {
    tool("mosquitto");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node-red.mjs");
    let output = Command::new("node")
        .arg(script)
        .env("JOB_WORKER", binary())
        .output()
        .expect("node can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.ends_with("all is well\n"),
        "{}\n{text}{errors}",
        output.status
    );
}

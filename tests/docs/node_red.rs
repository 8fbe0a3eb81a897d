//! The flow of `examples/node-red`, and its page, in a real Node-RED and a real Chromium; what is checked is written in `tests/node-red`.

use crate::support;

use std::path::{Path, PathBuf};
use std::process::Command;
use support::mosquitto::tool;
use support::worker::binary;

fn run_script(name: &str) {
    tool("mosquitto");
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/node-red")
        .join(name);
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

#[test]
#[ignore = "needs node and npm"]
fn the_flow_is_a_whole_controller() {
    run_script("controller.mjs");
}

#[test]
#[ignore = "needs node, npm and chromium"]
fn the_page_shows_workers_jobs_and_logs() {
    run_script("page.mjs");
}

/// `flow.json` has the code of its nodes, and `source/` has it in a form that people can read.
#[test]
fn the_flow_is_packed_from_its_sources() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/node-red");
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let flow: Vec<serde_json::Value> =
        serde_json::from_str(&read(directory.join("flow.json"))).expect("flow.json is JSON");
    let mut sources: Vec<String> = std::fs::read_dir(directory.join("source"))
        .expect("the sources are there")
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for node in &flow {
        let text = |field: &str| node[field].as_str().unwrap_or_default();
        let name = text("id").trim_start_matches("jw_");
        let template = match text("format") {
            "html" => "html",
            "css" => "css",
            _ => "js",
        };
        let code = match text("type") {
            "function" => vec![("func", "js"), ("initialize", "start.js")],
            "template" => vec![("template", template)],
            _ => vec![],
        };
        for (field, ending) in code
            .into_iter()
            .filter(|(field, _)| !text(field).is_empty())
        {
            let file = format!("{name}.{ending}");
            let source = read(directory.join("source").join(&file));
            assert!(
                source == format!("{}\n", text(field)),
                "{file} is not what flow.json has: run examples/node-red/flow.mjs pack, or unpack"
            );
            sources.retain(|other| *other != file);
        }
    }
    assert!(sources.is_empty(), "no node has {sources:?}");
}

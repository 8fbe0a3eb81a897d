//! The flow of `examples/node-red`, and its page, in a real Node-RED and a real Chromium; what is checked is written in `tests/node-red`.

use crate::support::mosquitto::tool;
use crate::support::site::{names, read_json};
use crate::support::worker::binary;
use crate::{file, output, text};
use std::process::Command;

fn run_script(name: &str) {
    tool("mosquitto");
    let mut node = Command::new("node");
    node.arg(file("tests/node-red").join(name));
    let said = output(node.env("JOB_WORKER", binary()));
    assert!(said.ends_with("all is well\n"), "{said}");
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
    let flow = read_json(&file("examples/node-red/flow.json"));
    let mut sources = names(&file("examples/node-red/source"));
    for node in flow.as_array().expect("a list of nodes") {
        let field = |field: &str| node[field].as_str().unwrap_or_default();
        let name = field("id").trim_start_matches("jw_");
        let template = match field("format") {
            "html" => "html",
            "css" => "css",
            _ => "js",
        };
        let code = match field("type") {
            "function" => &[("func", "js"), ("initialize", "start.js")][..],
            "template" => &[("template", template)],
            _ => &[],
        };
        for (part, ending) in code.iter().filter(|(part, _)| !field(part).is_empty()) {
            let file = format!("{name}.{ending}");
            let source = text(&format!("examples/node-red/source/{file}"));
            assert!(
                source == format!("{}\n", field(part)),
                "{file} is not what flow.json has: run examples/node-red/flow.mjs pack, or unpack"
            );
            sources.retain(|other| *other != file);
        }
    }
    assert!(sources.is_empty(), "no node has {sources:?}");
}

//! What the integration tests share, and where a test belongs. Each directory is one test binary, each file in it one subject:
//!
//! | a test of | belongs to |
//! |---|---|
//! | what a request, a `job.json` or an argument may say, and what is published, written and exited with | `contract` |
//! | how steps run, what they find, what a result and a status document tell | `contract` |
//! | nothing lost, nothing run twice: acknowledgements, redelivery, the link, the session, the drive | `delivery` |
//! | several workers on one queue: who takes what, who takes over, what a member leaves behind | `pool` |
//! | what is told to stop, and ends: steps, descendants, worker, supervisor; timeouts, limits, cancelling | `processes` |
//! | what somebody hostile may not do: rights, fences, forged lines, TLS | `security` |
//! | faults and input at random: kills, power cuts, mutations | `campaign` |
//! | what the documents and the examples say | `docs` |
//!
//! All tests of a binary share a process. A test must not change what the others see of it: signals, limits, the current
//! directory, environment variables. It changes those of a child instead.

// Every test binary compiles all of this and uses a part of it.
#![allow(dead_code)]

pub mod broker;
pub mod ca;
pub mod cases;
pub mod controller;
pub mod corpus;
pub mod cut_drive;
pub mod log;
pub mod mosquitto;
pub mod mount;
pub mod mutation;
pub mod pool;
pub mod process_tree;
pub mod processes;
pub mod properties;
pub mod random;
pub mod schema;
pub mod site;
pub mod temp_dir;
pub mod wait;
pub mod worker;

/// Runs each named `fn(version: &str)` as two tests, one for each MQTT protocol version.
#[macro_export]
macro_rules! on_both_protocols {
    ($($behaviour:ident),* $(,)?) => {
        mod mqtt_5 {
            $(#[test] fn $behaviour() { super::$behaviour("5") })*
        }
        mod mqtt_3_1_1 {
            $(#[test] fn $behaviour() { super::$behaviour("4") })*
        }
    };
}

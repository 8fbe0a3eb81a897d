//! What the integration tests share.

// Every test binary compiles all of this and uses a part of it.
#![allow(dead_code)]

pub mod broker;
pub mod ca;
pub mod controller;
pub mod cut_drive;
pub mod json;
pub mod mosquitto;
pub mod mutation;
pub mod process_tree;
pub mod properties;
pub mod proxy;
pub mod scene;
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

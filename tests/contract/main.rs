//! What a controller sees: requests and job definitions, steps, status documents, and the ends of each command.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod check;
mod emptied_workdir;
mod environment;
mod execution;
mod exit_status;
mod own_log;
mod presence;
mod progress;
mod rejection;
mod requests;
mod run;
mod schema;
mod status;
mod usage;

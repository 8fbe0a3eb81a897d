//! What a controller sees: requests and job definitions, steps, status documents, and the ends of each command.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod check;
mod emptied_workdir;
mod own_log;
mod presence;
mod rejection;
mod requests;
mod run;
mod schema;
mod status;
mod steps;
mod usage;

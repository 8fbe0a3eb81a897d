//! Several workers that share one queue: `JOB_POOL`.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod check;
mod cut;
mod death;
mod frozen;
mod members;
mod misplaced;
mod moves;
mod names;
mod presence;
mod removed;
mod taking;

//! Nothing of a job outlives it: steps, their descendants, the worker, its supervisor, and what may stop each of them.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod cancel;
mod ends;
mod limits;
mod orphans;
mod stop;
mod supervise;

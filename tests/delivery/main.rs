//! Nothing lost, nothing run twice without cause: what is published, kept and acknowledged, in which order, whatever breaks.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod boundaries;
mod broker;
mod delivery;
mod drive;
mod forgotten;
mod link;
mod one_job;
mod order;
mod own_result;
mod sync;

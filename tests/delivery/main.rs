//! Nothing lost, nothing run twice without cause: what is published, kept and acknowledged, in which order, whatever breaks.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod boundaries;
mod delivery;
mod drive;
mod forgotten;
mod link;
mod nonsense;
mod old_topics;
mod order;
mod own_result;
mod qos_0;
mod reasons;
mod sync;

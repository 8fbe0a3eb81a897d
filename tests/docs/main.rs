//! The documents and the examples do what they say.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod docs;
mod node_red;
mod package;
mod releasing;
mod smoke;
mod submit;

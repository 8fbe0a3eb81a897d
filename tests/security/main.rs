//! What somebody hostile cannot do: rights, fences, forged lines, TLS.

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod acl;
mod fence;
mod forgery;
mod tls;

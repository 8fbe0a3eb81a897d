//! The name of this host, as `uname -n` says it.

use std::sync::OnceLock;

/// The name of this host. It is read once: all that a process says is of the same name.
pub fn name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let system = rustix::system::uname();
        system.nodename().to_string_lossy().into_owned()
    })
}

//! The worker's own log on stderr (contract section 8, `RUST_LOG`).

use std::io::Write;

/// Starts the log. Control characters are escaped here, in one place for all: a name or an error from outside can neither
/// forge a line nor speak to the reader's terminal.
pub fn start() {
    let level = env_logger::Env::default().filter_or("RUST_LOG", "info,rumqttc=error");
    env_logger::Builder::from_env(level)
        .format(|out, record| {
            let text = record.args().to_string();
            let level = record.level().as_str().to_ascii_lowercase();
            writeln!(
                out,
                "job-worker: {level}: {}",
                crate::contract::single_line(&text)
            )
        })
        .init();
}

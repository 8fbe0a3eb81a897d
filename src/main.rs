#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(job_worker::cli::main(std::env::args_os().skip(1)).status())
}

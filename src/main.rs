#![forbid(unsafe_code)]

use std::process::ExitCode;

/// musl's allocator asks the kernel for nearly every object of so short a process.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    ExitCode::from(job_worker::cli::main(std::env::args_os().skip(1)).status())
}

//! Cargo tells the target triple to build scripts alone, and `--version` shows it: ARMv6 and ARMv7 look the same to `cfg`.
//!
//! And where Rust would load libgcc_s.so at each start of the program, for the stack unwinder of panics, the static half of
//! the same gcc is linked into it: a worker starts once for each job.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!(
        "cargo::rustc-env=TARGET_TRIPLE={}",
        std::env::var("TARGET").expect("Cargo sets TARGET")
    );
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu") {
        println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
    }
}

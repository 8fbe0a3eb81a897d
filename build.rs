//! Cargo tells the target triple to build scripts alone, and `--version` shows it: ARMv6 and ARMv7 look the same to `cfg`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=TARGET_TRIPLE={}", std::env::var("TARGET").expect("Cargo sets TARGET"));
}

//! What the figures were measured on.

use std::fs;
use std::process::Command;

/// One sentence: processor, cores, kernel, versions.
pub fn description() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("?", |(_, it)| it);
    let virtual_machine = if cpu.contains(" hypervisor") {
        ", virtual machine"
    } else {
        ""
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{model}, {cores} cores{virtual_machine}, Linux {}, {}, {}",
        kernel.trim(),
        first_line("mosquitto_pub", "--version")
            .replace("mosquitto_pub version", "Mosquitto")
            .replace(" running on libmosquitto", ", libmosquitto")
            .trim_end_matches('.'),
        first_line("rustc", "--version")
    )
}

/// How loaded the machine is with other work: runnable threads over the last minute.
pub fn load() -> String {
    fs::read_to_string("/proc/loadavg")
        .unwrap_or_default()
        .split(' ')
        .next()
        .unwrap_or_default()
        .to_owned()
}

pub fn first_line(program: &str, argument: &str) -> String {
    let output = Command::new(program)
        .arg(argument)
        .output()
        .map(|output| output.stdout)
        .unwrap_or_default();
    String::from_utf8_lossy(&output)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

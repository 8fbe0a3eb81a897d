//! The worker's own lines in `job.log`.

/// The log without the times of the worker's own lines, each of which must have one.
pub fn untimed(log: &str) -> String {
    log.lines()
        .map(|line| match line.strip_prefix("==> ") {
            None => format!("{line}\n"),
            Some(own) => {
                let (time, text) = own.split_once(' ').unwrap_or((own, ""));
                let is_time = time.len() == "2026-02-17T09:12:01Z".len()
                    && humantime::parse_rfc3339(time).is_ok();
                assert!(is_time, "{line:?} has no time");
                format!("==> {text}\n")
            }
        })
        .collect()
}

/// The line with which the first attempt of a job begins.
pub fn first_attempt(worker: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let (host, version) = (host.trim_end(), env!("CARGO_PKG_VERSION"));
    format!("==> attempt 1 of 3, {worker} on {host}, job-worker {version}")
}

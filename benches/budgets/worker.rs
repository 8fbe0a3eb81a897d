//! The programs under measurement: started, timed, and looked at through /proc.

use crate::mqtt::Broker;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The program that this benchmark was built with.
pub fn built_program() -> PathBuf {
    env!("CARGO_BIN_EXE_job-worker").into()
}

/// The static one, if there is one: Cargo builds one target at a time.
pub fn static_program() -> Option<PathBuf> {
    std::env::var_os("JOB_WORKER_STATIC").map(PathBuf::from)
}

/// What is measured wherever it does not matter which: the static program, if there is one.
pub fn program() -> PathBuf {
    static_program().unwrap_or_else(built_program)
}

/// What to do where one of the two is missing.
pub fn how() -> &'static str {
    "set JOB_WORKER_STATIC and JOB_WORKER_EARLIER as BENCHMARKS.md says"
}

/// The static program of an earlier version: figures of two runs cannot be compared, those of one run can.
pub fn earlier_program() -> Option<PathBuf> {
    static_program().and(std::env::var_os("JOB_WORKER_EARLIER").map(PathBuf::from))
}

/// A command in an environment that holds `PATH` and what a worker needs, so that nothing of the caller's is measured.
pub fn command(program: impl AsRef<OsStr>, broker: &Broker, id: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("MQTT_URL", format!("mqtt://127.0.0.1:{}", broker.port))
        .env("PORT", broker.port.to_string())
        // each worker has a queue of its own
        .env("WORKER_ID", id)
        .env("MQTT_TOPIC_ROOT", id)
        .env("RUST_LOG", "error")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// From before the start to after the end, in milliseconds.
pub fn time(command: &mut Command) -> f64 {
    let started = Instant::now();
    let status = command.spawn().and_then(|mut child| child.wait());
    let time = milliseconds(started);
    assert!(
        status.as_ref().is_ok_and(|status| status.success()),
        "{command:?}: {status:?}"
    );
    time
}

/// Since then.
pub fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

pub fn await_file(path: &Path) {
    let end = Instant::now() + Duration::from_secs(60);
    while !path.exists() {
        assert!(Instant::now() < end, "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(50)); // what the worker does right after having started the step
}

/// A worker that runs in the background; ended with the value.
pub struct Running(Child);

impl Running {
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("the worker starts"))
    }

    /// Starts a worker and waits until it is there for a job, by what it says on its presence topic.
    pub fn idle(command: &mut Command, broker: &Broker, id: &str) -> Self {
        let mut presence = broker.client(&format!("{id}-presence"));
        presence.subscribe(&format!("{id}/workers/{id}"));
        let worker = Self::start(command);
        while !presence.message().contains("\"idle\"") {}
        std::thread::sleep(Duration::from_millis(50)); // what it does right after having said so
        worker
    }

    /// Peak of the resident memory, in MB. The kernel counts in 1024 bytes.
    pub fn peak_memory(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()));
        number_after(&status.expect("the worker lives"), "VmHWM:") * 1024.0 / 1e6
    }

    /// How often its threads went to sleep, which is as often as they woke up.
    pub fn sleeps(&self) -> f64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id())).expect("the worker lives");
        let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
        let statuses = tasks.flatten().filter_map(status);
        statuses
            .map(|status| number_after(&status, "\nvoluntary_ctxt_switches:"))
            .sum()
    }

    pub fn ends(mut self) {
        let ended = self.0.wait();
        assert!(ended.is_ok_and(|status| status.success()), "it ends well");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
            let _ = self.0.wait();
        }
    }
}

fn number_after(text: &str, label: &str) -> f64 {
    let rest = text.split_once(label).map_or("", |(_, rest)| rest);
    let number = rest.split_whitespace().next();
    number.and_then(|text| text.parse().ok()).unwrap_or(0.0)
}

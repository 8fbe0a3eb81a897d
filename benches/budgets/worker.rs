//! The program under measurement: started, timed, and looked at through /proc.

use crate::mqtt::Broker;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The program that this benchmark was built with.
pub fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_job-worker").into()
}

/// What to do where there is no static program.
pub const HOW_STATIC: &str = "set JOB_WORKER_STATIC to a binary of .ci/release";

/// The static one, if there is one: Cargo builds one target at a time.
pub fn static_program() -> Option<PathBuf> {
    std::env::var_os("JOB_WORKER_STATIC").map(PathBuf::from)
}

/// What to do where there is no earlier program.
pub const HOW_EARLIER: &str =
    "set JOB_WORKER_EARLIER, beside JOB_WORKER_STATIC, to a binary of an earlier release";

/// The static program of an earlier release: figures of two runs cannot be compared, those of one run can.
pub fn earlier_program() -> Option<PathBuf> {
    std::env::var_os("JOB_WORKER_EARLIER").map(PathBuf::from)
}

/// A command in an environment that holds `PATH` and what a worker needs, so that nothing of the caller's is measured.
pub fn command(program: impl AsRef<Path>, broker: &Broker, id: &str) -> Command {
    let mut command = Command::new(program.as_ref());
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
        .env("MQTT_URL", format!("mqtt://127.0.0.1:{}", broker.port))
        .env("PORT", broker.port.to_string());
    // each worker has a queue of its own
    command
        .env("WORKER_ID", id)
        .env("MQTT_TOPIC_ROOT", id)
        .env("RUST_LOG", "warn");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// From before the start to after the end.
pub fn time(command: &mut Command) -> Duration {
    let started = Instant::now();
    let status = command.spawn().and_then(|mut child| child.wait());
    let time = started.elapsed();
    assert!(
        status.as_ref().is_ok_and(|status| status.success()),
        "{command:?}: {status:?}"
    );
    time
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
        while !String::from_utf8_lossy(&presence.message()).contains("\"idle\"") {}
        std::thread::sleep(Duration::from_millis(50)); // what it does right after having said so
        worker
    }

    /// Peak of the resident memory, in kB.
    pub fn peak_memory(&self) -> f64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("the worker lives");
        number_after(&status, "VmHWM:")
    }

    /// How often its threads went to sleep, which is as often as they woke up.
    pub fn sleeps(&self) -> f64 {
        self.threads("status")
            .iter()
            .map(|status| number_after(status, "\nvoluntary_ctxt_switches:"))
            .sum()
    }

    /// Processor time of its threads, in milliseconds.
    pub fn processor_time(&self) -> f64 {
        let nanoseconds = |stat: &String| {
            stat.split(' ')
                .next()
                .and_then(|text| text.parse::<f64>().ok())
                .unwrap_or(0.0)
        };
        self.threads("schedstat")
            .iter()
            .map(nanoseconds)
            .sum::<f64>()
            / 1e6
    }

    fn threads(&self, file: &str) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id())).expect("the worker lives");
        tasks
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join(file)).ok())
            .collect()
    }

    pub fn ends(mut self) {
        assert!(
            self.0.wait().is_ok_and(|status| status.success()),
            "the worker ends well"
        );
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let pid = rustix::process::Pid::from_child(&self.0);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = self.0.wait();
        }
    }
}

fn number_after(text: &str, label: &str) -> f64 {
    let rest = text.split_once(label).map_or("", |(_, rest)| rest);
    rest.split_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(0.0)
}

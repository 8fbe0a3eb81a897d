//! A scripted broker, a shared drive, and the built binary as processes of the test's: the place where a test of the
//! worker's processes happens.
//!
//! Every process that comes from a scene, however it daemonises, carries the scene's mark in its environment. So a test
//! sees what a job has left running, and a test that fails leaves nothing running itself.

use super::broker::Broker;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; a test that passes never comes near it.
pub const SOON: Duration = Duration::from_secs(30);

/// The client id of a scene's workers.
pub const WORKER: &str = "w";

/// A variable that the worker passes on to its steps.
const MARK: &str = "TEST_SCENE";

/// Waits until `probe` yields a value.
#[track_caller]
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < end, "waited {SOON:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

pub struct Scene {
    pub broker: Broker,
    drive: PathBuf,
}

impl Scene {
    pub fn new() -> Self {
        Self {
            broker: Broker::start(),
            drive: new_directory(),
        }
    }

    /// The shared drive.
    pub fn drive(&self) -> &Path {
        &self.drive
    }

    /// What every process of this scene has in its environment.
    pub fn mark(&self) -> String {
        format!("{MARK}={}", self.drive.display())
    }

    /// Makes `command` a part of the scene, with none of the configuration of whoever runs the tests.
    pub fn equip(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["MQTT_", "JOB_"]
                .iter()
                .any(|start| text.starts_with(start))
                || text == "RUST_LOG"
            {
                command.env_remove(&name);
            }
        }
        command
            .env("MQTT_URL", self.broker.url())
            .env("WORKER_ID", WORKER)
            .env("JOB_DIR_WAIT", "0");
        command
            .env(MARK, &self.drive)
            .current_dir(&self.drive)
            .stdin(Stdio::null());
    }

    /// The binary with these arguments, not started yet.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments);
        self.equip(&mut command);
        command
    }

    /// A worker for one job; [`Scene::await_idle`] tells when it waits for one.
    pub fn worker(&self, configure: impl FnOnce(&mut Command)) -> Process {
        let mut command = self.command::<&str>([]);
        configure(&mut command);
        self.start(command)
    }

    /// The same, waiting for a job.
    pub fn idle_worker(&self, configure: impl FnOnce(&mut Command)) -> Process {
        let states = self.states().len();
        let worker = self.worker(configure);
        self.await_idle_after(states);
        worker
    }

    /// Starts a command with stdout and stderr in files of their own.
    pub fn start(&self, mut command: Command) -> Process {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let [stdout, stderr] =
            ["stdout", "stderr"].map(|name| self.drive.join(format!("{number}.{name}")));
        command.stdout(File::create(&stdout).expect("a file for stdout"));
        command.stderr(File::create(&stderr).expect("a file for stderr"));
        let child = command.spawn().expect("the command can be started");
        Process {
            child,
            stdout,
            stderr,
        }
    }

    /// The states that the worker's presence has had, in order.
    pub fn states(&self) -> Vec<String> {
        let heard = self.broker.received(&format!("jobs/workers/{WORKER}"));
        let state = |payload: &[u8]| {
            Some(
                serde_json::from_slice::<Value>(payload).ok()?["state"]
                    .as_str()?
                    .to_owned(),
            )
        };
        heard
            .iter()
            .filter_map(|message| state(&message.payload))
            .collect()
    }

    /// Waits for an `idle` behind the first `states` states.
    #[track_caller]
    pub fn await_idle_after(&self, states: usize) {
        wait_until("an idle worker", || {
            self.states()
                .iter()
                .skip(states)
                .any(|state| state == "idle")
        });
    }

    /// A directory of the drive with this `job.json`.
    pub fn prepare(&self, id: &str, definition: Value) -> PathBuf {
        let dir = self.drive.join(id);
        fs::create_dir_all(&dir).expect("the drive can be written");
        fs::write(dir.join("job.json"), definition.to_string()).expect("the drive can be written");
        dir
    }

    /// Prepares a job and publishes the pointer to it. There must be a session that keeps it.
    pub fn submit(&self, id: &str, definition: Value) -> PathBuf {
        let dir = self.prepare(id, definition);
        self.request(json!({ "id": id, "workDir": dir }));
        dir
    }

    pub fn request(&self, request: Value) {
        self.broker.publish("jobs/pending", request.to_string());
    }

    /// The first result of a job.
    #[track_caller]
    pub fn result(&self, id: &str) -> Value {
        self.results(id, 1).remove(0)
    }

    /// Waits for `n` results of a job.
    #[track_caller]
    pub fn results(&self, id: &str, n: usize) -> Vec<Value> {
        let messages = self
            .broker
            .wait_for_message(&format!("jobs/results/{id}"), n, SOON);
        messages
            .iter()
            .map(|message| serde_json::from_slice(&message.payload).expect("a result is JSON"))
            .collect()
    }

    /// One job of a fresh worker, from its request to the worker's end with status 0.
    #[track_caller]
    pub fn run(
        &self,
        id: &str,
        definition: Value,
        configure: impl FnOnce(&mut Command),
    ) -> Finished {
        let mut worker = self.idle_worker(configure);
        let dir = self.submit(id, definition);
        let result = self.result(id);
        worker.exits_with(0);
        // a worker that came before the broker has read the acknowledgement would be given this request once more
        self.broker.wait_for_queued(WORKER, 0, SOON);
        Finished {
            result,
            log: read(&dir.join("job.log")),
            dir,
        }
    }

    /// Nothing lives of the jobs of this scene.
    #[track_caller]
    pub fn nothing_survives(&self) {
        assert!(
            survivors(&self.mark()).is_empty(),
            "these are left: {:?}",
            survivors(&self.mark())
        );
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // what is killed may have forked before
        while let left @ [_, ..] = &*marked(&self.mark(), &[]) {
            for pid in left {
                let _ = kill_process(Pid::from_raw(*pid).expect("not 0"), Signal::KILL); // it may have ended by itself
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = fs::remove_dir_all(&self.drive); // not worth a panic
    }
}

/// What is left when a job is over.
pub struct Finished {
    pub dir: PathBuf,
    pub result: Value,
    pub log: String,
}

impl Finished {
    /// Status, reason and exit code of the result.
    pub fn verdict(&self) -> (&str, &str, i64) {
        verdict(&self.result)
    }
}

/// Status, reason (or nothing) and exit code of a result (-1 for none).
pub fn verdict(result: &Value) -> (&str, &str, i64) {
    (
        result["status"].as_str().expect("a status"),
        result["reason"].as_str().unwrap_or_default(),
        result["exitCode"].as_i64().unwrap_or(-1),
    )
}

/// A process that the test has started.
pub struct Process {
    pub child: Child,
    pub stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the process is ours");
    }

    /// As a terminal does on Ctrl-C; the process must have been started in a group of its own.
    pub fn signal_group(&self, signal: Signal) {
        kill_process_group(self.pid(), signal).expect("the process is ours");
    }

    #[track_caller]
    pub fn await_stderr(&self, text: &str) {
        wait_until(&format!("{text:?} on stderr"), || {
            self.stderr().contains(text)
        });
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is our child")
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the process to end", || self.ended())
    }

    #[track_caller]
    pub fn exits_with(&mut self, code: i32) {
        let status = self.wait();
        assert_eq!(status.code(), Some(code), "it ended with {status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- stderr of process {} ---\n{}",
                self.child.id(),
                self.stderr()
            );
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill(); // it may end at this very moment
            let _ = self.child.wait();
        }
    }
}

/// The binary that cargo has built for the tests, or `JOB_WORKER` to try another build of it.
pub fn binary() -> PathBuf {
    std::env::var_os("JOB_WORKER").map_or(env!("CARGO_BIN_EXE_job-worker").into(), PathBuf::from)
}

/// What lives of the jobs of a scene; a worker is not among it.
pub fn survivors(mark: &str) -> Vec<i32> {
    // only the steps of a job have this variable, never a worker
    marked(mark, b"JOB_ATTEMPT=")
}

/// Living processes with the mark in their environment, and with a variable that starts so.
pub fn marked(mark: &str, start: &[u8]) -> Vec<i32> {
    let is_marked = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default(); // empty for a zombie
        let mut variables = environment.split(|byte| *byte == 0);
        variables
            .clone()
            .any(|variable| variable == mark.as_bytes())
            && variables.any(|variable| variable.starts_with(start))
    };
    let own = std::process::id() as i32;
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != own && is_marked(pid)).collect()
}

/// How many children of a process have ended and are not reaped.
pub fn zombies_of(parent: Pid) -> usize {
    let is_one = |pid: i32| {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let end = stat.iter().rposition(|byte| *byte == b')')?;
        let mut fields = std::str::from_utf8(&stat[end + 1..])
            .ok()?
            .split_whitespace();
        Some(fields.next()? == "Z" && fields.next()?.parse() == Ok(parent.as_raw_pid()))
    };
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_one(*pid) == Some(true)).count()
}

pub fn read(path: &Path) -> String {
    let bytes =
        fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    String::from_utf8_lossy(&bytes).into_owned()
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_str(&read(path))
        .unwrap_or_else(|error| panic!("{} is no JSON: {error}", path.display()))
}

/// Waits until a step has made this file.
#[track_caller]
pub fn await_file(path: &Path) {
    wait_until(&format!("{} to exist", path.display()), || path.exists());
}

/// A step that runs until the file `gate` exists in the workDir.
pub fn until_exists(gate: &str) -> String {
    format!("until [ -e {gate} ]; do sleep 0.02; done")
}

/// The binary as PID 1 of a namespace.
pub fn pid_1(scene: &Scene, arguments: &[&str], configure: impl FnOnce(&mut Command)) -> Process {
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(binary())
        .args(arguments);
    scene.equip(&mut command);
    configure(&mut command);
    scene.start(command)
}

/// The process that `unshare` waits for: PID 1 in there.
pub fn child_of(process: &Process) -> Pid {
    wait_for("the child of unshare", || {
        let children =
            fs::read_to_string(format!("/proc/{0}/task/{0}/children", process.child.id())).ok()?;
        Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
    })
}

fn new_directory() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // the real path, so that a test may compare it with what a step sees
    let base = std::env::temp_dir()
        .canonicalize()
        .expect("the temporary directory exists");
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("job-worker-scene-{}-{number}", std::process::id()));
        match fs::create_dir(&path) {
            Ok(()) => return path,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => panic!("cannot create {}: {error}", path.display()),
        }
    }
}

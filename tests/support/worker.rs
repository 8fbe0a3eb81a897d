//! The built binary as a process of the test's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Once};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT};

use super::site::read;
use super::wait;

/// A worker, or another use of the binary: with `run`, or with `supervise`.
pub struct Worker {
    process: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    pub id: String,
    pub topic_root: String,
}

/// The path of the binary: the one that cargo has built for the tests, or `JOB_WORKER` to try another build of it.
pub fn binary() -> PathBuf {
    std::env::var_os("JOB_WORKER").map_or(env!("CARGO_BIN_EXE_job-worker").into(), PathBuf::from)
}

/// The binary, in an environment that holds none of the configuration of whoever runs the tests.
pub fn job_worker() -> Command {
    let mut command = Command::new(binary());
    without_configuration(&mut command);
    command.stdin(Stdio::null());
    command
}

/// What a command says on stdout and stderr, and its exit status.
pub fn said(command: &mut Command) -> (String, String, Option<i32>) {
    let output = command.output().expect("it can be started");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let status = output.status.code();
    (text(output.stdout), text(output.stderr), status)
}

/// Sets these variables.
pub fn with(variables: &[(&str, &str)]) -> impl Fn(&mut Command) {
    move |command| _ = command.envs(variables.iter().copied())
}

/// Makes a worker speak this version of MQTT.
pub fn speaking(version: &str) -> impl Fn(&mut Command) {
    move |command| _ = command.env("MQTT_PROTOCOL_VERSION", version)
}

/// Takes the configuration of whoever runs the tests away from a command.
pub fn without_configuration(command: &mut Command) {
    static SIGNALS: Once = Once::new();
    SIGNALS.call_once(default_signals);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let starts = ["MQTT_", "JOB_", "RUST_LOG", "WORKER_ID"];
        if starts.iter().any(|start| text.starts_with(start)) {
            command.env_remove(&name);
        }
    }
}

/// Lets no child ignore what `nohup`, or a shell in the background, makes us ignore: a child does not inherit a handler.
fn default_signals() {
    let status = read("/proc/self/status".as_ref());
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = u64::from_str_radix(ignored.expect("a mask").trim(), 16).expect("a mask");
    for signal in [SIGHUP, SIGINT, SIGQUIT] {
        if ignored & (1 << (signal - 1)) != 0 {
            // we go on ignoring it
            let unread = Arc::<AtomicBool>::default();
            signal_hook::flag::register(signal, unread).expect("a handler");
        }
    }
}

/// Takes away what root may do with any file, so that permissions count; others have nothing of it.
pub fn without_privileges(command: &mut Command) {
    if rustix::process::geteuid().is_root() {
        without("-dac_override,-dac_read_search", command);
    }
}

/// Takes these rights of root away; needs root.
pub fn without(rights: &str, command: &mut Command) {
    through(
        "setpriv",
        &["--bounding-set", rights, "--inh-caps", rights],
        command,
    );
}

/// In a session of its own. The kernel shares the processors out by session, so a storm of processes there starves no other test.
pub fn apart(command: &mut Command) {
    through("setsid", &[], command);
}

/// Lets this program start the binary.
fn through(program: &str, options: &[&str], command: &mut Command) {
    let environment: Vec<_> = command
        .get_envs()
        .map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned)))
        .collect();
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let dir = command.get_current_dir().map(Path::to_owned);
    *command = Command::new(program);
    command.args(options);
    command.arg(binary()).args(arguments);
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    dir.map(|dir| command.current_dir(dir));
}

impl Worker {
    /// Starts `command` as it is, with stdout and stderr in new files in `dir`.
    pub fn start(mut command: Command, dir: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let [stdout, stderr] =
            ["stdout", "stderr"].map(|name| dir.join(format!("worker-{number}.{name}")));
        command
            .stdout(File::create(&stdout).expect("a file for stdout"))
            .stderr(File::create(&stderr).expect("a file for stderr"));
        let configured = |name: &str| {
            let (_, value) = command.get_envs().find(|(key, _)| *key == name)?;
            Some(value?.to_string_lossy().into_owned())
        };
        let id = configured("WORKER_ID").unwrap_or_else(|| "node-worker-01".into());
        let topic_root = configured("MQTT_TOPIC_ROOT").unwrap_or_else(|| "jobs".into());
        let process = command.spawn().expect("the worker can be started");
        Self {
            process,
            stdout,
            stderr,
            id,
            topic_root,
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The worker's own log so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    #[track_caller]
    pub fn await_stderr(&self, text: &str) {
        let what = format!("{text:?} on stderr");
        wait::until(&what, || self.stderr().contains(text));
    }

    #[track_caller]
    pub fn await_stdout(&self, text: &str) {
        let what = format!("{text:?} on stdout");
        wait::until(&what, || self.stdout().contains(text));
    }

    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().expect("the worker is our child")
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait::until_some("the worker to exit", || self.ended())
    }

    #[track_caller]
    pub fn exits_with(&mut self, code: i32) {
        let status = self.wait();
        assert_eq!(status.code(), Some(code), "the worker ended with {status}");
    }

    pub fn sigterm(&self) {
        self.signal(Signal::TERM);
    }

    /// Asks it to end, which it does with 0.
    #[track_caller]
    pub fn stop(&mut self) {
        self.sigterm();
        self.exits_with(0);
    }

    /// Stops its clock: it neither reads nor writes until [`Worker::thaw`].
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    pub fn kill9(&mut self) {
        self.process.kill().expect("the worker is our child");
        self.process.wait().expect("the worker is our child");
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("the worker is running");
    }

    /// Sends a signal until it ends: one that comes within a second of the first counts as the same stop.
    #[track_caller]
    pub fn insist(&mut self, signal: Signal) {
        wait::until("it to heed a second stop", || {
            self.ended().is_some() || {
                self.signal(signal);
                false
            }
        });
    }

    /// As a terminal does on Ctrl-C; the process must have been started in a group of its own.
    pub fn signal_group(&self, signal: Signal) {
        kill_process_group(Pid::from_child(&self.process), signal).expect("it leads a group");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (id, pid, said) = (&self.id, self.pid(), self.stderr());
            eprintln!("--- stderr of worker {id} (pid {pid}) ---\n{said}");
        }
        if self.ended().is_none() {
            self.kill9();
        }
    }
}

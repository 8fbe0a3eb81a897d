//! A real Mosquitto on a port and in a directory of its own.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::temp_dir::TempDir;
use super::wait;

pub struct Mosquitto {
    process: Option<Child>,
    port: u16,
    /// Where the broker keeps its configuration, its log and what it persists.
    dir: TempDir,
    persistence: bool,
    extra: Vec<String>,
}

impl Mosquitto {
    /// A running broker that persists every change: the one that a user of Job Worker should have.
    pub fn start() -> Self {
        let mut broker = Self::prepare();
        broker.restart();
        broker
    }

    /// A broker that has its port and directory and is not running yet.
    pub fn prepare() -> Self {
        Self {
            process: None,
            port: free_port(),
            dir: TempDir::new(),
            persistence: true,
            extra: Vec::new(),
        }
    }

    /// Keeps what it persists in memory, so that it never waits for a disk that others keep busy.
    pub fn in_memory(mut self) -> Self {
        self.dir = TempDir::in_memory();
        self
    }

    /// Forgets sessions and messages when it dies.
    pub fn without_persistence(mut self) -> Self {
        self.persistence = false;
        self
    }

    /// Adds a line to mosquitto.conf, such as `max_inflight_messages 1`.
    pub fn config(mut self, line: &str) -> Self {
        self.extra.push(line.to_owned());
        self
    }

    /// Lets in only `user` with `password`.
    pub fn only_user(self, user: &str, password: &str) -> Self {
        let file = self.passwords(&[user], password);
        self.config("allow_anonymous false")
            .config(&format!("password_file {}", file.display()))
    }

    /// A file with the password of these users.
    pub fn passwords(&self, users: &[&str], password: &str) -> PathBuf {
        let file = self.dir.path().join("passwords");
        fs::write(&file, "").expect("the file can be written");
        for user in users {
            let mut command = Command::new(tool("mosquitto_passwd"));
            let made = command.arg("-b").arg(&file).args([user, password]);
            assert!(made.status().expect("mosquitto_passwd runs").success());
        }
        file
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts the broker on its port, with what it persisted, and waits until it answers.
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "the broker is already running");
        for _ in 0..20 {
            if self.try_start() {
                return;
            }
            // Only a broker that nobody knows yet may move.
            self.port = free_port();
        }
        panic!("mosquitto does not start:\n{}", self.log());
    }

    fn try_start(&mut self) -> bool {
        let config = self.dir.path().join("mosquitto.conf");
        fs::write(&config, self.config_text()).expect("the configuration can be written");
        let log = self.log_file();
        let _ = fs::remove_file(&log);
        let mut process = Command::new(tool("mosquitto"))
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.dir.path().join("stderr")).expect("a file for stderr"))
            .spawn()
            .expect("mosquitto can be started");
        let mut running = false;
        // Its own log and not only an answer on the port: another test's broker might be the one that answers there.
        wait::until("mosquitto to start", || {
            let has_ended = process.try_wait().expect("our child").is_some();
            running = !has_ended && self.log().contains(" running");
            has_ended || running
        });
        if running {
            self.process = Some(process);
            self.round_trip();
        }
        running
    }

    fn config_text(&self) -> String {
        let (port, log, dir) = (self.port, self.log_file(), self.dir.path());
        let mut text = format!(
            "listener {port} 127.0.0.1\nuser root\nlog_dest file {}\nlog_type all\nmax_queued_messages 1000000\nset_tcp_nodelay true\n",
            log.display()
        );
        let lets_in = |line: &String| line.starts_with("allow_anonymous");
        if !self.extra.iter().any(lets_in) {
            text += "allow_anonymous true\n";
        }
        if self.persistence {
            text += &format!(
                "persistence true\npersistence_location {}/\nautosave_on_changes true\nautosave_interval 1\n",
                dir.display()
            );
        }
        text + &self.extra.join("\n") + "\n"
    }

    /// A connection that is answered. Mosquitto writes its store at the end of each turn of its loop, so after this
    /// round trip all that it acknowledged before is on disk.
    fn round_trip(&self) {
        wait::until("mosquitto to answer a CONNECT", || self.answers().is_ok());
    }

    fn answers(&self) -> std::io::Result<()> {
        const CONNECT_3_1_1: &[u8] = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x0a\x00\x00";
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(CONNECT_3_1_1)?;
        let mut connack = [0; 4];
        stream.read_exact(&mut connack)
    }

    /// Dies as in a power cut (of the process, not of the disk).
    pub fn kill9(&mut self) {
        self.round_trip();
        self.end();
    }

    /// Dies at this very moment, with whatever it has acknowledged and not written yet.
    pub fn crash(&mut self) {
        self.end();
    }

    /// Stops its clock: its connections stay open, and nothing passes until [`Mosquitto::thaw`].
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("it runs");
        kill_process(Pid::from_child(process), signal).expect("it is our child");
    }

    fn end(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("mosquitto is our child");
            process.wait().expect("mosquitto is our child");
        }
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("mosquitto.log")
    }

    pub fn log(&self) -> String {
        let read = |path| fs::read(path).unwrap_or_default();
        let log = [read(self.log_file()), read(self.dir.path().join("stderr"))].concat();
        String::from_utf8_lossy(&log).into_owned()
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- mosquitto's log, its end ---");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// A loopback port below the range from which the kernel takes ports for outgoing connections, so that it stays free
/// while its broker is down.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let start = (std::process::id() % 1000) as u16 * 20;
        let port = FIRST + start.wrapping_add(offset) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Where one of Mosquitto's programs is; installs them once where that is possible.
pub fn tool(name: &str) -> PathBuf {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        if find("mosquitto").is_none() || find("mosquitto_pub").is_none() {
            install();
        }
    });
    find(name).unwrap_or_else(|| {
        panic!("`{name}` is missing: install Mosquitto and its clients, e.g. `apt-get install mosquitto mosquitto-clients`")
    })
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian puts the broker into a directory that is not on the path of an ordinary user.
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

fn install() {
    if !rustix::process::geteuid().is_root() || find("apt-get").is_none() {
        return;
    }
    eprintln!("Mosquitto is missing: installing it with apt-get");
    let lock = std::env::temp_dir().join("job-worker-apt.lock");
    // Test programs may run side by side, and apt-get refuses to.
    let lock = fs::File::create(lock).expect("a lock file");
    lock.lock().expect("a lock");
    for arguments in [
        "update",
        "install -y --no-install-recommends mosquitto mosquitto-clients",
    ] {
        let mut command = Command::new("apt-get");
        command.args(arguments.split(' ')).stdin(Stdio::null());
        command.env("DEBIAN_FRONTEND", "noninteractive");
        let _ = command.stdout(Stdio::null()).status();
    }
}

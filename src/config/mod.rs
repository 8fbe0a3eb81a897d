//! The environment, turned into a validated [`Config`] (docs/reference.md, "Configuration").

mod url;
mod variables;

use crate::contract::{Topics, check_name, duration};
#[cfg(feature = "tls")]
use crate::mqtt::tls::{self, Tls};
use crate::mqtt::{Broker, Credentials, MAX_STRING_BYTES, Password, Protocol};
use crate::{host_name, logging};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf, absolute};
use std::str::FromStr;
use std::time::Duration;
use url::Url;
use variables::of;

pub use variables::{TABLE, names as variables, unknown as unknown_variables};

/// Everything that the environment may say, valid by construction.
#[derive(Clone, Debug)]
pub struct Config {
    /// How to reach the broker.
    pub broker: Broker,
    /// The topics under `MQTT_TOPIC_ROOT`.
    pub topics: Topics,
    /// MQTT client id, and the name in status documents.
    pub worker_id: String,
    /// How jobs are run.
    pub job: JobConfig,
    /// The pool whose queue this worker serves; `None` for one of its own.
    pub pool: Option<PoolConfig>,
}

/// How jobs are run.
#[derive(Clone, Debug)]
pub struct JobConfig {
    /// Base of relative directories, and the fence around all.
    pub root: Option<PathBuf>,
    /// No workDir may contain this directory, or lie in it.
    pub reserved: Option<PathBuf>,
    /// Whether a request may bring its own steps; else only `job.json` says what runs.
    pub payload_steps: bool,
    /// The program that runs each step.
    pub shell: String,
    /// How long a job may take that sets no timeout of its own; `None` for as long as it likes.
    pub timeout: Option<Duration>,
    /// Between TERM and KILL.
    pub stop_grace: Duration,
    /// How long to wait for a missing directory or `job.json`.
    pub dir_wait: Duration,
    /// How many attempts a job has that keeps being interrupted.
    pub max_attempts: u32,
    /// Largest `job.log`, in bytes.
    pub log_limit: Option<u64>,
    /// Whether a signal lets a running job finish; else it interrupts the job and leaves its request with the broker.
    pub finish_on_stop: bool,
    /// When something counts as written.
    pub durability: Durability,
}

/// Where the pools of a drive are, below `JOB_ROOT`.
pub const POOLS: &str = ".job-worker";

/// A pool: any number of workers that serve one queue.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// MQTT client id of the session that is the queue.
    pub name: String,
    /// `JOB_ROOT`, which holds the pool's directory.
    pub root: PathBuf,
}

/// `JOB_SYNC`: when something counts as written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Durability {
    /// Once it is on the disk.
    #[default]
    Disk,
    /// Once the system has it, which may take its time.
    Cache,
}

impl Config {
    /// Reads the environment of this process.
    ///
    /// # Errors
    /// One sentence for each unusable variable: its name, its value, what is expected. No password is in it.
    pub fn from_env() -> Result<Self, Vec<String>> {
        Self::read(|name| std::env::var_os(name))
    }

    /// Reads the variables that `lookup` knows.
    ///
    /// # Errors
    /// As [`Config::from_env`].
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, Vec<String>> {
        let mut env = Reader::new(&lookup);
        let mut job = env.job();
        let pool = env.pool(&job);
        job.reserved = pool.as_ref().map(|pool| pool.root.join(POOLS));
        let worker_id = env.worker_id(pool.is_some());
        let root = env.value("MQTT_TOPIC_ROOT", topic_root).unwrap_or_default();
        env.value("MQTT_SHARE_GROUP", |_| None::<()>);
        let config = Self {
            broker: env.broker(),
            topics: Topics::new(&root, &worker_id),
            worker_id,
            job,
            pool,
        };
        env.result(config)
    }

    /// Makes the default name of a member one that no other member on this host has: processes and containers with the host's
    /// network have the host's name, too. The name is ours as long as the socket is there: the kernel gives an address to one
    /// process, and takes it back from a dead one. `supervise` has it for all its workers. docs/reference.md, "Configuration", `WORKER_ID`.
    pub fn take_name(&mut self) -> Option<UnixDatagram> {
        self.pool.as_ref()?;
        let is_given = self.worker_id != host_name();
        for number in 1.. {
            let name = match number {
                1 => self.worker_id.clone(),
                _ => format!("{}-{number}", host_name()),
            };
            let topics = Topics::new(self.topics.root(), &name);
            let (broker, topic) = (&self.broker, &topics.presence);
            let address = format!("job-worker {} {topic}", broker.hosts[0]);
            match SocketAddr::from_abstract_name(address)
                .and_then(|address| UnixDatagram::bind_addr(&address))
            {
                Ok(socket) => {
                    (self.worker_id, self.topics) = (name, topics);
                    return Some(socket);
                }
                Err(error) if error.kind() != ErrorKind::AddrInUse => break, // too long an address
                Err(_) if is_given => {
                    log::warn!(
                        "another member on this host has the name {name:?}: give each its own WORKER_ID"
                    );
                    break;
                }
                Err(_) => {}
            }
        }
        None
    }
}

impl JobConfig {
    /// How long a worker that stops waits for the drive and the broker: longer than the steps have, where these have no grace.
    pub fn leave_wait(&self) -> Duration {
        self.stop_grace.max(Duration::from_secs(1))
    }

    /// Reads the environment of this process for a job that is run by hand, and the worker's name in status documents. What is set
    /// for a broker is not looked at.
    ///
    /// # Errors
    /// As [`Config::from_env`].
    pub fn by_hand() -> Result<(Self, String), Vec<String>> {
        let mut env = Reader::new(&|name| std::env::var_os(name));
        // there is nothing to wait for: the caller has prepared the directory, wherever it is
        let config = Self {
            dir_wait: Duration::ZERO,
            root: None,
            ..env.job()
        };
        let worker = env.worker_id(false);
        env.result((config, worker))
    }
}

/// Reads variables and collects what is wrong with them, so that a user sees all of it at once.
struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<OsString>,
    errors: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(lookup: &'a dyn Fn(&str) -> Option<OsString>) -> Self {
        let mut reader = Self {
            lookup,
            errors: Vec::new(),
        };
        reader.value("RUST_LOG", logging::filter);
        reader
    }

    /// What was read, unless something of it cannot be used.
    fn result<T>(self, config: T) -> Result<T, Vec<String>> {
        match self.errors.is_empty() {
            true => Ok(config),
            false => Err(self.errors),
        }
    }

    /// The name of this worker. A host name may be no usable one.
    fn worker_id(&mut self, in_pool: bool) -> String {
        let name = host_name();
        if !in_pool || !self.is_unset("WORKER_ID") {
            return self.value("WORKER_ID", to_name).unwrap_or_default();
        }
        if let Err(fault) = check_name(name) {
            let error = format!("the host name {name:?} {fault}: set WORKER_ID");
            self.errors.push(error);
        }
        name.to_owned()
    }

    fn is_unset(&self, name: &str) -> bool {
        (self.lookup)(name).is_none_or(|value| value.is_empty())
    }

    fn broker(&mut self) -> Broker {
        let url = self.text("MQTT_URL").unwrap_or_default();
        self.reject_tls_files_without_tls(&url);
        let url = Url::parse(&url).unwrap_or_else(|error| {
            let url = url::without_password(&url);
            self.errors.push(format!("MQTT_URL={url:?}: {error}"));
            Url::default()
        });
        let protocols = [
            ("auto", None),
            ("5", Some(Protocol::V5)),
            ("4", Some(Protocol::V3)),
        ];
        // the client library takes nothing below 5, the protocol nothing above 65535 (MQTT 5, section 3.1.2.10)
        let keep_alive = |text: &str| text.parse().ok().filter(|s| (5..=65535).contains(s));
        let keep_alive = self.value("MQTT_KEEP_ALIVE", keep_alive);
        Broker {
            #[cfg(feature = "tls")]
            tls: self.tls(&url),
            credentials: self.credentials(&url),
            hosts: url.hosts,
            protocol: self.choice("MQTT_PROTOCOL_VERSION", &protocols),
            keep_alive: Duration::from_secs(keep_alive.unwrap_or_default()),
        }
    }

    fn job(&mut self) -> JobConfig {
        let payload_steps = [("allow", true), ("deny", false)];
        let finish_on_stop = [("requeue", false), ("finish", true)];
        let durability = [("on", Durability::Disk), ("off", Durability::Cache)];
        JobConfig {
            reserved: None,
            root: self.value("JOB_ROOT", |path| {
                let is_no_other = |path: &PathBuf| path.is_dir() || !path.exists();
                absolute(path).ok().filter(is_no_other)
            }),
            payload_steps: self.choice("JOB_PAYLOAD_STEPS", &payload_steps),
            shell: self.shell(),
            timeout: self.value("JOB_TIMEOUT", |text| seconds(text).filter(|s| !s.is_zero())),
            stop_grace: self.value("JOB_STOP_GRACE", seconds).unwrap_or_default(),
            dir_wait: self.value("JOB_DIR_WAIT", seconds).unwrap_or_default(),
            max_attempts: self.value("JOB_MAX_ATTEMPTS", positive).unwrap_or_default(),
            log_limit: self.value("JOB_LOG_LIMIT", positive),
            finish_on_stop: self.choice("JOB_ON_STOP", &finish_on_stop),
            durability: self.choice("JOB_SYNC", &durability),
        }
    }

    fn pool(&mut self, job: &JobConfig) -> Option<PoolConfig> {
        // no file system takes a longer one
        let is_directory_name = |name: &String| !matches!(&**name, "." | "..") && name.len() <= 255;
        let name = self.value("JOB_POOL", |name| to_name(name).filter(is_directory_name))?;
        if self.is_unset("JOB_ROOT") {
            let error =
                "JOB_POOL is set without JOB_ROOT: set it to the directory that all members share";
            self.errors.push(error.to_owned());
        }
        // the kernel's own name of the directory, as that of a workDir is
        let root = job.root.as_ref()?;
        let root = root.canonicalize().unwrap_or(root.clone());
        Some(PoolConfig { name, root })
    }

    /// What a variable is set to, else its default. An empty one counts as unset: that is what compose makes of `${NAME:-}`.
    fn text(&mut self, name: &str) -> Option<String> {
        match (self.lookup)(name).filter(|value| !value.is_empty()) {
            Some(value) => value
                .into_string()
                .map_err(|_| self.errors.push(format!("{name} is not valid UTF-8")))
                .ok(),
            None => Some(of(name).0.to_owned()).filter(|default| !default.is_empty()),
        }
    }

    /// The value of a variable; `None` where it is unset or unusable.
    fn value<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.text(name)?;
        let value = parse(&text);
        if value.is_none() {
            let expected = of(name).1;
            self.errors
                .push(format!("{name}={text:?}: expected {expected}"));
        }
        value
    }

    /// One of some values, by their names.
    fn choice<T: Copy + Default>(&mut self, name: &str, all: &[(&str, T)]) -> T {
        let by_name = |text: &str| all.iter().find(|(name, _)| *name == text);
        let found = self.value(name, |text| by_name(text).map(|(_, value)| *value));
        found.unwrap_or_default()
    }

    /// User name and password. The variables win over the URL.
    fn credentials(&mut self, url: &Url) -> Option<Credentials> {
        let username = self.text("MQTT_USERNAME").or_else(|| url.username.clone());
        let password = self
            .password()
            .or_else(|| url.password.clone().map(Password::Text));
        if username.is_none() && password.as_ref().is_some_and(|p| p.read().is_ok()) {
            self.errors
                .push("MQTT_PASSWORD is set without a user name: set MQTT_USERNAME too".to_owned());
        }
        let is_long = |text: &String| text.len() as u64 > MAX_STRING_BYTES;
        let has_long_password = matches!(&password, Some(Password::Text(text)) if is_long(text));
        if has_long_password || username.as_ref().is_some_and(is_long) {
            self.errors.push(format!(
                "the user name or the password has more than {MAX_STRING_BYTES} bytes"
            ));
        }
        Some(Credentials {
            username: username?,
            password: password.unwrap_or(Password::Text(String::new())),
        })
    }

    fn password(&mut self) -> Option<Password> {
        let given = self.text("MQTT_PASSWORD").map(Password::Text);
        let Some(path) = self.text("MQTT_PASSWORD_FILE") else {
            return given;
        };
        if given.is_some() {
            self.errors.push(
                "MQTT_PASSWORD and MQTT_PASSWORD_FILE are both set: set only one of them"
                    .to_owned(),
            );
        }
        let password = Password::File(path.into());
        let unreadable = password.read().err();
        self.errors
            .extend(unreadable.map(|error| format!("MQTT_PASSWORD_FILE={error}")));
        Some(password)
    }

    #[cfg(feature = "tls")]
    fn tls(&mut self, url: &Url) -> Option<Tls> {
        if !url.secure {
            return None;
        }
        for host in url
            .hosts
            .iter()
            .filter(|host| !tls::is_server_name(&host.name))
        {
            let error = format!(
                "MQTT_URL: no certificate can be for the host {:?}",
                host.name
            );
            self.errors.push(error);
        }
        let known = self.errors.len();
        let mut file = |name, check: fn(&Path) -> Result<(), String>| {
            let path = PathBuf::from(self.text(name)?);
            let checked = check(&path);
            self.errors
                .extend(checked.err().map(|error| format!("{name}={error}")));
            Some(path)
        };
        let ca = file("MQTT_CA_FILE", |path| tls::roots(path).map(drop));
        let certificate = file("MQTT_CERT_FILE", |path| tls::certificates(path).map(drop));
        let key = file("MQTT_KEY_FILE", |path| tls::key(path).map(drop));
        if certificate.is_some() != key.is_some() {
            self.errors.push(
                "only one of MQTT_CERT_FILE and MQTT_KEY_FILE is set: set both or none".to_owned(),
            );
        }
        if self.errors.len() > known {
            return None;
        }
        Tls::new(ca, certificate.zip(key))
            .map_err(|error| self.errors.push(error))
            .ok()
    }

    /// An operator who sets one of these believes that the connection is secure.
    fn reject_tls_files_without_tls(&mut self, url: &str) {
        for name in ["MQTT_CA_FILE", "MQTT_CERT_FILE", "MQTT_KEY_FILE"] {
            if url.starts_with("mqtt://") && self.text(name).is_some() {
                self.errors.push(format!(
                    "{name} is set, but MQTT_URL is mqtt://, which encrypts nothing: use mqtts://"
                ));
            }
        }
    }

    /// The shell is looked for at start: without one every job of the queue would fail, one after the other.
    fn shell(&mut self) -> String {
        let path = (self.lookup)("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
        let is_there = |shell: &str| match shell.contains('/') {
            true => is_program(Path::new(shell)),
            false => std::env::split_paths(&path).any(|folder| is_program(&folder.join(shell))),
        };
        let shell = self.value("JOB_SHELL", |shell| {
            is_there(shell).then(|| shell.to_owned())
        });
        shell.unwrap_or_default()
    }
}

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn to_name(text: &str) -> Option<String> {
    check_name(text).ok().map(|()| text.to_owned())
}

fn positive<T: FromStr + Default + PartialOrd>(text: &str) -> Option<T> {
    text.parse().ok().filter(|number| *number > T::default())
}

fn seconds(text: &str) -> Option<Duration> {
    duration(serde_json::from_slice(text.as_bytes()).ok()?)
}

fn topic_root(text: &str) -> Option<String> {
    let levels_are_names = text.split('/').all(|level| check_name(level).is_ok());
    // `$share` and `$SYS` are the broker's (MQTT 5, section 4.7.2); a topic has 65,535 bytes at most
    (levels_are_names && !text.starts_with('$') && text.len() <= 1024).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Result<Config, Vec<String>> {
        Config::read(|name| {
            variables
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| value.into())
        })
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let config = config(&[]).unwrap();
        assert_eq!(config.broker.hosts[0].to_string(), "localhost:1883");
        assert_eq!(config.broker.keep_alive.as_secs(), 30);
        assert_eq!(config.broker.protocol, None);
        assert_eq!(config.worker_id, "node-worker-01");
        assert_eq!(config.topics.pending, "jobs/pending");
        assert_eq!(config.topics.presence, "jobs/workers/node-worker-01");
        assert_eq!(config.job.shell, "/bin/sh");
        assert_eq!(
            (
                config.job.timeout,
                config.job.stop_grace.as_secs(),
                config.job.dir_wait.as_secs()
            ),
            (None, 8, 5)
        );
        assert_eq!(
            (
                config.job.max_attempts,
                config.job.log_limit,
                config.job.finish_on_stop
            ),
            (3, None, false)
        );
    }

    #[test]
    fn an_unusable_value_is_named_with_what_is_expected() {
        for (name, value) in [
            ("MQTT_URL", "localhost"),
            ("MQTT_URL", "http://localhost"),
            ("MQTT_URL", "mqtt://"),
            ("MQTT_URL", "mqtt://host:0"),
            ("MQTT_URL", "mqtt://host:99999"),
            ("MQTT_URL", "mqtt://::1:1883"),
            ("MQTT_URL", "mqtt://[::g]"),
            ("MQTT_URL", "mqtt://a b"),
            ("MQTT_URL", "mqtt://host/path"),
            #[cfg(not(feature = "tls"))]
            ("MQTT_URL", "mqtts://host"),
            ("MQTT_URL", "mqtt://host:port"),
            ("MQTT_URL", "mqtt://[::1"),
            ("MQTT_KEEP_ALIVE", "4"),
            ("MQTT_KEEP_ALIVE", "65536"),
            ("MQTT_KEEP_ALIVE", "x"),
            ("MQTT_PROTOCOL_VERSION", "3"),
            ("MQTT_TOPIC_ROOT", "a/#"),
            ("MQTT_TOPIC_ROOT", "/a"),
            ("MQTT_TOPIC_ROOT", "$share/x"),
            ("MQTT_SHARE_GROUP", "a/b"),
            ("MQTT_PASSWORD_FILE", "/does/not/exist"),
            ("MQTT_PASSWORD_FILE", "/dev/null"),
            ("MQTT_PASSWORD_FILE", "/proc/self/exe"),
            ("WORKER_ID", "a+b"),
            ("WORKER_ID", "#"),
            ("WORKER_ID", &"x".repeat(129)),
            ("JOB_POOL", ".."),
            ("JOB_POOL", &"ä".repeat(128)),
            ("JOB_ROOT", "/dev/null"),
            ("JOB_SHELL", "/does/not/exist"),
            ("JOB_SHELL", "no-such-shell"),
            ("JOB_TIMEOUT", "0"),
            ("JOB_TIMEOUT", "-1"),
            ("JOB_TIMEOUT", "1h"),
            ("JOB_TIMEOUT", "inf"),
            ("JOB_STOP_GRACE", "soon"),
            ("JOB_DIR_WAIT", "NaN"),
            ("JOB_MAX_ATTEMPTS", "0"),
            ("JOB_MAX_ATTEMPTS", "many"),
            ("JOB_LOG_LIMIT", "1MB"),
            ("JOB_LOG_LIMIT", "-1"),
            ("JOB_ON_STOP", "wait"),
            ("JOB_SYNC", "yes"),
            ("JOB_PAYLOAD_STEPS", "no"),
            ("RUST_LOG", "dbug"),
            ("RUST_LOG", "rumqttc"),
            ("RUST_LOG", "info,rumqttc=loud"),
            ("RUST_LOG", "=info"),
            ("RUST_LOG", "info/text"),
        ] {
            let errors = config(&[(name, value)]).expect_err(value);
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(
                errors[0].starts_with(&format!("{name}={value:?}: ")),
                "{name}={value}: {errors:?}"
            );
        }
    }

    #[test]
    fn a_login_that_mqtt_does_not_take_is_refused_and_not_shown() {
        let long = "x".repeat(65_536);
        for (name, password) in [(&*long, "p"), ("u", &long)] {
            let login = [("MQTT_USERNAME", name), ("MQTT_PASSWORD", password)];
            let errors = config(&login).unwrap_err().concat();
            assert!(errors.contains("more than 65535 bytes") && !errors.contains("xx"));
        }
        let longest = [("MQTT_USERNAME", "u"), ("MQTT_PASSWORD", &long[1..])];
        assert!(config(&longest).is_ok());
    }

    #[test]
    fn a_pool_needs_a_root_and_an_unusable_one_is_told_once() {
        for root in [&[][..], &[("JOB_ROOT", "")], &[("JOB_ROOT", "/dev/null")]] {
            let errors = config(&[&[("JOB_POOL", "p")], root].concat()).unwrap_err();
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].contains("JOB_ROOT"), "{errors:?}");
        }
    }

    #[test]
    fn all_errors_are_named_at_once_and_empty_means_unset() {
        assert_eq!(
            config(&[("JOB_ON_STOP", "x"), ("WORKER_ID", "#")])
                .unwrap_err()
                .len(),
            2
        );
        assert!(config(&[("MQTT_URL", ""), ("JOB_TIMEOUT", ""), ("WORKER_ID", "")]).is_ok());
    }

    #[test]
    fn nobody_is_left_to_believe_that_plain_mqtt_is_secure() {
        for name in ["MQTT_CA_FILE", "MQTT_CERT_FILE", "MQTT_KEY_FILE"] {
            let errors = config(&[("MQTT_URL", "mqtt://host"), (name, "/dev/null")]).unwrap_err();
            assert!(
                errors[0].contains(name) && errors[0].contains("mqtts://"),
                "{errors:?}"
            );
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn without_tls_the_feature_is_named() {
        assert!(config(&[("MQTT_URL", "mqtts://host")]).unwrap_err()[0].contains("feature `tls`"));
    }

    #[cfg(feature = "tls")]
    #[test]
    fn what_tls_cannot_use_is_named() {
        let (other, certificates) = ("/etc/passwd", "a PEM file with certificates");
        for (name, file, said) in [
            ("MQTT_CA_FILE", "/does/not/exist", "cannot be read"),
            ("MQTT_CA_FILE", "/dev/null", "is no regular file"),
            ("MQTT_CA_FILE", other, certificates),
            ("MQTT_CERT_FILE", other, certificates),
            ("MQTT_KEY_FILE", other, "a PEM file with a private key"),
        ] {
            let errors = config(&[("MQTT_URL", "mqtts://h"), (name, file)]).unwrap_err();
            let is_it =
                |e: &String| e.starts_with(&format!("{name}={file:?}: ")) && e.contains(said);
            assert!(errors.iter().any(is_it), "{errors:?}");
        }
        assert!(
            config(&[("MQTT_URL", "mqtts://a..b")]).unwrap_err()[0]
                .contains("no certificate can be for")
        );
    }

    #[test]
    fn a_time_beyond_all_clocks_is_one() {
        for long in ["1e300", "1e999", "4294967295"] {
            let config = config(&[("JOB_TIMEOUT", long), ("JOB_DIR_WAIT", long)]).unwrap();
            assert!(config.job.timeout >= Some(config.job.dir_wait), "{long}");
            assert!(
                config.job.dir_wait >= Duration::from_secs(1 << 31),
                "{long}"
            );
        }
    }

    #[test]
    fn variables_win_over_the_url() {
        let broker = config(&[
            ("MQTT_URL", "mqtt://u:p@h"),
            ("MQTT_USERNAME", "v"),
            ("MQTT_PASSWORD", "q"),
        ])
        .unwrap()
        .broker;
        let credentials = broker.credentials.unwrap();
        assert_eq!(
            (credentials.username, credentials.password.read().unwrap()),
            ("v".to_owned(), "q".to_owned())
        );
    }

    #[test]
    fn a_password_is_never_shown() {
        for url in [
            "mqtt://u:hunter2@h:x",
            "http://u:hunter2@h",
            "u:hunter2@h",
            "mqtt://u:hunter2%@h",
            "mqtt://u:hun@ter2@h:x",
            "mqtt:/u:hunter2@h/mqtt://@h",
        ] {
            let shown = format!("{:?}", config(&[("MQTT_URL", url)]).unwrap_err());
            assert!(
                !shown.contains("hunter2") && !shown.contains("ter2"),
                "{shown}"
            );
        }
        let config = config(&[("MQTT_URL", "mqtt://u:hunter2@h")]).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(
            tests::config(&[("MQTT_PASSWORD", "hunter2")])
                .is_err_and(|e| !e[0].contains("hunter2"))
        );
    }

    #[test]
    fn a_variable_that_is_gone_says_what_replaces_it() {
        let errors = config(&[("MQTT_SHARE_GROUP", "g")]).unwrap_err();
        assert!(errors[0].contains("is gone: ") && errors[0].contains("JOB_POOL"));
    }
}

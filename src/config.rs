//! The environment, turned into a validated [`Config`] (contract section 8). Every variable is named here and only here.

use crate::contract::{Topics, check_name};
#[cfg(feature = "tls")]
use crate::mqtt::tls::{self, Tls};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything that the environment may say, valid by construction.
#[derive(Clone, Debug)]
pub struct Config {
    pub broker: Broker,
    pub topics: Topics,
    /// MQTT client id, and the name in status documents.
    pub worker_id: String,
    pub job: JobConfig,
}

/// How to reach the broker.
#[derive(Clone, Debug)]
pub struct Broker {
    /// Host name or address; an IPv6 address is in brackets.
    pub host: String,
    pub port: u16,
    pub credentials: Option<Credentials>,
    /// How to be sure of the broker, where the URL is `mqtts://`.
    #[cfg(feature = "tls")]
    pub tls: Option<Tls>,
    pub protocol: Protocol,
    pub keep_alive: Duration,
}

/// User name and password for the broker.
#[derive(Clone)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} with a password", self.username)
    }
}

/// Which MQTT version to speak.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// Version 5, falling back to 3.1.1 where the broker has no 5.
    Auto,
    V5,
    V3,
}

/// How jobs are run.
#[derive(Clone, Debug)]
pub struct JobConfig {
    /// Base of relative directories, and the fence around all.
    pub root: Option<PathBuf>,
    /// Whether a request may bring its own steps.
    pub payload_steps: PayloadSteps,
    pub shell: String,
    pub timeout: Option<Duration>,
    /// Between TERM and KILL.
    pub stop_grace: Duration,
    /// How long a missing directory or `job.json` is waited for.
    pub dir_wait: Duration,
    pub max_attempts: u32,
    /// Largest `job.log`, in bytes.
    pub log_limit: Option<u64>,
    pub on_stop: OnStop,
    pub durability: Durability,
}

/// `JOB_PAYLOAD_STEPS`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PayloadSteps {
    Allow,
    Deny,
}

/// `JOB_SYNC`: when something counts as written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Durability {
    /// Once it is on the disk.
    Disk,
    /// Once the system has it, which may take its time.
    Cache,
}

/// `JOB_ON_STOP`: what a signal means for a running job.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OnStop {
    Requeue,
    Finish,
}

/// What is longer counts as this long (136 years): the clock cannot tell a moment beyond its own end.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Whether a variable of the worker's environment is its own configuration, which the steps do not get (contract section 4).
pub fn is_own_variable(name: &str) -> bool {
    name.starts_with("MQTT_") || name.starts_with("JOB_") || name == "RUST_LOG"
}

impl Config {
    /// Reads the environment of this process.
    ///
    /// # Errors
    /// One sentence for each unusable variable: its name, its value, what is accepted. No password is in it.
    pub fn from_env() -> Result<Self, Vec<String>> {
        Self::read(|name| std::env::var_os(name))
    }

    /// Reads the variables that `lookup` knows.
    ///
    /// # Errors
    /// As [`Config::from_env`].
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, Vec<String>> {
        let mut env = Reader {
            lookup,
            errors: Vec::new(),
        };
        let accepted_name = "1 to 128 characters, none of / + #, no control characters";
        let name = |value: &str| check_name(value).ok().map(|()| value.to_owned());
        let worker_id = env.or(
            "WORKER_ID",
            "node-worker-01".to_owned(),
            accepted_name,
            name,
        );
        let root = env.or(
            "MQTT_TOPIC_ROOT",
            "jobs".to_owned(),
            "topic levels without + # or a / at either end",
            topic_root,
        );
        env.gone("MQTT_SHARE_GROUP", "`$share` makes jobs wait behind busy workers; give each worker a queue of its own (MQTT_TOPIC_ROOT), \
                     and a new WORKER_ID, since the session of the old one keeps its share");
        let config = Self {
            broker: env.broker(),
            topics: Topics::new(&root, &worker_id),
            worker_id,
            job: env.job(),
        };
        if env.errors.is_empty() {
            Ok(config)
        } else {
            Err(env.errors)
        }
    }
}

/// Reads variables and collects what is wrong with them, so that a user sees all of it at once.
struct Reader<F> {
    lookup: F,
    errors: Vec<String>,
}

impl<F: Fn(&str) -> Option<OsString>> Reader<F> {
    /// The text of a variable. An empty one counts as unset: that is what compose makes of `${NAME:-}`.
    fn text(&mut self, name: &str) -> Option<String> {
        let value = (self.lookup)(name).filter(|value| !value.is_empty())?;
        value
            .into_string()
            .map_err(|_| self.errors.push(format!("{name} is not valid UTF-8")))
            .ok()
    }

    fn optional<T>(
        &mut self,
        name: &str,
        accepted: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(name)?;
        let value = parse(&text);
        if value.is_none() {
            self.errors
                .push(format!("{name}={text:?}: accepted is {accepted}"));
        }
        value
    }

    fn or<T>(
        &mut self,
        name: &str,
        default: T,
        accepted: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        self.optional(name, accepted, parse).unwrap_or(default)
    }

    /// A variable of an earlier version, which must not be ignored in silence.
    fn gone(&mut self, name: &str, instead: &str) {
        if let Some(value) = self.text(name) {
            self.errors.push(format!(
                "{name}={value:?}: this variable is gone: {instead}"
            ));
        }
    }

    fn broker(&mut self) -> Broker {
        let url = self
            .text("MQTT_URL")
            .unwrap_or_else(|| "mqtt://localhost:1883".to_owned());
        self.no_tls_without_need(&url);
        let url = parse_url(&url).unwrap_or_else(|error| {
            self.errors
                .push(format!("MQTT_URL={:?}: {error}", without_password(&url)));
            Url::default()
        });
        #[cfg(feature = "tls")]
        let tls = self.tls(&url);
        let username = self.text("MQTT_USERNAME").or(url.username);
        let password = self.password().or(url.password);
        let credentials = match (username, password) {
            (Some(username), password) => Some(Credentials {
                username,
                password: password.unwrap_or_default(),
            }),
            (None, None) => None,
            (None, Some(_)) => {
                self.errors.push(
                    "MQTT_PASSWORD is set without a user name: set MQTT_USERNAME too".to_owned(),
                );
                None
            }
        };
        Broker {
            #[cfg(feature = "tls")]
            tls,
            host: url.host,
            port: url.port,
            credentials,
            protocol: self.or(
                "MQTT_PROTOCOL_VERSION",
                Protocol::Auto,
                "auto, 5 or 4 (for 3.1.1)",
                |value| match value {
                    "auto" => Some(Protocol::Auto),
                    "5" => Some(Protocol::V5),
                    "4" => Some(Protocol::V3),
                    _ => None,
                },
            ),
            // the client library takes nothing below 5, the protocol nothing above 65535 (MQTT 5, section 3.1.2.10)
            keep_alive: self.or(
                "MQTT_KEEP_ALIVE",
                Duration::from_secs(30),
                "whole seconds from 5 to 65535",
                |value| {
                    value
                        .parse()
                        .ok()
                        .filter(|s| (5..=65535).contains(s))
                        .map(Duration::from_secs)
                },
            ),
        }
    }

    fn password(&mut self) -> Option<String> {
        let given = self.text("MQTT_PASSWORD");
        let text = |content: Vec<u8>| {
            String::from_utf8(content).map_err(|_| "is not valid UTF-8".to_owned())
        };
        let Some(secret) = self.file("MQTT_PASSWORD_FILE", text) else {
            return given;
        };
        if given.is_some() {
            self.errors.push(
                "MQTT_PASSWORD and MQTT_PASSWORD_FILE are both set: accepted is one of them"
                    .to_owned(),
            );
        }
        Some(secret.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// What `read` makes of the file that a variable names. Nothing of the content is in an error.
    fn file<T>(&mut self, name: &str, read: impl Fn(Vec<u8>) -> Result<T, String>) -> Option<T> {
        let path = self.text(name)?;
        let content = std::fs::read(&path).map_err(|e| format!("cannot be read: {e}"));
        content
            .and_then(read)
            .map_err(|error| self.errors.push(format!("{name}={path:?}: {error}")))
            .ok()
    }

    #[cfg(feature = "tls")]
    fn tls(&mut self, url: &Url) -> Option<Tls> {
        if !url.secure {
            return None;
        }
        if !tls::is_server_name(&url.host) {
            self.errors.push(format!(
                "MQTT_URL: no certificate can be for the host {:?}",
                url.host
            ));
        }
        let roots = match self.text("MQTT_CA_FILE") {
            Some(_) => self.file("MQTT_CA_FILE", |pem| tls::roots(&pem)),
            None => tls::system_roots()
                .map_err(|e| {
                    self.errors
                        .push(format!("MQTT_CA_FILE is not set, and {e}"))
                })
                .ok(),
        };
        let certificate = self.file("MQTT_CERT_FILE", |pem| tls::certificates(&pem));
        let key = self.file("MQTT_KEY_FILE", |pem| tls::key(&pem));
        if self.text("MQTT_CERT_FILE").is_some() != self.text("MQTT_KEY_FILE").is_some() {
            self.errors
                .push("MQTT_CERT_FILE and MQTT_KEY_FILE: accepted are both or none".to_owned());
        }
        match Tls::new(roots?, certificate.zip(key)) {
            Ok(tls) => Some(tls),
            Err(error) => {
                self.errors.push(format!(
                    "MQTT_CERT_FILE and MQTT_KEY_FILE do not fit together: {error}"
                ));
                None
            }
        }
    }

    /// Who sets one of these believes that the connection is secure.
    fn no_tls_without_need(&mut self, url: &str) {
        for name in ["MQTT_CA_FILE", "MQTT_CERT_FILE", "MQTT_KEY_FILE"] {
            if url.starts_with("mqtt://") && self.text(name).is_some() {
                self.errors.push(format!(
                    "{name} is set, but MQTT_URL is mqtt://, which encrypts nothing: accepted is mqtts://"
                ));
            }
        }
    }

    fn job(&mut self) -> JobConfig {
        JobConfig {
            root: self.optional("JOB_ROOT", "a directory that exists", |value| {
                std::path::absolute(value).ok().filter(|path| path.is_dir())
            }),
            payload_steps: self.or(
                "JOB_PAYLOAD_STEPS",
                PayloadSteps::Allow,
                "allow or deny",
                |value| match value {
                    "allow" => Some(PayloadSteps::Allow),
                    "deny" => Some(PayloadSteps::Deny),
                    _ => None,
                },
            ),
            shell: self.shell(),
            timeout: self.optional(
                "JOB_TIMEOUT",
                "seconds greater than 0, or unset for none",
                |value| seconds(value).filter(|s| !s.is_zero()),
            ),
            stop_grace: self.or(
                "JOB_STOP_GRACE",
                Duration::from_secs(8),
                "seconds from 0",
                seconds,
            ),
            dir_wait: self.or(
                "JOB_DIR_WAIT",
                Duration::from_secs(5),
                "seconds from 0",
                seconds,
            ),
            max_attempts: self.or("JOB_MAX_ATTEMPTS", 3, "a whole number from 1", |value| {
                value.parse().ok().filter(|n| *n > 0)
            }),
            log_limit: self.optional(
                "JOB_LOG_LIMIT",
                "a whole number of bytes from 1, or unset for none",
                |value| value.parse().ok().filter(|n| *n > 0),
            ),
            on_stop: self.or(
                "JOB_ON_STOP",
                OnStop::Requeue,
                "requeue or finish",
                |value| match value {
                    "requeue" => Some(OnStop::Requeue),
                    "finish" => Some(OnStop::Finish),
                    _ => None,
                },
            ),
            durability: self.or(
                "JOB_SYNC",
                Durability::Disk,
                "on or off",
                |value| match value {
                    "on" => Some(Durability::Disk),
                    "off" => Some(Durability::Cache),
                    _ => None,
                },
            ),
        }
    }

    /// The shell is looked for now: without one every job of the queue would fail, one after the other.
    fn shell(&mut self) -> String {
        let shell = self
            .text("JOB_SHELL")
            .unwrap_or_else(|| "/bin/sh".to_owned());
        let path = (self.lookup)("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
        let found = match shell.contains('/') {
            true => is_program(Path::new(&shell)),
            false => std::env::split_paths(&path).any(|folder| is_program(&folder.join(&shell))),
        };
        if !found {
            self.errors.push(format!(
                "JOB_SHELL={shell:?}: accepted is the name or path of a program that can be run"
            ));
        }
        shell
    }
}

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn seconds(value: &str) -> Option<Duration> {
    let seconds = value
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())?;
    Some(seconds.min(FOREVER))
}

fn topic_root(value: &str) -> Option<String> {
    let levels_named = value.split('/').all(|level| check_name(level).is_ok());
    // `$share` and `$SYS` are the broker's (MQTT 5, section 4.7.2); a topic has 65,535 bytes at most
    (levels_named && !value.starts_with('$') && value.len() <= 1024).then(|| value.to_owned())
}

#[derive(Debug, Default, PartialEq)]
struct Url {
    /// `mqtts://`.
    secure: bool,
    host: String,
    port: u16,
    username: Option<String>,
    password: Option<String>,
}

/// `mqtt[s]://[user[:password]@]host[:port]`. A whole URL library would be larger than everything else here.
fn parse_url(url: &str) -> Result<Url, String> {
    let form =
        "accepted is mqtt://[user:password@]host[:port], or mqtts://, an IPv6 address in brackets";
    let (secure, rest) = match url.split_once("://") {
        Some(("mqtt", rest)) => (false, rest),
        Some(("mqtts", rest)) if cfg!(feature = "tls") => (true, rest),
        Some(("mqtts", _)) => {
            return Err("mqtts:// needs a binary built with the feature `tls`".to_owned());
        }
        _ => return Err(form.to_owned()),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (login, address) = rest
        .rsplit_once('@')
        .map_or((None, rest), |(login, address)| (Some(login), address));
    let (host, port) = match address.rfind(':') {
        Some(colon) if !address[colon..].contains(']') => {
            (&address[..colon], &address[colon + 1..])
        }
        _ => (address, if secure { "8883" } else { "1883" }),
    };
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host_is_good = match inner {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && !host.contains(|c: char| {
                    "[]:/?#@%\\".contains(c) || c.is_whitespace() || c.is_control()
                })
        }
    };
    let port = port.parse().ok().filter(|port| *port > 0);
    let (true, Some(port)) = (host_is_good, port) else {
        return Err(form.to_owned());
    };
    let decode = |text: &str| {
        percent_decode(text).ok_or("a % in user or password must be written %25".to_owned())
    };
    let (username, password) = match login.map(|login| login.split_once(':').unwrap_or((login, "")))
    {
        None => (None, None),
        Some((user, password)) => (
            Some(decode(user)?),
            Some(decode(password)?).filter(|p| !p.is_empty()),
        ),
    };
    Ok(Url {
        secure,
        host: host.to_owned(),
        port,
        username: username.filter(|user| !user.is_empty()),
        password,
    })
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let digits = tail
                .get(..2)
                .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

/// The URL as it may be shown: whatever stands before the last `@` could hold a password, however broken the rest is.
fn without_password(url: &str) -> String {
    let Some((login, address)) = url.rsplit_once('@') else {
        return url.to_owned();
    };
    let scheme = login.split_once("://").map_or("", |(scheme, _)| scheme);
    let scheme = if scheme.bytes().all(|byte| byte.is_ascii_lowercase()) {
        scheme
    } else {
        "***"
    };
    format!("{scheme}://***@{address}")
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
        assert_eq!(
            (config.broker.host.as_str(), config.broker.port),
            ("localhost", 1883)
        );
        assert_eq!(config.broker.keep_alive.as_secs(), 30);
        assert_eq!(config.broker.protocol, Protocol::Auto);
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
                config.job.on_stop
            ),
            (3, None, OnStop::Requeue)
        );
    }

    #[test]
    fn an_unusable_value_is_named_with_what_is_accepted() {
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
            ("MQTT_KEEP_ALIVE", "4"),
            ("MQTT_KEEP_ALIVE", "x"),
            ("MQTT_PROTOCOL_VERSION", "3"),
            ("MQTT_TOPIC_ROOT", "a/#"),
            ("MQTT_TOPIC_ROOT", "/a"),
            ("MQTT_TOPIC_ROOT", "$share/x"),
            ("MQTT_SHARE_GROUP", "a/b"),
            ("MQTT_PASSWORD_FILE", "/does/not/exist"),
            ("WORKER_ID", "a+b"),
            ("JOB_ROOT", "/does/not/exist"),
            ("JOB_SHELL", "/does/not/exist"),
            ("JOB_SHELL", "no-such-shell"),
            ("JOB_TIMEOUT", "0"),
            ("JOB_TIMEOUT", "-1"),
            ("JOB_TIMEOUT", "inf"),
            ("JOB_STOP_GRACE", "soon"),
            ("JOB_DIR_WAIT", "NaN"),
            ("JOB_MAX_ATTEMPTS", "0"),
            ("JOB_LOG_LIMIT", "1MB"),
            ("JOB_ON_STOP", "wait"),
            ("JOB_SYNC", "yes"),
            ("JOB_PAYLOAD_STEPS", "no"),
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
    fn all_errors_are_told_at_once_and_empty_means_unset() {
        assert_eq!(
            config(&[("JOB_ON_STOP", "x"), ("WORKER_ID", "#")])
                .unwrap_err()
                .len(),
            2
        );
        assert!(config(&[("MQTT_URL", ""), ("JOB_TIMEOUT", ""), ("WORKER_ID", "")]).is_ok());
    }

    #[test]
    fn the_url_gives_host_port_user_and_password() {
        let url = |text| parse_url(text).unwrap();
        let plain = url("mqtt://broker");
        assert_eq!(
            (plain.host.as_str(), plain.port, plain.username),
            ("broker", 1883, None)
        );
        let full = url("mqtt://me:p%40ss%3A@[::1]:1234/");
        assert_eq!((full.host.as_str(), full.port), ("[::1]", 1234));
        assert_eq!(
            (full.username.as_deref(), full.password.as_deref()),
            (Some("me"), Some("p@ss:"))
        );
        assert_eq!(url("mqtt://[fe80::1]").port, 1883);
        assert_eq!(url("mqtt://u:a@b@host").password.as_deref(), Some("a@b"));
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
    fn a_secure_url_has_a_port_of_its_own() {
        let url = |text| parse_url(text).unwrap();
        assert_eq!(
            (
                url("mqtts://h").port,
                url("mqtts://h:1").port,
                url("mqtts://[::1]").port
            ),
            (8883, 1, 8883)
        );
        assert!(url("mqtts://h").secure && !url("mqtt://h").secure);
    }

    #[cfg(feature = "tls")]
    #[test]
    fn what_tls_cannot_use_is_named() {
        for (name, file, said) in [
            ("MQTT_CA_FILE", "/does/not/exist", "cannot be read"),
            ("MQTT_CA_FILE", "/dev/null", "a PEM file with certificates"),
            (
                "MQTT_CERT_FILE",
                "/dev/null",
                "a PEM file with certificates",
            ),
            (
                "MQTT_KEY_FILE",
                "/dev/null",
                "a PEM file with a private key",
            ),
        ] {
            let errors = config(&[("MQTT_URL", "mqtts://h"), (name, file)]).unwrap_err();
            let told =
                |e: &String| e.starts_with(&format!("{name}={file:?}: ")) && e.contains(said);
            assert!(errors.iter().any(told), "{errors:?}");
        }
        assert!(
            config(&[("MQTT_URL", "mqtts://a..b")]).unwrap_err()[0]
                .contains("no certificate can be for")
        );
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
            (credentials.username.as_str(), credentials.password.as_str()),
            ("v", "q")
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
            super::tests::config(&[("MQTT_PASSWORD", "hunter2")])
                .is_err_and(|e| !e[0].contains("hunter2"))
        );
    }

    #[test]
    fn a_variable_that_is_gone_says_what_replaces_it() {
        let errors = config(&[("MQTT_SHARE_GROUP", "g")]).unwrap_err();
        assert!(errors[0].contains("is gone: ") && errors[0].contains("MQTT_TOPIC_ROOT"));
    }
}

//! `mqtts://` against a real Mosquitto, with a certificate authority made here (docs/reference.md, "TLS").
#![cfg(feature = "tls")]

use crate::support;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use support::ca::{Authority, Identity, Valid};
use support::controller::Controller;
use support::mosquitto::{Mosquitto, free_port, tool};
use support::site::{Site, names};
use support::temp_dir::TempDir;
use support::wait;
use support::worker::{Worker, speaking, with};

const NAMES: &str = "DNS:localhost,IP:127.0.0.1,IP:::1";

/// A site whose broker also listens with TLS, where it shows this certificate.
struct Secure {
    site: Site,
    port: u16,
}

const LOCALHOST: &str = "127.0.0.1";

impl Secure {
    fn new(broker: &Identity, options: &[String]) -> Self {
        Self::at(LOCALHOST, broker, options)
    }

    fn at(address: &str, broker: &Identity, options: &[String]) -> Self {
        let port = free_port();
        let listener = [
            format!("listener {port} {address}"),
            format!("certfile {}", broker.certificate.display()),
            format!("keyfile {}", broker.key.display()),
        ];
        let lines = listener.iter().chain(options);
        let mut broker = lines.fold(Mosquitto::prepare(), |broker, line| broker.config(line));
        broker.restart();
        Self {
            site: Site::on(broker),
            port,
        }
    }

    fn worker(&self, host: &str, ca: &Path, configure: impl FnOnce(&mut Command)) -> Worker {
        self.site.worker(|command| {
            command
                .env("MQTT_URL", format!("mqtts://{host}:{}", self.port))
                .env("MQTT_CA_FILE", ca);
            configure(command);
        })
    }

    fn runs_a_job(&self, host: &str, ca: &Path, configure: impl FnOnce(&mut Command)) {
        let mark = self.site.controller.mark();
        let mut worker = self.worker(host, ca, configure);
        self.site.await_state(&mut worker, mark, "idle");
        let result = self
            .site
            .run_on(worker, "secure", json!({ "steps": ["true"] }))
            .result;
        assert_eq!(result["status"], "success", "{result}");
    }
}

/// The worker gives up at once and says why.
fn refuses(mut worker: Worker, reasons: &[&str]) {
    worker.exits_with(77);
    let said = worker.stderr();
    for reason in reasons {
        assert!(said.contains(reason), "{reason:?} is not in:\n{said}");
    }
}

fn asks_for_certificates_of(ca: &Authority) -> Vec<String> {
    vec![
        format!("cafile {}", ca.file().display()),
        "require_certificate true".to_owned(),
    ]
}

fn a_trusted_broker_is_served(version: &str) {
    let ca = Authority::new("ours");
    let broker = ca.broker(NAMES, Valid::Now);
    let secure = Secure::new(&broker, &[]);
    for host in ["localhost", "127.0.0.1"] {
        secure.runs_a_job(host, &ca.file(), speaking(version));
    }
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        Secure::at("::1", &broker, &[]).runs_a_job("[::1]", &ca.file(), speaking(version));
    }
}

#[test]
fn a_broker_that_shows_no_good_certificate_is_refused() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let unknown = ["UnknownIssuer", "not signed by a CA of MQTT_CA_FILE"];
    let another = ["not valid for name", "broker.example"];
    let expired = Valid::UntilYesterday;
    let cases: [(&Authority, &str, Valid, &[&str]); 3] = [
        (&theirs, NAMES, Valid::Now, &unknown),
        (&ours, NAMES, expired, &["expired"]),
        (&ours, "DNS:broker.example", Valid::Now, &another),
    ];
    for (ca, names, valid, reasons) in cases {
        let secure = Secure::new(&ca.broker(names, valid), &[]);
        for host in ["localhost", "127.0.0.1"] {
            // MQTT_CA_FILE stands instead of the system's roots, not beside them
            let worker = secure.worker(host, &ours.file(), |command| {
                command.env("SSL_CERT_FILE", theirs.file());
            });
            let reasons = [&["we do not trust the broker"], reasons].concat();
            refuses(worker, &reasons);
        }
    }
}

/// Makes a worker show this certificate.
fn shows(identity: &Identity) -> impl Fn(&mut Command) + use<> {
    let Identity { certificate, key } = identity.clone();
    move |command| {
        command
            .env("MQTT_CERT_FILE", &certificate)
            .env("MQTT_KEY_FILE", &key);
    }
}

#[test]
fn a_broker_that_asks_for_our_certificate_gets_it_or_we_give_up() {
    let (ca, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    for tls in ["tlsv1.2", "tlsv1.3"] {
        let mut options = asks_for_certificates_of(&ca);
        options.push(format!("tls_version {tls}"));
        let secure = Secure::new(&ca.broker(NAMES, Valid::Now), &options);
        secure.runs_a_job("localhost", &ca.file(), shows(&ca.client("worker")));
        let without = secure.worker("localhost", &ca.file(), |_| {});
        let stranger = theirs.client("stranger");
        let stranger = secure.worker("localhost", &ca.file(), shows(&stranger));
        for worker in [without, stranger] {
            refuses(worker, &["MQTT_CERT_FILE", "alert"]);
        }
    }
}

/// The broker ends the head's connection in order: so each acknowledgement is confirmed, which the claim's name says.
fn a_pool_shares_a_queue(version: &str) {
    let ca = Authority::new("ours");
    let options = asks_for_certificates_of(&ca);
    let secure = Secure::new(&ca.broker(NAMES, Valid::Now), &options);
    let ours = ca.client("worker");
    let mark = secure.site.controller.mark();
    let mut members = ["a", "b"].map(|name| {
        secure.worker("localhost", &ca.file(), |command| {
            speaking(version)(command);
            shows(&ours)(command);
            command
                .env("JOB_POOL", "the-pool")
                .env("JOB_ROOT", secure.site.drive.path())
                .env("WORKER_ID", name)
                .arg("supervise");
        })
    });
    for member in &mut members {
        secure.site.await_state(member, mark, "idle");
    }
    let jobs: Vec<String> = (1..=6).map(|number| format!("job-{number}")).collect();
    for id in &jobs {
        secure.site.submit(id, json!({ "steps": ["true"] }));
    }
    for id in &jobs {
        assert_eq!(secure.site.result(id).json()["status"], "success");
    }
    let place = secure.site.drive.path().join(".job-worker/the-pool");
    let done = || {
        names(&place)
            .iter()
            .filter(|name| name.starts_with("d-") && name.ends_with("-0"))
            .count()
    };
    // the first one is that of the new session
    wait::until("all to be done and confirmed", || done() == jobs.len() + 1);
}

/// The lines of a PEM file that say something.
fn secrets(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).expect("a PEM file of the test's");
    text.lines()
        .filter(|line| !line.starts_with('-'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn certificate_and_key_are_nowhere() {
    let ca = Authority::new("ours");
    let secure = Secure::new(
        &ca.broker(NAMES, Valid::Now),
        &asks_for_certificates_of(&ca),
    );
    let ours = ca.client("worker");
    let mark = secure.site.controller.mark();
    let mut worker = secure.worker("localhost", &ca.file(), |command| {
        shows(&ours)(command);
        command.env("RUST_LOG", "trace");
    });
    secure.site.await_state(&mut worker, mark, "idle");
    let job = secure.site.run_on(
        worker,
        "a",
        json!({ "steps": ["env; cat /proc/$PPID/cmdline", "exit 3"] }),
    );
    let said = job.worker.stderr();
    assert!(
        said.contains("job-worker: debug: "),
        "the log tells all it has: {said}"
    );
    for text in [
        said,
        job.log.clone(),
        job.read("job.status.json"),
        job.published.text(),
    ] {
        for secret in secrets(&ours.key)
            .iter()
            .chain(&secrets(&ours.certificate))
            .chain(&secrets(&ca.file()))
        {
            assert!(!text.contains(secret), "{text}");
        }
        assert!(!text.contains("MQTT_KEY_FILE"), "{text}");
    }
    // nor where it cannot be used
    let broken = secure.site.drive.path().join("broken");
    fs::write(&broken, secrets(&ours.key).join("\n")).unwrap();
    for name in ["MQTT_CA_FILE", "MQTT_CERT_FILE", "MQTT_KEY_FILE"] {
        let mut worker = secure.worker("localhost", &ca.file(), |command| {
            command.env(name, &broken).env("RUST_LOG", "trace");
        });
        worker.exits_with(78);
        assert!(worker.stderr().contains(name), "{}", worker.stderr());
        assert!(
            secrets(&ours.key)
                .iter()
                .all(|secret| !worker.stderr().contains(secret)),
            "{}",
            worker.stderr()
        );
    }
}

on_both_protocols!(a_trusted_broker_is_served, a_pool_shares_a_queue);

#[test]
fn the_secure_broker_of_the_examples_serves_controller_and_worker() {
    let ca = Authority::new("ours");
    let port = free_port();
    let mut broker = Mosquitto::prepare().without_persistence();
    let dir = broker.dir().to_owned();
    for user in ["controller", "worker"] {
        let create: &[_] = if user == "controller" {
            &["-c", "-b"]
        } else {
            &["-b"]
        };
        let mut command = Command::new(tool("mosquitto_passwd"));
        let made = command
            .args(create)
            .arg(dir.join("passwords"))
            .args([user, "correct horse"])
            .status();
        assert!(made.expect("mosquitto_passwd runs").success());
    }
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/mosquitto");
    fs::copy(examples.join("acl"), dir.join("acl")).expect("the ACL of the examples");
    let shown = ca.broker(NAMES, Valid::Now);
    fs::copy(shown.certificate, dir.join("broker.pem")).unwrap();
    fs::copy(shown.key, dir.join("broker.key")).unwrap();
    let settings = fs::read_to_string(examples.join("secure.conf"))
        .expect("the configuration of the examples");
    for line in settings.lines().filter(|line| !line.starts_with('#')) {
        let line = line.replace("listener 8883", &format!("listener {port} {LOCALHOST}"));
        let line = line.replace("/mosquitto/data/", &format!("{}/", dir.display()));
        broker = broker.config(&line.replace("/mosquitto/config", &dir.to_string_lossy()));
    }
    broker.restart();
    let controller =
        Controller::connect_as(&broker, "controller", Some(("controller", "correct horse")));
    let secure = Secure {
        site: Site::with(broker, controller),
        port,
    };
    secure.runs_a_job(
        "localhost",
        &ca.file(),
        with(&[
            ("MQTT_USERNAME", "worker"),
            ("MQTT_PASSWORD", "correct horse"),
        ]),
    );
    refuses(
        secure.worker("localhost", &ca.file(), |_| {}),
        &["user name and password"],
    );
}

#[test]
fn without_a_ca_file_the_roots_of_the_system_count() {
    let ca = Authority::new("ours");
    let secure = Secure::new(&ca.broker(NAMES, Valid::Now), &[]);
    let configure = |command: &mut Command| {
        command.env_remove("MQTT_CA_FILE");
    };
    // where the system has roots, ours is not among them; where it has none, that is said
    let mut worker = secure.worker("localhost", &ca.file(), configure);
    let status = worker.wait().code();
    let said = worker.stderr();
    let known = said.contains("UnknownIssuer") && status == Some(77);
    let none = said.contains("the system has no trusted certificates") && status == Some(78);
    assert!(known || none, "{status:?}: {said}");

    secure.runs_a_job("localhost", &ca.file(), |command| {
        configure(command);
        command.env("SSL_CERT_FILE", ca.file());
    });
}

#[test]
fn a_certificate_of_tomorrow_is_waited_for() {
    let ca = Authority::new("ours");
    let secure = Secure::new(&ca.broker(NAMES, Valid::FromTomorrow), &[]);
    let mut worker = secure.worker("localhost", &ca.file(), |_| {});
    wait::until("the reason", || {
        worker.stderr().contains("is our clock right?")
    });
    assert!(worker.ended().is_none());
    worker.stop();
}

#[test]
fn a_certificate_that_expires_while_we_are_there_is_waited_for() {
    let ca = Authority::new("ours");
    let good = ca.broker(NAMES, Valid::Now);
    let dir = TempDir::new();
    let shown = good.copied_to(dir.path());
    let good = shown.copied_to(ca.file().parent().expect("a directory"));
    let mut secure = Secure::new(&shown, &[]);
    let mut worker = secure.worker("localhost", &ca.file(), |_| {});
    secure.site.await_state(&mut worker, 0, "idle");

    secure.site.kill9_broker();
    ca.broker(NAMES, Valid::UntilYesterday).replace(&shown);
    secure.site.restart_broker();
    wait::until("the reason", || worker.stderr().contains("expired"));
    assert!(worker.ended().is_none(), "losing the broker is not an exit");

    secure.site.kill9_broker();
    good.replace(&shown);
    secure.site.restart_broker();
    let result = secure
        .site
        .run_on(worker, "later", json!({ "steps": ["true"] }))
        .result;
    assert_eq!(result["status"], "success", "{result}");
}

#[test]
fn renewed_files_are_read_for_the_next_connection() {
    let (before, after) = (Authority::new("before"), Authority::new("after"));
    let dirs = [TempDir::new(), TempDir::new()];
    let shown = before.broker(NAMES, Valid::Now).copied_to(dirs[0].path());
    let ours = before.client("worker").copied_to(dirs[1].path());
    let mut secure = Secure::new(&shown, &asks_for_certificates_of(&before));
    let mut worker = secure.worker("localhost", &before.file(), shows(&ours));
    secure.site.await_state(&mut worker, 0, "idle");

    secure.site.kill9_broker();
    after.broker(NAMES, Valid::Now).replace(&shown);
    after.client("worker").replace(&ours);
    fs::copy(after.file(), before.file()).unwrap();
    secure.site.restart_broker();
    let result = secure
        .site
        .run_on(worker, "renewed", json!({ "steps": ["true"] }))
        .result;
    assert_eq!(result["status"], "success", "{result}");
}

fn openssl(dir: &Path, line: &str) {
    let done = Command::new("sh")
        .args(["-ec", line])
        .current_dir(dir)
        .output()
        .expect("sh runs");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{line}: {said}");
}

/// As manuals make them that are older than what is checked today.
#[test]
fn a_certificate_that_cannot_be_used_is_told_with_what_is_wrong_with_it() {
    let ca = Authority::new("ours");
    let dir = TempDir::new();
    let in_dir = |name: &str| dir.path().join(name);
    let request =
        "openssl req -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=localhost";
    fs::write(in_dir("plain"), "basicConstraints = CA:FALSE\n").unwrap();
    let ca_files = ca.file().with_extension("");
    let sign = format!(
        "openssl x509 -req -days 2 -CA {0}.pem -CAkey {0}.key -CAcreateserial -in csr",
        ca_files.display()
    );
    openssl(dir.path(), &format!("{request} -new -keyout key -out csr"));
    openssl(dir.path(), &format!("{sign} -out version-1"));
    openssl(dir.path(), &format!("{sign} -extfile plain -out nameless"));
    openssl(
        dir.path(),
        &format!(
            "{request} -x509 -days 2 -addext subjectAltName=DNS:localhost -keyout self.key -out self"
        ),
    );
    for (certificate, key, ca, said) in [
        ("version-1", "key", ca.file(), "version 1"),
        ("nameless", "key", ca.file(), "subjectAltName"),
        ("self", "self.key", in_dir("self"), "CA:TRUE"),
    ] {
        let broker = Identity {
            certificate: in_dir(certificate),
            key: in_dir(key),
        };
        let secure = Secure::new(&broker, &[]);
        let worker = secure.worker("localhost", &ca, |_| {});
        refuses(worker, &[said, "docs/reference.md, \"TLS\""]);
    }
}

/// In "A certificate for the broker" of the operator's guide.
#[test]
fn the_two_lines_of_the_guide_make_a_certificate_that_can_be_used() {
    let dir = TempDir::new();
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operators.md");
    let guide = fs::read_to_string(guide).expect("the guide");
    let lines: Vec<_> = guide
        .lines()
        .filter_map(|line| line.strip_prefix("$ openssl req "))
        .collect();
    assert_eq!(lines.len(), 2);
    for line in lines {
        let line = line.replace("broker.example", "localhost");
        openssl(dir.path(), &format!("openssl req {line}"));
    }
    let broker = Identity {
        certificate: dir.path().join("broker.pem"),
        key: dir.path().join("broker.key"),
    };
    let secure = Secure::new(&broker, &[]);
    secure.runs_a_job("localhost", &dir.path().join("ca.pem"), |_| {});
}

#[test]
fn a_key_of_another_certificate_is_a_configuration_error() {
    let ca = Authority::new("ours");
    let (ours, other) = (ca.client("ours"), ca.client("other"));
    let secure = Secure::new(&ca.broker(NAMES, Valid::Now), &[]);
    for (certificate, key, said) in [
        (Some(&ours), Some(&other), "do not fit together"),
        (Some(&ours), None, "set both or none"),
        (None, Some(&ours), "set both or none"),
    ] {
        let mut worker = secure.worker("localhost", &ca.file(), |command| {
            certificate.map(|identity| command.env("MQTT_CERT_FILE", &identity.certificate));
            key.map(|identity| command.env("MQTT_KEY_FILE", &identity.key));
        });
        worker.exits_with(78);
        assert!(worker.stderr().contains(said), "{}", worker.stderr());
    }
}

#[test]
fn tls_where_there_is_none_and_the_reverse_are_told() {
    let ca = Authority::new("ours");
    let plain = Site::start();
    let secure = Secure::new(&ca.broker(NAMES, Valid::Now), &[]);
    for (url, said) in [
        (
            format!("mqtts://localhost:{}", plain.broker.port()),
            "mqtt:// is for a port without TLS",
        ),
        (
            format!("mqtt://localhost:{}", secure.port),
            "a port with TLS wants mqtts://",
        ),
    ] {
        let worker = plain.worker(|command| {
            command.env("MQTT_URL", &url);
            if url.starts_with("mqtts") {
                command.env("MQTT_CA_FILE", ca.file());
            }
        });
        worker.await_stderr(said);
    }
}

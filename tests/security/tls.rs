//! `mqtts://` against a real Mosquitto, with a certificate authority made here (docs/reference.md, "TLS").
#![cfg(feature = "tls")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::ca::{Authority, Identity, Valid};
use crate::support::controller::Controller;
use crate::support::mosquitto::{Mosquitto, free_port};
use crate::support::pool::Queue;
use crate::support::site::{Site, names, shell};
use crate::support::temp_dir::TempDir;
use crate::support::wait;
use crate::support::worker::{Worker, binary, said, speaking, with};
use serde_json::json;

const NAMES: &str = "DNS:localhost,IP:127.0.0.1,IP:::1";

const LOCALHOST: &str = "127.0.0.1";

/// A site whose broker also listens with TLS, and the file by which a worker trusts it.
struct Secure {
    site: Site,
    port: u16,
    ca: PathBuf,
}

impl Secure {
    /// A broker with a good certificate of this authority.
    fn of(ca: &Authority, options: &[String]) -> Self {
        Self::at(LOCALHOST, &ca.broker(NAMES, Valid::Now), ca.file(), options)
    }

    /// One that shows this certificate.
    fn showing(identity: &Identity, ca: PathBuf) -> Self {
        Self::at(LOCALHOST, identity, ca, &[])
    }

    fn at(address: &str, broker: &Identity, ca: PathBuf, options: &[String]) -> Self {
        let port = free_port();
        let listener = [
            format!("listener {port} {address}"),
            format!("certfile {}", broker.certificate.display()),
            format!("keyfile {}", broker.key.display()),
        ];
        let lines = listener.iter().chain(options);
        let mut broker = lines.fold(Mosquitto::prepare(), |broker, line| broker.config(line));
        broker.restart();
        let site = Site::on(broker);
        Self { site, port, ca }
    }

    fn command(&self, host: &str, configure: impl FnOnce(&mut Command)) -> Command {
        let mut command = self.site.command::<&str>([]);
        command
            .env("MQTT_URL", format!("mqtts://{host}:{}", self.port))
            .env("MQTT_CA_FILE", &self.ca);
        configure(&mut command);
        command
    }

    fn worker(&self, configure: impl FnOnce(&mut Command)) -> Worker {
        self.site.start_as(self.command("localhost", configure))
    }

    fn idle(&self, configure: impl FnOnce(&mut Command)) -> Worker {
        self.site.idle(self.command("localhost", configure))
    }

    fn runs_a_job(&self, mut worker: Worker) {
        self.site.runs_a_job(&mut worker);
    }

    /// So many handshakes with this broker have failed.
    fn await_tries(&self, count: usize) {
        wait::until("some more tries", || {
            self.site.broker.log().matches("OpenSSL Error").count() >= count
        });
    }

    /// The broker is another one when it is back.
    fn restart(&mut self, change: impl FnOnce()) {
        self.site.kill9_broker();
        change();
        self.site.restart_broker();
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
    let secure = Secure::of(&ca, &[]);
    for host in ["localhost", "127.0.0.1"] {
        let command = secure.command(host, speaking(version));
        secure.runs_a_job(secure.site.idle(command));
    }
    if TcpListener::bind("[::1]:0").is_ok() {
        let broker = ca.broker(NAMES, Valid::Now);
        let secure = Secure::at("::1", &broker, ca.file(), &[]);
        let command = secure.command("[::1]", speaking(version));
        secure.runs_a_job(secure.site.idle(command));
    }
}

#[test]
fn a_broker_that_shows_no_good_certificate_is_refused() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let expired = Valid::UntilYesterday;
    let (dir, trusted) = (TempDir::new(), ours.file());
    let in_dir = |name: &str| dir.path().join(name);
    // as manuals make them that are older than what is checked today
    let request =
        "openssl req -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=localhost";
    let ca_files = trusted.with_extension("").display().to_string();
    for line in [
        format!("{request} -new -keyout key -out csr"),
        format!(
            "openssl x509 -req -days 2 -CA {ca_files}.pem -CAkey {ca_files}.key -CAcreateserial -in csr -out version-1"
        ),
        format!(
            "{request} -x509 -days 2 -addext subjectAltName=DNS:localhost -keyout self.key -out self"
        ),
    ] {
        shell(dir.path(), &line);
    }
    let made = |certificate, key| Identity {
        certificate: in_dir(certificate),
        key: in_dir(key),
    };
    let unknown = ["UnknownIssuer", "not signed by a CA of MQTT_CA_FILE"];
    let another = ["not valid for name", "broker.example"];
    let heading = "docs/reference.md, \"TLS\"";
    type Shown<'a> = &'a dyn Fn() -> Identity;
    let cases: [(Shown, &Path, [&str; 2]); 6] = [
        (&|| theirs.broker(NAMES, Valid::Now), &trusted, unknown),
        (&|| ours.broker(NAMES, expired), &trusted, ["expired", ""]),
        (
            &|| ours.broker("DNS:broker.example", Valid::Now),
            &trusted,
            another,
        ),
        (
            &|| made("version-1", "key"),
            &trusted,
            ["version 1", heading],
        ),
        (
            &|| ours.issue("nameless", "basicConstraints = CA:FALSE\n", Valid::Now),
            &trusted,
            ["subjectAltName", heading],
        ),
        (
            &|| made("self", "self.key"),
            &in_dir("self"),
            ["CA:TRUE", heading],
        ),
    ];
    for (shown, trusted, reasons) in cases {
        let secure = Secure::showing(&shown(), trusted.to_owned());
        for host in ["localhost", "127.0.0.1"] {
            // MQTT_CA_FILE stands instead of the system's roots, not beside them
            let command = secure.command(host, |command| {
                command.env("SSL_CERT_FILE", theirs.file());
            });
            let reasons = [&["we do not trust the broker"], &reasons[..]].concat();
            refuses(secure.site.start_as(command), &reasons);
        }
    }
}

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
        let secure = Secure::of(&ca, &options);
        secure.runs_a_job(secure.idle(shows(&ca.client("worker"))));
        let without = secure.worker(|_| {});
        let stranger = secure.worker(shows(&theirs.client("stranger")));
        for worker in [without, stranger] {
            refuses(worker, &["MQTT_CERT_FILE", "alert"]);
        }
    }
}

/// The broker ends the head's connection in order: so each acknowledgement is confirmed, which the claim's name says.
fn a_pool_shares_a_queue(version: &str) {
    let ca = Authority::new("ours");
    let secure = Secure::of(&ca, &asks_for_certificates_of(&ca));
    let site = &secure.site;
    let ours = ca.client("worker");
    let mark = site.controller.mark();
    let mut members = ["a", "b"].map(|name| {
        secure.worker(|command| {
            speaking(version)(command);
            shows(&ours)(command);
            command
                .env("JOB_POOL", "the-pool")
                .env("JOB_ROOT", site.drive.path())
                .env("WORKER_ID", name)
                .arg("supervise");
        })
    });
    for member in &mut members {
        site.await_state(member, mark, "idle");
    }
    let jobs: Vec<String> = (1..=6).map(|number| format!("job-{number}")).collect();
    for id in &jobs {
        site.submit(id, json!({ "steps": ["true"] }));
    }
    for id in &jobs {
        site.succeeds(id);
    }
    let place = site.drive.path().join(".job-worker/the-pool");
    let is_done = |name: &&String| name.starts_with("d-") && name.ends_with("-0");
    // the first one is that of the new session
    wait::until("all to be done and confirmed", || {
        names(&place).iter().filter(is_done).count() == jobs.len() + 1
    });
}

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
    let secure = Secure::of(&ca, &asks_for_certificates_of(&ca));
    let ours = ca.client("worker");
    let worker = secure.idle(|command| {
        shows(&ours)(command);
        command.env("RUST_LOG", "trace");
    });
    let steps = json!(["env; cat /proc/$PPID/cmdline", "exit 3"]);
    let job = secure.site.run_on(worker, "a", json!({ "steps": steps }));
    let said = job.worker.stderr();
    let tells_all = said.contains("job-worker: debug: ");
    assert!(tells_all, "the log tells all it has: {said}");
    let (status, result) = (job.read("job.status.json"), job.published.text());
    let hidden = [&ours.key, &ours.certificate, &ca.file()].map(|file| secrets(file));
    for text in [said, job.log, status, result] {
        let mut secrets = hidden.iter().flatten();
        let tells = secrets.any(|secret| text.contains(secret));
        assert!(!tells && !text.contains("MQTT_KEY_FILE"), "{text}");
    }
}

on_both_protocols!(a_trusted_broker_is_served, a_pool_shares_a_queue);

#[test]
fn the_secure_broker_of_the_examples_serves_controller_and_worker() {
    let ca = Authority::new("ours");
    let port = free_port();
    let mut broker = Mosquitto::prepare().without_persistence();
    let dir = broker.dir().to_owned();
    broker.passwords(&["controller", "worker"], "correct horse");
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
    let login = Some(("controller", "correct horse"));
    let controller = Controller::connect_as(&broker, "controller", login);
    let (site, ca) = (Site::with(broker, controller), ca.file());
    let secure = Secure { site, port, ca };
    let variables = [
        ("MQTT_USERNAME", "worker"),
        ("MQTT_PASSWORD", "correct horse"),
    ];
    secure.runs_a_job(secure.idle(with(&variables)));
    refuses(secure.worker(|_| {}), &["user name and password"]);
}

#[test]
fn without_a_ca_file_the_roots_of_the_system_count() {
    let ca = Authority::new("ours");
    let secure = Secure::of(&ca, &[]);
    // where the system has roots, ours is not among them; where it has none, that is said
    let mut worker = secure.worker(|command| _ = command.env_remove("MQTT_CA_FILE"));
    let status = worker.wait().code();
    let said = worker.stderr();
    let known = said.contains("UnknownIssuer") && status == Some(77);
    let none = said.contains("the system has no trusted certificates") && status == Some(78);
    assert!(known || none, "{status:?}: {said}");

    secure.runs_a_job(secure.idle(|command| {
        command.env_remove("MQTT_CA_FILE");
        command.env("SSL_CERT_FILE", ca.file());
    }));
}

/// In the life of one worker: a certificate that is not valid yet, one that expires while it is connected, and others by another
/// CA in all the files that it reads. It tells each trouble once.
fn what_is_not_valid_at_the_time_is_waited_for_and_renewed_files_are_read(queue: Queue) {
    let (before, after) = (Authority::new("before"), Authority::new("after"));
    let dirs = [TempDir::new(), TempDir::new()];
    let tomorrow = before.broker(NAMES, Valid::FromTomorrow);
    let shown = tomorrow.copied_to(dirs[0].path());
    let ours = before.client("worker").copied_to(dirs[1].path());
    let options = asks_for_certificates_of(&before);
    let mut secure = Secure::at(LOCALHOST, &shown, before.file(), &options);
    let mut command = secure.command("localhost", shows(&ours));
    queue.serve(&mut command, secure.site.drive.path());
    let mut worker = secure.site.start_as(command);
    // in the second that these take the time in a message changes
    secure.await_tries(5);
    secure.restart(|| before.broker(NAMES, Valid::Now).replace(&shown));
    secure.site.await_state(&mut worker, 0, "idle");
    // losing the broker is not an exit
    secure.restart(|| before.broker(NAMES, Valid::UntilYesterday).replace(&shown));
    secure.await_tries(2);
    let said = worker.stderr();
    // the member of a pool, and the head in it, have a connection each
    let most = if queue == Queue::Own { 1 } else { 2 };
    for trouble in ["is our clock right?", "expired"] {
        let times = said.matches(trouble).count();
        assert!((1..=most).contains(&times), "{trouble}: {said}");
    }
    secure.restart(|| {
        after.broker(NAMES, Valid::Now).replace(&shown);
        after.client("worker").replace(&ours);
        fs::copy(after.file(), before.file()).unwrap();
    });
    secure.runs_a_job(worker);
}

mod what_is_not_valid_at_the_time_is_waited_for_and_renewed_files_are_read {
    use super::Queue;

    #[test]
    fn in_a_queue_of_its_own() {
        super::what_is_not_valid_at_the_time_is_waited_for_and_renewed_files_are_read(Queue::Own);
    }

    #[test]
    fn in_a_pool() {
        super::what_is_not_valid_at_the_time_is_waited_for_and_renewed_files_are_read(Queue::Pool);
    }
}

/// Whichever of them it is, and only where none may be better the next time is that an end.
#[test]
fn a_host_with_a_bad_certificate_is_passed_over() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let mut good = Secure::of(&ours, &[]);
    let bad = Secure::showing(&theirs.broker(NAMES, Valid::Now), ours.file());
    let elsewhere = "subjectAltName = DNS:broker.example\n";
    let elsewhere = ours.issue("elsewhere", elsewhere, Valid::Now);
    let worse = Secure::showing(&elsewhere, ours.file());
    let of = |first: u16, second: u16| {
        let url = format!("mqtts://localhost:{first},localhost:{second}");
        move |command: &mut Command| _ = command.env("MQTT_URL", url)
    };
    let last = good.worker(of(bad.port, worse.port));
    refuses(last, &["UnknownIssuer", "broker.example"]);
    good.runs_a_job(good.idle(of(bad.port, good.port)));
    for (first, second) in [(good.port, bad.port), (bad.port, good.port)] {
        good.site.kill9_broker();
        let worker = good.worker(of(first, second));
        worker.await_stderr("refused");
        worker.await_stderr("UnknownIssuer");
        good.site.restart_broker();
        good.runs_a_job(worker);
    }
}

/// rumqttc resolves the broker's name in a thread of its own.
#[test]
#[ignore = "needs root to become another user"]
fn too_few_threads_are_waited_for() {
    let ca = Authority::new("ours");
    let secure = Secure::of(&ca, &[]);
    let states = [
        "signal handler for us",
        "no connection: no thread",
        "waiting for a job",
    ];
    let mut seen = [false; 3];
    for few in 1..=8 {
        // a user who has no other process
        let user = 1_000_000 + std::process::id() % 100_000 * 10 + few;
        let mut command = Command::new("setpriv");
        let options = format!("--reuid={user} --clear-groups prlimit --nproc={few}");
        command.args(options.split(' ')).arg(binary());
        secure.site.equip(&mut command);
        command
            .env("MQTT_URL", format!("mqtts://localhost:{}", secure.port))
            .env("MQTT_CA_FILE", &secure.ca)
            .env("WORKER_ID", few.to_string());
        let worker = secure.site.start_as(command);
        let state = wait::until_some("it to say how it is", || {
            let said = worker.stderr();
            assert!(!said.contains("defect"), "{said}");
            states.iter().position(|state| said.contains(state))
        });
        seen[state] = true;
    }
    assert_eq!(seen, [true; 3]);
}

/// In "A certificate for the broker" of the operator's guide.
#[test]
fn the_two_lines_of_the_guide_make_a_certificate_that_can_be_used() {
    let dir = TempDir::new();
    let guide = include_str!("../../docs/operators.md").lines();
    let lines = guide.filter(|line| line.starts_with("$ openssl req "));
    let lines: Vec<_> = lines.collect();
    assert_eq!(lines.len(), 2);
    for line in lines {
        let line = line.replace("broker.example", "localhost");
        shell(dir.path(), line.trim_start_matches("$ "));
    }
    let [ca, certificate, key] =
        ["ca.pem", "broker.pem", "broker.key"].map(|name| dir.path().join(name));
    let secure = Secure::showing(&Identity { certificate, key }, ca);
    secure.runs_a_job(secure.idle(|_| {}));
}

#[test]
fn files_that_cannot_be_used_are_configuration_errors_that_tell_no_secret() {
    let ca = Authority::new("ours");
    let (ours, other) = (ca.client("ours"), ca.client("other"));
    let secure = Secure::of(&ca, &[]);
    let broken = secure.site.drive.path().join("broken");
    let hidden = secrets(&ours.key);
    fs::write(&broken, hidden.join("\n")).unwrap();
    shell(secure.site.drive.path(), "mkfifo fifo");
    let fifo = secure.site.drive.path().join("fifo");
    let (ca_file, certificate, key) = ("MQTT_CA_FILE", "MQTT_CERT_FILE", "MQTT_KEY_FILE");
    let cases: [(&[(&str, &Path)], &str); 7] = [
        (&[(ca_file, &broken)], ca_file),
        (&[(ca_file, &fifo)], "is no regular file"),
        (&[(certificate, &broken), (key, &ours.key)], certificate),
        (&[(certificate, &ours.certificate), (key, &broken)], key),
        (
            &[(certificate, &ours.certificate), (key, &other.key)],
            "do not fit together",
        ),
        (&[(certificate, &ours.certificate)], "set both or none"),
        (&[(key, &ours.key)], "set both or none"),
    ];
    for (files, said) in cases {
        let mut worker = secure.worker(|command| {
            command.envs(files.iter().copied()).env("RUST_LOG", "trace");
        });
        worker.exits_with(78);
        let log = worker.stderr();
        let tells = hidden.iter().any(|secret| log.contains(secret));
        assert!(log.contains(said) && !tells, "{said}: {log}");
    }
}

/// By a worker, and by `check --connect`, which names the step.
#[test]
fn tls_where_there_is_none_and_the_reverse_are_told() {
    let ca = Authority::new("ours");
    let secure = Secure::of(&ca, &[]);
    let tomorrow = Secure::showing(&ca.broker(NAMES, Valid::FromTomorrow), ca.file());
    // takes connections, and never says a word
    let silent = TcpListener::bind((LOCALHOST, 0)).unwrap();
    let silent = silent.local_addr().unwrap().port();
    let (plain, port) = (secure.site.broker.port(), secure.port);
    let answer = |answer: &'static [u8]| {
        let listener = TcpListener::bind((LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                // what is left unread would take the answer away
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(answer);
            }
        });
        port
    };
    let old = answer(&[21, 3, 1, 0, 2, 2, 70]); // a fatal alert, protocol_version
    let other = answer(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    let hint = "mqtt:// is for a port without TLS";
    for (url, step, told) in [
        (format!("mqtts://localhost:{plain}"), "TLS", hint),
        (format!("mqtts://localhost:{other}"), "TLS", hint),
        (format!("mqtts://localhost:{old}"), "TLS", "TLS 1.2 and 1.3"),
        (
            format!("mqtts://localhost:{}", tomorrow.port),
            "TLS",
            "is our clock right?",
        ),
        (
            format!("mqtts://localhost:{silent}"),
            "TLS or login",
            "within 7.5 s",
        ),
        (
            format!("mqtt://localhost:{port}"),
            "login",
            "a port with TLS wants mqtts://",
        ),
    ] {
        let configure = |command: &mut Command| {
            if url.starts_with("mqtt:") {
                command.env_remove("MQTT_CA_FILE");
            }
            command.env("MQTT_URL", &url).env("MQTT_KEEP_ALIVE", "5");
        };
        let worker = secure.worker(configure);
        let mut check = secure.command("localhost", configure);
        let (_, wrong, status) = said(check.args(["check", "--connect"]));
        assert_eq!(status, Some(78), "{wrong}");
        let line = format!("broker: {step}: ");
        assert!(wrong.starts_with(&line) && wrong.contains(told), "{wrong}");
        assert!(told == hint || !wrong.contains(hint), "{wrong}");
        worker.await_stderr(told);
    }
}

//! A certificate authority of the test's own, by `openssl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use super::temp_dir::TempDir;

pub struct Authority {
    dir: TempDir,
}

/// A certificate and its key, as PEM files.
#[derive(Clone)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// When a certificate holds.
#[derive(Clone, Copy)]
pub enum Valid {
    Now,
    UntilYesterday,
    FromTomorrow,
}

const NEW_KEY: &str = "-nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Authority {
    /// `name`: without a space.
    pub fn new(name: &str) -> Self {
        let ca = Self {
            dir: TempDir::new(),
        };
        let settings = "[ca]\ndefault_ca = here\n[here]\ndatabase = index.txt\nnew_certs_dir = .\nrand_serial = yes\n\
                        default_md = sha256\nunique_subject = no\npolicy = names\n[names]\ncommonName = supplied\n";
        fs::write(ca.dir.path().join("ca.cnf"), settings).unwrap();
        fs::write(ca.dir.path().join("index.txt"), "").unwrap();
        ca.openssl(&format!(
            "req -x509 -days 2 -subj /CN={name} -out ca.pem -keyout ca.key {NEW_KEY}"
        ));
        ca
    }

    /// The certificate of the authority itself, as a PEM file.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// For a broker at `names`, such as `DNS:localhost,IP:127.0.0.1`.
    pub fn broker(&self, names: &str, valid: Valid) -> Identity {
        self.issue("broker", &format!("subjectAltName = {names}\n"), valid)
    }

    /// For a client.
    pub fn client(&self, name: &str) -> Identity {
        self.issue(name, "extendedKeyUsage = clientAuth\n", Valid::Now)
    }

    /// With these extensions.
    pub fn issue(&self, name: &str, extensions: &str, valid: Valid) -> Identity {
        let [request, out, key] = ["csr", "pem", "key"].map(|kind| format!("{name}.{kind}"));
        self.openssl(&format!(
            "req -new -subj /CN={name} -out {request} -keyout {key} {NEW_KEY}"
        ));
        fs::write(self.dir.path().join("extensions"), extensions).unwrap();
        let now = SystemTime::now();
        let (from, until) = match valid {
            Valid::Now => (now - DAY, now + DAY),
            Valid::UntilYesterday => (now - 2 * DAY, now - DAY),
            Valid::FromTomorrow => (now + DAY, now + 2 * DAY),
        };
        let (from, until) = (date(from), date(until));
        self.openssl(&format!(
            "ca -batch -notext -config ca.cnf -cert ca.pem -keyfile ca.key -extfile extensions -startdate {from} -enddate {until} \
             -in {request} -out {out}"
        ));
        Identity {
            certificate: self.dir.path().join(out),
            key: self.dir.path().join(key),
        }
    }

    fn openssl(&self, arguments: &str) {
        let mut command = Command::new("openssl");
        command
            .args(arguments.split(' '))
            .current_dir(self.dir.path());
        let done = command.stdin(Stdio::null()).output();
        let done = done.expect("`openssl` runs: install it, e.g. `apt-get install openssl`");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "openssl {arguments}: {said}");
    }
}

impl Identity {
    /// Puts this one's files where another's are.
    pub fn replace(&self, other: &Identity) {
        fs::copy(&self.certificate, &other.certificate).unwrap();
        fs::copy(&self.key, &other.key).unwrap();
    }

    /// The same in files of their own in `dir`.
    pub fn copied_to(&self, dir: &Path) -> Identity {
        let copied = Identity {
            certificate: dir.join("copied.pem"),
            key: dir.join("copied.key"),
        };
        self.replace(&copied);
        copied
    }
}

/// As ASN.1 writes it: 20260217091201Z.
fn date(time: SystemTime) -> String {
    let mut text = humantime::format_rfc3339_seconds(time).to_string();
    text.retain(|c| c.is_ascii_digit() || c == 'Z');
    text
}

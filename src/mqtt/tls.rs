//! TLS for `mqtts://` (docs/reference.md, "TLS"): whom we trust, who we are, and what a failed handshake means.

use super::adapter::{End, Failure};
use super::without_brackets;
use rumqttc::{TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{AlertDescription as Alert, CertificateError, ClientConfig, Error, RootCertStore};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

/// The files that a handshake needs. It always checks the broker's name against the broker's certificate.
#[derive(Clone, Default)]
pub struct Tls {
    /// The CAs that may vouch for the broker, instead of the system's.
    ca: Option<PathBuf>,
    /// Our own certificate, and its key.
    identity: Option<(PathBuf, PathBuf)>,
    /// What was read of them at start, for the first connection. Each later one reads anew: files are renewed.
    read: Arc<Mutex<Option<Arc<ClientConfig>>>>,
}

// it holds our private key, so nothing of it is shown
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads these files.
    ///
    /// # Errors
    /// One cannot be used, or certificate and key do not belong together.
    pub fn new(ca: Option<PathBuf>, identity: Option<(PathBuf, PathBuf)>) -> Result<Self, String> {
        let tls = Self {
            ca,
            identity,
            read: Arc::default(),
        };
        let read = Arc::new(Mutex::new(Some(tls.read()?)));
        Ok(Self { read, ..tls })
    }

    /// As rumqttc takes it, for the next connection.
    pub(super) fn transport(&self) -> Result<Transport, String> {
        let read = self
            .read
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let config = read.map_or_else(|| self.read(), Ok)?;
        Ok(Transport::tls_with_config(TlsConfiguration::Rustls(config)))
    }

    /// TLS 1.2 or 1.3.
    fn read(&self) -> Result<Arc<ClientConfig>, String> {
        let trusted = match &self.ca {
            Some(path) => roots(path)?,
            None => system_roots()?,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(trusted);
        Ok(Arc::new(match &self.identity {
            Some((certificate, key_file)) => builder
                .with_client_auth_cert(certificates(certificate)?, key(key_file)?)
                .map_err(|error| {
                    format!("MQTT_CERT_FILE and MQTT_KEY_FILE do not fit together: {error}")
                })?,
            None => builder.with_no_client_auth(),
        }))
    }
}

/// Whether there can be a certificate for the host of a URL.
pub fn is_server_name(host: &str) -> bool {
    ServerName::try_from(without_brackets(host)).is_ok()
}

/// The roots that the system trusts, from the usual places or from `SSL_CERT_FILE` and `SSL_CERT_DIR`.
///
/// # Errors
/// The system has none.
pub fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    match found.errors.first() {
        _ if !roots.is_empty() => Ok(roots),
        Some(error) => Err(format!("the system has no trusted certificates: {error}")),
        None => Err("the system has no trusted certificates (package ca-certificates)".to_owned()),
    }
}

/// All roots in a PEM file.
///
/// # Errors
/// The file, and that there is none, or one is unusable.
pub fn roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        let added = roots.add(certificate);
        added.map_err(|e| format!("{path:?}: holds a certificate that cannot be used: {e}"))?;
    }
    Ok(roots)
}

/// The certificates in a PEM file.
///
/// # Errors
/// The file, and that there is none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = content(path)?;
    match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(format!("{path:?}: expected a PEM file with certificates")),
    }
}

/// The private key in a PEM file.
///
/// # Errors
/// The file, and that there is none, or it is encrypted; nothing of the key.
pub fn key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(&content(path)?)
        .map_err(|_| format!("{path:?}: expected a PEM file with a private key, not encrypted"))
}

fn content(path: &Path) -> Result<Vec<u8>, String> {
    super::regular(path, u64::MAX)?;
    std::fs::read(path).map_err(|error| format!("{path:?}: cannot be read: {error}"))
}

/// What an error of the connection means, if it comes from TLS.
pub(super) fn failure(error: &io::Error, tls: &Tls) -> Option<Failure> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        // a machine whose clock has no battery starts in the past, until it has asked for the time
        Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
            let from = date(*not_before);
            End::NoTls.because(format!(
                "its certificate is valid from {from} on; is our clock right?"
            ))
        }
        Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
            let until = date(*not_after);
            End::Untrusted.because(format!(
                "we do not trust the broker: its certificate has expired on {until}"
            ))
        }
        Error::InvalidCertificate(why) => {
            let hint = fault(why, tls.ca.is_some());
            let sentence = format!("we do not trust the broker: {error}{hint}");
            End::Untrusted.because(sentence)
        }
        Error::AlertReceived(alert) if concerns_certificate(*alert) => Failure(
            End::Untrusted,
            format!(
                "the broker does not accept our client certificate (MQTT_CERT_FILE), or wants one: {error}"
            ),
        ),
        Error::InvalidMessage(_) => no_tls(error),
        error => End::NoTls.because(format!(
            "no TLS with it: {error}; the worker speaks TLS 1.2 and 1.3"
        )),
    })
}

/// The other side speaks none, as it seems.
pub(super) fn no_tls(error: impl fmt::Display) -> Failure {
    End::NoTls.because(format!(
        "no TLS with it: {error}; mqtt:// is for a port without TLS"
    ))
}

/// Without the time of this try, which rustls tells, too: each trouble is logged once.
fn date(time: UnixTime) -> impl fmt::Display {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(time.as_secs()))
}

/// What is wrong with a certificate, for the operator who has made it.
fn fault(why: &CertificateError, has_ca_file: bool) -> String {
    let why = match why {
        CertificateError::UnknownIssuer if has_ca_file => {
            return "; it is not signed by a CA of MQTT_CA_FILE".to_owned();
        }
        CertificateError::UnknownIssuer => {
            return "; without MQTT_CA_FILE only the system's CAs are trusted".to_owned();
        }
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            "it names no host: only a subjectAltName counts"
        }
        CertificateError::Other(other) => match &*other.to_string() {
            "UnsupportedCertVersion" => "it is one of X.509 version 1, without extensions",
            "CaUsedAsEndEntity" => "it is that of a CA (CA:TRUE), and so not a broker's",
            _ => return String::new(),
        },
        _ => return String::new(),
    };
    format!("; {why}: docs/reference.md, \"TLS\", has two lines that make a good one")
}

/// Whether an alert is about the client's certificate (RFC 8446, section 6.2). TLS 1.2 says `HandshakeFailure` where there is
/// none.
fn concerns_certificate(alert: Alert) -> bool {
    matches!(
        alert,
        Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::HandshakeFailure
    )
}

//! TLS for `mqtts://` (docs/reference.md, "TLS"): whom we trust, who we are, and what a failed handshake means.

use super::adapter::Failure;
use super::without_brackets;
use rumqttc::{TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription as Alert, CertificateError, ClientConfig, Error, RootCertStore};
use std::fmt;
use std::io;
use std::sync::Arc;

/// All that a handshake needs. The broker's name is checked against its certificate, always.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

// the configuration holds our private key
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// TLS 1.2 or 1.3 with brokers that `roots` vouch for, showing our own certificate where there is one.
    ///
    /// # Errors
    /// A sentence, when certificate and key do not belong together.
    pub fn new(
        roots: RootCertStore,
        identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots);
        let config = match identity {
            Some((certificates, key)) => builder
                .with_client_auth_cert(certificates, key)
                .map_err(|e| e.to_string())?,
            None => builder.with_no_client_auth(),
        };
        Ok(Self(Arc::new(config)))
    }

    /// For the options of rumqttc, of either protocol version.
    pub fn transport(&self) -> Transport {
        Transport::tls_with_config(TlsConfiguration::Rustls(self.0.clone()))
    }
}

/// Whether a host of a URL can be what a certificate is for.
pub fn is_server_name(host: &str) -> bool {
    ServerName::try_from(without_brackets(host)).is_ok()
}

/// The roots that the system trusts: the usual places, or `SSL_CERT_FILE` and `SSL_CERT_DIR`.
///
/// # Errors
/// A sentence, when there are none.
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

/// The roots in a PEM file, all of them.
///
/// # Errors
/// A sentence, when there is none, or one is unusable.
pub fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots
            .add(certificate)
            .map_err(|e| format!("holds a certificate that cannot be used: {e}"))?;
    }
    Ok(roots)
}

/// The certificates in a PEM file.
///
/// # Errors
/// A sentence, when there is none.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err("expected a PEM file with certificates".to_owned()),
    }
}

/// The private key in a PEM file.
///
/// # Errors
/// A sentence, which holds nothing of the key.
pub fn key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|_| "expected a PEM file with a private key, not encrypted".to_owned())
}

/// What an error of the connection means, if it comes from TLS.
pub(super) fn failure(error: &io::Error) -> Option<Failure> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        // a machine without a battery for its clock starts in the past, until it has asked for the time
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => Failure::Lost(format!("{error}; is our clock right?")),
        Error::InvalidCertificate(why) => {
            let hint = match why {
                CertificateError::UnknownIssuer => {
                    "; MQTT_CA_FILE names the CA that we trust, else the system's do"
                }
                _ => "",
            };
            Failure::Untrusted(format!("we do not trust the broker: {error}{hint}"))
        }
        Error::AlertReceived(alert) if concerns_certificate(*alert) => Failure::Untrusted(format!(
            "the broker does not accept our client certificate, MQTT_CERT_FILE, or that there is none: {error}"
        )),
        error => Failure::Lost(format!("no TLS with it: {error}")),
    })
}

/// Alerts about the certificate of the client (RFC 8446, section 6.2). `HandshakeFailure` is what TLS 1.2 says where there
/// is none.
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

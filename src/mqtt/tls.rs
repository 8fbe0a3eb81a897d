//! TLS for `mqtts://` (docs/reference.md, "TLS"): whom we trust, who we are, and what a failed handshake means.

use super::adapter::{End, Failure};
use super::without_brackets;
use rumqttc::{TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription as Alert, CertificateError, ClientConfig, Error, RootCertStore};
use std::fmt;
use std::io;
use std::sync::Arc;

/// What a handshake needs. It always checks the broker's name against the broker's certificate.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

// the configuration holds our private key, so nothing of it is shown
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// TLS 1.2 or 1.3. The broker's certificate must be signed by one of `roots`. Ours is shown where there is one.
    ///
    /// # Errors
    /// Certificate and key do not belong together.
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

    /// As rumqttc takes it, for either protocol version.
    pub fn transport(&self) -> Transport {
        Transport::tls_with_config(TlsConfiguration::Rustls(self.0.clone()))
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
/// There is none, or one is unusable.
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
/// There is none.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err("expected a PEM file with certificates".to_owned()),
    }
}

/// The private key in a PEM file.
///
/// # Errors
/// There is none, or it is encrypted. The error holds nothing of the key.
pub fn key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|_| "expected a PEM file with a private key, not encrypted".to_owned())
}

/// What an error of the connection means, if it comes from TLS.
pub(super) fn failure(error: &io::Error, _: &Tls) -> Option<Failure> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        // a machine whose clock has no battery starts in the past, until it has asked for the time
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => Failure(End::Lost, format!("{error}; is our clock right?")),
        Error::InvalidCertificate(why) => {
            let hint = match why {
                CertificateError::UnknownIssuer => {
                    "; without MQTT_CA_FILE only the system's CAs are trusted"
                }
                _ => "",
            };
            Failure(
                End::Untrusted,
                format!("we do not trust the broker: {error}{hint}"),
            )
        }
        Error::AlertReceived(alert) if concerns_certificate(*alert) => Failure(
            End::Untrusted,
            format!(
                "the broker does not accept our client certificate (MQTT_CERT_FILE), or wants one: {error}"
            ),
        ),
        error => Failure(End::Lost, format!("no TLS with it: {error}")),
    })
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

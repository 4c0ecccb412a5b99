//! TLS for the client: which servers it trusts, and how it identifies itself.
//!
//! Must not know NBD messages. Invariant: unless [`TlsOptions::trust_anyone`] is set, a connection is
//! established only with a server whose certificate is valid and matches the expected name.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::stream::Stream;

/// How the client uses TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// PEM file with the trusted certificate authorities. If `None`, those of the system are trusted.
    pub authorities: Option<PathBuf>,
    /// PEM files with the client's certificate and its key, for servers that verify clients.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name that the server's certificate must contain. If `None`, the host name is used.
    pub hostname: Option<String>,
    /// If true, any certificate is accepted. The connection is then not protected against an active attacker.
    pub trust_anyone: bool,
}

/// Runs the TLS handshake over a stream to `host`.
pub(super) async fn connect(stream: Stream, host: &str, options: &TlsOptions) -> io::Result<Stream> {
    let connector = TlsConnector::from(Arc::new(config(options)?));
    let name = options.hostname.as_deref().unwrap_or(host).to_owned();
    let name = ServerName::try_from(name).map_err(invalid)?;
    Ok(Box::new(connector.connect(name, stream).await?))
}

fn config(options: &TlsOptions) -> io::Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        //= TLS versions: NBD implementations supporting TLS MUST support TLS version 1.2
        .with_safe_default_protocol_versions()
        .map_err(invalid)?;
    let config = if options.trust_anyone {
        let verifier = Arc::new(TrustAnyone(provider));
        config.dangerous().with_custom_certificate_verifier(verifier)
    } else {
        let roots = Arc::new(authorities(options.authorities.as_deref())?);
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots, provider).build().map_err(invalid)?;
        config.with_webpki_verifier(verifier)
    };
    match &options.identity {
        None => Ok(config.with_no_client_auth()),
        Some((certificate, key)) => {
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| at(key, error))?;
            config.with_client_auth_cert(certificates(certificate)?, key).map_err(invalid)
        }
    }
}

fn authorities(path: Option<&Path>) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match path {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| at(path, error))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            for error in found.errors {
                tracing::warn!("cannot read some certificate authorities of the system: {error}");
            }
            roots.add_parsable_certificates(found.certs);
        }
    }
    Ok(roots)
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| at(path, error))
}

fn at(path: &Path, error: impl fmt::Display) -> io::Error {
    invalid(format!("{}: {error}", path.display()))
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

/// Accepts any certificate, but still verifies that the server has its private key.
#[derive(Debug)]
struct TrustAnyone(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

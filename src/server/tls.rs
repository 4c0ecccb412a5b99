//! TLS for the server: certificates, and which client may use which export.
//!
//! Knows certificates and export names; must not know NBD messages. Invariant: an export with a list of
//! subjects, and every part of it (`EXPORT@…`), opens only for clients with a listed subject, and no other
//! client learns that it exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::x509::{RelativeDistinguishedName, X509Name};

use super::stall::Counted;
use super::transport::Transport;
use crate::protocol::negotiate_server::TlsPolicy;
use crate::protocol::{OptionError, Refusal};

/// How the server uses TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// If true, clients that do not use TLS are refused.
    pub required: bool,
    /// PEM file with the server's certificate, followed by any intermediate certificates.
    pub certificate: PathBuf,
    /// PEM file with the private key of the certificate.
    pub key: PathBuf,
    /// PEM file with the certificate authorities of clients. If set, every TLS client must present a
    /// certificate that one of them signed.
    pub client_authorities: Option<PathBuf>,
    /// Exports that only some clients may use: for each export name, the distinguished names of the clients'
    /// certificates, such as `O=Example, CN=vm-1`. The entry for `NAME` also holds for every export `NAME@…`,
    /// in addition to an entry for that export itself. Requires `client_authorities`.
    pub subjects: BTreeMap<String, BTreeSet<String>>,
}

/// The purpose of a file in [`TlsOptions`]. One file may serve several purposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFile {
    /// The server's certificate and its intermediate certificates.
    Certificate,
    /// The private key of the server's certificate.
    Key,
    /// The certificate authorities of clients.
    ClientAuthorities,
}

/// Why TLS cannot be used as configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read, or is not valid PEM for its purpose.
    #[error("{}: {source}", path.display())]
    File {
        /// Purpose of the file.
        file: TlsFile,
        /// Path of the file.
        path: PathBuf,
        /// The error of the PEM reader.
        source: pem::Error,
    },
    /// A file contains no certificate.
    #[error("{} contains no certificate", path.display())]
    NoCertificate {
        /// Purpose of the file.
        file: TlsFile,
        /// Path of the file.
        path: PathBuf,
    },
    /// A file contains no usable key: there is none, or it is encrypted.
    #[error("{} contains no private key in PEM format, or the key is encrypted", path.display())]
    NoKey {
        /// Path of the key file.
        path: PathBuf,
    },
    /// rustls does not support this kind of key.
    #[error("{}: {source}", path.display())]
    Key {
        /// Path of the key file.
        path: PathBuf,
        /// The error of rustls.
        source: rustls::Error,
    },
    /// The certificate and the key do not match, or rustls does not support them.
    #[error("certificate and key: {0}")]
    Certificate(#[source] rustls::Error),
    /// The certificate of an authority is invalid.
    #[error("{}: {source}", path.display())]
    Authority {
        /// Path of the file with the certificate.
        path: PathBuf,
        /// The error of rustls.
        source: rustls::Error,
    },
    /// No verifier for client certificates can be built from the authorities.
    #[error("client authorities: {0}")]
    Authorities(#[source] VerifierBuilderError),
    /// Subjects are listed for an export, but client certificates are not verified because there are no
    /// authorities.
    #[error("subjects are listed for {export:?}, but there are no client authorities")]
    SubjectsWithoutAuthorities {
        /// Name of the export.
        export: String,
    },
}

/// A TLS configuration that is ready for use. Clones share it.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    required: bool,
    expires_at_seconds: Option<i64>,
    subjects: Arc<BTreeMap<String, BTreeSet<String>>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("required", &self.required).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads and checks the certificates and the key.
    pub fn load(options: &TlsOptions) -> Result<Self, TlsError> {
        if let (None, Some((export, _))) = (&options.client_authorities, options.subjects.first_key_value()) {
            return Err(TlsError::SubjectsWithoutAuthorities { export: export.clone() });
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            //= TLS versions: NBD implementations supporting TLS MUST support TLS version 1.2
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Certificate)?;
        let config = match &options.client_authorities {
            None => config.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(TlsFile::ClientAuthorities, path)? {
                    let failed = |source| TlsError::Authority { path: path.clone(), source };
                    roots.add(certificate).map_err(failed)?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                        .build()
                        .map_err(TlsError::Authorities)?;
                config.with_client_cert_verifier(verifier)
            }
        };
        let path = &options.key;
        let key = PrivateKeyDer::from_pem_file(path).map_err(|source| match source {
            pem::Error::NoItemsFound => TlsError::NoKey { path: path.clone() },
            source => TlsError::File { file: TlsFile::Key, path: path.clone(), source },
        })?;
        let usable = provider.key_provider.load_private_key(key.clone_key());
        usable.map_err(|source| TlsError::Key { path: path.clone(), source })?;
        let chain = certificates(TlsFile::Certificate, &options.certificate)?;
        let expires_at_seconds = chain.iter().filter_map(expiry).min();
        let config = config.with_single_cert(chain, key).map_err(TlsError::Certificate)?;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            required: options.required,
            expires_at_seconds,
            subjects: Arc::new(options.subjects.clone()),
        })
    }

    /// Whether clients that do not use TLS are refused.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.required
    }

    /// When the first certificate of the server's chain expires, in seconds since 1970. `None` if no expiry
    /// could be read.
    #[must_use]
    pub fn expires_at_seconds(&self) -> Option<i64> {
        self.expires_at_seconds
    }

    /// Whether clients need TLS to use this export, because TLS is required in general or for this export.
    #[must_use]
    pub fn needs_tls(&self, export: &str) -> bool {
        self.required || self.allowed(export).next().is_some()
    }

    /// Returns every list of subjects that holds for an export: its own, and those of the exports of which it
    /// is a part, such as `disk` for `disk@monday`.
    fn allowed<'a>(&'a self, export: &'a str) -> impl Iterator<Item = &'a BTreeSet<String>> {
        let ends = export.match_indices('@').map(|(at, _)| at).chain([export.len()]);
        ends.filter_map(|end| self.subjects.get(&export[..end]))
    }

    pub(crate) fn policy(&self) -> TlsPolicy {
        if self.required { TlsPolicy::Required } else { TlsPolicy::Allowed }
    }

    /// Runs the TLS handshake. Returns the encrypted stream and the identity of the client.
    pub(crate) async fn accept(&self, transport: Transport) -> io::Result<(Transport, Identity)> {
        let stream: TlsStream<Counted<Transport>> = self.acceptor.accept(Counted::new(transport)).await?;
        let subject =
            stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).and_then(subject);
        Ok((Transport::Tls(Box::new(stream)), Identity::Tls { subject }))
    }
}

/// What the server knows about who the client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Unknown: the connection does not use TLS.
    Plain,
    /// The subject of the client's certificate; `None` if it presented no certificate, or the subject is
    /// unreadable.
    Tls { subject: Option<String> },
}

impl Identity {
    /// Whether this client may use the export and know of it.
    pub(super) fn may_use(&self, tls: Option<&Tls>, export: &str) -> bool {
        let Some(tls) = tls else { return true };
        tls.allowed(export).all(|allowed| self.subject().is_some_and(|subject| allowed.contains(subject)))
    }

    /// The subject of the client's certificate, for the log.
    pub(crate) fn subject(&self) -> Option<&str> {
        match self {
            Self::Plain => None,
            Self::Tls { subject } => subject.as_deref(),
        }
    }

    /// Rewrites the refusal of an export that does not exist or must stay hidden from this client. If some
    /// exports have subjects and the client does not use TLS, both cases become "TLS is required".
    pub(crate) fn hide(&self, tls: Option<&Tls>, refusal: Refusal) -> Refusal {
        let hides = tls.is_some_and(|tls| !tls.subjects.is_empty());
        if hides && *self == Self::Plain && refusal.error == OptionError::Unknown {
            return Refusal::new(OptionError::TlsReqd, "TLS is required for this export");
        }
        refusal
    }
}

fn certificates(file: TlsFile, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::File { file, path: path.to_path_buf(), source };
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    if found.is_empty() {
        return Err(TlsError::NoCertificate { file, path: path.to_path_buf() });
    }
    Ok(found)
}

/// When a certificate expires, in seconds since 1970.
fn expiry(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// The distinguished name in a verified certificate.
fn subject(certificate: &CertificateDer<'_>) -> Option<String> {
    match x509_parser::parse_x509_certificate(certificate) {
        Ok((_, parsed)) => distinguished_name(parsed.subject()),
        Err(error) => {
            tracing::warn!("cannot read the subject of the client's verified certificate: {error}");
            None
        }
    }
}

/// Formats a name the way the configuration writes it. Attributes keep the certificate's order and are
/// separated by `, `, or by `+` within one part. They are escaped as in RFC 4514, so that one value cannot
/// pass for several. Returns `None` if a value is not text.
fn distinguished_name(name: &X509Name<'_>) -> Option<String> {
    let part = |part: &RelativeDistinguishedName<'_>| {
        let attributes = part.iter().map(|attribute| {
            let kind = oid2abbrev(attribute.attr_type(), oid_registry())
                .map_or_else(|_| attribute.attr_type().to_id_string(), str::to_owned);
            Some(format!("{kind}={}", escaped(attribute.as_str().ok()?)))
        });
        attributes.collect::<Option<Vec<_>>>().map(|attributes| attributes.join("+"))
    };
    name.iter().map(part).collect::<Option<Vec<_>>>().map(|parts| parts.join(", "))
}

/// Escapes a value of a distinguished name (RFC 4514, section 2.4).
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (at, character) in value.chars().enumerate() {
        let special = match character {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => true,
            ' ' => at == 0 || at == last,
            '#' => at == 0,
            _ => false,
        };
        if special {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_a_name_cannot_pass_for_several() {
        for (value, expected) in [
            ("vm-1", "vm-1"),
            ("Example, CN=vm-1", "Example\\, CN=vm-1"),
            ("a+b", "a\\+b"),
            ("#1 # ", "\\#1 #\\ "),
            ("back\\slash", "back\\\\slash"),
            ("", ""),
        ] {
            assert_eq!(escaped(value), expected);
        }
    }
}

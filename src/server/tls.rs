//! TLS of the server: certificates, and who may use which export.
//!
//! Knows certificates and names, no NBD message. Invariant: an export with a list of subjects is opened to no
//! one else, and nobody else is told of it.

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
    /// Whether clients that do not ask for TLS are served at all.
    pub required: bool,
    /// PEM file with the server's certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// PEM file with the key of the certificate.
    pub key: PathBuf,
    /// PEM file with the authorities of clients; if given, every TLS client must have a certificate of
    /// theirs.
    pub client_authorities: Option<PathBuf>,
    /// Exports that only some clients may use: the distinguished names of their certificates, such as
    /// `O=Example, CN=vm-1`, by the name of the export. Needs `client_authorities`.
    pub subjects: BTreeMap<String, BTreeSet<String>>,
}

/// What a file of [`TlsOptions`] is for. Several may be the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFile {
    /// The server's certificate.
    Certificate,
    /// Its key.
    Key,
    /// The authorities of clients.
    ClientAuthorities,
}

/// Why TLS cannot be used as configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read, or is not PEM of its kind.
    #[error("{}: {source}", path.display())]
    File {
        /// What it is for.
        file: TlsFile,
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// A file has no certificate.
    #[error("{} contains no certificate", path.display())]
    NoCertificate {
        /// What it is for.
        file: TlsFile,
        /// The file.
        path: PathBuf,
    },
    /// A file has no key that can be used as it is.
    #[error("{} contains no private key in PEM format, or the key is encrypted", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The key is of no kind that rustls supports.
    #[error("{}: {source}", path.display())]
    Key {
        /// The file that has it.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// Certificate and key do not fit each other or what rustls supports.
    #[error("certificate and key: {0}")]
    Certificate(#[source] rustls::Error),
    /// The certificate of an authority is none.
    #[error("{}: {source}", path.display())]
    Authority {
        /// The file that has it.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The certificates of authorities are of no use.
    #[error("client authorities: {0}")]
    Authorities(#[source] VerifierBuilderError),
    /// Subjects are named, but no certificate of a client would be verified.
    #[error("subjects are listed for {export:?}, but there are no client authorities")]
    SubjectsWithoutAuthorities {
        /// The export.
        export: String,
    },
}

/// TLS, ready for use.
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
    /// Reads certificates and keys.
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

    /// Whether clients that do not ask for TLS are turned away.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.required
    }

    /// When the first certificate of the server's chain expires, in seconds since 1970.
    #[must_use]
    pub fn expires_at_seconds(&self) -> Option<i64> {
        self.expires_at_seconds
    }

    /// Whether clients without TLS are turned away from an export, or altogether.
    #[must_use]
    pub fn needs_tls(&self, export: &str) -> bool {
        self.required || self.subjects.contains_key(export)
    }

    pub(crate) fn policy(&self) -> TlsPolicy {
        if self.required { TlsPolicy::Required } else { TlsPolicy::Allowed }
    }

    /// Runs the TLS handshake; tells who the client is, if it showed a certificate.
    pub(crate) async fn accept(&self, transport: Transport) -> io::Result<(Transport, Identity)> {
        let stream: TlsStream<Counted<Transport>> = self.acceptor.accept(Counted::new(transport)).await?;
        let subject =
            stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).and_then(subject);
        Ok((Transport::Tls(Box::new(stream)), Identity::Tls { subject }))
    }
}

/// Who the client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Nobody knows: TLS is not in use.
    Plain,
    /// The subject of the client's certificate, if it has shown one.
    Tls { subject: Option<String> },
}

impl Identity {
    /// Whether this client may use the export, or be told of it.
    pub(crate) fn may_use(&self, tls: Option<&Tls>, export: &str) -> bool {
        let Some(allowed) = tls.and_then(|tls| tls.subjects.get(export)) else { return true };
        self.subject().is_some_and(|subject| allowed.contains(subject))
    }

    /// The subject of the client's certificate, for the log.
    pub(crate) fn subject(&self) -> Option<&str> {
        match self {
            Self::Plain => None,
            Self::Tls { subject } => subject.as_deref(),
        }
    }

    /// What is said of an export that does not exist, or that this client may not know of: without TLS, where
    /// some exports need it, that they do.
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

/// The distinguished name of a certificate that was verified.
fn subject(certificate: &CertificateDer<'_>) -> Option<String> {
    match x509_parser::parse_x509_certificate(certificate) {
        Ok((_, parsed)) => distinguished_name(parsed.subject()),
        Err(error) => {
            tracing::warn!("cannot read the subject of the client's verified certificate: {error}");
            None
        }
    }
}

/// A name as configuration has it: attributes in the certificate's order, separated by `, ` (by `+` within
/// one part), and escaped as in RFC 4514, so that no value can pass for several. None if a value is no text.
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

/// A value of a distinguished name (RFC 4514, section 2.4).
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

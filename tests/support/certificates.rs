//! Certificates for one test: an authority, a server, valid and invalid clients.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cairn::server::TlsOptions;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType, date_time_ymd,
};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

/// A certificate with its key, as PEM files.
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// An authority and the certificates that it has signed, in a temporary directory.
pub(crate) struct Authority {
    directory: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { directory: tempfile::tempdir().unwrap(), issuer };
        std::fs::write(authority.certificate(), authority.issuer.pem()).unwrap();
        authority
    }

    /// Returns the authority's own certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.directory.path().join("authority.pem")
    }

    /// Creates a certificate for `localhost`.
    pub(crate) fn server(&self) -> Pair {
        self.sign("localhost", |_| {})
    }

    /// Creates a certificate for this machine by name and by address.
    pub(crate) fn server_by_number(&self) -> Pair {
        self.sign("loopback", |params| {
            let number = SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
            params.subject_alt_names.push(number);
        })
    }

    /// Creates a client certificate with the subject `O=organization, CN=name`.
    pub(crate) fn client_of(&self, organization: &str, name: &str) -> Pair {
        self.sign(name, |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::OrganizationName, organization);
            params.distinguished_name.push(DnType::CommonName, name);
        })
    }

    /// Creates a client certificate with the subject `CN=name`.
    pub(crate) fn client(&self, name: &str) -> Pair {
        self.sign(name, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth])
    }

    /// Creates an expired certificate.
    pub(crate) fn expired(&self, name: &str) -> Pair {
        self.sign(name, |params| {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        })
    }

    fn sign(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |kind: &str| self.directory.path().join(format!("{name}.{kind}.pem"));
        let pair = Pair { certificate: path("certificate"), key: path("key") };
        std::fs::write(&pair.certificate, certificate.pem()).unwrap();
        std::fs::write(&pair.key, key.serialize_pem()).unwrap();
        pair
    }

    /// Creates an expired certificate for `localhost`.
    pub(crate) fn expired_server(&self) -> Pair {
        self.expired("localhost")
    }

    /// Creates a directory in the layout of libnbd, nbdkit and QEMU: the authority, and optionally the
    /// certificates of a server and a client.
    pub(crate) fn directory(&self, server: Option<&Pair>, client: Option<&Pair>) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::copy(self.certificate(), directory.path().join("ca-cert.pem")).unwrap();
        for (whose, pair) in [("server", server), ("client", client)] {
            let Some(Pair { certificate, key }) = pair else { continue };
            std::fs::copy(certificate, directory.path().join(format!("{whose}-cert.pem"))).unwrap();
            std::fs::copy(key, directory.path().join(format!("{whose}-key.pem"))).unwrap();
        }
        directory
    }

    /// Returns the TLS options of a server with a certificate of this authority.
    pub(crate) fn tls(&self, required: bool) -> TlsOptions {
        let Pair { certificate, key } = self.server();
        let subjects = std::collections::BTreeMap::new();
        TlsOptions { required, certificate, key, client_authorities: None, subjects }
    }

    /// Returns the configuration of a server that a test plays.
    pub(crate) fn server_config(&self) -> Arc<ServerConfig> {
        let Pair { certificate, key: path } = self.server();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain(&certificate), key(&path));
        Arc::new(config.unwrap())
    }

    /// Returns the configuration of a client that trusts this authority.
    pub(crate) fn client_config(&self, own: Option<&Pair>) -> Arc<ClientConfig> {
        self.client_config_of(rustls::DEFAULT_VERSIONS, own)
    }

    /// Returns the same configuration, restricted to these versions of TLS.
    pub(crate) fn client_config_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        own: Option<&Pair>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.certificate()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match own {
            None => config.with_no_client_auth(),
            Some(own) => config.with_client_auth_cert(chain(&own.certificate), key(&own.key)).unwrap(),
        })
    }
}

fn chain(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap).collect()
}

fn key(path: &Path) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_file(path).unwrap()
}

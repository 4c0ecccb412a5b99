//! Decides which authorities may sign the certificate of the service, and builds the HTTP client that trusts
//! them.
//!
//! Owns the trusted certificates, and must not know where the service is. As in other programs that use an
//! AWS SDK, the file in `AWS_CA_BUNDLE` (or `ca_bundle` of the profile) replaces the authorities of the
//! system. Without it, `SSL_CERT_FILE` and `SSL_CERT_DIR` replace them. Without these, the system's own
//! authorities are trusted. Invariant: the SDK only gets certificates that can be parsed, because it panics
//! on others.

use std::path::Path;

use aws_sdk_s3::config::SharedHttpClient;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, ConnectorBuilder};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Reads the authorities from a file of PEM certificates.
pub(super) fn bundle(path: &Path) -> Result<TrustStore, String> {
    let failed =
        |why: String| format!("AWS_CA_BUNDLE (or ca_bundle of the profile), {}: {why}", path.display());
    let text = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&text);
    let mut trusted = TrustStore::empty();
    let (mut known, mut skipped) = (RootCertStore::empty(), 0_usize);
    for certificate in certificates(&text) {
        let readable = CertificateDer::from_pem_slice(certificate.as_bytes())
            .is_ok_and(|certificate| known.add(certificate).is_ok());
        if readable {
            trusted.add_pem_certificate(certificate);
        } else {
            skipped += 1;
        }
    }
    if known.is_empty() {
        return Err(failed("it contains no certificate in PEM format".to_owned()));
    }
    if skipped > 0 {
        tracing::warn!(skipped, path = %path.display(), "ignoring certificates that cannot be read");
    }
    Ok(trusted)
}

/// Returns each certificate of a PEM file, including its first and last line.
fn certificates(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices(BEGIN).filter_map(|(begin, _)| {
        let certificate = &text[begin..];
        certificate.find(END).map(|end| &certificate[..end + END.len()])
    })
}

/// Creates a client that trusts these authorities, or else those of the system. Like the SDK's own client, it
/// uses the proxies of the environment (`HTTPS_PROXY`, `NO_PROXY`).
pub(super) fn http_client(trusted: Option<TrustStore>) -> Result<SharedHttpClient, String> {
    let context = TlsContext::builder().with_trust_store(trusted.unwrap_or_default()).build();
    let context = context.map_err(|error| error.to_string())?;
    Ok(Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = ConnectorBuilder::default()
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .tls_context(context.clone());
        connector.set_connector_settings(settings.cloned());
        if let Some(components) = components {
            connector.set_sleep_impl(components.sleep_impl());
        }
        connector.set_proxy_config(Some(ProxyConfig::from_env()));
        connector.build()
    }))
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    fn authority() -> String {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn a_bundle_holds_several_authorities_and_text_between_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bundle.pem");
        let torn = format!("{BEGIN}\nAAAA\n{END}\n");
        std::fs::write(&path, format!("# one\n{}\n# a torn one\n{torn}{}", authority(), authority()))
            .unwrap();
        assert_eq!(format!("{:?}", bundle(&path).unwrap()).matches("CertificatePEM").count(), 2);
        http_client(Some(bundle(&path).unwrap())).unwrap();
    }

    #[test]
    fn an_invalid_bundle_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bundle.pem");
        let told = |told: &str| {
            let message = bundle(&path).unwrap_err();
            assert!(message.contains("AWS_CA_BUNDLE") && message.contains("bundle.pem"), "{message}");
            assert!(message.contains(told), "{message}");
        };
        told("No such file");
        for text in ["", "no certificate", BEGIN, &format!("{BEGIN}\nAAAA\n{END}\n")] {
            std::fs::write(&path, text).unwrap();
            told("no certificate in PEM");
        }
    }
}

//! Decides why a request got no response, and whether waiting can help.
//!
//! Owns the diagnosis and the advice in it, and must not know what a request is for. A host name that does
//! not exist, an untrusted certificate and a server without TLS remain a problem until somebody changes a
//! setting. Everything else may pass. Invariant: only a request that failed before anything was sent is
//! reported as [`Error::Unreachable`].

use std::error::Error as StdError;
use std::io;

use hyper_util::client::legacy;
use tokio_rustls::rustls::{self, CertificateError};

use super::super::Error;
use super::super::error::cause;
use super::connect::Service;

/// What C libraries report if a host name does not exist. They report something else if the name server does
/// not answer.
const NO_SUCH_NAME: [&str; 4] = [
    "Name or service not known",
    "No address associated with hostname",
    "Name does not resolve",
    "nodename nor servname provided",
];

/// When a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before a connection was established, so nothing was sent.
    Connecting,
    /// Later, so the request may have been sent.
    Later,
}

impl Phase {
    fn of(error: &(dyn StdError + 'static)) -> Self {
        let connecting = causes(error)
            .filter_map(|cause| cause.downcast_ref::<legacy::Error>())
            .any(legacy::Error::is_connect);
        if connecting { Self::Connecting } else { Self::Later }
    }
}

/// Converts the error of a request that got no response.
pub(super) fn unreached(key: &str, error: &(dyn StdError + 'static), service: &Service) -> Error {
    judge(key, error, Phase::of(error), service)
}

fn judge(key: &str, error: &(dyn StdError + 'static), phase: Phase, service: &Service) -> Error {
    let key = key.to_owned();
    let why = told(error);
    match remedy(error, service).filter(|_| phase == Phase::Connecting) {
        Some(remedy) => {
            Error::Unreachable { key, source: cause(format!("cannot reach {service}: {why}; {remedy}")) }
        }
        None => Error::Transient { key, source: cause(format!("no answer from {service}: {why}")) },
    }
}

/// Returns what to change, if waiting cannot help.
fn remedy(error: &(dyn StdError + 'static), service: &Service) -> Option<String> {
    let setting = service.setting;
    let tls = causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(fault)) => return Some(certificate(fault, service)),
        Some(rustls::Error::InvalidMessage(_)) => {
            return Some(format!(
                "the service does not use TLS at this address; should {setting} begin with http://?"
            ));
        }
        _ => {}
    }
    let no_such_name = causes(error).any(|cause| {
        let text = cause.to_string();
        NO_SUCH_NAME.iter().any(|said| text.contains(said))
    });
    no_such_name.then(|| format!("the host does not exist; check {setting}{}", bucket_in_host(service)))
}

fn certificate(fault: &CertificateError, service: &Service) -> String {
    let setting = service.setting;
    match fault {
        CertificateError::UnknownIssuer => {
            "no trusted authority has signed its certificate; set AWS_CA_BUNDLE or SSL_CERT_FILE to \
             a file with the certificate of its authority"
                .to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            let bucket = bucket_in_host(service);
            format!("its certificate is for another name; check the host name in {setting}{bucket}")
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid at this time; renew it, or correct this machine's clock".to_owned()
        }
        _ => format!("its certificate cannot be trusted; check {setting}, AWS_CA_BUNDLE and SSL_CERT_FILE"),
    }
}

fn bucket_in_host(service: &Service) -> &'static str {
    if service.bucket_in_host {
        "; the bucket is part of the host name: many services need store.path_style = true"
    } else {
        ""
    }
}

/// Returns an error and its causes. For an I/O error that wraps another error, the next cause is the wrapped
/// error, which `source` skips.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let io = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        io.map(|inner| inner as &(dyn StdError + 'static)).or_else(|| error.source())
    })
}

/// Formats the causes in one line. Each text appears once, and texts that only name a layer are omitted.
pub(super) fn told(error: &(dyn StdError + 'static)) -> String {
    let layers =
        ["dispatch failure", "io error", "other", "user error", "client error", "TLS handshake failed"];
    let mut said: Vec<String> = Vec::new();
    for cause in causes(error) {
        let text = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        let is_layer = layers.iter().any(|layer| text == *layer || text.starts_with("client error ("));
        if !is_layer && !said.iter().any(|before| before.contains(&text)) {
            said.push(text);
        }
    }
    if said.is_empty() { error.to_string() } else { said.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(bucket_in_host: bool) -> Service {
        Service { name: "https://s3.example".to_owned(), setting: "AWS_ENDPOINT_URL", bucket_in_host }
    }

    fn lookup(said: &str) -> io::Error {
        io::Error::other(format!("failed to lookup address information: {said}"))
    }

    fn tls(fault: CertificateError) -> io::Error {
        // Wrapped in the same way as tokio-rustls and hyper-rustls do it.
        io::Error::other(io::Error::new(io::ErrorKind::InvalidData, rustls::Error::InvalidCertificate(fault)))
    }

    #[test]
    fn permanent_failures_are_reported_with_what_to_change() {
        for (error, told) in [
            (tls(CertificateError::UnknownIssuer), "AWS_CA_BUNDLE or SSL_CERT_FILE"),
            (
                tls(CertificateError::NotValidForName),
                "for another name; check the host name in AWS_ENDPOINT_URL",
            ),
            (tls(CertificateError::Expired), "clock"),
            (tls(CertificateError::BadSignature), "cannot be trusted"),
            (lookup("Name or service not known"), "the host does not exist; check AWS_ENDPOINT_URL"),
            (lookup("No address associated with hostname"), "the host does not exist"),
            (lookup("Name does not resolve"), "the host does not exist"),
        ] {
            let judged = judge("k", &error, Phase::Connecting, &service(false));
            let message = judged.to_string();
            assert!(matches!(judged, Error::Unreachable { .. }), "{message}");
            assert!(judged.is_refusal() && !judged.effect_unknown(), "{message}");
            for part in [told, "k: cannot reach https://s3.example (set by AWS_ENDPOINT_URL): "] {
                assert!(message.contains(part), "no {part} in: {message}");
            }
            assert!(!message.contains("path_style"), "{message}");
        }
        let plain = io::Error::new(
            io::ErrorKind::InvalidData,
            rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType),
        );
        let judged = judge("k", &plain, Phase::Connecting, &service(false));
        assert!(judged.to_string().contains("begin with http://"), "{judged}");
        // A record that was damaged in transit says nothing about the kind of server.
        let judged = judge("k", &plain, Phase::Later, &service(false));
        assert!(matches!(judged, Error::Transient { .. }) && judged.effect_unknown(), "{judged}");
        for error in [lookup("Name or service not known"), tls(CertificateError::NotValidForName)] {
            let message = judge("k", &error, Phase::Connecting, &service(true)).to_string();
            assert!(message.contains("store.path_style = true"), "{message}");
        }
    }

    #[test]
    fn temporary_failures_are_retried_and_name_the_service() {
        for error in [
            io::Error::from(io::ErrorKind::ConnectionRefused),
            io::Error::from(io::ErrorKind::ConnectionReset),
            io::Error::from(io::ErrorKind::UnexpectedEof),
            lookup("Temporary failure in name resolution"),
            lookup("Try again"),
            io::Error::other(rustls::Error::HandshakeNotComplete),
        ] {
            let judged = judge("k", &error, Phase::Connecting, &service(true));
            let message = judged.to_string();
            assert!(matches!(judged, Error::Transient { .. }) && judged.effect_unknown(), "{message}");
            assert!(message.contains("https://s3.example (set by AWS_ENDPOINT_URL)"), "{message}");
            assert!(message.ends_with(&told(&error)), "{message}");
        }
    }
}

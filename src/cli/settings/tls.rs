//! The TLS settings: whether TLS is used, with which files, and which subjects may use which export.
//!
//! Owns the mapping to the server's options, and must not know the handshake. Invariant: an error names the
//! setting that causes it, and not another setting of TLS.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::given;
use crate::config::{self, Config};
use crate::server::{Tls, TlsError, TlsFile, TlsOptions};

/// Reads the files and returns the configured TLS; `None` if it is off.
pub(super) fn of(config: &Config) -> Result<Option<Tls>, config::Error> {
    let of = &config.tls;
    if of.mode == "off" {
        return Ok(None);
    }
    let file = |key, path: &String| {
        let needed = || config.refuse(key, format!("must be a file if tls.mode is {}", of.mode));
        given(path).map(PathBuf::from).ok_or_else(needed)
    };
    let options = TlsOptions {
        required: of.mode == "required",
        certificate: file("tls.certificate", &of.certificate)?,
        key: file("tls.key", &of.key)?,
        client_authorities: given(&of.client_authorities).map(PathBuf::from),
        subjects: subjects(&of.subjects).map_err(|why| config.refuse("tls.subjects", why))?,
    };
    Tls::load(&options).map(Some).map_err(|error| config.refuse(culprit(&error), error))
}

/// Returns the setting that causes an error.
fn culprit(error: &TlsError) -> &'static str {
    match error {
        TlsError::File { file, .. } | TlsError::NoCertificate { file, .. } => match file {
            TlsFile::Certificate => "tls.certificate",
            TlsFile::Key => "tls.key",
            TlsFile::ClientAuthorities => "tls.client_authorities",
        },
        TlsError::Key { .. } | TlsError::NoKey { .. } => "tls.key",
        TlsError::Certificate(_) => "tls.certificate",
        TlsError::Authority { .. } | TlsError::Authorities(_) => "tls.client_authorities",
        TlsError::SubjectsWithoutAuthorities { .. } => "tls.subjects",
    }
}

/// Returns which subjects may use which export.
fn subjects(texts: &[String]) -> Result<BTreeMap<String, BTreeSet<String>>, String> {
    let mut allowed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for text in texts {
        let wrong = || format!("{text:?} is not EXPORT=SUBJECT, such as disk=O=Example, CN=vm-1");
        let (export, subject) = text.split_once('=').ok_or_else(wrong)?;
        if export.is_empty() || !subject.contains('=') {
            return Err(wrong());
        }
        allowed.entry(export.to_owned()).or_default().insert(subject.to_owned());
    }
    Ok(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(pairs: &[(&str, &str)]) -> Result<Option<Tls>, config::Error> {
        let pairs = pairs.iter().map(|(name, value)| (name.into(), value.into()));
        of(&config::load(None, pairs, []).unwrap())
    }

    #[test]
    fn tls_is_off_by_default() {
        assert!(load(&[]).unwrap().is_none());
        assert!(load(&[("CAIRN_TLS__CERTIFICATE", "/none")]).unwrap().is_none());
    }

    #[test]
    fn an_error_names_its_setting() {
        let mode = ("CAIRN_TLS__MODE", "required");
        let certificate = ("CAIRN_TLS__CERTIFICATE", "/dev/null");
        let key = ("CAIRN_TLS__KEY", "/none/key.pem");
        let subjects = ("CAIRN_TLS__SUBJECTS", "disk=CN=vm");
        for (pairs, parts) in [
            (vec![mode], "tls.certificate = |tls.mode is required"),
            (vec![mode, certificate], "tls.key = |tls.mode is required"),
            (vec![mode, certificate, key], "tls.key = \"/none/key.pem\"|CAIRN_TLS__KEY"),
            (vec![mode, certificate, ("CAIRN_TLS__KEY", "/proc/version")], "tls.key = \"/proc/version\""),
            (vec![mode, certificate, key, subjects], "tls.subjects = |no client authorities"),
            (vec![mode, certificate, key, ("CAIRN_TLS__SUBJECTS", "disk")], "tls.subjects = |EXPORT=SUBJECT"),
            (
                vec![mode, certificate, key, ("CAIRN_TLS__SUBJECTS", "disk=vm")],
                "tls.subjects = |EXPORT=SUBJECT",
            ),
            (
                vec![mode, certificate, key, ("CAIRN_TLS__CLIENT_AUTHORITIES", "/none/ca.pem")],
                "tls.client_authorities = \"/none/ca.pem\"",
            ),
        ] {
            let message = load(&pairs).unwrap_err().to_string();
            for part in parts.split('|') {
                assert!(message.contains(part), "no {part} in: {message}");
            }
        }
    }

    /// For each kind of file, the error says what the file lacks, in the program's own words.
    #[test]
    fn an_error_says_what_a_file_lacks() {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let file = |content: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), content).unwrap();
            file
        };
        let (certificate, key) = (file(&pair.cert.pem()), file(&pair.signing_key.serialize_pem()));
        let encrypted = pair.signing_key.serialize_pem().replace("PRIVATE", "ENCRYPTED PRIVATE");
        let (empty, encrypted) = (file(""), file(&encrypted));
        let lacking = |certificate: &tempfile::NamedTempFile, key: &tempfile::NamedTempFile, ca| {
            let text = |file: &tempfile::NamedTempFile| file.path().to_str().unwrap().to_owned();
            let (certificate, key, ca) = (text(certificate), text(key), text(ca));
            let error = load(&[
                ("CAIRN_TLS__MODE", "required"),
                ("CAIRN_TLS__CERTIFICATE", &certificate),
                ("CAIRN_TLS__KEY", &key),
                ("CAIRN_TLS__CLIENT_AUTHORITIES", &ca),
            ]);
            error.unwrap_err().to_string()
        };
        for (error, setting, lacks) in [
            (lacking(&certificate, &certificate, &certificate), "tls.key", "no private key"),
            (lacking(&certificate, &empty, &certificate), "tls.key", "no private key"),
            (lacking(&certificate, &encrypted, &certificate), "tls.key", "encrypted"),
            (lacking(&empty, &key, &certificate), "tls.certificate", "no certificate"),
            (lacking(&certificate, &key, &key), "tls.client_authorities", "no certificate"),
        ] {
            assert!(error.starts_with(setting) && error.contains(lacks), "{error}");
            assert!(!error.contains("no items"), "{error}");
        }
    }

    /// Certificate, key and authorities may share a file. Each error names the setting whose part is wrong.
    #[test]
    fn an_error_in_a_shared_file_names_the_setting_concerned() {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (certificate, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
        let pem =
            |label: &str, base64: &str| format!("-----BEGIN {label}-----\n{base64}\n-----END {label}-----\n");
        let no_key = pem("PRIVATE KEY", "AAAA");
        let no_certificate = pem("CERTIFICATE", "AAAA");
        for (content, setting) in [
            (format!("{certificate}{no_key}"), "tls.key = "),
            (certificate.clone(), "tls.key = "),
            (format!("{no_certificate}{key}"), "tls.client_authorities = "),
            (key.clone(), "tls.client_authorities = "),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &content).unwrap();
            let path = file.path().to_str().unwrap();
            let message = load(&[
                ("CAIRN_TLS__MODE", "required"),
                ("CAIRN_TLS__CERTIFICATE", path),
                ("CAIRN_TLS__KEY", path),
                ("CAIRN_TLS__CLIENT_AUTHORITIES", path),
            ])
            .unwrap_err()
            .to_string();
            assert!(message.contains(setting), "no {setting} in: {message}\n{content}");
        }
    }

    #[test]
    fn an_export_may_have_several_subjects() {
        let texts = ["a=CN=x", "b=O=Example, CN=y", "a=CN=z"].map(str::to_owned);
        let found = subjects(&texts).unwrap();
        assert_eq!(found["a"], BTreeSet::from(["CN=x".to_owned(), "CN=z".to_owned()]));
        assert_eq!(found["b"], BTreeSet::from(["O=Example, CN=y".to_owned()]));
    }
}

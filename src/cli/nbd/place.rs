//! How the command line names a disk or a server: one grammar for all commands of `cairn nbd`.
//!
//! Owns the grammar, and must not open anything. A text with a scheme is a URI. Any other text is a path if
//! it names a disk, and a host if it names a server. Invariant: each text has exactly one meaning.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use crate::cli::error::NbdError;
use crate::client::{Address, Uri, UriError};
use crate::config::without_user;

/// A file, a block device or an export, as the user named it.
#[derive(Clone, Debug)]
pub(in crate::cli) struct DiskName {
    text: String,
    pub(in crate::cli) place: Place,
}

impl DiskName {
    /// Names the default export of a server on a Unix socket. `text` is for people.
    pub(in crate::cli) fn at_socket(socket: PathBuf, text: String) -> Self {
        let uri = Uri { address: Address::Unix(socket), export: String::new(), tls: None };
        Self { text, place: Place::Export(Box::new(uri)) }
    }
}

/// Where a disk is.
#[derive(Clone, Debug)]
pub(in crate::cli) enum Place {
    File(PathBuf),
    Export(Box<Uri>),
}

/// Why a text does not name a disk.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum DiskNameError {
    #[error(
        "standard input and output cannot be a disk, because a disk needs random access; for a file named -, \
         write ./-"
    )]
    Standard,
    #[error(transparent)]
    Uri(#[from] UriError),
}

impl FromStr for DiskName {
    type Err = DiskNameError;

    fn from_str(text: &str) -> Result<Self, DiskNameError> {
        if text == "-" {
            return Err(DiskNameError::Standard);
        }
        Ok(match has_scheme(text) {
            true => Self { text: without_user(text), place: Place::Export(Box::new(text.parse()?)) },
            false => Self { text: text.to_owned(), place: Place::File(PathBuf::from(text)) },
        })
    }
}

/// Shows the text as it was written, but without the user of a URI, behind which a secret may be.
impl fmt::Display for DiskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Returns whether a text is meant as a URI.
fn has_scheme(text: &str) -> bool {
    let is_scheme = |scheme: &str| scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    text.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme))
}

/// A server, and maybe an export of it.
#[derive(Clone, Debug, Args)]
pub(super) struct ServerName {
    /// nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH, with nbds:// or nbds+unix:// for TLS; or a host,
    /// followed by its port
    #[arg(value_name = "URI|HOST")]
    server: String,
    /// Port of the host
    port: Option<u16>,
}

impl ServerName {
    /// Returns the URI of an export of the server. `--export` names the export if the URI does not.
    pub(super) fn uri(&self, export: Option<&str>) -> Result<Uri, NbdError> {
        let Self { server, port } = self;
        let shown = without_user(server);
        let mut uri = match (has_scheme(server), *port) {
            (true, None) => server.parse::<Uri>()?,
            (true, Some(port)) => {
                return Err(NbdError::Usage(format!(
                    "{shown} is a URI and contains its own port, so the port {port} is not allowed"
                )));
            }
            (false, Some(port)) => {
                let address = Address::Tcp { host: server.clone(), port };
                Uri { address, export: String::new(), tls: None }
            }
            (false, None) => {
                return Err(NbdError::Usage(format!(
                    "{shown:?} is neither a URI (nbd, nbds, nbd+unix or nbds+unix) nor a host with its port"
                )));
            }
        };
        match export {
            None => {}
            Some(export) if uri.export.is_empty() || uri.export == export => {
                export.clone_into(&mut uri.export)
            }
            Some(export) => {
                return Err(NbdError::Usage(format!(
                    "{shown} and --export {export:?} are two different exports"
                )));
            }
        }
        Ok(uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_with_a_scheme_is_a_uri() {
        for uri in ["nbd://host/disk", "NBD://host/disk", "Nbds+Unix:///?socket=/s"] {
            let name: DiskName = uri.parse().unwrap();
            assert!(matches!(name.place, Place::Export(_)), "{uri}");
            assert_eq!(name.to_string(), uri);
        }
        assert!(matches!("http://host/disk".parse::<DiskName>(), Err(DiskNameError::Uri(_))));
        for path in ["disk.img", "/dev/sda", "./nbd:/x", "/a b/c://d", "./-", "--"] {
            assert!(matches!(path.parse::<DiskName>().unwrap().place, Place::File(_)), "{path}");
        }
    }

    #[test]
    fn standard_input_and_output_are_not_disks() {
        assert!(matches!("-".parse::<DiskName>(), Err(DiskNameError::Standard)));
    }

    fn uri(server: &str, port: Option<u16>, export: Option<&str>) -> Result<String, NbdError> {
        ServerName { server: server.to_owned(), port }.uri(export).map(|uri| uri.to_string())
    }

    #[test]
    fn a_server_is_a_uri_or_a_host_with_its_port() {
        for (server, port, export, expected) in [
            ("host", Some(7), None, "nbd://host:7/"),
            ("host", Some(7), Some("disk"), "nbd://host:7/disk"),
            ("::1", Some(7), None, "nbd://[::1]:7/"),
            ("NBD://host/disk", None, None, "nbd://host:10809/disk"),
            ("nbd://host", None, Some("disk"), "nbd://host:10809/disk"),
            ("nbd://host/disk", None, Some("disk"), "nbd://host:10809/disk"),
            ("nbds+unix:///?socket=/s", None, Some("disk"), "nbds+unix:///disk?socket=/s"),
        ] {
            assert_eq!(uri(server, port, export).unwrap(), expected);
        }
        for (server, port, export) in [
            ("host", None, None),
            ("-", None, None),
            ("nbd://host", Some(7), None),
            ("nbd://host/disk", None, Some("other")),
            ("http://host", None, None),
        ] {
            let error = uri(server, port, export).unwrap_err();
            assert!(matches!(error, NbdError::Usage(_) | NbdError::Uri(_)), "{server}: {error}");
        }
    }
}

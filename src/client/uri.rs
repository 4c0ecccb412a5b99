//! NBD URIs (NetworkBlockDevice/nbd, `doc/uri.md`).
//!
//! Owns parsing and formatting; must not connect to anything. Invariants: parsing is strict, so every part
//! that is not understood is an error that quotes it. No error quotes a user, behind which a secret may be.

use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::str::FromStr;

/// The registered TCP port of NBD.
pub const DEFAULT_PORT: u16 = 10809;

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP port on a host.
    Tcp {
        /// Host name or IP address; an IPv6 address has no brackets.
        host: String,
        /// TCP port number.
        port: u16,
    },
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The TLS parameters of a URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UriTls {
    /// `tls-hostname`: the name that the server's certificate must contain, if it is not the host name.
    pub hostname: Option<String>,
    /// `tls-verify-peer`: whether the server's certificate is verified.
    pub verify_peer: bool,
    /// `tls-certificates`: a directory with `ca-cert.pem`, `client-cert.pem` and `client-key.pem`.
    pub certificates: Option<PathBuf>,
}

/// Identifies an export of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// The address of the server.
    pub address: Address,
    /// Name of the export; empty for the default export.
    pub export: String,
    /// The TLS parameters; `None` if the scheme does not use TLS.
    pub tls: Option<UriTls>,
}

/// Why a text is not an NBD URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// The scheme is not one of the four NBD schemes.
    #[error("{0:?} does not begin with nbd://, nbds://, nbd+unix:// or nbds+unix://")]
    Scheme(String),
    /// The host is missing, or the port is invalid.
    #[error("{0:?} is not HOST or HOST:PORT")]
    Authority(String),
    /// A Unix scheme without the parameter `socket`, or another scheme with it.
    #[error("nbd+unix and nbds+unix require the query parameter socket, and other schemes do not accept it")]
    Socket,
    /// A URI for a Unix socket contains a host.
    #[error("the URI of a Unix socket must not have a host")]
    UnixHost,
    /// A query parameter is unknown.
    #[error("unknown query parameter {0:?}")]
    Parameter(String),
    /// A query parameter has an invalid value.
    #[error("query parameter {name} cannot be {value:?}: {expected}")]
    Value {
        /// Name of the parameter.
        name: &'static str,
        /// The invalid value.
        value: String,
        /// Description of the valid values.
        expected: &'static str,
    },
    /// A `%` is not followed by two hexadecimal digits, or the decoded text contains NUL or is not UTF-8.
    #[error("{0:?} is not percent-encoded UTF-8 without NUL")]
    Encoding(String),
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let shown = || text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, rest)| format!("…@{rest}"));
        let scheme = || UriError::Scheme(shown());
        let (name, rest) = text.split_once("://").ok_or_else(scheme)?;
        // "schemes are case-insensitive" (RFC 3986, section 3.1).
        let (unix, encrypted) = match name.to_ascii_lowercase().as_str() {
            "nbd" => (false, false),
            "nbds" => (false, true),
            "nbd+unix" => (true, false),
            "nbds+unix" => (true, true),
            _ => return Err(scheme()),
        };
        let rest = rest.split_once('#').map_or(rest, |(rest, _fragment)| rest);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let Query { socket, tls } = Query::parse(query)?;
        let address = match (unix, socket) {
            (true, Some(path)) if authority.is_empty() => Address::Unix(path),
            (true, Some(_)) => return Err(UriError::UnixHost),
            (false, None) => parse_authority(authority)?,
            (true, None) | (false, Some(_)) => return Err(UriError::Socket),
        };
        Ok(Self { address, export: decode(path)?, tls: encrypted.then_some(tls) })
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "nbds" } else { "nbd" };
        match &self.address {
            address @ Address::Tcp { .. } => {
                write!(f, "{scheme}://{address}/{}", encode(self.export.as_bytes()))
            }
            Address::Unix(path) => {
                let socket = encode(path.as_os_str().as_bytes());
                write!(f, "{scheme}+unix:///{}?socket={socket}", encode(self.export.as_bytes()))
            }
        }
    }
}

/// The query parameters of a URI.
struct Query {
    socket: Option<PathBuf>,
    tls: UriTls,
}

impl Query {
    fn parse(query: &str) -> Result<Self, UriError> {
        let tls = UriTls { hostname: None, verify_peer: true, certificates: None };
        let mut found = Self { socket: None, tls };
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = decode(value)?;
            let wrong = |name, expected| UriError::Value { name, value: value.clone(), expected };
            match decode(name)?.as_str() {
                "socket" if value.is_empty() => return Err(UriError::Socket),
                "socket" => found.socket = Some(PathBuf::from(value)),
                "tls-type" if value != "x509" => return Err(wrong("tls-type", "only x509 is supported")),
                "tls-type" => {}
                "tls-hostname" => found.tls.hostname = Some(value),
                "tls-verify-peer" => {
                    found.tls.verify_peer = match value.as_str() {
                        "0" => false,
                        "1" => true,
                        _ => return Err(wrong("tls-verify-peer", "0 or 1")),
                    }
                }
                "tls-certificates" => found.tls.certificates = Some(PathBuf::from(value)),
                other => return Err(UriError::Parameter(other.to_owned())),
            }
        }
        Ok(found)
    }
}

/// Parses `[user@]host[:port]`. The user is ignored, because only authentication methods that are not
/// supported here use it.
fn parse_authority(authority: &str) -> Result<Address, UriError> {
    let host_and_port = authority.rsplit_once('@').map_or(authority, |(_user, rest)| rest);
    let wrong = || UriError::Authority(host_and_port.to_owned());
    let (host, port) = match host_and_port.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or_else(wrong)?,
        None => {
            let end = host_and_port.find(':').unwrap_or(host_and_port.len());
            host_and_port.split_at(end)
        }
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => DEFAULT_PORT,
        Some("") => DEFAULT_PORT,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().map_err(|_| wrong())?
        }
        _ => return Err(wrong()),
    };
    if host.is_empty() {
        return Err(wrong());
    }
    Ok(Address::Tcp { host: decode(host)?, port })
}

/// Decodes percent-encoding.
fn decode(text: &str) -> Result<String, UriError> {
    let wrong = || UriError::Encoding(text.to_owned());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
                let (high, low) = (digit().ok_or_else(wrong)?, digit().ok_or_else(wrong)?);
                u8::try_from(high * 16 + low).expect("two hexadecimal digits are a byte")
            }
            other => other,
        });
    }
    let decoded = String::from_utf8(bytes).map_err(|_| wrong())?;
    if decoded.contains('\0') { Err(wrong()) } else { Ok(decoded) }
}

/// Percent-encodes all characters that may not appear in both a path and a query (RFC 3986), as the NBD URI
/// specification requires. The `Display` implementation of [`Uri`] uses it, so every URI that is printed is
/// encoded.
fn encode(bytes: &[u8]) -> String {
    let mut encoded = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b'@' => {
                encoded.push(char::from(byte));
            }
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> (String, u16, String) {
        match text.parse::<Uri>() {
            Ok(Uri { address: Address::Tcp { host, port }, export, .. }) => (host, port, export),
            other => panic!("{text}: {other:?}"),
        }
    }

    fn of(host: &str, port: u16, export: &str) -> (String, u16, String) {
        (host.to_owned(), port, export.to_owned())
    }

    #[test]
    fn the_examples_of_the_specification() {
        assert_eq!(tcp("nbd://example.com/disk"), of("example.com", 10809, "disk"));
        assert_eq!(tcp("nbd://example.com/"), of("example.com", 10809, ""));
        assert_eq!(tcp("nbd://example.com"), of("example.com", 10809, ""));
        assert_eq!(tcp("nbd://example.com//disk"), of("example.com", 10809, "/disk"));
        assert_eq!(tcp("nbd://example.com/hello%20world"), of("example.com", 10809, "hello world"));
        assert_eq!(tcp("nbd://example.com:10809/export"), of("example.com", 10809, "export"));
        let unix: Uri = "nbd+unix:///disk?socket=sock".parse().unwrap();
        assert_eq!((unix.address, unix.export.as_str()), (Address::Unix("sock".into()), "disk"));
    }

    /// "Although schemes are case-insensitive, the canonical form is lowercase" (RFC 3986, section 3.1).
    #[test]
    fn schemes_are_case_insensitive_and_shown_in_lower_case() {
        for (text, canonical) in [
            ("NBD://host/Disk", "nbd://host:10809/Disk"),
            ("Nbds://host", "nbds://host:10809/"),
            ("NBD+unix:///x?socket=/S", "nbd+unix:///x?socket=/S"),
            ("nbds+UNIX:///?socket=/s", "nbds+unix:///?socket=/s"),
        ] {
            assert_eq!(text.parse::<Uri>().unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn hosts_may_be_ipv6_addresses() {
        assert_eq!(tcp("nbd://[::1]:7/x"), of("::1", 7, "x"));
        assert_eq!(tcp("nbd://user@[fe80::1]"), of("fe80::1", 10809, ""));
    }

    #[test]
    fn tls_is_required_by_the_scheme_and_described_by_parameters() {
        let uri: Uri = "nbds+unix:///?socket=/run/a%20b&tls-hostname=cairn&tls-verify-peer=0&tls-type=x509"
            .parse()
            .unwrap();
        assert_eq!(uri.address, Address::Unix("/run/a b".into()));
        let tls = uri.tls.unwrap();
        assert_eq!((tls.hostname.as_deref(), tls.verify_peer), (Some("cairn"), false));
        assert_eq!("nbd://host".parse::<Uri>().unwrap().tls, None);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let error = |text: &str| text.parse::<Uri>().unwrap_err();
        assert!(matches!(error("http://host"), UriError::Scheme(_)));
        assert!(matches!(error("nbd:/host"), UriError::Scheme(_)));
        assert!(matches!(error("nbd:///disk"), UriError::Authority(_)));
        assert!(matches!(error("nbd://host:70000"), UriError::Authority(_)));
        assert!(matches!(error("nbd://host:+1"), UriError::Authority(_)));
        assert!(matches!(error("nbd://[::1/"), UriError::Authority(_)));
        assert_eq!(error("nbd+unix:///disk"), UriError::Socket);
        assert_eq!(error("nbd://host/?socket=s"), UriError::Socket);
        assert_eq!(error("nbd+unix://host/?socket=s"), UriError::UnixHost);
        assert_eq!(error("nbd://host/?colour=red"), UriError::Parameter("colour".to_owned()));
        assert!(matches!(error("nbds://host/?tls-type=psk"), UriError::Value { name: "tls-type", .. }));
        assert!(matches!(error("nbds://host/?tls-verify-peer=2"), UriError::Value { .. }));
        assert!(matches!(error("nbd://host/%zz"), UriError::Encoding(_)));
        assert!(matches!(error("nbd://host/%ff"), UriError::Encoding(_)));
        assert!(matches!(error("nbd://host/%4"), UriError::Encoding(_)));
        assert_eq!(error("nbd://user:secret@host:x/disk"), UriError::Authority("host:x".to_owned()));
        assert_eq!(error("http://user:secret@host/"), UriError::Scheme("…@host/".to_owned()));
    }

    #[test]
    fn a_uri_is_shown_as_it_can_be_read_again() {
        for text in ["nbd://host:10809/a%20b", "nbds+unix:///x?socket=/run/a%26b", "nbd://[::1]:7/"] {
            assert_eq!(text.parse::<Uri>().unwrap().to_string(), text);
        }
    }
}

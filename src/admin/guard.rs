//! Who may use the API: whoever reaches a Unix socket or loopback, and elsewhere whoever has the token.
//!
//! Invariant: without a token nothing of the API is served beyond loopback; on loopback, no page of another site that a
//! browser on this machine shows gets anything done.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::view::Problem;
use crate::server::ListenAddress;

/// Fewest characters of a token.
const TOKEN_BYTES: usize = 16;

/// A secret that a client presents.
#[derive(Clone)]
pub struct Token(Arc<str>);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is in it is no token.
    #[error("{}: a token is one line of at least {TOKEN_BYTES} visible ASCII characters", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
    },
}

impl Token {
    /// Reads it from a file of one line.
    ///
    /// # Errors
    /// If the file cannot be read or holds no token.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TokenError::Io { path: path.to_path_buf(), source })?;
        let token = text.trim_end_matches(['\r', '\n']);
        if token.len() < TOKEN_BYTES || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Bad { path: path.to_path_buf() });
        }
        Ok(Self(Arc::from(token)))
    }

    /// Compares in a time that tells nothing of where they differ.
    fn is(&self, given: &[u8]) -> bool {
        let ours = self.0.as_bytes();
        ours.len() == given.len() && ours.iter().zip(given).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Who may use the API.
#[derive(Clone, Debug)]
pub(super) enum Guard {
    /// Whoever can open the Unix socket.
    Everybody,
    /// Whoever is on this machine, but no foreign web page.
    Loopback,
    /// Whoever has it.
    Token(Token),
    /// Nobody.
    Nobody,
}

impl Guard {
    pub(super) fn of(address: &ListenAddress, token: Option<Token>) -> Self {
        match (token, address) {
            (Some(token), _) => Self::Token(token),
            (None, ListenAddress::Unix(_)) => Self::Everybody,
            // After binding, the address is a number.
            (None, ListenAddress::Tcp(address)) => match address.parse::<SocketAddr>() {
                Ok(address) if address.ip().is_loopback() => Self::Loopback,
                _ => Self::Nobody,
            },
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self, Self::Nobody)
    }

    fn judge(&self, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
        match self {
            Self::Everybody => Ok(()),
            Self::Loopback if is_local(headers) => Ok(()),
            Self::Loopback => Err((StatusCode::FORBIDDEN, "the request is from a page of another site")),
            Self::Token(token) => {
                let given = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
                match given.and_then(|value| value.strip_prefix(b"Bearer ")) {
                    Some(given) if token.is(given) => Ok(()),
                    Some(_) => Err((StatusCode::UNAUTHORIZED, "the token is wrong")),
                    None => Err((StatusCode::UNAUTHORIZED, "a bearer token is needed")),
                }
            }
            Self::Nobody => Err((
                StatusCode::FORBIDDEN,
                "beyond loopback the API is served only with a token (admin.token_file)",
            )),
        }
    }
}

/// Whether a request on loopback is for this machine by name (a name of another site that resolves to loopback is not),
/// and not from another site's page.
fn is_local(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let ours = matches!(name, "localhost" | "127.0.0.1" | "[::1]");
    let same_site = headers.get(ORIGIN).is_none_or(|origin| {
        origin.to_str().is_ok_and(|origin| origin.strip_prefix("http://") == Some(host))
    });
    ours && same_site
}

/// Lets a request pass, or says why not.
pub(super) async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    match guard.judge(request.headers()) {
        Ok(()) => next.run(request).await,
        Err((status, why)) => {
            let mut response = Problem::new(status, why).into_response();
            if status == StatusCode::UNAUTHORIZED {
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn tcp(address: &str) -> Guard {
        Guard::of(&ListenAddress::Tcp(address.to_owned()), None)
    }

    #[test]
    fn without_a_token_only_this_machine_is_served() {
        assert!(matches!(Guard::of(&ListenAddress::Unix("/run/x".into()), None), Guard::Everybody));
        assert!(matches!(tcp("127.0.0.1:9180"), Guard::Loopback));
        assert!(matches!(tcp("[::1]:9180"), Guard::Loopback));
        for address in ["0.0.0.0:9180", "[::]:9180", "192.0.2.1:9180"] {
            assert!(tcp(address).is_closed(), "{address}");
            assert!(tcp(address).judge(&headers(&[("host", "localhost")])).is_err(), "{address}");
        }
    }

    #[test]
    fn on_loopback_a_foreign_page_gets_nothing() {
        let guard = tcp("127.0.0.1:9180");
        for good in [
            &[("host", "localhost:9180")][..],
            &[("host", "127.0.0.1:9180")],
            &[("host", "[::1]:9180")],
            &[("host", "[::1]")],
            &[("host", "localhost:9180"), ("origin", "http://localhost:9180")],
        ] {
            assert!(guard.judge(&headers(good)).is_ok(), "{good:?}");
        }
        for bad in [
            &[][..],
            &[("host", "evil.example")],
            &[("host", "evil.example:9180")],
            &[("host", "localhost:9180"), ("origin", "http://evil.example")],
            &[("host", "localhost:9180"), ("origin", "null")],
            &[("host", "localhost:9180"), ("origin", "http://localhost:8080")],
        ] {
            assert_eq!(guard.judge(&headers(bad)).unwrap_err().0, StatusCode::FORBIDDEN, "{bad:?}");
        }
    }

    #[test]
    fn a_token_is_needed_in_full() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        let guard = Guard::of(&ListenAddress::Unix("/x".into()), Some(Token::read(&path).unwrap()));
        assert!(guard.judge(&headers(&[("authorization", "Bearer 0123456789abcdef")])).is_ok());
        for wrong in ["Bearer 0123456789abcdeF", "Bearer 0123456789abcde", "Bearer ", "0123456789abcdef", ""]
        {
            let refused = guard.judge(&headers(&[("authorization", wrong)])).unwrap_err();
            assert_eq!(refused.0, StatusCode::UNAUTHORIZED, "{wrong}");
        }
        assert_eq!(guard.judge(&headers(&[])).unwrap_err().0, StatusCode::UNAUTHORIZED);
        assert!(!format!("{guard:?}").contains("0123"));
    }

    #[test]
    fn a_file_without_a_token_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        assert!(matches!(Token::read(&path), Err(TokenError::Io { .. })));
        for bad in ["", "\n", "short", "0123456789 abcdef", "0123456789abcdef\n0123456789abcdef\n"] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(Token::read(&path), Err(TokenError::Bad { .. })), "{bad:?}");
        }
    }
}

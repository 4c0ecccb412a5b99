//! Who may use the API: whoever reaches a Unix socket or loopback, and elsewhere whoever has the token.
//!
//! Invariant: without a token nothing of the API is served beyond loopback; on loopback, no page of another site that a
//! browser on this machine shows gets anything done.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use parking_lot::RwLock;

use super::view::Problem;
use crate::server::ListenAddress;

/// Fewest characters of a token.
const TOKEN_BYTES: usize = 16;

/// A secret that a client presents.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<str>);

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token is one line of at least {TOKEN_BYTES} visible ASCII characters")]
pub struct TokenError;

impl FromStr for Token {
    type Err = TokenError;

    /// Reads it from the text of a file of one line.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let token = text.trim_end_matches(['\r', '\n']);
        if token.len() < TOKEN_BYTES || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError);
        }
        Ok(Self(Arc::from(token)))
    }
}

impl Token {
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Whoever can open the Unix socket.
    Everybody,
    /// Whoever is on this machine, but no foreign web page.
    Loopback,
    /// Whoever has it.
    Token(Token),
    /// Nobody.
    Closed,
}

impl Access {
    /// Who may where: with a token whoever has it, without one whoever is on this machine.
    #[must_use]
    pub fn at(address: &ListenAddress, token: Option<Token>) -> Self {
        match (token, address) {
            (Some(token), _) => Self::Token(token),
            (None, ListenAddress::Unix(_)) => Self::Everybody,
            // After binding, the address is a number.
            (None, ListenAddress::Tcp(address)) => match address.parse::<SocketAddr>() {
                Ok(address) if address.ip().is_loopback() => Self::Loopback,
                _ => Self::Closed,
            },
        }
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
            Self::Closed => Err((
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
pub(super) async fn check(
    State(access): State<Arc<RwLock<Access>>>,
    request: Request,
    next: Next,
) -> Response {
    let judged = access.read().judge(request.headers());
    match judged {
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

    fn tcp(address: &str) -> Access {
        Access::at(&ListenAddress::Tcp(address.to_owned()), None)
    }

    #[test]
    fn without_a_token_only_this_machine_is_served() {
        assert!(matches!(Access::at(&ListenAddress::Unix("/run/x".into()), None), Access::Everybody));
        assert!(matches!(tcp("127.0.0.1:9180"), Access::Loopback));
        assert!(matches!(tcp("[::1]:9180"), Access::Loopback));
        for address in ["0.0.0.0:9180", "[::]:9180", "192.0.2.1:9180"] {
            assert_eq!(tcp(address), Access::Closed, "{address}");
            assert!(tcp(address).judge(&headers(&[("host", "localhost")])).is_err(), "{address}");
        }
    }

    #[test]
    fn on_loopback_a_foreign_page_gets_nothing() {
        let access = tcp("127.0.0.1:9180");
        for good in [
            &[("host", "localhost:9180")][..],
            &[("host", "127.0.0.1:9180")],
            &[("host", "[::1]:9180")],
            &[("host", "[::1]")],
            &[("host", "localhost:9180"), ("origin", "http://localhost:9180")],
        ] {
            assert!(access.judge(&headers(good)).is_ok(), "{good:?}");
        }
        for bad in [
            &[][..],
            &[("host", "evil.example")],
            &[("host", "evil.example:9180")],
            &[("host", "localhost:9180"), ("origin", "http://evil.example")],
            &[("host", "localhost:9180"), ("origin", "null")],
            &[("host", "localhost:9180"), ("origin", "http://localhost:8080")],
        ] {
            assert_eq!(access.judge(&headers(bad)).unwrap_err().0, StatusCode::FORBIDDEN, "{bad:?}");
        }
    }

    #[test]
    fn a_token_is_needed_in_full() {
        let token = "0123456789abcdef\n".parse().unwrap();
        let access = Access::at(&ListenAddress::Unix("/x".into()), Some(token));
        assert!(access.judge(&headers(&[("authorization", "Bearer 0123456789abcdef")])).is_ok());
        for wrong in ["Bearer 0123456789abcdeF", "Bearer 0123456789abcde", "Bearer ", "0123456789abcdef", ""]
        {
            let refused = access.judge(&headers(&[("authorization", wrong)])).unwrap_err();
            assert_eq!(refused.0, StatusCode::UNAUTHORIZED, "{wrong}");
        }
        assert_eq!(access.judge(&headers(&[])).unwrap_err().0, StatusCode::UNAUTHORIZED);
        assert!(!format!("{access:?}").contains("0123"));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for bad in ["", "\n", "short", "0123456789 abcdef", "0123456789abcdef\n0123456789abcdef\n"] {
            assert_eq!(bad.parse::<Token>(), Err(TokenError), "{bad:?}");
        }
    }
}

//! Access control for the admin server: who may read, and who may change something.
//!
//! Must not know what a request does beyond its method and headers. Invariants: a change requires the token,
//! or a Unix socket that only one user can open; beyond loopback, the API requires a token unless the
//! operator lets everybody read; a web page of another site, shown by a browser, never gets an answer from
//! the API without a token, nor metrics or health on loopback, whatever host name it uses for this machine.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use parking_lot::RwLock;

use super::view::Problem;
use crate::server::ListenAddress;

/// Minimum length of a token in characters.
const TOKEN_BYTES: usize = 16;

/// A secret that a client presents as a bearer token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<str>);

/// The text is not a valid [`Token`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token must be one line of at least {TOKEN_BYTES} visible ASCII characters")]
pub struct TokenError;

impl FromStr for Token {
    type Err = TokenError;

    /// Parses the contents of a token file, which has one line.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let token = text.trim_end_matches(['\r', '\n']);
        if token.len() < TOKEN_BYTES || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError);
        }
        Ok(Self(Arc::from(token)))
    }
}

impl Token {
    /// Compares in constant time, so that the duration does not reveal where the tokens differ.
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

/// Who may use the API at an address, and whether pages of other sites must be kept out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    reads: Rule,
    changes: Rule,
    /// How far away clients can be that reach the address.
    reach: Reach,
    /// The host in the configured address. Requests may be for this host, or for one of the names that every
    /// machine has.
    name: Option<Arc<str>>,
}

/// How far away clients of an address can be. This decides which web pages can reach it through a browser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// A Unix socket, which no browser can reach.
    Socket,
    /// Loopback, which every browser on this machine can reach.
    Loopback,
    /// The network, where any browser can reach it.
    Network,
}

/// Who may make a certain kind of request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    /// Everybody who can reach the address.
    Everybody,
    /// Everybody who has this token.
    Token(Token),
    /// Nobody, for this reason.
    Nobody(&'static str),
}

/// Why reading is refused beyond loopback.
const NOT_LOCAL: &str = "this address is not on loopback, so the API requires a token (admin.token_file), or \
    admin.read_without_token to be read only";
/// Why changes are refused beyond loopback.
const NO_TOKEN: &str = "this address is not on loopback, so changes require a token (admin.token_file), and \
    this gateway has none: use the admin socket (cairn volume --gateway, on its machine or in its container)";
/// Why changes are refused on loopback.
const NO_PROOF: &str = "every user of this machine reaches this address: to change something, use the admin \
    socket (admin.socket) or a token (admin.token_file)";
/// Why changes are refused on a Unix socket.
const SHARED: &str = "more than one user can open this socket: to change something, use the admin socket \
    (admin.socket), a socket of mode 0600, or a token (admin.token_file)";
/// Why a request on loopback is refused.
const FOREIGN: &str =
    "the request comes from a page of another site, or is for a host other than this machine";

/// Why a request beyond loopback is refused although no token is needed.
const NAMED: &str = "the request is from a page of another site, or for a domain name: without a \
    token, ask by address or by a name without dots";

type Refusal = (StatusCode, &'static str);

impl Access {
    /// Allows everything to everybody who can reach the address. Meant for a socket that only one user can
    /// open.
    #[must_use]
    pub fn everything() -> Self {
        Self { reads: Rule::Everybody, changes: Rule::Everybody, reach: Reach::Socket, name: None }
    }

    /// Returns the access rules for the address of a listener.
    ///
    /// With a token, everybody who has it may do everything. Without a token, everybody may read on a Unix
    /// socket or on loopback, and changes are possible only on a Unix socket that only one user can open.
    /// At any other address, nobody may use the API without a token.
    #[must_use]
    pub fn at(address: &ListenAddress, token: Option<Token>) -> Self {
        let reach = match address {
            ListenAddress::Unix(_) => Reach::Socket,
            // The address of a bound listener is numeric.
            ListenAddress::Tcp(text) if text.parse().is_ok_and(|at: SocketAddr| is_loopback(at.ip())) => {
                Reach::Loopback
            }
            ListenAddress::Tcp(_) => Reach::Network,
        };
        let (reads, changes) = match (token, reach) {
            (Some(token), _) => (Rule::Token(token.clone()), Rule::Token(token)),
            (None, Reach::Socket) if address.is_private() => (Rule::Everybody, Rule::Everybody),
            (None, Reach::Socket) => (Rule::Everybody, Rule::Nobody(SHARED)),
            (None, Reach::Loopback) => (Rule::Everybody, Rule::Nobody(NO_PROOF)),
            (None, Reach::Network) => (Rule::Nobody(NOT_LOCAL), Rule::Nobody(NO_TOKEN)),
        };
        Self { reads, changes, reach, name: None }
    }

    /// Lets everybody who reaches the address read the API without a token. The rule for changes stays the
    /// same.
    #[must_use]
    pub fn read_by_everybody(mut self) -> Self {
        self.reads = Rule::Everybody;
        self
    }

    /// Lets requests use the host in `address` (`HOST:PORT`), which is the address as it was configured.
    #[must_use]
    pub fn named(mut self, address: &str) -> Self {
        self.name = Some(Arc::from(without_port(address)));
        self
    }

    /// Returns the reason if nobody may read the API.
    #[must_use]
    pub fn nobody_reads(&self) -> Option<&'static str> {
        self.reads.refuses_all()
    }

    /// Returns the reason if nobody may change anything.
    #[must_use]
    pub fn nobody_changes(&self) -> Option<&'static str> {
        self.changes.refuses_all()
    }

    /// Checks a request to the API.
    fn judge(&self, asked: &Asked<'_>) -> Result<(), Refusal> {
        match if asked.reads() { &self.reads } else { &self.changes } {
            Rule::Everybody => self.judge_page(asked),
            Rule::Token(token) => match asked.bearer() {
                Some(given) if token.is(given) => Ok(()),
                Some(_) => Err((StatusCode::UNAUTHORIZED, "the token is wrong")),
                None => Err((StatusCode::UNAUTHORIZED, "a bearer token is required")),
            },
            Rule::Nobody(why) => Err((StatusCode::FORBIDDEN, why)),
        }
    }

    /// Checks a request that needs no token. Requests from pages of other sites are refused, unless the page,
    /// or a proxy in front of this server, presents the token.
    fn judge_page(&self, asked: &Asked<'_>) -> Result<(), Refusal> {
        let (is_ours, why): (fn(&str) -> bool, _) = match self.reach {
            Reach::Socket => return Ok(()),
            Reach::Loopback => (names_this_machine, FOREIGN),
            Reach::Network => (is_no_domain, NAMED),
        };
        if asked.is_for(self.name.as_deref(), is_ours) || self.has_token(asked) {
            Ok(())
        } else {
            Err((StatusCode::FORBIDDEN, why))
        }
    }

    /// Whether a request presents the token.
    fn has_token(&self, asked: &Asked<'_>) -> bool {
        match (&self.changes, asked.bearer()) {
            (Rule::Token(token), Some(given)) => token.is(given),
            _ => false,
        }
    }

    /// Checks a request for metrics or health, which everybody may read. The host is checked only on
    /// loopback, because scrapers and probes use many names for a machine.
    fn judge_public(&self, asked: &Asked<'_>) -> Result<(), Refusal> {
        match self.reach {
            Reach::Socket | Reach::Network => Ok(()),
            Reach::Loopback => self.judge_page(asked),
        }
    }
}

impl Rule {
    fn refuses_all(&self) -> Option<&'static str> {
        match self {
            Self::Nobody(why) => Some(*why),
            Self::Everybody | Self::Token(_) => None,
        }
    }
}

/// The parts of a request that access depends on.
struct Asked<'a> {
    method: &'a Method,
    version: Version,
    headers: &'a HeaderMap,
}

impl<'a> Asked<'a> {
    fn of(request: &'a Request) -> Self {
        Self { method: request.method(), version: request.version(), headers: request.headers() }
    }

    /// Whether the request only reads (RFC 9110, section 9.2.1). The other safe methods do not count, because
    /// no route uses them.
    fn reads(&self) -> bool {
        matches!(*self.method, Method::GET | Method::HEAD)
    }

    /// The bearer token in the request. The case of the scheme does not matter (RFC 9110, section 11.1).
    fn bearer(&self) -> Option<&'a [u8]> {
        let value = self.headers.get(AUTHORIZATION)?.as_bytes();
        let (scheme, rest) = value.split_at(value.iter().position(|byte| *byte == b' ')?);
        scheme.eq_ignore_ascii_case(b"Bearer").then(|| rest.trim_ascii_start())
    }

    /// Whether the request names a host that is ours and does not come from a page of another site.
    ///
    /// A host is ours if `is_ours` says so or if it is `own_name`; another site's name that resolves to this
    /// machine is neither. A browser always sends the host. Only HTTP/1.0 may omit it (RFC 9112, section
    /// 3.2).
    fn is_for(&self, own_name: Option<&str>, is_ours: fn(&str) -> bool) -> bool {
        let mut hosts = self.headers.get_all(HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (None, _) => return self.version < Version::HTTP_11 && !self.headers.contains_key(ORIGIN),
            (Some(host), None) => host.to_str().unwrap_or_default(),
            (Some(_), Some(_)) => return false,
        };
        let same_site = self.headers.get(ORIGIN).is_none_or(|origin| {
            origin.to_str().is_ok_and(|origin| origin.strip_prefix("http://") == Some(host))
        });
        let name = without_port(host);
        let is_own_name = own_name.is_some_and(|own| own.eq_ignore_ascii_case(name));
        (is_own_name || is_ours(name)) && same_site
    }
}

/// Returns the host of `HOST` or `HOST:PORT`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether a host is `localhost` or a loopback address. All other names could be made to resolve to this
/// machine by somebody else.
fn names_this_machine(name: &str) -> bool {
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse().is_ok_and(|address| is_loopback(IpAddr::V6(address))),
        None => name.parse().is_ok_and(|address| is_loopback(IpAddr::V4(address))),
    }
}

/// Whether a host is an IP address or a name without dots. Nobody can register a name without dots in the
/// public DNS.
fn is_no_domain(name: &str) -> bool {
    match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => name.parse::<Ipv4Addr>().is_ok() || !(name.is_empty() || name.contains(['.', ':'])),
    }
}

/// Whether an address is in 127.0.0.0/8, possibly mapped to IPv6, or is `::1`.
fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Middleware for the API: passes a request on, or refuses it with the reason.
pub(super) async fn check(
    State(access): State<Arc<RwLock<Access>>>,
    request: Request,
    next: Next,
) -> Response {
    let judged = access.read().judge(&Asked::of(&request));
    pass(judged, request, next).await
}

/// Middleware for metrics and health: passes a request on, or refuses it with the reason.
pub(super) async fn check_public(
    State(access): State<Arc<RwLock<Access>>>,
    request: Request,
    next: Next,
) -> Response {
    let judged = access.read().judge_public(&Asked::of(&request));
    pass(judged, request, next).await
}

async fn pass(judged: Result<(), Refusal>, request: Request, next: Next) -> Response {
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

    fn tcp(address: &str) -> Access {
        Access::at(&ListenAddress::Tcp(address.to_owned()), None)
    }

    fn with_token(address: &str) -> Access {
        Access::at(&ListenAddress::Tcp(address.to_owned()), Some("0123456789abcdef\n".parse().unwrap()))
    }

    type Headers<'a> = &'a [(&'static str, &'a str)];

    /// Returns the status of the same request to the API, and to metrics and health.
    fn statuses(access: &Access, method: &Method, version: Version, pairs: Headers<'_>) -> (u16, u16) {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        let asked = Asked { method, version, headers: &headers };
        let status =
            |judged: Result<(), Refusal>| judged.map_or_else(|(status, _)| status.as_u16(), |()| 200);
        (status(access.judge(&asked)), status(access.judge_public(&asked)))
    }

    fn read(access: &Access, pairs: Headers<'_>) -> u16 {
        statuses(access, &Method::GET, Version::HTTP_11, pairs).0
    }

    fn change(access: &Access, pairs: Headers<'_>) -> u16 {
        statuses(access, &Method::DELETE, Version::HTTP_11, pairs).0
    }

    #[test]
    fn without_a_token_this_machine_reads_and_one_user_alone_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let unix = ListenAddress::Unix(path.clone());
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        for (mode, changes) in [(0o600, 200), (0o700, 200), (0o660, 403), (0o666, 403), (0o602, 403)] {
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            let access = Access::at(&unix, None);
            assert_eq!((read(&access, &[]), change(&access, &[])), (200, changes), "{mode:o}");
        }
        drop(socket);
        for address in ["127.0.0.1:9180", "127.0.0.2:9180", "[::1]:9180", "[::ffff:127.0.0.1]:9180"] {
            let local = &[("host", "localhost")][..];
            let access = tcp(address);
            assert_eq!((read(&access, local), change(&access, local)), (200, 403), "{address}");
            assert!(access.nobody_reads().is_none() && access.nobody_changes().is_some(), "{address}");
        }
        for address in ["0.0.0.0:9180", "[::]:9180", "192.0.2.1:9180"] {
            let (access, local) = (tcp(address), &[("host", "localhost")][..]);
            assert_eq!((read(&access, local), change(&access, local)), (403, 403), "{address}");
            assert!(access.nobody_reads().is_some(), "{address}");
        }
    }

    #[test]
    fn every_method_but_those_that_are_safe_is_a_change() {
        let (access, local) = (tcp("127.0.0.1:9180"), &[("host", "localhost")][..]);
        let unknown: Method = "PURGE".parse().unwrap();
        for (methods, status) in [
            (&[Method::GET, Method::HEAD][..], 200),
            (&[Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::CONNECT, unknown], 403),
        ] {
            for method in methods {
                assert_eq!(statuses(&access, method, Version::HTTP_11, local).0, status, "{method}");
            }
        }
    }

    #[test]
    fn on_loopback_a_foreign_page_learns_nothing() {
        let access = tcp("127.0.0.2:9180");
        for good in [
            &[("host", "localhost:9180")][..],
            &[("host", "LocalHost:9180")],
            &[("host", "127.0.0.1:9180")],
            &[("host", "127.0.0.2:9180")],
            &[("host", "127.255.0.9")],
            &[("host", "[::1]:9180")],
            &[("host", "[::1]")],
            &[("host", "localhost:9180"), ("origin", "http://localhost:9180")],
        ] {
            assert_eq!(statuses(&access, &Method::GET, Version::HTTP_11, good), (200, 200), "{good:?}");
        }
        for bad in [
            &[][..],
            &[("host", "")],
            &[("host", "evil.example")],
            &[("host", "evil.example:9180")],
            &[("host", "127.0.0.1.evil.example")],
            &[("host", "localhost.evil.example")],
            &[("host", "::1")],
            &[("host", "192.0.2.1:9180")],
            &[("host", "localhost:9180"), ("host", "evil.example")],
            &[("host", "localhost:9180"), ("origin", "http://evil.example")],
            &[("host", "localhost:9180"), ("origin", "null")],
            &[("host", "localhost:9180"), ("origin", "http://localhost:8080")],
        ] {
            assert_eq!(statuses(&access, &Method::GET, Version::HTTP_11, bad), (403, 403), "{bad:?}");
        }
        // An HTTP/1.0 probe may omit the host; a browser never does.
        assert_eq!(statuses(&access, &Method::GET, Version::HTTP_10, &[]), (200, 200));
    }

    #[test]
    fn on_loopback_the_name_that_was_configured_is_its_own() {
        let access = tcp("127.0.1.1:9180").named("Disks:9180");
        let asked = |host: &str| statuses(&access, &Method::GET, Version::HTTP_11, &[("host", host)]);
        for (host, status) in
            [("disks:9180", 200), ("disks", 200), ("127.0.1.1", 200), ("disks.example", 403)]
        {
            assert_eq!(asked(host), (status, status), "{host}");
        }
    }

    #[test]
    fn where_everybody_reads_the_token_changes() {
        for address in ["127.0.0.1:9180", "0.0.0.0:9180", "[::]:9180", "192.0.2.1:9180"] {
            let (without, with) = (tcp(address).read_by_everybody(), with_token(address).read_by_everybody());
            let local = &[("host", "localhost:9180")][..];
            assert_eq!((read(&without, local), change(&without, local)), (200, 403), "{address}");
            assert_eq!((read(&with, local), change(&with, local)), (200, 401), "{address}");
            let shown = &[("host", "localhost"), ("authorization", "Bearer 0123456789abcdef")][..];
            assert_eq!((read(&with, shown), change(&with, shown)), (200, 200), "{address}");
            assert!(without.nobody_reads().is_none() && without.nobody_changes().is_some(), "{address}");
        }
    }

    /// A page in a browser on that network can make its own name resolve to this machine. It cannot do that
    /// with an IP address or a name without dots.
    #[test]
    fn where_everybody_reads_beyond_loopback_a_foreign_page_learns_nothing() {
        let access = with_token("0.0.0.0:9180").read_by_everybody();
        let asked = |pairs: Headers<'_>| statuses(&access, &Method::GET, Version::HTTP_11, pairs);
        for good in [
            &[("host", "localhost:9180")][..],
            &[("host", "10.42.0.7:9180")],
            &[("host", "[fd00::7]:9180")],
            &[("host", "cairn:9180")],
            &[("host", "cairn"), ("origin", "http://cairn")],
        ] {
            assert_eq!(asked(good), (200, 200), "{good:?}");
        }
        for bad in [
            &[][..],
            &[("host", "")],
            &[("host", "evil.example:9180")],
            &[("host", "10.42.0.7.evil.example:9180")],
            &[("host", "fd00::7")],
            &[("host", "[evil.example]:9180")],
            &[("host", "cairn:9180"), ("host", "evil.example")],
            &[("host", "cairn:9180"), ("origin", "http://evil.example")],
            &[("host", "cairn:9180"), ("origin", "null")],
        ] {
            // Beyond loopback, metrics and health accept every host.
            assert_eq!(asked(bad), (403, 200), "{bad:?}");
        }
        let token = ("authorization", "Bearer 0123456789abcdef");
        assert_eq!(asked(&[("host", "disks.example"), token]), (200, 200));
    }

    /// Scrapers and probes use many names for a pod: its address, the name of a service, or whatever a proxy
    /// sends.
    #[test]
    fn beyond_loopback_metrics_and_health_have_any_host() {
        for access in [tcp("0.0.0.0:9180"), with_token("[::]:9180"), tcp("192.0.2.1:9180")] {
            for host in ["10.1.2.3:9180", "[fd00::1]:9180", "cairn.disks.svc:9180", "localhost:9180", ""] {
                let asked = statuses(&access, &Method::GET, Version::HTTP_11, &[("host", host)]);
                assert_eq!(asked.1, 200, "{host}");
            }
            assert_eq!(statuses(&access, &Method::GET, Version::HTTP_11, &[]).1, 200);
        }
    }

    #[test]
    fn a_proxy_on_loopback_that_has_the_token_may_be_called_anything() {
        let access = with_token("127.0.0.1:9180");
        let asked = |pairs: Headers<'_>| statuses(&access, &Method::GET, Version::HTTP_11, pairs);
        assert_eq!(asked(&[("host", "disks.example")]), (401, 403));
        assert_eq!(asked(&[("host", "localhost")]), (401, 200));
        let token = ("authorization", "Bearer 0123456789abcdef");
        assert_eq!(asked(&[("host", "disks.example"), token]), (200, 200));
    }

    #[test]
    fn a_token_is_needed_in_full_and_its_scheme_in_any_case() {
        let access = with_token("127.0.0.1:9180");
        for right in ["Bearer", "bearer", "BEARER", "Bearer  "] {
            let value = format!("{right} 0123456789abcdef");
            assert_eq!(read(&access, &[("authorization", &value)]), 200, "{value}");
            assert_eq!(change(&access, &[("authorization", &value)]), 200, "{value}");
        }
        for wrong in [
            "Bearer 0123456789abcdeF",
            "Bearer 0123456789abcde",
            "Bearer ",
            "Bearer",
            "Bearers 0123456789abcdef",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
            "",
        ] {
            assert_eq!(read(&access, &[("authorization", wrong)]), 401, "{wrong}");
        }
        assert_eq!((read(&access, &[]), change(&access, &[])), (401, 401));
        assert!(!format!("{access:?}").contains("0123"));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for bad in ["", "\n", "short", "0123456789 abcdef", "0123456789abcdef\n0123456789abcdef\n"] {
            assert_eq!(bad.parse::<Token>(), Err(TokenError), "{bad:?}");
        }
    }
}

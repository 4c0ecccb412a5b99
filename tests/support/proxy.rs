//! A proxy between a gateway and its S3 server. It records every request, and disturbs those that a test
//! chooses.
//!
//! It supports as much plain HTTP/1.1 as S3 clients use: one request at a time per connection, bodies by
//! length or in chunks. It forwards bytes unchanged, so that signatures stay valid. It must not know what the
//! objects mean.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use cairn::task::Tasks;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::http::{Head, Peer};
use super::process::within;

/// A request as the proxy saw it.
#[derive(Clone)]
pub(crate) struct Request {
    /// The HTTP method.
    pub(crate) method: String,
    /// The path without the bucket, and the query.
    pub(crate) key: String,
    /// Number of bytes of the request body that were forwarded.
    pub(crate) sent: u64,
    /// The status of the response, once it has arrived.
    pub(crate) status: Option<u16>,
    /// Number of bytes of the response body that were forwarded.
    pub(crate) received: u64,
}

impl Request {
    /// Returns whether it puts an object whose key contains `part`.
    pub(crate) fn puts(&self, part: &str) -> bool {
        self.method == "PUT" && self.key.contains(part)
    }

    /// Returns whether it gets an object whose key contains `part`. Listings do not count.
    pub(crate) fn gets(&self, part: &str) -> bool {
        self.method == "GET" && self.key.contains(part) && !self.key.contains("list-type=")
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, key, sent, status, received } = self;
        write!(formatter, "{method} {key} {sent} → {status:?} {received}")
    }
}

/// What the proxy does with a request.
#[derive(Clone)]
pub(crate) enum Action {
    /// Forwards it.
    Pass,
    /// Holds it until the gate opens.
    HoldRequest(Gate),
    /// Forwards it, but holds the response until the gate opens.
    HoldAnswer(Gate),
    /// Forwards it, and cuts the connection in place of the response.
    LoseAnswer,
    /// Does not forward it, and responds with this status.
    Refuse(u16),
    /// Forwards half of the body of the response, then cuts the connection.
    ShortenAnswer,
    /// Flips one bit in the middle of the body of the response.
    FlipBit,
}

/// Holds requests until a test opens it.
#[derive(Clone)]
pub(crate) struct Gate {
    reached: Arc<watch::Sender<usize>>,
    open: Arc<watch::Sender<bool>>,
}

impl Gate {
    /// Creates a closed gate.
    pub(crate) fn new() -> Self {
        Self { reached: Arc::new(watch::channel(0).0), open: Arc::new(watch::channel(false).0) }
    }

    /// Waits until a request has reached the gate.
    pub(crate) async fn reached(&self) {
        let mut reached = self.reached.subscribe();
        within("a request reaches the gate", reached.wait_for(|count| *count > 0))
            .await
            .expect("we hold the sender");
    }

    /// Lets all held and all later requests pass.
    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }

    async fn pass(&self) {
        self.reached.send_modify(|count| *count += 1);
        let mut open = self.open.subscribe();
        open.wait_for(|open| *open).await.expect("we hold the sender");
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Open,
    Stalled,
    Cut,
}

type Rule = Box<dyn Fn(&Request) -> Action + Send + Sync>;

struct Shared {
    upstream: SocketAddr,
    requests: Mutex<Vec<Request>>,
    rule: Mutex<Rule>,
    mode: watch::Sender<Mode>,
}

/// The proxy. Dropping it ends its connections.
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    tasks: Tasks,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and forwards to `port` there.
    pub(crate) async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let own = listener.local_addr().expect("a bound socket has an address").port();
        let shared = Arc::new(Shared {
            upstream: SocketAddr::from(([127, 0, 0, 1], port)),
            requests: Mutex::new(Vec::new()),
            rule: Mutex::new(Box::new(|_| Action::Pass)),
            mode: watch::channel(Mode::Open).0,
        });
        let tasks = Tasks::new();
        tasks.spawn_until_cancelled(accept(listener, Arc::clone(&shared), tasks.child()));
        Self { shared, port: own, tasks }
    }

    /// Returns the endpoint URL for clients.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Sets a rule that decides what happens to each request from now on.
    pub(crate) fn rule(&self, rule: impl Fn(&Request) -> Action + Send + Sync + 'static) {
        *self.shared.rule.lock() = Box::new(rule);
    }

    /// Forwards every request from now on.
    pub(crate) fn pass(&self) {
        self.rule(|_| Action::Pass);
    }

    /// Cuts every connection, including new ones, until [`Proxy::resume`].
    pub(crate) fn cut(&self) {
        self.shared.mode.send_replace(Mode::Cut);
    }

    /// Forwards nothing more, without cutting connections, until [`Proxy::resume`].
    pub(crate) fn stall(&self) {
        self.shared.mode.send_replace(Mode::Stalled);
    }

    /// Ends [`Proxy::cut`] and [`Proxy::stall`].
    pub(crate) fn resume(&self) {
        self.shared.mode.send_replace(Mode::Open);
    }

    /// Returns every request so far, in the order in which their heads arrived.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().clone()
    }

    /// Counts the matching requests.
    pub(crate) fn count(&self, matches: impl Fn(&Request) -> bool) -> usize {
        self.shared.requests.lock().iter().filter(|request| matches(request)).count()
    }

    /// Forgets the requests so far.
    pub(crate) fn forget(&self) {
        self.shared.requests.lock().clear();
    }

    /// Ends every connection, and waits until they are closed.
    pub(crate) async fn stop(&self) {
        self.tasks.shutdown().await;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, connections: Tasks) {
    loop {
        let (client, _) = listener.accept().await.expect("a listening socket accepts");
        let shared = Arc::clone(&shared);
        connections.spawn_until_cancelled(async move {
            let mut mode = shared.mode.subscribe();
            tokio::select! {
                // A broken connection is the business of the client and the server.
                _ended = relay(client, &shared) => {}
                _cut = mode.wait_for(|mode| *mode == Mode::Cut) => {}
            }
        });
    }
}

async fn relay(client: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let server = TcpStream::connect(shared.upstream).await?;
    let (mut client, mut server) = (Peer::new(client)?, Peer::new(server)?);
    while let Some(head) = client.head().await? {
        if !exchange(&mut client, &mut server, head, shared).await? {
            break;
        }
    }
    Ok(())
}

/// Relays one request and its response. Returns `false` if the connection cannot be used any further.
async fn exchange(
    client: &mut Peer,
    server: &mut Peer,
    head: Head,
    shared: &Shared,
) -> std::io::Result<bool> {
    let request = Request { method: head.word(0), key: head.key(), sent: 0, status: None, received: 0 };
    let action = (shared.rule.lock())(&request);
    let index = {
        let mut requests = shared.requests.lock();
        requests.push(request);
        requests.len() - 1
    };
    // After `forget`, the test is not interested in earlier requests.
    let note = |change: &dyn Fn(&mut Request)| shared.requests.lock().get_mut(index).map(change);
    shared.flowing().await;
    if let Action::HoldRequest(gate) = &action {
        gate.pass().await;
    }
    if let Action::Refuse(status) = action {
        client.discard_body(&head).await?;
        note(&|request| request.status = Some(status));
        client.write(format!("HTTP/1.1 {status} Refused\r\nContent-Length: 0\r\n\r\n").as_bytes()).await?;
        return Ok(true);
    }
    server.write(head.bytes()).await?;
    let sent = client.forward_body(&head, server, None).await?;
    note(&|request| request.sent = sent);

    let Some(answer) = server.answer(&head).await? else { return Ok(false) };
    let status = answer.word(1).parse().unwrap_or(0);
    shared.flowing().await;
    match &action {
        Action::HoldAnswer(gate) => gate.pass().await,
        Action::LoseAnswer => return Ok(false),
        _ => {}
    }
    note(&|request| request.status = Some(status));
    client.write(answer.bytes()).await?;
    let damage = match action {
        Action::ShortenAnswer => Some(super::http::Damage::Short),
        Action::FlipBit => Some(super::http::Damage::Flip),
        _ => None,
    };
    let received = server.forward_body(&answer, client, damage).await?;
    note(&|request| request.received = received);
    Ok(damage != Some(super::http::Damage::Short))
}

impl Shared {
    async fn flowing(&self) {
        let mut mode = self.mode.subscribe();
        mode.wait_for(|mode| *mode != Mode::Stalled).await.expect("we hold the sender");
    }
}

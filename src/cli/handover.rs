//! Replaces a gateway without a moment in which nobody listens: the listening sockets pass to the successor.
//!
//! Owns the protocol between the two gateways, and must not know volumes. A running gateway waits for a
//! successor at a Unix socket. The successor connects and receives the listening sockets. When it is ready,
//! it sends `go`. The gateway then stops accepting, closes its connections and its volumes, sends `released`
//! and exits. Meanwhile, new connections wait in the queues of the sockets. Invariants: a successor that
//! exits before it sends `go` changes nothing. Only a process of the same user or of root receives a socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Interest};
use tokio::net::{UnixListener, UnixStream};

use super::error::Error;
use crate::server::{ListenAddress, Listener, SharedListener};

/// Maximum number of sockets in a handover: what the kernel accepts in one message.
const SOCKETS: usize = 253;
/// Maximum total size of their names in bytes.
const NAMES_BYTES: usize = 64 << 10;

const GO: &str = "go";
const RELEASED: &str = "released";

/// Name of the socket of this module in a handover.
const OWN: &str = "handover";

/// Listening sockets with their purposes.
#[derive(Debug, Default)]
pub(super) struct Heirs(Vec<(String, SharedListener)>);

impl Heirs {
    /// Adds a socket under a name.
    pub(super) fn add(&mut self, name: &str, listener: &Listener) -> io::Result<()> {
        if self.0.len() == SOCKETS {
            return Err(io::Error::other(format!("at most {SOCKETS} sockets can be handed over")));
        }
        self.0.push((name.to_owned(), listener.share()?));
        Ok(())
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        names.join("\n") + "\n\n"
    }

    async fn send(&self, stream: &mut UnixStream) -> io::Result<()> {
        let names = self.names();
        let sockets: Vec<BorrowedFd<'_>> = self.0.iter().map(|(_, listener)| listener.socket()).collect();
        let sent = stream.async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fits = control.push(SendAncillaryMessage::ScmRights(&sockets));
            assert!(fits, "there is space for as many sockets as can be added");
            let names = [IoSlice::new(names.as_bytes())];
            Ok(sendmsg(stream.as_fd(), &names, &mut control, SendFlags::NOSIGNAL)?)
        });
        let sent = sent.await?;
        // The rest, if the kernel did not accept everything at once.
        stream.write_all(&names.as_bytes()[sent..]).await
    }
}

/// The point at which a gateway waits for its successor.
#[derive(Debug)]
pub(super) struct Point {
    accepting: UnixListener,
    heirs: Heirs,
    /// Removes the file of the socket on drop, unless the socket was handed over.
    _file: Listener,
}

impl Point {
    /// Waits at a path where no other gateway waits, or at the socket of a predecessor.
    pub(super) async fn at(
        path: &Path,
        predecessor: Option<&mut Predecessor>,
        mut heirs: Heirs,
    ) -> Result<Self, Error> {
        let address = ListenAddress::Unix(path.to_owned());
        let listener = match predecessor.and_then(|predecessor| predecessor.take(OWN)) {
            Some(listener) => listener,
            None => Listener::bind(&address).await?,
        };
        let failed = |source| Error::System { what: "cannot wait for a successor", source };
        heirs.add(OWN, &listener).map_err(failed)?;
        let socket = listener.share().map_err(failed)?.socket().try_clone_to_owned().map_err(failed)?;
        let accepting = UnixListener::from_std(socket.into()).map_err(failed)?;
        Ok(Self { accepting, heirs, _file: listener })
    }

    /// Waits until a successor is ready to take over. From then on, the sockets belong to the successor.
    pub(super) async fn successor(&mut self) -> Successor {
        loop {
            match self.offer().await {
                Ok(Some(stream)) => {
                    for (_, heir) in std::mem::take(&mut self.heirs.0) {
                        heir.give_away();
                    }
                    return Successor(stream);
                }
                Ok(None) => tracing::info!("the successor has exited; this gateway continues to serve"),
                Err(error) => tracing::warn!("the handover failed: {error}; this gateway continues to serve"),
            }
        }
    }

    /// Offers the sockets to the next process that connects. Returns its connection when it sends `go`, or
    /// `None` if it exits before.
    async fn offer(&self) -> io::Result<Option<UnixStream>> {
        let (mut stream, _) = self.accepting.accept().await?;
        let (theirs, ours) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
        if theirs != ours && theirs != 0 {
            return Err(io::Error::other(format!(
                "the request came from user {theirs}, but this gateway runs as user {ours}"
            )));
        }
        tracing::info!("a successor requested the listening sockets");
        self.heirs.send(&mut stream).await?;
        let mut lines = BufReader::new(&mut stream).lines();
        match lines.next_line().await? {
            Some(line) if line == GO => Ok(Some(stream)),
            Some(line) => Err(io::Error::other(format!("the successor sent {line:?}"))),
            None => Ok(None),
        }
    }
}

/// The connection to a successor, which has our sockets and waits for our volumes.
#[derive(Debug)]
pub(super) struct Successor(UnixStream);

impl Successor {
    /// Tells the successor that this gateway holds nothing any more.
    pub(super) async fn released(mut self) {
        if let Err(error) = self.0.write_all(format!("{RELEASED}\n").as_bytes()).await {
            tracing::warn!("cannot notify the successor that the volumes are released: {error}");
        }
    }
}

/// The connection to a gateway that this one replaces.
#[derive(Debug)]
pub(super) struct Predecessor {
    stream: BufReader<UnixStream>,
    sockets: Vec<(String, OwnedFd)>,
    /// Sockets that were taken. Their files belong to the predecessor until it has agreed to exit.
    taken: Vec<SharedListener>,
}

impl Predecessor {
    /// Connects to the gateway that waits for a successor at a path. `None` if there is none.
    pub(super) async fn at(path: &Path) -> Result<Option<Self>, Error> {
        let failed = |source| Error::System { what: "cannot take over from the running gateway", source };
        let stream = match UnixStream::connect(path).await {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
        };
        let sockets = receive(&stream).await.map_err(failed)?;
        tracing::info!(sockets = sockets.len(), "a running gateway hands over its sockets");
        Ok(Some(Self { stream: BufReader::new(stream), sockets, taken: Vec::new() }))
    }

    /// Takes the socket with this name, if there is one.
    pub(super) fn take(&mut self, name: &str) -> Option<Listener> {
        let found = self.sockets.iter().position(|(of, _)| of == name)?;
        let (_, socket) = self.sockets.swap_remove(found);
        let adopted = Listener::adopt(socket).and_then(|listener| Ok((listener.share()?, listener)));
        match adopted {
            Ok((taken, listener)) => {
                self.taken.push(taken);
                Some(listener)
            }
            Err(error) => {
                tracing::warn!("the socket for {name} cannot be taken over: {error}");
                None
            }
        }
    }

    /// Tells the predecessor to exit, and waits until it holds no volume. Returns whether it reported that
    /// before it was gone.
    pub(super) async fn succeed(mut self) -> Result<bool, Error> {
        let failed = |source| Error::System { what: "cannot take over from the running gateway", source };
        self.stream.write_all(format!("{GO}\n").as_bytes()).await.map_err(failed)?;
        self.taken.drain(..).for_each(SharedListener::claim);
        let mut line = String::new();
        // However the predecessor exits, its sockets are ours now.
        match self.stream.read_line(&mut line).await {
            Ok(_) => Ok(line.trim_end() == RELEASED),
            Err(error) => {
                tracing::debug!("waiting for the predecessor to exit failed: {error}");
                Ok(false)
            }
        }
    }
}

/// Receives the names, up to an empty line, and an equal number of sockets.
async fn receive(stream: &UnixStream) -> io::Result<Vec<(String, OwnedFd)>> {
    let (mut names, mut sockets) = (Vec::new(), Vec::new());
    while !names.ends_with(b"\n\n") {
        if names.len() > NAMES_BYTES {
            return Err(io::Error::other("the list of socket names is not terminated"));
        }
        let mut bytes = [0; 4096];
        let read = stream.async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut buffers = [IoSliceMut::new(&mut bytes)];
            let received = recvmsg(stream, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    sockets.extend(received);
                }
            }
            Ok(received.bytes)
        });
        match read.await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => names.extend_from_slice(&bytes[..read]),
        }
    }
    let names = String::from_utf8(names).map_err(io::Error::other)?;
    let names: Vec<&str> = names.trim_end_matches('\n').split('\n').collect();
    if names.len() != sockets.len() {
        return Err(io::Error::other(format!("{} names for {} sockets", names.len(), sockets.len())));
    }
    Ok(names.into_iter().map(str::to_owned).zip(sockets).collect())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    async fn serving(path: &Path) -> (Point, Listener, Listener) {
        let tcp = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let unix = Listener::bind(&ListenAddress::Unix(path.with_extension("nbd"))).await.unwrap();
        let mut heirs = Heirs::default();
        heirs.add("tcp", &tcp).unwrap();
        heirs.add("unix", &unix).unwrap();
        (Point::at(path, None, heirs).await.unwrap(), tcp, unix)
    }

    #[tokio::test]
    async fn a_successor_has_the_same_sockets_and_their_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("handover");
        assert!(Predecessor::at(&path).await.unwrap().is_none());
        let (mut point, tcp, unix) = serving(&path).await;
        let (address, file) = (tcp.address().clone(), path.with_extension("nbd"));

        let heir = async {
            let mut predecessor = Predecessor::at(&path).await.unwrap().unwrap();
            let taken = (predecessor.take("tcp").unwrap(), predecessor.take("unix").unwrap());
            assert!(predecessor.take("other").is_none());
            let mine = Point::at(&path, Some(&mut predecessor), Heirs::default()).await.unwrap();
            (taken, mine, predecessor.succeed().await.unwrap())
        };
        let end = async {
            let successor = point.successor().await;
            drop((tcp, unix));
            successor.released().await;
        };
        let (((tcp, unix), mine, released), ()) = tokio::join!(heir, end);
        assert!(released);
        assert_eq!((tcp.address(), unix.address()), (&address, &ListenAddress::Unix(file.clone())));
        drop(point);
        assert!(file.exists() && path.exists(), "the files are the successor's");
        TcpStream::connect(address.to_string()).await.unwrap();
        tcp.accept().await.unwrap();
        drop((unix, mine));
        assert!(!file.exists() && !path.exists(), "and go with it");
    }

    #[tokio::test]
    async fn a_successor_that_exits_before_it_is_ready_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("handover");
        let (mut point, tcp, unix) = serving(&path).await;
        let ask = async {
            let mut predecessor = Predecessor::at(&path).await.unwrap().unwrap();
            drop((predecessor.take("unix").unwrap(), predecessor.take(OWN).unwrap(), predecessor));
            assert!(path.exists() && path.with_extension("nbd").exists(), "the files are not its");
            Predecessor::at(&path).await.unwrap().unwrap().succeed().await.unwrap()
        };
        let serve = async {
            // The predecessor may also exit without a message.
            drop(point.successor().await);
        };
        let (released, ()) = tokio::join!(ask, serve);
        assert!(!released);
        drop((tcp, unix));
    }
}

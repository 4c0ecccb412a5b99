//! Replacing a gateway without a moment in which nobody listens: its listening sockets go to its successor.
//!
//! A gateway that serves waits for a successor at a Unix socket. The successor connects and is sent the
//! listening sockets; it makes ready and says `go`; the gateway stops to accept, hangs up, closes its
//! volumes, says `released` and ends. Connections that are made meanwhile wait in the sockets' queues. Knows
//! no volume. Invariants: a successor that ends before it said `go` changes nothing; only a process of the
//! same user, or of root, is given a socket.

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

/// Sockets that are handed over at most: what the kernel takes in one message.
const SOCKETS: usize = 253;
/// Bytes of their names at most.
const NAMES_BYTES: usize = 64 << 10;

const GO: &str = "go";
const RELEASED: &str = "released";

/// What the sockets of this module's own are called among those that are handed over.
const OWN: &str = "handover";

/// Listening sockets, each by what it is for.
#[derive(Debug, Default)]
pub(super) struct Heirs(Vec<(String, SharedListener)>);

impl Heirs {
    /// Adds one.
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
        // The rest, where the kernel did not take all at once.
        stream.write_all(&names.as_bytes()[sent..]).await
    }
}

/// Where a gateway waits for its successor.
#[derive(Debug)]
pub(super) struct Point {
    accepting: UnixListener,
    heirs: Heirs,
    /// Keeps the socket's file for as long as it is ours.
    _file: Listener,
}

impl Point {
    /// Waits at a path, where nobody does, or at what a predecessor left.
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

    /// Returns when a successor is ready to take over; from then on the sockets are its.
    pub(super) async fn successor(&mut self) -> Successor {
        loop {
            match self.offer().await {
                Ok(Some(stream)) => {
                    for (_, heir) in std::mem::take(&mut self.heirs.0) {
                        heir.give_away();
                    }
                    return Successor(stream);
                }
                Ok(None) => tracing::info!("the process that was to take over has ended; serving on"),
                Err(error) => tracing::warn!("cannot hand over: {error}; serving on"),
            }
        }
    }

    /// Offers the sockets to the next process that asks; its stream once it says `go`, none if it ends
    /// before.
    async fn offer(&self) -> io::Result<Option<UnixStream>> {
        let (mut stream, _) = self.accepting.accept().await?;
        let (theirs, ours) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
        if theirs != ours && theirs != 0 {
            return Err(io::Error::other(format!("a process of user {theirs} asked, and this is {ours}'s")));
        }
        tracing::info!("a successor asks for the listening sockets");
        self.heirs.send(&mut stream).await?;
        let mut lines = BufReader::new(&mut stream).lines();
        match lines.next_line().await? {
            Some(line) if line == GO => Ok(Some(stream)),
            Some(line) => Err(io::Error::other(format!("a successor said {line:?}"))),
            None => Ok(None),
        }
    }
}

/// Who has our sockets and waits for our volumes.
#[derive(Debug)]
pub(super) struct Successor(UnixStream);

impl Successor {
    /// Says that nothing is held any more.
    pub(super) async fn released(mut self) {
        if let Err(error) = self.0.write_all(format!("{RELEASED}\n").as_bytes()).await {
            tracing::warn!("the successor cannot be told that the volumes are released: {error}");
        }
    }
}

/// A gateway that is to be replaced by this one.
#[derive(Debug)]
pub(super) struct Predecessor {
    stream: BufReader<UnixStream>,
    sockets: Vec<(String, OwnedFd)>,
    /// Those of them that we have taken, whose files are not ours before it has agreed to end.
    taken: Vec<SharedListener>,
}

impl Predecessor {
    /// Whoever waits for a successor at a path, if anybody does.
    pub(super) async fn at(path: &Path) -> Result<Option<Self>, Error> {
        let failed = |source| Error::System { what: "cannot take over from the gateway that runs", source };
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
        tracing::info!(sockets = sockets.len(), "a gateway runs that hands its sockets over");
        Ok(Some(Self { stream: BufReader::new(stream), sockets, taken: Vec::new() }))
    }

    /// The socket of that name, if there is one.
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

    /// Has it end, and waits until it holds no volume; whether it said so before it was gone.
    pub(super) async fn succeed(mut self) -> Result<bool, Error> {
        let failed = |source| Error::System { what: "cannot take over from the gateway that runs", source };
        self.stream.write_all(format!("{GO}\n").as_bytes()).await.map_err(failed)?;
        self.taken.drain(..).for_each(SharedListener::claim);
        let mut line = String::new();
        // However it ends: its sockets are ours.
        match self.stream.read_line(&mut line).await {
            Ok(_) => Ok(line.trim_end() == RELEASED),
            Err(error) => {
                tracing::debug!("the predecessor's end: {error}");
                Ok(false)
            }
        }
    }
}

/// Receives names, up to an empty one, and as many sockets.
async fn receive(stream: &UnixStream) -> io::Result<Vec<(String, OwnedFd)>> {
    let (mut names, mut sockets) = (Vec::new(), Vec::new());
    while !names.ends_with(b"\n\n") {
        if names.len() > NAMES_BYTES {
            return Err(io::Error::other("the names of the sockets do not end"));
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
    async fn one_that_ends_before_it_is_ready_changes_nothing() {
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
            // It ends without a word, too.
            drop(point.successor().await);
        };
        let (released, ()) = tokio::join!(ask, serve);
        assert!(!released);
        drop((tcp, unix));
    }
}

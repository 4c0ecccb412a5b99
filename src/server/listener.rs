//! Where the server listens: TCP addresses and Unix sockets.
//!
//! Owns the socket files: one left behind by a dead server is replaced, one of a living server is not
//! touched, and our own is removed when its [`Listener`] is dropped. Knows no protocol.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::transport::Transport;

/// Permissions of a Unix socket that is for one user alone.
const PRIVATE: u32 = 0o600;
/// Permissions that others than its owner have.
const OTHERS: u32 = 0o077;
/// Connections that may wait to be accepted at a private socket.
const BACKLOG: i32 = 128;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenAddress {
    /// `host:port`; port 0 for any.
    Tcp(String),
    /// `unix:path`.
    Unix(PathBuf),
}

/// Why a text is no [`ListenAddress`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither HOST:PORT nor unix:PATH")]
pub struct AddressError(String);

impl FromStr for ListenAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = || AddressError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(bad()) } else { Ok(Self::Unix(PathBuf::from(path))) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(bad());
        }
        Ok(Self::Tcp(text.to_owned()))
    }
}

impl ListenAddress {
    /// Whether one user alone, and root, can connect there: a Unix socket whose file gives nobody else a
    /// permission. One without a file, or whose file cannot be looked at, is not.
    #[must_use]
    pub fn is_private(&self) -> bool {
        match self {
            Self::Tcp(_) => false,
            Self::Unix(path) => std::fs::symlink_metadata(path).is_ok_and(|found| found.mode() & OTHERS == 0),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another server answers at the socket.
    #[error("unix:{0} is in use by another process", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else stands at the path.
    #[error("unix:{0} exists and is not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("cannot listen on {address}: {source}")]
    Io {
        /// Where.
        address: ListenAddress,
        /// Why.
        source: io::Error,
    },
}

/// A socket that takes connections.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: ListenAddress,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix { listener: UnixListener, file: Option<Arc<SocketFile>> },
}

impl Listener {
    /// Listens at an address.
    pub async fn bind(address: &ListenAddress) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Io { address: address.clone(), source };
        match address {
            ListenAddress::Tcp(host_and_port) => {
                let listener = TcpListener::bind(host_and_port).await.map_err(failed)?;
                let local = listener.local_addr().map_err(failed)?;
                Ok(Self { socket: Socket::Tcp(listener), address: ListenAddress::Tcp(local.to_string()) })
            }
            ListenAddress::Unix(path) => {
                remove_stale(path).await?;
                let listener = UnixListener::bind(path).map_err(failed)?;
                let file = SocketFile::of(path).map_err(failed)?;
                let socket = Socket::Unix { listener, file: Some(Arc::new(file)) };
                Ok(Self { socket, address: address.clone() })
            }
        }
    }

    /// Listens at a Unix socket that is for this user alone: its file never has other permissions than mode
    /// 0600.
    pub async fn bind_private(path: &Path) -> Result<Self, ListenError> {
        let address = ListenAddress::Unix(path.to_path_buf());
        remove_stale(path).await?;
        let bound = bind_private(path).and_then(|(listener, file)| {
            listener.set_nonblocking(true)?;
            Ok((UnixListener::from_std(listener)?, file))
        });
        match bound {
            Ok((listener, file)) => {
                let socket = Socket::Unix { listener, file: Some(Arc::new(file)) };
                Ok(Self { socket, address })
            }
            Err(source) => Err(ListenError::Io { address, source }),
        }
    }

    /// Takes over a TCP socket that listens already, as systemd hands it over.
    pub fn from_tcp(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = ListenAddress::Tcp(listener.local_addr()?.to_string());
        Ok(Self { socket: Socket::Tcp(listener), address })
    }

    /// Takes over a Unix socket that listens already. Its file belongs to whoever made it.
    pub fn from_unix(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let path = listener.local_addr()?.as_pathname().map(Path::to_path_buf).unwrap_or_default();
        let listener = UnixListener::from_std(listener)?;
        Ok(Self { socket: Socket::Unix { listener, file: None }, address: ListenAddress::Unix(path) })
    }

    /// Takes over a socket that listens already from a server on this machine that will end; the file of a
    /// Unix socket is ours only once [`SharedListener::claim`] is called.
    pub fn adopt(socket: OwnedFd) -> io::Result<Self> {
        if rustix::net::getsockname(&socket)?.address_family() != AddressFamily::UNIX {
            return Self::from_tcp(socket.into());
        }
        let mut listener = Self::from_unix(socket.into())?;
        if let (Socket::Unix { file, .. }, ListenAddress::Unix(path)) =
            (&mut listener.socket, &listener.address)
        {
            // Without its file it serves all the same.
            *file = SocketFile::of(path).ok().map(Arc::new);
            listener.share()?.give_away();
        }
        Ok(listener)
    }

    /// The same socket once more, to be given to another process.
    pub fn share(&self) -> io::Result<SharedListener> {
        let (socket, file) = match &self.socket {
            Socket::Tcp(listener) => (listener.as_fd().try_clone_to_owned()?, None),
            Socket::Unix { listener, file } => (listener.as_fd().try_clone_to_owned()?, file.clone()),
        };
        Ok(SharedListener { socket, file, address: self.address.clone() })
    }

    /// Where it listens; for port 0, the port that was chosen.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// The next connection, and who it is from.
    pub(crate) async fn accept(&self) -> io::Result<(Transport, Peer)> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // A client that is cut off without a word is noticed, and its requests' memory given back.
                let set = stream
                    .set_nodelay(true)
                    .and(sockopt::set_socket_keepalive(&stream, true).map_err(Into::into));
                if let Err(error) = set {
                    // Of a client that has left already, say: the next is not to wait for it.
                    tracing::debug!(%peer, "the connection is served as it is: {error}");
                }
                Ok((Transport::Tcp(stream), Peer::Tcp(peer)))
            }
            Socket::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok((Transport::Unix(stream), Peer::Unix))
            }
        }
    }
}

/// A listening socket that another process may take over while a [`Listener`] still serves it.
#[derive(Debug)]
pub struct SharedListener {
    socket: OwnedFd,
    file: Option<Arc<SocketFile>>,
    address: ListenAddress,
}

impl SharedListener {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Another process has it: its file stays when we end.
    pub fn give_away(self) {
        self.mark(true);
    }

    /// It is ours: its file goes when we end.
    pub fn claim(self) {
        self.mark(false);
    }

    fn mark(self, given_away: bool) {
        if let Some(file) = &self.file {
            file.given_away.store(given_away, Ordering::Relaxed);
        }
    }
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Tcp(SocketAddr),
    Unix,
    Other,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
            Self::Other => f.write_str("stream"),
        }
    }
}

/// The file of a Unix socket that is ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
    given_away: AtomicBool,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_path_buf(),
            device_and_inode: identity(path)?,
            given_away: AtomicBool::new(false),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.given_away.load(Ordering::Relaxed)
            && identity(&self.path).is_ok_and(|found| found == self.device_and_inode)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// A socket's file is made with the permissions that the socket has, less those of the umask (Linux,
/// `unix_bind`), so that they are set before. It listens only once the file was looked at, and nobody can
/// have connected before.
fn bind_private(path: &Path) -> io::Result<(StdUnixListener, SocketFile)> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    fchmod(&socket, Mode::from_raw_mode(PRIVATE))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let file = SocketFile::of(path)?;
    let mode = std::fs::symlink_metadata(path)?.mode();
    if mode & OTHERS != 0 {
        let why = format!("the file system gave the socket the permissions {:o}", mode & 0o777);
        return Err(io::Error::other(why));
    }
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((socket.into(), file))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Removes the socket of a server that is gone. Only a socket that refuses connections counts as that.
async fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Io { address: ListenAddress::Unix(path.to_path_buf()), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket { path: path.to_path_buf() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(_) => Err(ListenError::InUse { path: path.to_path_buf() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port_or_a_path() {
        let parse = |text: &str| text.parse::<ListenAddress>();
        assert_eq!(parse("127.0.0.1:10809"), Ok(ListenAddress::Tcp("127.0.0.1:10809".to_owned())));
        assert_eq!(parse("[::1]:0"), Ok(ListenAddress::Tcp("[::1]:0".to_owned())));
        assert_eq!(parse("unix:/run/cairn.sock"), Ok(ListenAddress::Unix("/run/cairn.sock".into())));
        for bad in ["", "10809", ":10809", "localhost:nbd", "localhost:70000", "unix:"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_ours_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nbd.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind(&ListenAddress::Unix(path.clone())).await.unwrap();
        assert!(path.exists());
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_live_socket_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let address = ListenAddress::Unix(directory.path().join("nbd.sock"));
        let _first = Listener::bind(&address).await.unwrap();
        let second = Listener::bind(&address).await;
        assert!(matches!(second, Err(ListenError::InUse { .. })), "{second:?}");
    }

    #[tokio::test]
    async fn a_private_socket_is_for_its_user_alone_and_replaces_none_that_lives() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let ours = Listener::bind_private(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(ours.address().is_private());
        let (accepted, connected) = tokio::join!(ours.accept(), UnixStream::connect(&path));
        assert!(accepted.is_ok() && connected.is_ok());
        assert!(matches!(Listener::bind_private(&path).await, Err(ListenError::InUse { .. })));
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o660)).unwrap();
        assert!(!ours.address().is_private());
        drop(ours);
        assert!(!path.exists());
        assert!(!ListenAddress::Unix(path).is_private());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        let refused = Listener::bind(&ListenAddress::Unix(path.clone())).await;
        assert!(matches!(refused, Err(ListenError::NotASocket { .. })), "{refused:?}");
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[tokio::test]
    async fn a_socket_that_replaced_ours_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nbd.sock");
        let ours = Listener::bind(&ListenAddress::Unix(path.clone())).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
        drop(theirs);
    }
}

//! Listening sockets: TCP addresses and Unix sockets.
//!
//! Owns the files of Unix sockets; must not know the protocol. Invariants: a socket file that a dead server
//! left behind is replaced, the file of a running server is never touched, and our own file is removed when
//! its [`Listener`] is dropped, unless another process has taken the socket over.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::transport::Transport;

/// File mode of a Unix socket that only its owner may use.
const PRIVATE: u32 = 0o600;
/// Mode bits that grant access to anyone but the owner.
const OTHERS: u32 = 0o077;
/// Maximum number of pending connections on a private socket.
const BACKLOG: i32 = 128;
/// Maximum number of pending connections on a socket with chosen permissions; the value that tokio uses.
const PUBLIC_BACKLOG: i32 = 1024;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenAddress {
    /// A TCP address, written `host:port`. Port 0 lets the system choose a port.
    Tcp(String),
    /// A Unix socket, written `unix:path`.
    Unix(PathBuf),
}

/// The text is not a [`ListenAddress`].
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
    /// Whether only the owner of the socket, and root, can connect to this address. True for a Unix socket
    /// whose file grants no permission to group and others. False if the file does not exist or cannot be
    /// examined.
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

/// Who may connect to a Unix socket: the mode and the group of its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketPermissions {
    /// File mode, as for `chmod(2)`. If `None`, the umask decides.
    pub mode: Option<u32>,
    /// Group id. If `None`, the system chooses the group as for any new file.
    pub group: Option<u32>,
}

impl SocketPermissions {
    /// Applies these permissions to the file of an existing Unix socket. Does nothing if the file does not
    /// exist or if the address is a TCP address.
    pub fn apply(self, address: &ListenAddress) -> Result<(), ListenError> {
        let ListenAddress::Unix(path) = address else { return Ok(()) };
        match self.set(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ListenError::Io { address: address.clone(), source: error })
            }
            _ => Ok(()),
        }
    }

    /// Sets the group before the mode, so that the old group never gets the permissions meant for the new
    /// one.
    fn set(self, path: &Path) -> io::Result<()> {
        if let Some(group) = self.group {
            lchown(path, None, Some(group)).map_err(|error| {
                io::Error::new(error.kind(), format!("its file cannot have the group {group}: {error}"))
            })?;
        }
        match self.mode {
            Some(mode) => std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)),
            None => Ok(()),
        }
    }
}

/// Why the server cannot listen on an address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Another process accepts connections on this Unix socket.
    #[error("unix:{0} is in use by another process", path.display())]
    InUse {
        /// Path of the socket.
        path: PathBuf,
    },
    /// The path exists but is not a socket, so it is left alone.
    #[error("unix:{0} exists and is not a socket", path.display())]
    NotASocket {
        /// The path as configured.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot listen on {address}: {source}")]
    Io {
        /// The address to listen on.
        address: ListenAddress,
        /// The error of the system.
        source: io::Error,
    },
}

/// A listening socket, which accepts connections.
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
    /// Starts to listen on an address. A stale Unix socket is replaced.
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

    /// Starts to listen on an address. If it is a Unix socket, its file has `permissions` before the first
    /// client can connect.
    pub async fn bind_for(
        address: &ListenAddress,
        permissions: SocketPermissions,
    ) -> Result<Self, ListenError> {
        let ListenAddress::Unix(path) = address else { return Self::bind(address).await };
        if permissions == SocketPermissions::default() {
            return Self::bind(address).await;
        }
        remove_stale(path).await?;
        let bound = bind_restricted(path, permissions);
        bound.map_err(|source| ListenError::Io { address: address.clone(), source }).map(
            |(listener, file)| {
                let socket = Socket::Unix { listener, file: Some(Arc::new(file)) };
                Self { socket, address: address.clone() }
            },
        )
    }

    /// Starts to listen on a Unix socket that only the current user may use. Its file never has permissions
    /// beyond mode 0600.
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

    /// Takes over a TCP socket that is already listening, as systemd passes it.
    pub fn from_tcp(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = ListenAddress::Tcp(listener.local_addr()?.to_string());
        Ok(Self { socket: Socket::Tcp(listener), address })
    }

    /// Takes over a Unix socket that is already listening. Its file belongs to the process that created it,
    /// so dropping the listener does not remove the file.
    pub fn from_unix(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let path = listener.local_addr()?.as_pathname().map(Path::to_path_buf).unwrap_or_default();
        let listener = UnixListener::from_std(listener)?;
        Ok(Self { socket: Socket::Unix { listener, file: None }, address: ListenAddress::Unix(path) })
    }

    /// Takes over a listening socket from another server on this machine that is about to exit. The file of a
    /// Unix socket becomes ours only when [`SharedListener::claim`] is called.
    pub fn adopt(socket: OwnedFd) -> io::Result<Self> {
        if rustix::net::getsockname(&socket)?.address_family() != AddressFamily::UNIX {
            return Self::from_tcp(socket.into());
        }
        let mut listener = Self::from_unix(socket.into())?;
        if let (Socket::Unix { file, .. }, ListenAddress::Unix(path)) =
            (&mut listener.socket, &listener.address)
        {
            // Without its file the socket still accepts connections.
            *file = SocketFile::of(path).ok().map(Arc::new);
            listener.share()?.give_away();
        }
        Ok(listener)
    }

    /// Duplicates the socket, to pass it to another process.
    pub fn share(&self) -> io::Result<SharedListener> {
        let (socket, file) = match &self.socket {
            Socket::Tcp(listener) => (listener.as_fd().try_clone_to_owned()?, None),
            Socket::Unix { listener, file } => (listener.as_fd().try_clone_to_owned()?, file.clone()),
        };
        Ok(SharedListener { socket, file, address: self.address.clone() })
    }

    /// The address this listens on. If port 0 was requested, it contains the port that the system chose.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// Waits for the next connection and returns it with the client's address.
    pub(crate) async fn accept(&self) -> io::Result<(Transport, Peer)> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Keepalive detects a client that vanished without closing, so that the memory of its
                // requests is freed.
                let set = stream
                    .set_nodelay(true)
                    .and(sockopt::set_socket_keepalive(&stream, true).map_err(Into::into));
                if let Err(error) = set {
                    // The client may already have left, for example. That must not delay the next client.
                    tracing::debug!(%peer, "cannot tune the connection, serving it anyway: {error}");
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
    /// The address this listens on.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// The file descriptor to pass to the other process.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Records that another process owns the socket: dropping the [`Listener`] leaves the socket file in
    /// place.
    pub fn give_away(self) {
        self.mark(true);
    }

    /// Records that this process owns the socket: dropping the [`Listener`] removes the socket file.
    pub fn claim(self) {
        self.mark(false);
    }

    fn mark(self, given_away: bool) {
        if let Some(file) = &self.file {
            file.given_away.store(given_away, Ordering::Relaxed);
        }
    }
}

/// The client's end of a connection.
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

/// The file of a Unix socket that this process owns. Dropping it removes the file if it is still the same
/// file and the socket was not given away.
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

/// Binds a socket that only the current user may use.
///
/// Linux creates the file with the mode of the socket less the umask (`unix_bind`), so the mode is set before
/// the socket is bound. The socket starts to listen only after the mode of the file was checked, so nobody
/// can connect before that.
fn bind_private(path: &Path) -> io::Result<(StdUnixListener, SocketFile)> {
    let (socket, file) = bind_unheard(path, Some(PRIVATE))?;
    let mode = std::fs::symlink_metadata(path)?.mode();
    if mode & OTHERS != 0 {
        let why = format!("the file system gave the socket the permissions {:o}", mode & 0o777);
        return Err(io::Error::other(why));
    }
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((socket.into(), file))
}

/// Binds a socket with these permissions. The file has them before the socket listens, so nobody can connect
/// earlier.
fn bind_restricted(path: &Path, permissions: SocketPermissions) -> io::Result<(UnixListener, SocketFile)> {
    let (socket, file) = bind_unheard(path, None)?;
    permissions.set(path)?;
    rustix::net::listen(&socket, PUBLIC_BACKLOG)?;
    let listener = StdUnixListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok((UnixListener::from_std(listener)?, file))
}

/// Binds a socket that does not listen yet. If `mode` is given, the file never has permissions beyond it.
fn bind_unheard(path: &Path, mode: Option<u32>) -> io::Result<(OwnedFd, SocketFile)> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    if let Some(mode) = mode {
        fchmod(&socket, Mode::from_raw_mode(mode))?;
    }
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let file = SocketFile::of(path)?;
    Ok((socket, file))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Removes the socket file of a dead server. Only a socket that refuses connections counts as dead.
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
    async fn a_socket_has_the_permissions_that_were_asked_for_whatever_the_umask() {
        let directory = tempfile::tempdir().unwrap();
        let found = |path: &Path| std::fs::metadata(path).map(|it| (it.mode() & 0o7777, it.gid())).unwrap();
        let (_, gid) = found(directory.path());
        for mode in [0o600, 0o660, 0o666, 0o777] {
            let path = directory.path().join(format!("{mode:o}.sock"));
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            let address = ListenAddress::Unix(path.clone());
            let permissions = SocketPermissions { mode: Some(mode), group: Some(gid) };
            let ours = Listener::bind_for(&address, permissions).await.unwrap();
            assert_eq!(found(&path), (mode, gid));
            let (accepted, connected) = tokio::join!(ours.accept(), UnixStream::connect(&path));
            assert!(accepted.is_ok() && connected.is_ok());
            SocketPermissions { mode: Some(0o640), group: None }.apply(ours.address()).unwrap();
            assert_eq!(found(&path), (0o640, gid));
            drop(ours);
            assert!(!path.exists());
            SocketPermissions { mode: Some(0o640), group: None }.apply(&address).unwrap();
        }
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

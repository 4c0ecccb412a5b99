//! The admin servers of a gateway: one at the configured address, and one at the admin socket, a Unix socket
//! for the gateway's own user.
//!
//! Owns where they listen and who may do what there, and must not know what is requested. Invariants: only
//! the admin socket, another socket of mode 0600, or a client with the token can change anything. An admin
//! server that nobody asked for never prevents the gateway from serving.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Error;
use super::handover::{Heirs, Predecessor};
use super::listeners::ADMIN;
use super::runtime_directory::{self, Unusable};
use super::settings::{Options, SocketPlace};
use crate::admin::{self, Access, Admin, Gateway};
use crate::gateway::{GatewayStatus, chain};
use crate::metrics::Metrics;
use crate::server::{ListenAddress, ListenError, Listener};

/// Name of the admin socket in a handover.
const SOCKET: &str = "admin.socket";

/// Maximum number of gateways of one user that get an admin socket without a configured path.
const NUMBERS: u32 = 64;

/// Returns where a client looks for the admin socket. Without a configured path, that is the socket of the
/// first gateway.
pub(super) fn expected_at(place: &SocketPlace) -> Result<PathBuf, Unusable> {
    match place {
        SocketPlace::At(path) => Ok(path.clone()),
        SocketPlace::None | SocketPlace::Default => Ok(numbered(&runtime_directory::path()?, 1)),
    }
}

/// Returns the path of the admin socket of the gateway with this number, if none is configured.
fn numbered(directory: &Path, number: u32) -> PathBuf {
    match number {
        1 => directory.join("admin.sock"),
        number => directory.join(format!("admin-{number}.sock")),
    }
}

/// The sockets before they are served.
pub(super) struct AdminSockets {
    /// At `admin.listen`, inherited, or taken over from a predecessor.
    listen: Option<Listener>,
    /// At the path of the admin socket.
    own: Option<Listener>,
}

impl AdminSockets {
    /// Opens both sockets, or takes them over. If a socket that nobody asked for cannot be opened, the log
    /// says what does not work without it, and it is `None`.
    pub(super) async fn open(
        options: &Options,
        inherited: Option<Listener>,
        mut predecessor: Option<&mut Predecessor>,
    ) -> Result<Self, Error> {
        let given = inherited.or_else(|| predecessor.as_mut()?.take(ADMIN));
        let listen = match given {
            Some(listener) => Some(listener),
            None => bind(options).await?,
        };
        let own = match predecessor.and_then(|predecessor| predecessor.take(SOCKET)) {
            Some(listener) => Some(listener),
            None => bind_own(&options.admin_socket).await?,
        };
        Ok(Self { listen, own })
    }

    /// Adds the sockets to those that are handed over.
    pub(super) fn bequeath(&self, heirs: &mut Heirs) -> io::Result<()> {
        for (name, listener) in [(ADMIN, &self.listen), (SOCKET, &self.own)] {
            if let Some(listener) = listener {
                heirs.add(name, listener)?;
            }
        }
        Ok(())
    }

    /// Starts to serve. This happens early, so that clients can ask whether the gateway is ready.
    pub(super) fn start(
        self,
        options: &Options,
        metrics: &Metrics,
        status: &Arc<GatewayStatus>,
    ) -> AdminServers {
        let serve = |listener, access| {
            let gateway: Arc<dyn Gateway> = Arc::<GatewayStatus>::clone(status);
            Admin::start(listener, metrics.clone(), gateway, access, admin::Options::default())
        };
        let own = self.own.map(|listener| {
            tracing::info!("admin socket: {}", listener.address());
            serve(listener, Access::everything())
        });
        let listen = self.listen.map(|listener| {
            let access = access(listener.address(), options);
            say_what_is_refused(listener.address(), &access, own.is_some());
            serve(listener, access)
        });
        AdminServers { listen, own }
    }
}

/// Returns who may do what at `admin.listen`, or at the inherited socket in its place.
fn access(address: &ListenAddress, options: &Options) -> Access {
    let access = Access::at(address, options.admin_token.clone());
    let access = if options.admin_read_without_token { access.read_by_everybody() } else { access };
    match &options.admin {
        Some(ListenAddress::Tcp(configured)) => access.named(configured),
        Some(ListenAddress::Unix(_)) | None => access,
    }
}

fn say_what_is_refused(address: &ListenAddress, access: &Access, has_socket: bool) {
    if let Some(why) = access.nobody_reads() {
        tracing::warn!("the admin server at {address} serves only metrics and health: {why}");
    } else if let Some(why) = access.nobody_changes()
        && !has_socket
    {
        tracing::warn!("the admin server at {address} is read-only: {why}");
    }
}

/// The running admin servers of a gateway. Dropping them drops every connection.
#[derive(Debug)]
pub(super) struct AdminServers {
    listen: Option<Admin>,
    own: Option<Admin>,
}

impl AdminServers {
    /// Returns the address for scrapers and probes.
    pub(super) fn address(&self) -> Option<&ListenAddress> {
        self.listen.as_ref().map(Admin::address)
    }

    /// Returns the address of the admin socket, where the gateway's own user may do everything.
    pub(super) fn socket(&self) -> Option<&ListenAddress> {
        self.own.as_ref().map(Admin::address)
    }

    /// Replaces the token, from the next request on. `None` removes it.
    pub(super) fn set_access(&self, options: &Options) {
        if let Some(admin) = &self.listen {
            admin.set_access(access(admin.address(), options));
        }
    }

    /// Stops the servers and closes their connections.
    pub(super) async fn stop(self) {
        for admin in [self.listen, self.own].into_iter().flatten() {
            admin.stop().await;
        }
    }
}

/// Opens the socket at `admin.listen`. Returns `None` if that fails and nobody asked for it, for example
/// because another gateway on this machine uses the address.
async fn bind(options: &Options) -> Result<Option<Listener>, Error> {
    let bound = match &options.admin {
        None => return Ok(None),
        Some(ListenAddress::Unix(path)) => Listener::bind_private(path).await,
        Some(address) => Listener::bind(address).await,
    };
    match bound {
        Err(error) if !options.admin_required => {
            tracing::warn!("no admin server: {}", chain(&error));
            Ok(None)
        }
        bound => Ok(Some(bound?)),
    }
}

/// Opens the admin socket.
async fn bind_own(place: &SocketPlace) -> Result<Option<Listener>, Error> {
    let refused = |why: &dyn std::error::Error| {
        tracing::warn!(
            "no admin socket, so that only a token (admin.token_file) lets anybody change something over the \
             admin server: {}; admin.socket names a place for it, or none",
            chain(why)
        );
    };
    match place {
        SocketPlace::None => Ok(None),
        SocketPlace::At(path) => {
            runtime_directory::prepare_parent(path).map_err(Error::AdminSocket)?;
            Ok(Some(Listener::bind_private(path).await?))
        }
        SocketPlace::Default => {
            let directory = match runtime_directory::prepare() {
                Ok(directory) => directory,
                Err(why) => {
                    refused(&why);
                    return Ok(None);
                }
            };
            match bind_numbered(&directory).await {
                Ok(listener) => Ok(Some(listener)),
                Err(why) => {
                    refused(&why);
                    Ok(None)
                }
            }
        }
    }
}

/// Listens at the first path that no running gateway uses. A lock keeps gateways that start at the same time
/// from the same path, so that none removes the socket that another has just created.
async fn bind_numbered(directory: &Path) -> Result<Listener, ListenError> {
    let mut last = None;
    for path in (1..=NUMBERS).map(|number| numbered(directory, number)) {
        let Some(_lock) = lock(&path).map_err(|source| listen_error(&path, source))? else { continue };
        match Listener::bind_private(&path).await {
            Err(error @ ListenError::InUse { .. }) => last = Some(error),
            bound => return bound,
        }
    }
    let busy = || listen_error(directory, io::Error::other("other gateways keep starting"));
    Err(last.unwrap_or_else(busy))
}

fn listen_error(path: &Path, source: io::Error) -> ListenError {
    ListenError::Io { address: ListenAddress::Unix(path.to_path_buf()), source }
}

/// Takes the lock for starting at a path, or returns `None` if another process holds it. The file of the lock
/// stays, because a removed file could be locked twice.
fn lock(socket: &Path) -> io::Result<Option<std::fs::File>> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(socket.with_extension("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn options(variables: &[(&str, &str)]) -> Options {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        Options::of(&config::load(None, variables, []).unwrap()).unwrap()
    }

    /// A second gateway on this machine runs without an admin server, unless somebody asked for one.
    #[tokio::test]
    async fn an_admin_address_in_use_matters_only_if_it_was_requested() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut options = options(&[("CAIRN_ADMIN__LISTEN", &taken.local_addr().unwrap().to_string())]);
        assert!(options.admin_required);
        assert!(matches!(bind(&options).await, Err(Error::Listen(_))));
        options.admin_required = false;
        assert!(matches!(bind(&options).await, Ok(None)));
    }

    #[tokio::test]
    async fn each_gateway_of_a_user_has_a_socket_and_leftover_sockets_are_reused() {
        let directory = tempfile::tempdir().unwrap();
        let bound = async || bind_numbered(directory.path()).await.unwrap();
        let name = |listener: &Listener| match listener.address() {
            ListenAddress::Unix(path) => path.file_name().unwrap().to_str().unwrap().to_owned(),
            ListenAddress::Tcp(address) => panic!("{address}"),
        };
        let (first, second, third) = tokio::join!(bound(), bound(), bound());
        let mut names = [&first, &second, &third].map(name);
        names.sort();
        assert_eq!(names, ["admin-2.sock", "admin-3.sock", "admin.sock"]);
        drop((first, second, third));
        // A killed process leaves its socket file.
        drop(std::os::unix::net::UnixListener::bind(directory.path().join("admin.sock")).unwrap());
        assert_eq!(name(&bound().await), "admin.sock");
        // A gateway that is starting holds the lock but does not have its socket yet.
        let _starting = lock(&directory.path().join("admin.sock")).unwrap().unwrap();
        assert_eq!(name(&bound().await), "admin-2.sock");
    }

    #[tokio::test]
    async fn a_requested_socket_that_cannot_be_opened_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/admin.sock");
        let error = bind_own(&SocketPlace::At(path)).await.map(drop).unwrap_err();
        assert!(error.to_string().contains("admin.socket"), "{error}");
        let path = directory.path().join("a/admin.sock");
        let first = bind_own(&SocketPlace::At(path.clone())).await.unwrap().unwrap();
        assert!(first.address().is_private());
        assert!(matches!(bind_own(&SocketPlace::At(path)).await, Err(Error::Listen(_))));
        assert!(bind_own(&SocketPlace::None).await.unwrap().is_none());
    }
}

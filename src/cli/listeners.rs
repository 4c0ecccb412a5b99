//! The sources of connections: addresses to bind, sockets that the process inherited, standard input and
//! output.
//!
//! Owns the conventions of `LISTEN_FDS` (`sd_listen_fds(3)`), and must not know what is served. Invariant: an
//! inherited socket is used, or refused by name. It never stays open without being served.

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::str::FromStr;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketType, sockopt};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::net::{TcpStream, UnixStream};

use super::error::Error;
use super::handover::{Heirs, Predecessor};
use crate::server::{AddressError, Greeting, ListenAddress, Listener, SocketPermissions, Stream, Tls};

/// Name (`FileDescriptorName=`) of a socket for the admin server.
pub(super) const ADMIN: &str = "admin";
/// Prefix of the name of a socket for oldstyle clients. The name of the export follows.
const OLDSTYLE: &str = "oldstyle=";

/// An address where every client gets the same export without a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Oldstyle {
    pub(super) address: ListenAddress,
    pub(super) export: String,
}

/// Why a text is not an [`Oldstyle`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum OldstyleError {
    #[error("{0:?} is not ADDRESS=EXPORT")]
    Form(String),
    #[error(transparent)]
    Address(#[from] AddressError),
}

impl Oldstyle {
    /// Fails if oldstyle clients would have to use TLS, which they cannot: every one would be rejected.
    pub(super) fn check(all: &[Self], tls: Option<&Tls>) -> Result<(), Error> {
        let Some(tls) = tls else { return Ok(()) };
        match all.iter().find(|oldstyle| tls.needs_tls(&oldstyle.export)) {
            None => Ok(()),
            Some(Self { address, export }) => {
                Err(Error::OldstyleNeedsTls { address: address.clone(), export: export.clone() })
            }
        }
    }
}

impl FromStr for Oldstyle {
    type Err = OldstyleError;

    fn from_str(text: &str) -> Result<Self, OldstyleError> {
        let form = || OldstyleError::Form(text.to_owned());
        let (address, export) = text.rsplit_once('=').ok_or_else(form)?;
        if export.is_empty() {
            return Err(form());
        }
        Ok(Self { address: address.parse()?, export: export.to_owned() })
    }
}

/// Where to listen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) listen: Vec<ListenAddress>,
    /// Whether somebody asked for these addresses. Inherited sockets then add to them, and otherwise replace
    /// them.
    pub(super) listen_given: bool,
    pub(super) oldstyle: Vec<Oldstyle>,
    /// The permissions of all Unix sockets in this plan.
    pub(super) permissions: SocketPermissions,
}

/// The sockets and the connection that the process inherited.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    /// Listening sockets with their names.
    listening: Vec<(String, OwnedFd)>,
    /// One connection, or standard input and output.
    stream: Option<InheritedStream>,
}

#[derive(Debug)]
enum InheritedStream {
    Socket(OwnedFd),
    Standard,
}

impl Inherited {
    /// Takes the sockets of `LISTEN_FDS`, and with `stdio` the connection on standard input and output. Call
    /// it once, before anything else opens a file or starts a thread.
    pub(super) fn take(stdio: bool) -> Result<Self, Error> {
        let mut inherited = Self::default();
        if stdio {
            inherited.stream = Some(InheritedStream::Standard);
        }
        let found = sd_listen_fds::get().map_err(|error| refused(&error))?;
        for (number, (name, socket)) in (3..).zip(found) {
            let name = name.unwrap_or_default();
            let of = |what: &dyn fmt::Display| {
                refused(&format_args!("file descriptor {number} ({name:?}): {what}"))
            };
            inherited.add(name.clone(), socket.into_std()).map_err(|why| of(&why))?;
        }
        Ok(inherited)
    }

    /// Returns whether nothing was inherited.
    pub(super) fn is_empty(&self) -> bool {
        self.listening.is_empty() && self.stream.is_none()
    }

    /// Returns whether standard output belongs to a client, so that only NBD may be written there.
    pub(super) fn is_stdio(&self) -> bool {
        matches!(self.stream, Some(InheritedStream::Standard))
    }

    fn add(&mut self, name: String, socket: OwnedFd) -> Result<(), String> {
        let text = |error: rustix::io::Errno| error.to_string();
        fcntl_setfd(&socket, FdFlags::CLOEXEC).map_err(text)?;
        if sockopt::socket_type(&socket).map_err(text)? != SocketType::STREAM {
            return Err("not a stream socket".to_owned());
        }
        if sockopt::socket_acceptconn(&socket).map_err(text)? {
            self.listening.push((name, socket));
        } else if self.stream.is_none() {
            self.stream = Some(InheritedStream::Socket(socket));
        } else {
            return Err("this is a second connection, and only one can be served".to_owned());
        }
        Ok(())
    }
}

fn refused(why: &dyn fmt::Display) -> Error {
    Error::Inherited(why.to_string())
}

/// A socket for NBD clients.
pub(super) struct Door {
    /// Name of the socket in a handover: the requested address, or the actual one.
    name: String,
    pub(super) listener: Listener,
    pub(super) greeting: Greeting,
}

/// All sources of connections.
pub(super) struct Listeners {
    pub(super) nbd: Vec<Door>,
    pub(super) admin: Option<Listener>,
    /// An existing connection. When it ends, the process exits.
    pub(super) stream: Option<Box<dyn Stream>>,
    /// Whether the sockets stay open when this process exits, because somebody else holds them, too.
    pub(super) inherited: bool,
}

impl Listeners {
    /// Opens all planned sockets, or takes them over from a predecessor. An inherited socket at a planned
    /// address replaces it. Other inherited sockets add to the planned addresses if somebody asked for those,
    /// and otherwise replace them.
    pub(super) async fn open(
        plan: &Plan,
        inherited: Inherited,
        mut predecessor: Option<&mut Predecessor>,
    ) -> Result<Self, Error> {
        let default_is_wanted = inherited.is_empty();
        let Inherited { listening, stream } = inherited;
        let stream = stream.map(InheritedStream::open).transpose().map_err(|error| refused(&error))?;
        let mut opened = Self { nbd: Vec::new(), admin: None, stream, inherited: !listening.is_empty() };
        for (name, socket) in listening {
            let listener = listener(socket).map_err(|error| refused(&error))?;
            let planned = plan.oldstyle.iter().find(|planned| planned.address == *listener.address());
            if name == ADMIN {
                opened.admin = Some(listener);
            } else if let Some(Oldstyle { export, .. }) = planned {
                opened.add(listener, Greeting::Oldstyle { export: export.clone() });
            } else if let Some(export) = name.strip_prefix(OLDSTYLE) {
                opened.add(listener, Greeting::Oldstyle { export: export.to_owned() });
            } else {
                opened.add(listener, Greeting::Newstyle);
            }
        }
        if plan.listen_given || default_is_wanted {
            for address in &plan.listen {
                let predecessor = predecessor.as_deref_mut();
                opened.bind(address, Greeting::Newstyle, plan.permissions, predecessor).await?;
            }
        }
        for Oldstyle { address, export } in &plan.oldstyle {
            let greeting = Greeting::Oldstyle { export: export.clone() };
            opened.bind(address, greeting, plan.permissions, predecessor.as_deref_mut()).await?;
        }
        Ok(opened)
    }

    fn add(&mut self, listener: Listener, greeting: Greeting) {
        let name = listener.address().to_string();
        self.nbd.push(Door { name, listener, greeting });
    }

    async fn bind(
        &mut self,
        address: &ListenAddress,
        greeting: Greeting,
        permissions: SocketPermissions,
        predecessor: Option<&mut Predecessor>,
    ) -> Result<(), Error> {
        if self.nbd.iter().any(|door| door.listener.address() == address) {
            return Ok(());
        }
        let name = address.to_string();
        let listener = match predecessor.and_then(|predecessor| predecessor.take(&name)) {
            Some(listener) => {
                permissions.apply(listener.address())?;
                listener
            }
            None => Listener::bind_for(address, permissions).await?,
        };
        self.nbd.push(Door { name, listener, greeting });
        Ok(())
    }

    /// Returns the addresses for oldstyle clients with their exports.
    pub(super) fn oldstyle(&self) -> Vec<Oldstyle> {
        let doors = self.nbd.iter().filter_map(|door| match &door.greeting {
            Greeting::Oldstyle { export } => Some((door, export)),
            Greeting::Newstyle => None,
        });
        let of = |(door, export): (&Door, &String)| Oldstyle {
            address: door.listener.address().clone(),
            export: export.clone(),
        };
        doors.map(of).collect()
    }

    /// Returns all sockets again, to be handed over.
    pub(super) fn heirs(&self) -> io::Result<Heirs> {
        let mut heirs = Heirs::default();
        for door in &self.nbd {
            heirs.add(&door.name, &door.listener)?;
        }
        Ok(heirs)
    }
}

fn listener(socket: OwnedFd) -> std::io::Result<Listener> {
    match sockopt::socket_domain(&socket)? {
        AddressFamily::UNIX => Listener::from_unix(socket.into()),
        _ => Listener::from_tcp(socket.into()),
    }
}

impl InheritedStream {
    fn open(self) -> std::io::Result<Box<dyn Stream>> {
        match self {
            Self::Socket(socket) => connection(socket),
            Self::Standard => {
                let input = std::io::stdin().as_fd().try_clone_to_owned()?;
                // A socket serves both directions. Otherwise this is one of two pipes.
                match sockopt::socket_type(&input) {
                    Ok(_) => connection(input),
                    Err(_) => {
                        let output = std::io::stdout().as_fd().try_clone_to_owned()?;
                        let (input, output) =
                            (Receiver::from_owned_fd(input)?, Sender::from_owned_fd(output)?);
                        Ok(Box::new(tokio::io::join(input, output)))
                    }
                }
            }
        }
    }
}

fn connection(socket: OwnedFd) -> std::io::Result<Box<dyn Stream>> {
    if sockopt::socket_domain(&socket)? == AddressFamily::UNIX {
        let stream = std::os::unix::net::UnixStream::from(socket);
        stream.set_nonblocking(true)?;
        return Ok(Box::new(UnixStream::from_std(stream)?));
    }
    let stream = std::net::TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(Box::new(TcpStream::from_std(stream)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::TlsOptions;

    fn tcp() -> (String, OwnedFd) {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        (socket.local_addr().unwrap().to_string(), socket.into())
    }

    fn plan(listen: &[&str], listen_given: bool, oldstyle: &[&str]) -> Plan {
        Plan {
            listen: listen.iter().map(|text| text.parse().unwrap()).collect(),
            listen_given,
            oldstyle: oldstyle.iter().map(|text| text.parse().unwrap()).collect(),
            permissions: SocketPermissions::default(),
        }
    }

    async fn greetings(plan: &Plan, sockets: Vec<(&str, OwnedFd)>) -> Vec<(String, Greeting)> {
        let mut inherited = Inherited::default();
        for (name, socket) in sockets {
            inherited.add(name.to_owned(), socket).unwrap();
        }
        let opened = Listeners::open(plan, inherited, None).await.unwrap();
        let doors = opened.nbd.iter();
        doors.map(|door| (door.listener.address().to_string(), door.greeting.clone())).collect()
    }

    fn oldstyle(export: &str) -> Greeting {
        Greeting::Oldstyle { export: export.to_owned() }
    }

    #[test]
    fn an_oldstyle_address_names_its_export() {
        let parsed: Oldstyle = "127.0.0.1:10810=disk".parse().unwrap();
        assert_eq!(
            (parsed.address.to_string().as_str(), parsed.export.as_str()),
            ("127.0.0.1:10810", "disk")
        );
        let parsed: Oldstyle = "unix:/a=b=disk".parse().unwrap();
        assert_eq!(parsed.address, ListenAddress::Unix("/a=b".into()));
        for bad in ["", "127.0.0.1:10810", "127.0.0.1:10810=", "=disk", "nowhere=disk"] {
            assert!(bad.parse::<Oldstyle>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn inherited_sockets_replace_the_default_and_add_to_requested_addresses() {
        let (address, socket) = tcp();
        let found = greetings(&plan(&["127.0.0.1:0"], false, &[]), vec![("cairn.socket", socket)]).await;
        assert_eq!(found, [(address, Greeting::Newstyle)]);
        let (address, socket) = tcp();
        let found = greetings(&plan(&["127.0.0.1:0"], true, &[]), vec![("", socket)]).await;
        assert_eq!((found.len(), &found[0].0), (2, &address));
    }

    #[tokio::test]
    async fn an_inherited_socket_replaces_its_address() {
        let ((address, socket), (old_address, old_socket)) = (tcp(), tcp());
        let plan = plan(&[&address], true, &[&format!("{old_address}=disk")]);
        let found = greetings(&plan, vec![("", socket), ("", old_socket)]).await;
        assert_eq!(found, [(address, Greeting::Newstyle), (old_address, oldstyle("disk"))]);
    }

    #[tokio::test]
    async fn names_determine_what_sockets_are_for() {
        let ((_, admin), (old_address, old)) = (tcp(), tcp());
        let mut inherited = Inherited::default();
        inherited.add("admin".to_owned(), admin).unwrap();
        inherited.add("oldstyle=disk".to_owned(), old).unwrap();
        let opened = Listeners::open(&Plan::default(), inherited, None).await.unwrap();
        assert!(opened.inherited && opened.admin.is_some() && opened.stream.is_none());
        let [Door { listener, greeting, .. }] = &opened.nbd[..] else { panic!("one listener") };
        assert_eq!((listener.address().to_string(), greeting), (old_address, &oldstyle("disk")));
    }

    /// No setting mentions an inherited socket, so only this check finds it.
    #[tokio::test]
    async fn oldstyle_clients_are_not_served_where_they_would_need_tls() {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pair.cert.pem() + &pair.signing_key.serialize_pem()).unwrap();
        let path = file.path().to_path_buf();
        let tls = |required, export: Option<&str>| {
            let subjects = export.map(|export| (export.to_owned(), ["CN=vm".to_owned()].into()));
            Tls::load(&TlsOptions {
                required,
                certificate: path.clone(),
                key: path.clone(),
                client_authorities: Some(path.clone()),
                subjects: subjects.into_iter().collect(),
            })
        };
        let mut inherited = Inherited::default();
        inherited.add("oldstyle=disk".to_owned(), tcp().1).unwrap();
        let opened = Listeners::open(&Plan::default(), inherited, None).await.unwrap();
        let oldstyle = opened.oldstyle();
        for (tls, served) in [
            (None, true),
            (Some(tls(false, None).unwrap()), true),
            (Some(tls(false, Some("other")).unwrap()), true),
            (Some(tls(false, Some("disk")).unwrap()), false),
            (Some(tls(true, None).unwrap()), false),
        ] {
            let checked = Oldstyle::check(&oldstyle, tls.as_ref());
            assert_eq!(checked.is_ok(), served, "{tls:?}: {checked:?}");
            assert!(Oldstyle::check(&[], tls.as_ref()).is_ok());
        }
    }

    #[tokio::test]
    async fn sockets_other_than_streams_are_refused() {
        let mut inherited = Inherited::default();
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(inherited.add(String::new(), datagrams.into()).unwrap_err().contains("stream"));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(inherited.add(String::new(), file.into()).is_err());
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        inherited.add(String::new(), one.into()).unwrap();
        assert!(inherited.add(String::new(), other.into()).unwrap_err().contains("second"));
        assert!(Listeners::open(&Plan::default(), inherited, None).await.unwrap().stream.is_some());
    }
}

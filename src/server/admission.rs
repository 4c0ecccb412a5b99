//! Limits on the number of connections: in total, per client address, and those reserved for Unix sockets.
//!
//! Must not know the protocol. Invariants: the number of open connections never exceeds the maximum; TCP
//! connections never use the places reserved for Unix sockets; nothing is remembered about an address once
//! its last connection has closed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

use super::listener::Peer;
use super::options::Options;

/// Counts the open connections of a server. Clones share the count.
#[derive(Clone, Debug)]
pub(crate) struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    maximum: usize,
    maximum_of_tcp: usize,
    maximum_of_address: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    tcp: usize,
    by_address: BTreeMap<IpAddr, usize>,
}

/// The limit that keeps a connection from being accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// This many connections are open, which is the maximum.
    All(usize),
    /// This many TCP connections are open. The remaining places are reserved for Unix sockets.
    Tcp(usize),
    /// This many connections are open from the same address.
    Address(usize),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(open) => write!(f, "{open} connections are already open"),
            Self::Tcp(open) => write!(
                f,
                "{open} TCP connections are already open, and the rest is reserved for Unix sockets"
            ),
            Self::Address(open) => write!(f, "{open} connections from this address are already open"),
        }
    }
}

impl Admission {
    pub(crate) fn new(options: &Options) -> Self {
        let maximum = options.maximum_connections;
        Self(Arc::new(Inner {
            maximum,
            maximum_of_tcp: maximum - options.reserved_connections.min(maximum / 2),
            maximum_of_address: options.connections_per_address,
            open: Mutex::default(),
        }))
    }

    /// Admits a connection if the limits allow it. It counts as open until the returned [`Place`] is dropped.
    pub(crate) fn admit(&self, peer: Peer) -> Result<Place, Full> {
        let Inner { maximum, maximum_of_tcp, maximum_of_address, open } = &*self.0;
        let mut open = open.lock();
        if open.all >= *maximum {
            return Err(Full::All(open.all));
        }
        let address = match peer {
            Peer::Tcp(peer) => Some(counted_as(peer.ip())),
            Peer::Unix | Peer::Other => None,
        };
        if let Some(address) = address {
            if open.tcp >= *maximum_of_tcp {
                return Err(Full::Tcp(open.tcp));
            }
            let of_address = open.by_address.get(&address).copied().unwrap_or(0);
            if of_address >= *maximum_of_address {
                return Err(Full::Address(of_address));
            }
            open.tcp += 1;
            open.by_address.insert(address, of_address + 1);
        }
        open.all += 1;
        Ok(Place { address, of: self.clone() })
    }

    /// Returns how many more connections the server can accept.
    pub(crate) fn free(&self) -> usize {
        self.0.maximum - self.0.open.lock().all
    }
}

/// Returns the address that a client is counted under. A host usually owns the whole /64 network of its IPv6
/// address, so all addresses of that network count as one. An IPv4-mapped address counts as its IPv4 address.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// The place of one open connection. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    address: Option<IpAddr>,
    of: Admission,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.of.0.open.lock();
        open.all -= 1;
        let Some(address) = self.address else { return };
        open.tcp -= 1;
        match open.by_address.get_mut(&address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(open.by_address.remove(&address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(address: &str) -> Peer {
        Peer::Tcp(address.parse().unwrap())
    }

    fn admission(maximum_connections: usize, connections_per_address: usize) -> Admission {
        Admission::new(&Options {
            maximum_connections,
            reserved_connections: 4,
            connections_per_address,
            ..Options::default()
        })
    }

    #[test]
    fn tcp_takes_nothing_of_what_is_kept_for_unix_sockets() {
        let admission = admission(10, 100);
        let mut places: Vec<_> = (0..6).map(|_| admission.admit(tcp("127.0.0.1:1")).unwrap()).collect();
        assert_eq!(admission.admit(tcp("127.0.0.2:1")).unwrap_err(), Full::Tcp(6));
        places.extend((0..4).map(|_| admission.admit(Peer::Unix).unwrap()));
        assert_eq!(admission.admit(Peer::Other).unwrap_err(), Full::All(10));
        assert_eq!(admission.free(), 0);
        drop(places.swap_remove(0));
        drop(admission.admit(tcp("127.0.0.2:1")).unwrap());
        drop(places);
        assert_eq!(admission.free(), 10);
        // Unix sockets may use all places, not only the reserved ones.
        let local: Vec<_> = (0..10).map(|_| admission.admit(Peer::Unix).unwrap()).collect();
        assert_eq!(admission.admit(tcp("127.0.0.1:1")).unwrap_err(), Full::All(10));
        drop(local);
    }

    #[test]
    fn one_address_takes_nothing_of_what_others_need() {
        let admission = admission(100, 2);
        for (address, others) in [
            ("10.0.0.1:1", ["10.0.0.1:2", "[::ffff:10.0.0.1]:3"]),
            ("[2001:db8:0:1::1]:1", ["[2001:db8:0:1::2]:1", "[2001:db8:0:1:ffff::]:1"]),
        ] {
            let _first = admission.admit(tcp(address)).unwrap();
            let second = admission.admit(tcp(others[0])).unwrap();
            assert_eq!(admission.admit(tcp(others[1])).unwrap_err(), Full::Address(2));
            let _another = (admission.admit(tcp("10.0.0.2:1")), admission.admit(tcp("[2001:db8:0:2::1]:1")));
            assert!(_another.0.is_ok() && _another.1.is_ok());
            drop(second);
            assert!(admission.admit(tcp(others[1])).is_ok());
        }
        assert!(admission.0.open.lock().by_address.is_empty(), "nothing is remembered");
    }

    #[test]
    fn a_server_of_one_connection_takes_it_from_anybody() {
        let admission = admission(1, 100);
        assert!(admission.admit(tcp("127.0.0.1:1")).is_ok());
    }
}

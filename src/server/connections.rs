//! The list of open connections, for operators.
//!
//! Must not know the protocol. Invariant: a connection is in the list exactly as long as its [`Seat`] exists.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// An open connection, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Number of the connection, as in the log.
    pub id: u64,
    /// Address of the client, as in the log.
    pub peer: String,
    /// Name of the export; `None` until the client has chosen one.
    pub export: Option<String>,
}

/// The open connections of a server. Clones share the list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connections(Arc<Mutex<BTreeMap<u64, Connection>>>);

impl Connections {
    /// Adds a connection to the list. Dropping the returned [`Seat`] removes it.
    pub(super) fn seat(&self, id: u64, peer: String) -> Seat {
        self.0.lock().insert(id, Connection { id, peer, export: None });
        Seat { id, all: self.clone() }
    }

    /// Returns all open connections in the order in which they were accepted.
    pub(crate) fn list(&self) -> Vec<Connection> {
        self.0.lock().values().cloned().collect()
    }
}

/// The entry of one connection in the list.
#[derive(Debug)]
pub(crate) struct Seat {
    id: u64,
    all: Connections,
}

impl Seat {
    /// Records the export that the client has chosen.
    pub(crate) fn uses(&self, export: &str) {
        if let Some(connection) = self.all.0.lock().get_mut(&self.id) {
            connection.export = Some(export.to_owned());
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.all.0.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_listed_while_its_seat_lives() {
        let all = Connections::default();
        let (first, second) = (all.seat(1, "a".to_owned()), all.seat(2, "b".to_owned()));
        second.uses("disk");
        let shown: Vec<_> = all.list().into_iter().map(|c| (c.id, c.peer, c.export)).collect();
        assert_eq!(shown, [(1, "a".to_owned(), None), (2, "b".to_owned(), Some("disk".to_owned()))]);
        drop(first);
        assert_eq!(all.list().iter().map(|c| c.id).collect::<Vec<_>>(), [2]);
    }
}

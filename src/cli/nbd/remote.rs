//! An export of another server as an export of ours, over one or several connections.
//!
//! Owns the connections, and must not know who uses the export. Invariant: it only uses several connections
//! if the server reports that a FLUSH on one of them covers all.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::identity::Identity;
use crate::cli::error::NbdError;
use crate::client::{self, Client, Options, Uri};
use crate::effect::{Durability, ZeroSpeed, Zeroing};
use crate::protocol::{AllocationFlags, Error, TransmissionFlags};
use crate::server::{Allocation, Export, ExportDescription, ExportError, Segment};

/// An export of another server.
#[derive(Debug)]
pub(super) struct RemoteExport {
    /// The connections. There is at least one.
    clients: Vec<Client>,
    next: AtomicUsize,
    identity: Identity,
}

/// How to connect to servers.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Connecting {
    pub(in crate::cli) options: Options,
    /// Number of connections to a server that allows several.
    pub(in crate::cli) connections: u16,
}

impl RemoteExport {
    /// Connects as often as requested and allowed.
    pub(super) async fn connect(uri: &Uri, how: &Connecting) -> Result<Self, NbdError> {
        let failed = |source| NbdError::Client { server: uri.to_string(), source };
        let first = Client::connect(uri, &how.options).await.map_err(failed)?;
        let (name, description) = (first.export().name.as_str(), first.export().description.as_str());
        let identity = Identity::of_export(&uri.address, first.peer(), name, description);
        let several = first.flags().contains(TransmissionFlags::CAN_MULTI_CONN);
        let mut this = Self { clients: vec![first], next: AtomicUsize::new(0), identity };
        for _ in 1..if several { how.connections } else { 1 } {
            match Client::connect(uri, &how.options).await {
                Ok(client) => this.clients.push(client),
                Err(error) => {
                    this.disconnect().await;
                    return Err(failed(error));
                }
            }
        }
        Ok(this)
    }

    /// Returns which bytes the export consists of, as far as that can be determined.
    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Ends the sessions with the server.
    pub(super) async fn disconnect(self) {
        futures::future::join_all(self.clients.into_iter().map(Client::disconnect)).await;
    }

    /// Returns one of the connections, in rotation.
    fn client(&self) -> &Client {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        &self.clients[turn % self.clients.len()]
    }
}

fn failed(error: client::Error) -> ExportError {
    let value = match &error {
        // An error value that the protocol does not define must not be passed on.
        client::Error::Command { error: Error::Unknown(_), .. } => Error::Io,
        client::Error::Command { error, .. } => *error,
        client::Error::NotAllowed(_) => Error::Inval,
        _ => Error::Io,
    };
    ExportError::new(value, error.to_string())
}

#[async_trait]
impl Export for RemoteExport {
    fn description(&self) -> ExportDescription {
        use TransmissionFlags as Flags;
        let first = &self.clients[0];
        let (export, block_size) = (first.export(), first.export().block_size);
        // Features that depend on the headers and contexts are negotiated by each connection itself.
        let flags = export.disk.flags.difference(Flags::SEND_DF | Flags::BLOCK_STATUS_PAYLOAD);
        ExportDescription {
            name: export.name.as_str().to_owned(),
            description: export.description.as_str().to_owned(),
            size_bytes: first.size_bytes(),
            flags,
            minimum_block_bytes: block_size.minimum,
            preferred_block_bytes: block_size.preferred,
            maximum_block_bytes: first.maximum_payload_bytes(),
        }
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Segment>, ExportError> {
        let segments = self.client().read_segments(offset, length).await.map_err(failed)?;
        let convert = |segment| match segment {
            client::Segment::Data(data) => Segment::Data(data),
            client::Segment::Hole(length) => {
                Segment::Zero(u32::try_from(length).expect("a part of a READ of 32 bits"))
            }
        };
        Ok(segments.into_iter().map(convert).collect())
    }

    async fn write(&self, offset: u64, data: Bytes, durability: Durability) -> Result<(), ExportError> {
        self.client().write(offset, data, durability).await.map_err(failed)
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.client().flush().await.map_err(failed)
    }

    async fn trim(&self, offset: u64, length: u64, durability: Durability) -> Result<(), ExportError> {
        let client = self.client();
        for (at, piece) in pieces(offset, length, client.maximum_effect_bytes()) {
            client.trim(at, piece, durability).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        zeroing: Zeroing,
        speed: ZeroSpeed,
        durability: Durability,
    ) -> Result<(), ExportError> {
        let client = self.client();
        for (at, piece) in pieces(offset, length, client.maximum_effect_bytes()) {
            client.write_zeroes(at, piece, zeroing, speed, durability).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        let client = self.client();
        for (at, piece) in pieces(offset, length, client.maximum_effect_bytes()) {
            client.cache(at, piece).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn block_status(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Vec<Allocation>, ExportError> {
        let client = self.client();
        if client.contexts().is_empty() {
            // The server does not report allocation, so the whole range may be data.
            return Ok(vec![Allocation { length_bytes: length, hole: false, zero: false }]);
        }
        let asked = length.min(client.maximum_effect_bytes());
        let extents = client.allocation(offset, asked).await.map_err(failed)?;
        let mut left = length;
        let mut told: Vec<Allocation> = Vec::new();
        for extent in extents {
            let state = extent.allocation();
            let (hole, zero) = (state.contains(AllocationFlags::HOLE), state.contains(AllocationFlags::ZERO));
            // The last extent may extend beyond the requested range.
            let length_bytes = extent.length.min(left);
            left -= length_bytes;
            let full = told.len() == limit;
            match told.last_mut() {
                _ if length_bytes == 0 => break,
                Some(last) if (last.hole, last.zero) == (hole, zero) => last.length_bytes += length_bytes,
                _ if full => break,
                _ => told.push(Allocation { length_bytes, hole, zero }),
            }
        }
        Ok(told)
    }
}

/// Splits a range into pieces of at most `maximum` bytes.
fn pieces(offset: u64, length: u64, maximum: u64) -> impl Iterator<Item = (u64, u64)> {
    let starts = (0..length.div_ceil(maximum)).map(move |n| n * maximum);
    starts.map(move |start| (offset + start, maximum.min(length - start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_the_protocol_are_passed_on() {
        let answered = |error| client::Error::Command { error, message: String::new() };
        for (error, expected) in [
            (answered(Error::NoSpc), Error::NoSpc),
            (answered(Error::Perm), Error::Perm),
            (answered(Error::Unknown(121)), Error::Io),
            (client::Error::Broken(client::Broken::ByServer), Error::Io),
        ] {
            assert_eq!(failed(error).error, expected);
        }
    }

    #[test]
    fn long_ranges_are_split() {
        assert_eq!(pieces(5, 10, 4).collect::<Vec<_>>(), [(5, 4), (9, 4), (13, 2)]);
        assert_eq!(pieces(5, 4, 4).collect::<Vec<_>>(), [(5, 4)]);
        assert_eq!(pieces(5, 0, 4).count(), 0);
    }
}

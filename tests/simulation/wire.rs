//! The way of commands to the volume: straight, or through the NBD server over a stream in memory.
//!
//! On the wire, client and server are the released code; only the stream between them is simulated. Errors of
//! the volume are judged where the server receives them, since a client learns little more than EIO.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use cairn::client;
use cairn::effect::{Durability, ZeroSpeed, Zeroing};
use cairn::protocol::flags::AllocationFlags;
use cairn::protocol::{BlockDescriptor, Error as Value, TransmissionFlags};
use cairn::server::{
    Allocation, Export, ExportDescription, ExportError, Exports, Greeting, ListEntry, OpenError, Options,
    Segment, Server,
};
use cairn::task::Tasks;
use cairn::volume::read::concat;
use cairn::volume::{self, Status, Volume};

use super::plan::Wire;
use super::world::{Process, World};

/// Capacity in bytes of the stream between client and server.
const STREAM_BYTES: usize = 64 << 10;
/// The export's name.
const NAME: &str = "disk";

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// An error of the volume.
    Volume(volume::Error),
    /// An error of the connection or the protocol.
    Wire(client::Error),
}

/// An extent of an allocation: bytes, and whether it is said to be zeros.
pub(super) struct Extent {
    pub(super) length: u64,
    pub(super) zero: bool,
}

/// How commands reach the volume.
#[derive(Clone)]
pub(super) enum Way {
    /// By direct calls.
    Straight(Arc<Volume>),
    /// Over a connection.
    Wire(Arc<client::Client>, Arc<Volume>),
}

impl Way {
    /// The volume at its end.
    pub(super) fn volume(&self) -> &Arc<Volume> {
        match self {
            Self::Straight(volume) | Self::Wire(_, volume) => volume,
        }
    }

    /// Whether the volume has stopped.
    pub(super) fn is_stopped(&self) -> bool {
        matches!(self.volume().status(), Status::Stopped(_))
    }

    pub(super) async fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Straight(volume) => {
                let segments = volume.read(offset, length).await.map_err(Failure::Volume)?;
                Ok(concat(&segments))
            }
            Self::Wire(client, _) => {
                let length = u32::try_from(length).expect("reads are short");
                client.read(offset, length).await.map(Vec::from).map_err(Failure::Wire)
            }
        }
    }

    pub(super) async fn write(
        &self,
        offset: u64,
        data: Bytes,
        durability: Durability,
    ) -> Result<(), Failure> {
        match self {
            Self::Straight(volume) => volume.write(offset, data, durability).await.map_err(Failure::Volume),
            Self::Wire(client, _) => client.write(offset, data, durability).await.map_err(Failure::Wire),
        }
    }

    pub(super) async fn zero(
        &self,
        offset: u64,
        length: u64,
        zeroing: Zeroing,
        durability: Durability,
    ) -> Result<(), Failure> {
        match self {
            Self::Straight(volume) => {
                volume.zero(offset, length, zeroing, durability).await.map_err(Failure::Volume)
            }
            Self::Wire(client, _) if zeroing == Zeroing::Deallocate => {
                client.trim(offset, length, durability).await.map_err(Failure::Wire)
            }
            Self::Wire(client, _) => client
                .write_zeroes(offset, length, zeroing, ZeroSpeed::Any, durability)
                .await
                .map_err(Failure::Wire),
        }
    }

    pub(super) async fn flush(&self) -> Result<(), Failure> {
        match self {
            Self::Straight(volume) => volume.flush().await.map_err(Failure::Volume),
            Self::Wire(client, _) => client.flush().await.map_err(Failure::Wire),
        }
    }

    pub(super) async fn prefetch(&self, offset: u64, length: u64) -> Result<(), Failure> {
        match self {
            Self::Straight(volume) => volume.prefetch(offset, length).await.map_err(Failure::Volume),
            Self::Wire(client, _) => client.cache(offset, length).await.map_err(Failure::Wire),
        }
    }

    pub(super) async fn allocation(&self, offset: u64, length: u64) -> Result<Vec<Extent>, Failure> {
        match self {
            Self::Straight(volume) => {
                let extents = volume.allocation(offset, length, 32).await.map_err(Failure::Volume)?;
                Ok(extents.iter().map(|e| Extent { length: e.length, zero: e.zero || e.hole }).collect())
            }
            Self::Wire(client, _) if client.contexts().is_empty() => {
                // Without the metadata context there is nothing to report.
                client.cache(offset, length).await.map_err(Failure::Wire)?;
                Ok(vec![Extent { length, zero: false }])
            }
            Self::Wire(client, _) => {
                let extents = client.allocation(offset, length).await.map_err(Failure::Wire)?;
                let zeros = AllocationFlags::HOLE | AllocationFlags::ZERO;
                let is_zero = |e: &BlockDescriptor| e.allocation().intersects(zeros);
                Ok(extents.iter().map(|e| Extent { length: e.length, zero: is_zero(e) }).collect())
            }
        }
    }
}

/// The server of a gateway, and the connections to it, which break off when it is dropped.
pub(super) struct Front {
    /// One way for each client.
    pub(super) ways: Vec<Way>,
    server: Option<Arc<Server>>,
    _tasks: Tasks,
}

impl Front {
    /// Creates a connection or direct path for each of this number of clients.
    pub(super) async fn new(
        world: &World,
        process: Process,
        volume: &Arc<Volume>,
        clients: usize,
        wire: Option<Wire>,
    ) -> Self {
        let tasks = Tasks::new();
        let Some(wire) = wire else {
            let ways = (0..clients).map(|_| Way::Straight(Arc::clone(volume))).collect();
            return Self { ways, server: None, _tasks: tasks };
        };
        let disk = Disk { world: world.clone(), process, volume: Arc::clone(volume) };
        let options = Options { in_flight_requests: wire.in_flight, ..Options::default() };
        let server = Arc::new(Server::new(Arc::new(disk), options, super::driver::metrics().server()));
        let mut ways: Vec<Way> = Vec::with_capacity(clients);
        for number in 0..clients {
            if number > 0 && wire.shared {
                ways.push(ways[0].clone());
                continue;
            }
            let (ours, theirs) = tokio::io::duplex(STREAM_BYTES);
            let serving = Arc::clone(&server);
            drop(tasks.spawn_until_cancelled(async move {
                serving.serve_stream(theirs, Greeting::Newstyle).await;
            }));
            let options = client::Options {
                structured_replies: wire.structured,
                extended_headers: wire.extended,
                contexts: match wire.structured {
                    true => client::Options::default().contexts,
                    false => Vec::new(),
                },
                ..client::Options::default()
            };
            match client::Client::connect_over(ours, NAME, &options).await {
                Ok(client) => ways.push(Way::Wire(Arc::new(client), Arc::clone(volume))),
                Err(error) => {
                    world.lock().broken(format!("P{process}: no connection over memory: {error}"));
                    break;
                }
            }
        }
        Self { ways, server: Some(server), _tasks: tasks }
    }

    /// Answers the commands in flight, and accepts no more.
    pub(super) async fn drain(&self) {
        if let Some(server) = &self.server {
            server.drain().await;
        }
    }
}

/// The open volume as the server's only export.
struct Disk {
    world: World,
    process: Process,
    volume: Arc<Volume>,
}

impl Disk {
    fn description(&self) -> ExportDescription {
        use TransmissionFlags as Flags;
        ExportDescription {
            name: NAME.to_owned(),
            description: String::new(),
            size_bytes: self.volume.size_bytes(),
            flags: Flags::SEND_FLUSH
                | Flags::SEND_FUA
                | Flags::SEND_TRIM
                | Flags::SEND_WRITE_ZEROES
                | Flags::SEND_CACHE
                | Flags::CAN_MULTI_CONN,
            minimum_block_bytes: 1,
            preferred_block_bytes: 4096,
            maximum_block_bytes: 64 << 20,
        }
    }

    /// Judges an error of the volume, and turns it into what a client sees.
    fn judged<T>(&self, outcome: Result<T, volume::Error>) -> Result<T, ExportError> {
        outcome.map_err(|error| {
            self.world.lock().failed(self.process, self.volume.epoch(), &error);
            let value = match error {
                volume::Error::Stopped(_) => Value::Shutdown,
                volume::Error::OutOfRange { .. } => Value::Inval,
                _ => Value::Io,
            };
            ExportError { error: value, message: error.to_string(), at: None }
        })
    }
}

#[async_trait]
impl Exports for Disk {
    async fn list(&self) -> Result<Vec<ListEntry>, OpenError> {
        Ok(vec![ListEntry { name: NAME.to_owned(), description: String::new() }])
    }

    async fn describe(&self, _name: &str) -> Result<ExportDescription, OpenError> {
        Ok(self.description())
    }

    async fn open(&self, _name: &str) -> Result<Arc<dyn Export>, OpenError> {
        let Self { world, process, volume } = self;
        Ok(Arc::new(Self { world: world.clone(), process: *process, volume: Arc::clone(volume) }))
    }
}

#[async_trait]
impl Export for Disk {
    fn description(&self) -> ExportDescription {
        self.description()
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Segment>, ExportError> {
        let segments = self.judged(self.volume.read(offset, u64::from(length)).await)?;
        let convert = |segment| match segment {
            volume::Segment::Data(data) => Segment::Data(data),
            volume::Segment::Zero(length) => Segment::Zero(u32::try_from(length).expect("of a READ")),
        };
        Ok(segments.into_iter().map(convert).collect())
    }

    async fn write(&self, offset: u64, data: Bytes, durability: Durability) -> Result<(), ExportError> {
        self.judged(self.volume.write(offset, data, durability).await)
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.judged(self.volume.flush().await)
    }

    async fn trim(&self, offset: u64, length: u64, durability: Durability) -> Result<(), ExportError> {
        self.judged(self.volume.zero(offset, length, Zeroing::Deallocate, durability).await)
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        zeroing: Zeroing,
        _: ZeroSpeed,
        durability: Durability,
    ) -> Result<(), ExportError> {
        self.judged(self.volume.zero(offset, length, zeroing, durability).await)
    }

    async fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.judged(self.volume.prefetch(offset, length).await)
    }

    async fn block_status(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Vec<Allocation>, ExportError> {
        let extents = self.judged(self.volume.allocation(offset, length, limit).await)?;
        let convert = |e: volume::Extent| Allocation { length_bytes: e.length, hole: e.hole, zero: e.zero };
        Ok(extents.into_iter().map(convert).collect())
    }
}

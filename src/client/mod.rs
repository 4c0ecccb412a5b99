//! An asynchronous NBD client that sends many requests at a time over one connection.
//!
//! [`Client::connect`] negotiates the features that the server supports (`connect`), then sends commands as
//! they are called (`pipeline`). The client must not know what the server is. Invariant: it sends only
//! commands and flags that the server has offered, and closes the connection if the server violates the
//! protocol.

mod connect;
mod error;
mod pipeline;
mod reply;
mod stream;
mod tls;
pub mod uri;

use std::fmt;
use std::net::SocketAddr;

use bytes::Bytes;

pub use crate::effect::{Durability, ZeroSpeed, Zeroing};
pub use connect::Options;
pub use error::{Broken, Error};
pub use reply::{ContextExtents, Segment};
pub use stream::ByteStream;
pub use tls::TlsOptions;
pub use uri::{Address, Uri, UriError};

use self::connect::Connected;
use self::pipeline::Pipeline;
use self::reply::Outcome as Reply;
use crate::protocol::meta_context::BASE_ALLOCATION;
use crate::protocol::negotiate_client::{ClientSession, Goal, HandshakeError, Outcome};
use crate::protocol::{
    BlockDescriptor, Command, CommandFlags, ExportInfo, HeaderStyle, MetaContext, ServerEntry,
    TransmissionFlags as Flags, WireString,
};

/// Maximum payload if the server does not report one: the value that the specification recommends for
/// interoperability.
const PORTABLE_PAYLOAD_BYTES: u32 = 32 << 20;

/// How many extents a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentLimit {
    /// One in each context: `NBD_CMD_FLAG_REQ_ONE`.
    One,
    /// As many as the server returns.
    Many,
}

/// A connection to one export.
pub struct Client {
    pipeline: Pipeline,
    session: ClientSession,
    /// Where to reconnect; `None` if the client was created over an existing stream.
    uri: Option<Uri>,
    options: Options,
    peer: Option<SocketAddr>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("session", &self.session).finish_non_exhaustive()
    }
}

/// Lists the exports of a server. The export name in the URI is ignored.
pub async fn list(uri: &Uri, options: &Options) -> Result<Vec<ServerEntry>, Error> {
    let options = options.clone().for_uri(uri);
    match connect::connect(&uri.address, Goal::List, &options).await?.outcome {
        Outcome::Listed(entries) => Ok(entries),
        Outcome::Described(..) | Outcome::Transmit(_) => Err(HandshakeError::Over.into()),
    }
}

/// Describes an export without opening it, and lists the metadata contexts that match [`Options::contexts`].
pub async fn info(uri: &Uri, options: &Options) -> Result<(ExportInfo, Vec<MetaContext>), Error> {
    let options = options.clone().for_uri(uri);
    match connect::connect(&uri.address, Goal::Info(name(&uri.export)?), &options).await?.outcome {
        Outcome::Described(export, contexts) => Ok((export, contexts)),
        Outcome::Listed(_) | Outcome::Transmit(_) => Err(HandshakeError::Over.into()),
    }
}

fn name(export: &str) -> Result<WireString, Error> {
    WireString::try_from(export).map_err(|error| HandshakeError::Protocol(error).into())
}

impl Client {
    /// Connects to the export that a URI identifies.
    pub async fn connect(uri: &Uri, options: &Options) -> Result<Self, Error> {
        let for_uri = options.clone().for_uri(uri);
        let connected = connect::connect(&uri.address, Goal::Go(name(&uri.export)?), &for_uri).await?;
        Self::start(connected, Some(uri.clone()), options)
    }

    /// Connects to an export over an existing stream to a server.
    pub async fn connect_over(
        stream: impl ByteStream,
        export: &str,
        options: &Options,
    ) -> Result<Self, Error> {
        let goal = Goal::Go(name(export)?);
        Self::start(connect::connect_over(Box::new(stream), goal, options).await?, None, options)
    }

    /// Connects to the same export again. Fails with [`Error::NotAllowed`] if the size or the flags of the
    /// export have changed.
    pub async fn reconnect(&self) -> Result<Self, Error> {
        let uri =
            self.uri.as_ref().ok_or(Error::NotAllowed("this client was created from an existing stream"))?;
        let again = Self::connect(uri, &self.options).await?;
        if again.session.export.disk != self.session.export.disk {
            again.disconnect().await;
            return Err(Error::NotAllowed("the export has changed"));
        }
        Ok(again)
    }

    fn start(connected: Connected, uri: Option<Uri>, options: &Options) -> Result<Self, Error> {
        let Connected { stream, input, outcome: Outcome::Transmit(session), peer } = connected else {
            return Err(HandshakeError::Over.into());
        };
        let pipeline = Pipeline::start(stream, input, &session, options);
        Ok(Self { pipeline, session, uri, options: options.clone(), peer })
    }

    /// The export as the server described it.
    #[must_use]
    pub fn export(&self) -> &ExportInfo {
        &self.session.export
    }

    /// Address of the server. `None` for a Unix socket or an existing stream.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Size of the export in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.session.export.disk.size_bytes
    }

    /// The features that the export supports.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.session.export.disk.flags
    }

    /// The kind of headers that was negotiated.
    #[must_use]
    pub fn headers(&self) -> HeaderStyle {
        self.session.headers
    }

    /// The metadata contexts that were selected.
    #[must_use]
    pub fn contexts(&self) -> &[MetaContext] {
        &self.session.contexts
    }

    /// Maximum length of one READ or WRITE in bytes.
    #[must_use]
    pub fn maximum_payload_bytes(&self) -> u32 {
        match self.session.export.block_size.maximum {
            u32::MAX => PORTABLE_PAYLOAD_BYTES,
            told => told,
        }
    }

    /// Maximum length of a TRIM, WRITE_ZEROES, CACHE or BLOCK_STATUS in bytes. It is a multiple of every
    /// possible minimum block size.
    #[must_use]
    pub fn maximum_effect_bytes(&self) -> u64 {
        match self.session.headers {
            HeaderStyle::Extended => 1 << 62,
            HeaderStyle::Simple | HeaderStyle::Structured => 0xffff_0000,
        }
    }

    /// Returns why the connection is broken, or `None` if it can be used.
    #[must_use]
    pub fn broken(&self) -> Option<Broken> {
        self.pipeline.broken()
    }

    /// Reads `length` bytes at `offset`. Holes read as zeros.
    pub async fn read(&self, offset: u64, length: u32) -> Result<Bytes, Error> {
        self.read_segments(offset, length).await.map(reply::concatenate)
    }

    /// Reads `length` bytes at `offset`, and returns holes separately from data.
    pub async fn read_segments(&self, offset: u64, length: u32) -> Result<Vec<Segment>, Error> {
        self.check_payload(length)?;
        let length = u64::from(length);
        self.check_range(offset, length)?;
        match self.call(CommandFlags::empty(), Command::Read, offset, length).await? {
            Reply::Read(segments) => Ok(segments),
            Reply::Done | Reply::Extents(_) => Ok(Vec::new()),
        }
    }

    /// Writes bytes at `offset`.
    pub async fn write(&self, offset: u64, data: Bytes, durability: Durability) -> Result<(), Error> {
        let length = u32::try_from(data.len()).map_err(|_| TOO_LONG)?;
        self.check_payload(length)?;
        let length = u64::from(length);
        self.check_range(offset, length)?;
        self.check_writable()?;
        let mut flags = self.durability_flags(durability)?;
        flags.set(CommandFlags::PAYLOAD_LEN, self.session.headers == HeaderStyle::Extended);
        self.pipeline.call(flags, Command::Write, offset, length, data).await.map(drop)
    }

    /// Returns when every write that was answered before the call is durable.
    pub async fn flush(&self) -> Result<(), Error> {
        self.check_offered(Flags::SEND_FLUSH)?;
        self.call(CommandFlags::empty(), Command::Flush, 0, 0).await.map(drop)
    }

    /// Discards a range.
    pub async fn trim(&self, offset: u64, length: u64, durability: Durability) -> Result<(), Error> {
        self.check_offered(Flags::SEND_TRIM)?;
        self.check_effect(offset, length)?;
        self.check_writable()?;
        self.call(self.durability_flags(durability)?, Command::Trim, offset, length).await.map(drop)
    }

    /// Makes a range read as zeros.
    pub async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        zeroing: Zeroing,
        speed: ZeroSpeed,
        durability: Durability,
    ) -> Result<(), Error> {
        self.check_offered(Flags::SEND_WRITE_ZEROES)?;
        self.check_effect(offset, length)?;
        self.check_writable()?;
        let mut flags = self.durability_flags(durability)?;
        flags.set(CommandFlags::NO_HOLE, zeroing == Zeroing::Allocate);
        if speed == ZeroSpeed::Fast {
            self.check_offered(Flags::SEND_FAST_ZERO)?;
            flags.insert(CommandFlags::FAST_ZERO);
        }
        self.call(flags, Command::WriteZeroes, offset, length).await.map(drop)
    }

    /// Asks the server to prepare a range for reading.
    pub async fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.check_offered(Flags::SEND_CACHE)?;
        self.check_effect(offset, length)?;
        self.call(CommandFlags::empty(), Command::Cache, offset, length).await.map(drop)
    }

    /// Returns the extents of a range in every selected metadata context.
    pub async fn block_status(
        &self,
        offset: u64,
        length: u64,
        extents: ExtentLimit,
    ) -> Result<Vec<ContextExtents>, Error> {
        if self.session.contexts.is_empty() {
            return Err(Error::NotAllowed("no metadata context was selected"));
        }
        self.check_effect(offset, length)?;
        let flags = match extents {
            ExtentLimit::One => CommandFlags::REQ_ONE,
            ExtentLimit::Many => CommandFlags::empty(),
        };
        match self.call(flags, Command::BlockStatus, offset, length).await? {
            Reply::Extents(extents) => Ok(extents),
            Reply::Done | Reply::Read(_) => Ok(Vec::new()),
        }
    }

    /// Returns the extents of a range in the context `base:allocation`, starting at `offset`. They may end
    /// before or after the end of the range.
    pub async fn allocation(&self, offset: u64, length: u64) -> Result<Vec<BlockDescriptor>, Error> {
        self.extents_in(BASE_ALLOCATION, offset, length).await
    }

    /// Returns the extents of a range in one metadata context, such as `qemu:dirty-bitmap:monday`, starting
    /// at `offset`. They may end before or after the end of the range. [`Options::contexts`] must have the
    /// name of the context. Fails with [`Error::NotAllowed`] if the server did not select it, and with
    /// [`Error::Command`] if the server cannot find out the status.
    pub async fn extents_in(
        &self,
        context: &str,
        offset: u64,
        length: u64,
    ) -> Result<Vec<BlockDescriptor>, Error> {
        if !self.contexts().iter().any(|selected| selected.name.as_str() == context) {
            return Err(Error::NotAllowed("the server does not offer this metadata context"));
        }
        let contexts = self.block_status(offset, length, ExtentLimit::Many).await?;
        let found = contexts.into_iter().find(|it| it.context.name.as_str() == context);
        Ok(found.map(|it| it.extents).unwrap_or_default())
    }

    /// Tells the server that this client is done, and waits until the server has closed the connection.
    pub async fn disconnect(self) {
        self.pipeline.disconnect().await;
    }

    async fn call(
        &self,
        flags: CommandFlags,
        command: Command,
        offset: u64,
        length: u64,
    ) -> Result<Reply, Error> {
        self.pipeline.call(flags, command, offset, length, Bytes::new()).await
    }

    fn durability_flags(&self, durability: Durability) -> Result<CommandFlags, Error> {
        if durability == Durability::Volatile {
            return Ok(CommandFlags::empty());
        }
        self.check_offered(Flags::SEND_FUA)?;
        Ok(CommandFlags::FUA)
    }

    fn check_offered(&self, flag: Flags) -> Result<(), Error> {
        //= Transmission flags: The client MUST NOT use a feature documented as 'exposed' by a flag unless
        //# that flag was set.
        if self.flags().contains(flag) { Ok(()) } else { Err(NOT_OFFERED) }
    }

    fn check_writable(&self) -> Result<(), Error> {
        if self.flags().contains(Flags::READ_ONLY) { Err(READ_ONLY) } else { Ok(()) }
    }

    fn check_payload(&self, length: u32) -> Result<(), Error> {
        if length <= self.maximum_payload_bytes() { Ok(()) } else { Err(TOO_LONG) }
    }

    fn check_effect(&self, offset: u64, length: u64) -> Result<(), Error> {
        if length > self.maximum_effect_bytes() {
            return Err(TOO_LONG);
        }
        self.check_range(offset, length)
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<(), Error> {
        if offset.checked_add(length).is_none_or(|end| end > self.size_bytes()) {
            return Err(BEYOND);
        }
        let unit = u64::from(self.session.export.block_size.minimum);
        if offset.is_multiple_of(unit) && length.is_multiple_of(unit) { Ok(()) } else { Err(UNALIGNED) }
    }
}

const NOT_OFFERED: Error = Error::NotAllowed("the export does not support this");
const READ_ONLY: Error = Error::NotAllowed("the export is read-only");
const TOO_LONG: Error = Error::NotAllowed("the request is longer than the server allows");
const BEYOND: Error = Error::NotAllowed("the range ends beyond the export");
const UNALIGNED: Error = Error::NotAllowed("the range is not aligned to the minimum block size");

//! `cairn nbd size`, `list` and `info`: what servers report about their exports.
//!
//! Owns the output of these commands, and must not change a disk. Invariant: a text from a server is escaped
//! before it is printed.

use serde::Serialize;

use super::args::{Info, List, Size};
use super::host::{say, say_json};
use crate::cli::error::{Error, NbdError};
use crate::client::{self, Client, Options, Uri};
use crate::protocol::meta_context::{BASE_ALLOCATION, CHANGED_SINCE_PREFIX, DIRTY_BITMAP_PREFIX};
use crate::protocol::negotiate_client::HandshakeError;
use crate::protocol::{AllocationFlags, HeaderStyle, OptionError, TransmissionFlags};

/// Executes `cairn nbd size`.
pub(super) async fn size(args: Size) -> Result<(), Error> {
    let uri = args.server.uri(args.export.as_deref())?;
    // Only the size is needed, and every server reports it even in the simplest handshake.
    let options = Options { structured_replies: false, extended_headers: false, ..args.waiting.options() };
    let client = connect(&uri, &options).await?;
    say(&client.size_bytes().to_string());
    client.disconnect().await;
    Ok(())
}

/// Executes `cairn nbd list`.
pub(super) async fn list(args: List) -> Result<(), Error> {
    let uri = args.server.uri(None)?;
    let listed = client::list(&uri, &args.waiting.options()).await;
    let entries = listed.map_err(|error| list_error(&uri, error))?;
    for entry in entries {
        say(entry.name.as_str());
    }
    Ok(())
}

/// Scripts distinguish these errors by the exit status.
fn list_error(uri: &Uri, source: client::Error) -> NbdError {
    let server = uri.address.to_string();
    match &source {
        client::Error::Handshake(HandshakeError::TooOld(_)) => NbdError::ListUnsupported { server, source },
        client::Error::Handshake(HandshakeError::Refused { refusal, .. }) => match refusal.error {
            OptionError::Unsup => NbdError::ListUnsupported { server, source },
            OptionError::Policy => NbdError::ListForbidden { server, source },
            _ => NbdError::ListFailed { server, source },
        },
        _ => NbdError::ListFailed { server, source },
    }
}

/// Executes `cairn nbd info`.
pub(super) async fn info(args: Info) -> Result<(), Error> {
    let uri = args.server.uri(args.export.as_deref())?;
    let mut options = args.waiting.options();
    options.contexts.extend(args.map.clone().filter(|context| context != BASE_ALLOCATION));
    let client = connect(&uri, &options).await?;
    let map = match &args.map {
        Some(context) => map(&client, &uri, context).await.map(Some),
        None => Ok(None),
    };
    let told = map.map(|map| Told::of(&client, &uri, map));
    // Even after a failure, a client must end its session with DISC.
    client.disconnect().await;
    let told = told?;
    if args.json {
        say_json(&told);
    } else if let Some(map) = &told.map {
        map.iter().for_each(|extent| say(&extent.line()));
    } else {
        told.lines().iter().for_each(|line| say(line));
    }
    Ok(())
}

async fn connect(uri: &Uri, options: &Options) -> Result<Client, NbdError> {
    let failed = |source| NbdError::Client { server: uri.to_string(), source };
    Client::connect(uri, options).await.map_err(failed)
}

/// Everything that a server reports about an export.
#[derive(Debug, Serialize)]
struct Told {
    uri: String,
    export: String,
    description: String,
    size: u64,
    read_only: bool,
    headers: &'static str,
    tls: bool,
    block_size: BlockSizes,
    can: Vec<&'static str>,
    contexts: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    map: Option<Vec<Extent>>,
}

#[derive(Debug, Serialize)]
struct BlockSizes {
    minimum: u32,
    preferred: u32,
    maximum: u32,
}

/// An extent of a metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Extent {
    offset: u64,
    length: u64,
    #[serde(flatten)]
    state: State,
}

/// The status of an extent, as its context defines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum State {
    /// Of `base:allocation`.
    Allocation { hole: bool, zero: bool },
    /// Of a context with dirty extents and others.
    Dirtiness { dirty: bool },
    /// Of a context that is not known here.
    Other { status: u64 },
}

impl State {
    fn of(context: &str, status: u64) -> Self {
        match context {
            BASE_ALLOCATION => {
                let flags = AllocationFlags::from_wire(status);
                let (hole, zero) =
                    (flags.contains(AllocationFlags::HOLE), flags.contains(AllocationFlags::ZERO));
                Self::Allocation { hole, zero }
            }
            _ if [CHANGED_SINCE_PREFIX, DIRTY_BITMAP_PREFIX].iter().any(|it| context.starts_with(it)) => {
                Self::Dirtiness { dirty: status & 1 == 1 }
            }
            _ => Self::Other { status },
        }
    }

    /// Returns the number and the name that `nbdinfo --map` prints.
    fn told(self) -> (u64, &'static str) {
        match self {
            Self::Allocation { hole: false, zero: false } => (0, "data"),
            Self::Allocation { hole: true, zero: false } => (1, "hole"),
            Self::Allocation { hole: false, zero: true } => (2, "zero"),
            Self::Allocation { hole: true, zero: true } => (3, "hole,zero"),
            Self::Dirtiness { dirty: false } => (0, "clean"),
            Self::Dirtiness { dirty: true } => (1, "dirty"),
            Self::Other { status } => (status, ""),
        }
    }
}

impl Told {
    fn of(client: &Client, uri: &Uri, map: Option<Vec<Extent>>) -> Self {
        use TransmissionFlags as Flags;
        let export = client.export();
        let can = [
            (Flags::SEND_FLUSH, "flush"),
            (Flags::SEND_FUA, "fua"),
            (Flags::SEND_TRIM, "trim"),
            (Flags::SEND_WRITE_ZEROES, "write_zeroes"),
            (Flags::SEND_FAST_ZERO, "fast_zero"),
            (Flags::SEND_CACHE, "cache"),
            (Flags::SEND_DF, "df"),
            (Flags::CAN_MULTI_CONN, "multi_conn"),
            (Flags::BLOCK_STATUS_PAYLOAD, "block_status_payload"),
            (Flags::ROTATIONAL, "rotational"),
        ];
        Self {
            uri: uri.to_string(),
            export: export.name.as_str().to_owned(),
            description: export.description.as_str().to_owned(),
            size: client.size_bytes(),
            read_only: client.flags().contains(Flags::READ_ONLY),
            headers: match client.headers() {
                HeaderStyle::Simple => "simple",
                HeaderStyle::Structured => "structured",
                HeaderStyle::Extended => "extended",
            },
            tls: uri.tls.is_some(),
            block_size: BlockSizes {
                minimum: export.block_size.minimum,
                preferred: export.block_size.preferred,
                maximum: export.block_size.maximum,
            },
            can: can
                .into_iter()
                .filter(|(flag, _)| client.flags().contains(*flag))
                .map(|(_, it)| it)
                .collect(),
            contexts: client.contexts().iter().map(|context| context.name.as_str().to_owned()).collect(),
            map,
        }
    }

    fn lines(&self) -> Vec<String> {
        let BlockSizes { minimum, preferred, maximum } = self.block_size;
        let list = |items: &[&str]| if items.is_empty() { "nothing".to_owned() } else { items.join(", ") };
        let contexts: Vec<&str> = self.contexts.iter().map(String::as_str).collect();
        let mut lines = vec![format!("export: {:?}", self.export), format!("uri: {}", self.uri)];
        if !self.description.is_empty() {
            lines.push(format!("description: {}", self.description));
        }
        lines.extend([
            format!("size: {} ({})", self.size, bytesize::ByteSize::b(self.size).display().iec()),
            format!("read-only: {}", if self.read_only { "yes" } else { "no" }),
            format!("block size: {minimum} minimum, {preferred} preferred, {maximum} maximum"),
            format!("can: {}", list(&self.can)),
            format!("contexts: {}", list(&contexts)),
            format!("headers: {}{}", self.headers, if self.tls { ", over TLS" } else { "" }),
        ]);
        lines
    }
}

impl Extent {
    /// Formats the extent as `nbdinfo --map` does.
    fn line(&self) -> String {
        let Self { offset, length, state } = *self;
        let (status, name) = state.told();
        format!("{offset:>10}  {length:>10}    {status}  {name}").trim_end().to_owned()
    }
}

/// Returns the extents in a context from the first byte to the last. Adjacent extents differ.
async fn map(client: &Client, uri: &Uri, context: &str) -> Result<Vec<Extent>, NbdError> {
    let failed = |source| NbdError::Client { server: uri.to_string(), source };
    let size = client.size_bytes();
    let mut map: Vec<Extent> = Vec::new();
    let mut offset = 0;
    while offset < size {
        let asked = (size - offset).min(client.maximum_effect_bytes());
        for extent in client.extents_in(context, offset, asked).await.map_err(failed)? {
            let state = State::of(context, extent.status);
            let length = extent.length.min(size - offset);
            match map.last_mut() {
                _ if length == 0 => {}
                Some(last) if last.state == state => last.length += length,
                _ => map.push(Extent { offset, length, state }),
            }
            offset += length;
        }
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{OptionCode, Refusal};

    #[test]
    fn the_status_of_an_extent_is_shown_as_its_context_defines_it() {
        for (context, status, line, json) in [
            ("base:allocation", 3, "3  hole,zero", r#"{"offset":0,"length":512,"hole":true,"zero":true}"#),
            ("qemu:dirty-bitmap:a", 1, "1  dirty", r#"{"offset":0,"length":512,"dirty":true}"#),
            ("cairn:changed-since=a", 0, "0  clean", r#"{"offset":0,"length":512,"dirty":false}"#),
            ("qemu:allocation-depth", 7, "7", r#"{"offset":0,"length":512,"status":7}"#),
        ] {
            let extent = Extent { offset: 0, length: 512, state: State::of(context, status) };
            assert_eq!(extent.line(), format!("         0         512    {line}"));
            assert_eq!(serde_json::to_string(&extent).unwrap(), json);
        }
    }

    #[test]
    fn each_reason_for_a_missing_list_has_its_own_exit_status() {
        let refused = |error| {
            let (option, refusal) = (OptionCode::List, Refusal::new(error, "no"));
            client::Error::Handshake(HandshakeError::Refused { option, refusal })
        };
        let too_old = client::Error::Handshake(HandshakeError::TooOld(OptionCode::List));
        for (error, expected) in [
            (too_old, 1),
            (refused(OptionError::Unsup), 1),
            (refused(OptionError::Policy), 2),
            (refused(OptionError::TlsReqd), 3),
            (client::Error::TimedOut, 3),
        ] {
            let error = list_error(&"nbd://host".parse().unwrap(), error);
            let code = format!("{:?}", error.exit_code());
            assert_eq!(code, format!("{:?}", std::process::ExitCode::from(expected)), "{error}");
        }
    }
}

//! Conversations of other NBD programs, kept by `tests/golden/nbd/capture.py`: every message is read, and written
//! again it is the same bytes.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use bytes::{Buf as _, Bytes, BytesMut};
use cairn::protocol::option_reply::encode_option_reply;
use cairn::protocol::*;

/// One side of a conversation: what is left to read, and what was written again.
struct Side {
    wire: Bytes,
    rest: Bytes,
    again: BytesMut,
}

impl Side {
    fn open(name: &str, side: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/nbd/{name}.{side}"));
        let wire = Bytes::from(std::fs::read(path).unwrap());
        Self { rest: wire.clone(), wire, again: BytesMut::new() }
    }

    fn take(&mut self, length: usize) -> Bytes {
        self.rest.split_to(length)
    }

    /// A header and the data whose length it tells.
    fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    fn check(&self) {
        assert!(self.again == self.wire, "{} became {}", self.wire.escape_ascii(), self.again.escape_ascii());
    }
}

/// What was said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    options: Vec<OptionCode>,
    commands: Vec<Command>,
    /// Types of chunks; none for simple replies.
    replies: Vec<Option<ReplyType>>,
    errors: Vec<Error>,
}

struct Conversation {
    client: Side,
    server: Side,
    style: HeaderStyle,
    summary: Summary,
}

/// Reads a conversation to its end and compares every byte.
fn replay(name: &str) -> Summary {
    let mut conversation = Conversation {
        client: Side::open(name, "client"),
        server: Side::open(name, "server"),
        style: HeaderStyle::Simple,
        summary: Summary::default(),
    };
    if conversation.greet() {
        conversation.transmit();
    }
    conversation.client.check();
    conversation.server.check();
    conversation.summary
}

impl Conversation {
    /// Whether transmission follows.
    fn greet(&mut self) -> bool {
        let server = &mut self.server;
        let announcement = Announcement::decode(&server.take(Announcement::LENGTH)).unwrap();
        announcement.encode(&mut server.again);
        let negotiate =
            Negotiate::decode(announcement, &server.take(Negotiate::length(announcement))).unwrap();
        negotiate.encode(&mut server.again);
        let Negotiate::V2(offered) = negotiate else { return true };
        let response = NegotiateResponse::decode(&self.client.take(NegotiateResponse::LENGTH)).unwrap();
        response.encode(&mut self.client.again);
        assert_eq!(offered.unknown_bits(), 0);
        while !self.client.is_over() {
            if self.haggle(response.0) {
                return true;
            }
        }
        false
    }

    /// One option and its replies. Whether transmission follows.
    fn haggle(&mut self, client_flags: ClientFlags) -> bool {
        let client = &mut self.client;
        let header = OptionRequestHeader::decode(&client.take(OptionRequestHeader::LENGTH)).unwrap();
        header.encode(&mut client.again);
        let data = client.take(usize::try_from(header.length).unwrap());
        self.summary.options.push(header.option);
        match header.option {
            OptionCode::ExportName => ExportName::decode(&data).unwrap().encode(&mut client.again),
            OptionCode::Info | OptionCode::Go => {
                InfoRequest::decode(&data).unwrap().encode(&mut client.again)
            }
            OptionCode::ListMetaContext | OptionCode::SetMetaContext => {
                MetaContextRequest::decode(&data).unwrap().encode(&mut client.again);
            }
            _ => assert!(data.is_empty()),
        }
        if header.option == OptionCode::ExportName {
            let zeroes = !client_flags.contains(ClientFlags::NO_ZEROES);
            let (length, padding) = match zeroes {
                true => (DiskInfo::LENGTH_WITH_ZEROES, Padding::Zeroes),
                false => (DiskInfo::LENGTH, Padding::None),
            };
            let info = DiskInfo::decode(&self.server.take(length)).unwrap();
            info.encode(padding, &mut self.server.again);
            return true;
        }
        while !self.server.is_over() {
            match self.option_reply(header.option) {
                OptionReply::Ack => {
                    match header.option {
                        OptionCode::StructuredReply => self.style = HeaderStyle::Structured,
                        OptionCode::ExtendedHeaders => self.style = HeaderStyle::Extended,
                        _ => {}
                    }
                    return header.option == OptionCode::Go;
                }
                OptionReply::Error(_) => return false,
                _ => {}
            }
        }
        false
    }

    fn option_reply(&mut self, option: OptionCode) -> OptionReply {
        let server = &mut self.server;
        let header = OptionReplyHeader::decode(&server.take(OptionReplyHeader::LENGTH)).unwrap();
        assert_eq!(header.option, option);
        let data = server.take(usize::try_from(header.length).unwrap());
        encode_option_reply(header.option, header.reply, &mut server.again, |out| match header.reply {
            OptionReply::Ack => assert!(data.is_empty()),
            OptionReply::Server => ServerEntry::decode(&data).unwrap().encode(out),
            OptionReply::Info => Info::decode(&data).unwrap().encode(out),
            OptionReply::MetaContext => MetaContext::decode(&data).unwrap().encode(out),
            OptionReply::Error(_) => WireString::try_from(&data[..]).unwrap().encode(out),
            other => panic!("reply of unknown type {other}"),
        });
        header.reply
    }

    fn transmit(&mut self) {
        let mut reads: BTreeMap<Cookie, VecDeque<u64>> = BTreeMap::new();
        while !self.client.is_over() {
            let request =
                Request::decode(self.style, &self.client.take(self.style.request_length())).unwrap();
            request.encode(self.style, &mut self.client.again).unwrap();
            let payload = request.payload_length(self.style);
            let payload = self.client.take(usize::try_from(payload).unwrap());
            self.client.again.extend_from_slice(&payload);
            let length = if request.command == Command::Read { request.length } else { 0 };
            reads.entry(request.cookie).or_default().push_back(length);
            self.summary.commands.push(request.command);
        }
        while !self.server.is_over() {
            self.reply(&mut reads);
        }
    }

    fn reply(&mut self, reads: &mut BTreeMap<Cookie, VecDeque<u64>>) {
        let magic = self.server.rest.clone().get_u32();
        let header = self.server.take(Reply::header_length(magic).unwrap());
        let reply = Reply::decode(&header).unwrap();
        reply.encode(&mut self.server.again);
        let (cookie, flags, reply_type, length) = match reply {
            Reply::Simple { result, cookie } => {
                let length = reads.get_mut(&cookie).unwrap().pop_front().unwrap();
                let length = if result.is_ok() { length } else { 0 };
                let data = self.server.take(usize::try_from(length).unwrap());
                self.server.again.extend_from_slice(&data);
                self.summary.errors.extend(result.err());
                self.summary.replies.push(None);
                return;
            }
            Reply::Structured { flags, reply_type, cookie, length } => {
                (cookie, flags, reply_type, u64::from(length))
            }
            Reply::Extended { flags, reply_type, cookie, length, .. } => (cookie, flags, reply_type, length),
        };
        let payload = self.server.take(usize::try_from(length).unwrap());
        let chunk = Chunk::decode(reply_type, payload).unwrap();
        chunk.encode(&mut self.server.again);
        if let Chunk::Error { error, .. } = chunk {
            self.summary.errors.push(error);
        }
        self.summary.replies.push(Some(reply_type));
        if flags.contains(ReplyFlags::DONE) {
            reads.get_mut(&cookie).unwrap().pop_front().unwrap();
        }
    }
}

/// What `qemu-io -c write -c read -c "write -z" -c discard -c flush` asks, with the FLUSHes of its own.
fn qemu_io_commands(summary: &Summary) -> Vec<Command> {
    let own = |command: &Command| !matches!(command, Command::Flush | Command::BlockStatus | Command::Disc);
    summary.commands.iter().copied().filter(own).collect()
}

const QEMU_IO: [Command; 4] = [Command::Write, Command::Read, Command::WriteZeroes, Command::Trim];

#[test]
fn libnbd_reads_the_map_of_nbdkit() {
    let summary = replay("libnbd-map-nbdkit-1");
    assert!(summary.options.contains(&OptionCode::SetMetaContext));
    assert!(summary.options.contains(&OptionCode::Go));
    assert!(summary.commands.contains(&Command::BlockStatus));
    assert!(summary.replies.contains(&Some(ReplyType::BlockStatus)));
}

#[test]
fn libnbd_copies_from_nbdkit() {
    let summary = replay("libnbd-copy-nbdkit-1");
    assert!(summary.commands.contains(&Command::Read));
    assert!(summary.replies.contains(&Some(ReplyType::OffsetData)));
}

#[test]
fn libnbd_lists_the_exports_of_qemu() {
    let summary = replay("libnbd-list-qemu-1");
    for option in [OptionCode::List, OptionCode::Info, OptionCode::ListMetaContext, OptionCode::Abort] {
        assert!(summary.options.contains(&option), "{option}");
    }
}

#[test]
fn libnbd_falls_back_to_export_name_without_fixed_newstyle() {
    assert_eq!(replay("libnbd-unfixed-nbdkit-1").options, [OptionCode::ExportName]);
}

#[test]
fn libnbd_copies_over_oldstyle() {
    assert_eq!(replay("libnbd-oldstyle-nbdkit-2").commands, [Command::Disc]);
    let summary = replay("libnbd-oldstyle-nbdkit-1");
    assert_eq!(summary.options, []);
    assert!(summary.commands.contains(&Command::Read));
    assert!(summary.replies.iter().all(Option::is_none));
}

#[test]
fn nbd_client_lists_the_exports_of_qemu() {
    assert_eq!(replay("nbdclient-list-qemu-1").options, [OptionCode::List, OptionCode::Abort]);
}

#[test]
fn qemu_talks_to_nbdkit_with_simple_replies() {
    let summary = replay("qemu-io-nbdkit-simple-1");
    assert_eq!(qemu_io_commands(&summary), QEMU_IO);
    assert!(summary.replies.iter().all(Option::is_none));
    assert_eq!(summary.errors, []);
}

#[test]
fn nbdkit_fails_what_qemu_asks() {
    let summary = replay("qemu-io-nbdkit-errors-1");
    assert_eq!(qemu_io_commands(&summary), QEMU_IO);
    assert_eq!(summary.errors, [Error::NoSpc; 4]);
}

#[test]
fn qemu_talks_to_qemu_with_structured_replies() {
    let summary = replay("qemu-io-qemu-1");
    assert_eq!(qemu_io_commands(&summary), QEMU_IO);
    assert!(summary.replies.contains(&Some(ReplyType::OffsetData)));
    assert_eq!(summary.errors, []);
}

#[test]
fn qemu_10_talks_to_qemu_10_with_extended_headers() {
    let summary = replay("qemu10-io-qemu10-extended-1");
    assert!(summary.options.contains(&OptionCode::ExtendedHeaders));
    assert_eq!(qemu_io_commands(&summary), QEMU_IO);
    assert!(summary.commands.contains(&Command::BlockStatus));
    assert!(summary.replies.contains(&Some(ReplyType::BlockStatusExt)));
    assert!(summary.replies.iter().all(Option::is_some));
    assert_eq!(summary.errors, []);
}

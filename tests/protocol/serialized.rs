//! The feature `serde`: what is written is read back, and what the protocol does not allow is not read.

use std::fmt::Debug;

use bytes::Bytes;
use cairn::protocol::{
    BlockDescriptor, BlockSize, Chunk, Command, CommandFlags, Cookie, DiskInfo, Error, ExportInfo,
    HeaderStyle, Info, InfoRequest, InfoType, MetaContextRequest, OptionCode, OptionError, OptionReply,
    Refusal, Reply, ReplyFlags, ReplyType, Request, ServerEntry, TransmissionFlags, WireString,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn text(text: &str) -> WireString {
    WireString::try_from(text).unwrap()
}

fn both_ways<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let json = serde_json::to_string(value).unwrap();
    assert_eq!(serde_json::from_str::<T>(&json).unwrap(), *value, "{json}");
}

#[test]
fn what_is_serialized_is_read_back() {
    let flags = TransmissionFlags::SEND_FLUSH | TransmissionFlags::from_wire(0x8000);
    let disk = DiskInfo { size_bytes: u64::MAX, flags };
    both_ways(&disk);
    let block_size = BlockSize::DEFAULT;
    both_ways(&ExportInfo { name: text("disk"), description: text("é"), disk, block_size });
    both_ways(&Info::Unknown { info_type: 99, payload: Bytes::from_static(b"\x00\xff") });
    both_ways(&InfoRequest { name: text(""), requests: vec![InfoType::Name, InfoType::Unknown(7)] });
    both_ways(&MetaContextRequest { export: text("x"), queries: vec![text("base:allocation")] });
    both_ways(&ServerEntry { name: text("a"), description: text("") });
    both_ways(&OptionCode::Unknown(77));
    both_ways(&OptionReply::Error(OptionError::TooBig));
    both_ways(&Refusal::new(OptionError::Policy, "no"));
    for command in [Command::Read, Command::WriteZeroes, Command::Unknown(9)] {
        let request = Request { flags: CommandFlags::FUA, command, cookie: Cookie(1), offset: 2, length: 3 };
        both_ways(&request);
    }
    both_ways(&Reply::Simple { result: Ok(()), cookie: Cookie(1) });
    both_ways(&Reply::Simple { result: Err(Error::NoSpc), cookie: Cookie(u64::MAX) });
    let (flags, reply_type) = (ReplyFlags::DONE, ReplyType::Unknown(0x8007));
    both_ways(&Reply::Extended { flags, reply_type, cookie: Cookie(1), offset: 2, length: 3 });
    both_ways(&Chunk::OffsetData { offset: 1, data: Bytes::from_static(b"\x00data\xff") });
    both_ways(&Chunk::BlockStatus {
        context_id: 1,
        descriptors: vec![BlockDescriptor { length: 2, status: 3 }],
    });
    both_ways(&HeaderStyle::Extended);
}

#[test]
fn flags_are_numbers_and_text_is_text() {
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
    assert_eq!(serde_json::to_string(&flags).unwrap(), "5");
    assert_eq!(serde_json::to_string(&text("disk")).unwrap(), r#""disk""#);
}

#[test]
fn a_string_that_the_protocol_does_not_allow_is_not_read() {
    assert!(serde_json::from_str::<WireString>(r#""a\u0000b""#).is_err());
    let long = format!("\"{}\"", "a".repeat(4097));
    assert!(serde_json::from_str::<WireString>(&long).is_err());
    assert!(serde_json::from_str::<WireString>(&long.replacen('a', "", 1)).is_ok());
}

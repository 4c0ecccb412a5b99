//! Any bytes are a message of the protocol or an error, and a message without reserved places has one encoding.
//!
//! The first two bytes of the input are the type of a reply's chunk; the rest is read as every kind of message.
#![no_main]

use bytes::{Bytes, BytesMut};
use cairn::protocol::{
    Announcement, BlockStatusPayload, Chunk, DecodeError, DiskInfo, ExportName, HeaderStyle, Info,
    InfoRequest, MetaContext, MetaContextRequest, Negotiate, NegotiateResponse, OptionReplyHeader,
    OptionRequestHeader, Padding, Reply, ReplyType, Request, ServerEntry,
};
use libfuzzer_sys::fuzz_target;

fn same<T>(bytes: &[u8], value: Result<T, DecodeError>, encode: impl FnOnce(&T, &mut BytesMut)) {
    if let Ok(value) = value {
        let mut out = BytesMut::new();
        encode(&value, &mut out);
        assert_eq!(out, bytes);
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((reply_type, bytes)) = input.split_first_chunk() else { return };
    same(bytes, Announcement::decode(bytes), |it, out| it.encode(out));
    same(bytes, Negotiate::decode(Announcement::V2, bytes), |it, out| it.encode(out));
    same(bytes, NegotiateResponse::decode(bytes), |it, out| it.encode(out));
    same(bytes, OptionRequestHeader::decode(bytes), |it, out| it.encode(out));
    same(bytes, ExportName::decode(bytes), ExportName::encode);
    same(bytes, InfoRequest::decode(bytes), InfoRequest::encode);
    same(bytes, MetaContextRequest::decode(bytes), MetaContextRequest::encode);
    same(bytes, OptionReplyHeader::decode(bytes), |it, out| it.encode(out));
    same(bytes, ServerEntry::decode(bytes), ServerEntry::encode);
    same(bytes, MetaContext::decode(bytes), MetaContext::encode);
    same(bytes, Info::decode(bytes), Info::encode);
    same(bytes, BlockStatusPayload::decode(bytes), BlockStatusPayload::encode);
    same(bytes, Reply::decode(bytes), |it, out| it.encode(out));
    for style in [HeaderStyle::Simple, HeaderStyle::Extended] {
        same(bytes, Request::decode(style, bytes), |it, out| {
            it.encode(style, out).expect("what was read can be written");
        });
    }
    if let Ok(info) = DiskInfo::decode(bytes) {
        let mut out = BytesMut::new();
        info.encode(Padding::None, &mut out);
        assert_eq!(out, bytes[..DiskInfo::LENGTH]);
    }
    let reply_type = ReplyType::from_wire(u16::from_be_bytes(*reply_type));
    if let Ok(chunk) = Chunk::decode(reply_type, Bytes::copy_from_slice(bytes)) {
        assert_eq!(chunk.reply_type(), reply_type);
    }
});

//! Every type: any value survives the wire, and any bytes give a value that is those bytes, or an error.

use bytes::{Bytes, BytesMut};
use cairn::protocol::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn encoded(encode: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::new();
    encode(&mut out);
    out.freeze()
}

fn text() -> impl Strategy<Value = WireString> {
    "[^\0]{0,40}".prop_map(|text| WireString::try_from(text.as_str()).unwrap())
}

fn transmission_flags() -> impl Strategy<Value = TransmissionFlags> {
    any::<u16>().prop_map(TransmissionFlags::from_wire)
}

fn disk_info() -> impl Strategy<Value = DiskInfo> {
    (any::<u64>(), transmission_flags()).prop_map(|(size_bytes, flags)| DiskInfo { size_bytes, flags })
}

fn info() -> impl Strategy<Value = Info> {
    prop_oneof![
        disk_info().prop_map(Info::Export),
        text().prop_map(Info::Name),
        text().prop_map(Info::Description),
        (0_u32..=16, 9_u32..=31, any::<u32>()).prop_map(|(minimum, preferred, maximum)| {
            let (minimum, preferred) = (1 << minimum, 1 << preferred.max(minimum));
            Info::BlockSize(BlockSize { minimum, preferred, maximum: preferred.max(maximum) })
        }),
        (4_u16.., vec(any::<u8>(), 0..20))
            .prop_map(|(info_type, payload)| Info::Unknown { info_type, payload: payload.into() }),
    ]
}

fn error() -> impl Strategy<Value = Error> {
    (1_u32..200).prop_map(|value| Error::check(value).unwrap_err())
}

fn chunk() -> impl Strategy<Value = Chunk> {
    let short = (1_u64..=0xffff_ffff, 0_u64..=0xffff_ffff);
    let descriptor = |(length, status)| BlockDescriptor { length, status };
    prop_oneof![
        Just(Chunk::None),
        (any::<u64>(), vec(any::<u8>(), 1..100))
            .prop_map(|(offset, data)| Chunk::OffsetData { offset, data: data.into() }),
        (any::<u64>(), 1_u32..).prop_map(|(offset, length)| Chunk::OffsetHole { offset, length }),
        (any::<u32>(), vec(short.prop_map(descriptor), 1..10))
            .prop_map(|(context_id, descriptors)| Chunk::BlockStatus { context_id, descriptors }),
        (any::<u32>(), vec((1_u64.., any::<u64>()).prop_map(descriptor), 1..10))
            .prop_map(|(context_id, descriptors)| Chunk::BlockStatusExt { context_id, descriptors }),
        (error(), text()).prop_map(|(error, message)| Chunk::Error { error, message }),
        (error(), text(), any::<u64>()).prop_map(|(error, message, offset)| Chunk::ErrorOffset {
            error,
            message,
            offset
        }),
        (0x8003_u16.., error(), text()).prop_map(|(reply_type, error, message)| Chunk::UnknownError {
            reply_type,
            error,
            message
        }),
    ]
}

fn request(style: HeaderStyle) -> impl Strategy<Value = Request> {
    let longest = if style == HeaderStyle::Extended { u64::MAX } else { u64::from(u32::MAX) };
    (any::<u16>(), any::<u16>(), any::<u64>(), any::<u64>(), 0..=longest).prop_map(
        |(flags, command, cookie, offset, length)| Request {
            flags: CommandFlags::from_wire(flags),
            command: Command::from_wire(command),
            cookie: Cookie(cookie),
            offset,
            length,
        },
    )
}

fn reply() -> impl Strategy<Value = Reply> {
    (any::<[u16; 2]>(), any::<[u64; 3]>(), any::<[u32; 2]>(), 0..3).prop_map(
        |([flags, reply_type], [cookie, offset, length], [short, error], kind)| {
            let (flags, reply_type) = (ReplyFlags::from_wire(flags), ReplyType::from_wire(reply_type));
            let cookie = Cookie(cookie);
            match kind {
                0 => Reply::Simple { result: Error::check(error % 200), cookie },
                1 => Reply::Structured { flags, reply_type, cookie, length: short },
                _ => Reply::Extended { flags, reply_type, cookie, offset, length },
            }
        },
    )
}

proptest! {
    #[test]
    fn announcements_and_greetings(size_bytes: u64, flags in transmission_flags(), bits: u16, client: u32) {
        for announcement in [Announcement::V1, Announcement::V2] {
            let wire = encoded(|out| announcement.encode(out));
            prop_assert_eq!(Announcement::decode(&wire), Ok(announcement));
            let negotiate = match announcement {
                Announcement::V1 => Negotiate::V1 { size_bytes, flags },
                Announcement::V2 => Negotiate::V2(HandshakeFlags::from_wire(bits)),
            };
            let wire = encoded(|out| negotiate.encode(out));
            prop_assert_eq!(wire.len(), Negotiate::length(announcement));
            prop_assert_eq!(Negotiate::decode(announcement, &wire), Ok(negotiate));
        }
        let response = NegotiateResponse(ClientFlags::from_wire(client));
        let wire = encoded(|out| response.encode(out));
        prop_assert_eq!(NegotiateResponse::decode(&wire), Ok(response));
    }

    #[test]
    fn options(
        code: u32, length: u32, name in text(), requests in vec(any::<u16>(), 0..20), queries in vec(text(), 0..5),
    ) {
        let header = OptionRequestHeader { option: OptionCode::from_wire(code % 16), length };
        let wire = encoded(|out| header.encode(out));
        prop_assert_eq!(OptionRequestHeader::decode(&wire), Ok(header));
        let export_name = ExportName(name.clone());
        let wire = encoded(|out| export_name.encode(out));
        prop_assert_eq!(ExportName::decode(&wire), Ok(export_name));
        let requests = requests.into_iter().map(InfoType::from_wire).collect();
        let request = InfoRequest { name: name.clone(), requests };
        let wire = encoded(|out| request.encode(out));
        prop_assert_eq!(InfoRequest::decode(&wire), Ok(request));
        let request = MetaContextRequest { export: name, queries };
        let wire = encoded(|out| request.encode(out));
        prop_assert_eq!(MetaContextRequest::decode(&wire), Ok(request));
    }

    #[test]
    fn option_replies(
        code: u32, reply: u32, length: u32, id: u32, name in text(), description in text(), info in info(),
        disk in disk_info(), zeroes: bool,
    ) {
        let option = OptionCode::from_wire(code);
        let header = OptionReplyHeader { option, reply: OptionReply::from_wire(reply), length };
        let wire = encoded(|out| header.encode(out));
        prop_assert_eq!(OptionReplyHeader::decode(&wire), Ok(header));
        let entry = ServerEntry { name: name.clone(), description };
        let wire = encoded(|out| entry.encode(out));
        prop_assert_eq!(ServerEntry::decode(&wire), Ok(entry));
        let context = MetaContext { id, name };
        let wire = encoded(|out| context.encode(out));
        prop_assert_eq!(MetaContext::decode(&wire), Ok(context));
        let wire = encoded(|out| info.encode(out));
        prop_assert_eq!(Info::decode(&wire), Ok(info));
        let padding = if zeroes { Padding::Zeroes } else { Padding::None };
        let wire = encoded(|out| disk.encode(padding, out));
        prop_assert_eq!(DiskInfo::decode(&wire), Ok(disk));
    }

    #[test]
    fn requests(compact in request(HeaderStyle::Simple), extended in request(HeaderStyle::Extended)) {
        for (style, request) in [(HeaderStyle::Structured, compact), (HeaderStyle::Extended, extended)] {
            let wire = encoded(|out| request.encode(style, out).unwrap());
            prop_assert_eq!(wire.len(), style.request_length());
            prop_assert_eq!(Request::decode(style, &wire), Ok(request));
        }
    }

    #[test]
    fn payloads_of_block_status(effect_length: u64, context_ids in vec(any::<u32>(), 0..10)) {
        let payload = BlockStatusPayload { effect_length, context_ids };
        let wire = encoded(|out| payload.encode(out));
        prop_assert_eq!(BlockStatusPayload::decode(&wire), Ok(payload));
    }

    #[test]
    fn replies(reply in reply(), chunk in chunk()) {
        let wire = encoded(|out| reply.encode(out));
        prop_assert_eq!(Reply::decode(&wire), Ok(reply));
        let wire = encoded(|out| chunk.encode(out));
        prop_assert_eq!(Chunk::decode(chunk.reply_type(), wire), Ok(chunk));
    }

    /// Also of those that the specification does not name.
    #[test]
    fn every_value_of_a_code_or_of_flags_is_kept(
        value in prop_oneof![0_u32..200, 0x8000_0000_u32..0x8000_0010, any::<u32>()],
        short in prop_oneof![0_u16..20, 0x8000_u16..0x8010, any::<u16>()],
    ) {
        prop_assert_eq!(OptionCode::from_wire(value).value(), value);
        prop_assert_eq!(OptionReply::from_wire(value).value(), value);
        prop_assert_eq!(Command::from_wire(short).value(), short);
        prop_assert_eq!(InfoType::from_wire(short).value(), short);
        prop_assert_eq!(ReplyType::from_wire(short).value(), short);
        prop_assert_eq!(Error::check(value).map_or_else(Error::value, |()| 0), value);
        prop_assert_eq!(HandshakeFlags::from_wire(short).bits(), short);
        prop_assert_eq!(ClientFlags::from_wire(value).bits(), value);
        prop_assert_eq!(TransmissionFlags::from_wire(short).bits(), short);
        prop_assert_eq!(CommandFlags::from_wire(short).bits(), short);
        prop_assert_eq!(ReplyFlags::from_wire(short).bits(), short);
    }

    /// The whole reply: header, and the message as its data.
    #[test]
    fn refusals(code in 0x8000_0000_u32.., message in text()) {
        let OptionReply::Error(error) = OptionReply::from_wire(code) else { panic!("bit 31 is set") };
        let refusal = Refusal { error, message };
        let wire = encoded(|out| refusal.encode(OptionCode::Go, out));
        let (header, data) = wire.split_at(OptionReplyHeader::LENGTH);
        let header = OptionReplyHeader::decode(header).unwrap();
        prop_assert_eq!((header.option, header.reply), (OptionCode::Go, OptionReply::Error(error)));
        prop_assert_eq!(usize::try_from(header.length).unwrap(), data.len());
        prop_assert_eq!(Refusal::decode(error, data), refusal);
    }

    #[test]
    fn any_bytes_are_the_message_of_a_refusal_or_none(data in vec(any::<u8>(), 0..200)) {
        let OptionReply::Error(error) = OptionReply::from_wire(0x8000_0003) else { panic!("bit 31 is set") };
        let message = Refusal::decode(error, &data).message;
        prop_assert!(message.is_empty() || message.as_str().as_bytes() == data);
    }

    /// Messages that carry no reserved places are those bytes again.
    #[test]
    fn any_bytes_are_a_value_or_an_error(bytes in vec(any::<u8>(), 0..200), reply_type: u16) {
        fn same<T>(bytes: &[u8], value: Result<T, DecodeError>, encode: impl FnOnce(&T, &mut BytesMut)) {
            if let Ok(value) = value {
                assert_eq!(encoded(|out| encode(&value, out)), bytes);
            }
        }
        same(&bytes, Announcement::decode(&bytes), |it, out| it.encode(out));
        same(&bytes, Negotiate::decode(Announcement::V2, &bytes), |it, out| it.encode(out));
        same(&bytes, NegotiateResponse::decode(&bytes), |it, out| it.encode(out));
        same(&bytes, OptionRequestHeader::decode(&bytes), |it, out| it.encode(out));
        same(&bytes, ExportName::decode(&bytes), ExportName::encode);
        same(&bytes, InfoRequest::decode(&bytes), InfoRequest::encode);
        same(&bytes, MetaContextRequest::decode(&bytes), MetaContextRequest::encode);
        same(&bytes, OptionReplyHeader::decode(&bytes), |it, out| it.encode(out));
        same(&bytes, ServerEntry::decode(&bytes), ServerEntry::encode);
        same(&bytes, MetaContext::decode(&bytes), MetaContext::encode);
        same(&bytes, Info::decode(&bytes), Info::encode);
        same(&bytes, Request::decode(HeaderStyle::Simple, &bytes), |it, out| {
            it.encode(HeaderStyle::Simple, out).unwrap();
        });
        same(&bytes, Request::decode(HeaderStyle::Extended, &bytes), |it, out| {
            it.encode(HeaderStyle::Extended, out).unwrap();
        });
        same(&bytes, BlockStatusPayload::decode(&bytes), BlockStatusPayload::encode);
        same(&bytes, Reply::decode(&bytes), |it, out| it.encode(out));
        if let Ok(info) = DiskInfo::decode(&bytes) {
            assert_eq!(encoded(|out| info.encode(Padding::None, out)), bytes[..DiskInfo::LENGTH]);
        }
        assert!(Negotiate::decode(Announcement::V1, &bytes).is_ok() == (bytes.len() == 136));
        drop(Chunk::decode(ReplyType::from_wire(reply_type), bytes.into()));
    }

    /// Short payloads of every known type, which random types hardly ever are.
    #[test]
    fn any_payload_is_a_chunk_or_an_error(
        payload in vec(prop_oneof![Just(0_u8), Just(1), any::<u8>()], 0..60),
        reply_type in prop_oneof![0_u16..8, 0x8000_u16..0x8004],
    ) {
        let reply_type = ReplyType::from_wire(reply_type);
        if let Ok(chunk) = Chunk::decode(reply_type, payload.clone().into()) {
            prop_assert_eq!(chunk.reply_type(), reply_type);
            let again = encoded(|out| chunk.encode(out));
            prop_assert_eq!(again.len() <= payload.len(), true);
            if !matches!(chunk, Chunk::UnknownError { .. } | Chunk::BlockStatusExt { .. }) {
                prop_assert_eq!(again, payload);
            }
        }
    }
}

//! Any bytes are an incremental stream or an error, however they are cut, and a stream has one encoding.
//!
//! The checksums of the parts are made to fit, so that the fuzzer gets to the fields.
#![no_main]

use cairn::volume::format::codec::{Checksum, Kind};
use cairn::volume::format::stream::{Part, StreamDecoder, StreamEncoder};
use cairn_fuzz::{number_at, object};
use libfuzzer_sys::fuzz_target;

/// Decodes bytes that come in pieces. Returns the parts if they are a whole stream.
fn decode(bytes: &[u8], piece: usize) -> Option<Vec<Part>> {
    let (mut decoder, mut parts) = (StreamDecoder::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        decoder.push(piece);
        while let Some(part) = decoder.next_part().ok()? {
            parts.push(part);
        }
    }
    decoder.check_end().ok()?;
    Some(parts)
}

/// The four bytes at an offset as a length.
fn length_at(bytes: &[u8], at: usize) -> usize {
    usize::try_from(number_at(bytes, at)).expect("32 bits")
}

/// Makes the checksum of each part fit, as far as the bytes look like parts.
fn sealed(input: &[u8]) -> Vec<u8> {
    let Some((header, rest)) = input.split_at_checked(length_at(input, 26)) else {
        return object(Kind::Stream, input);
    };
    let mut bytes = object(Kind::Stream, header);
    bytes.extend_from_slice(rest);
    let mut at = header.len();
    loop {
        let Some(part) = bytes.get(at..).filter(|part| !part.is_empty()) else { return bytes };
        let body = match part[0] {
            1 => 13 + length_at(part, 9).min(1 << 20),
            2 => 17,
            _ => 26 + if part.get(25) == Some(&1) { 32 } else { 0 },
        };
        if part.len() < body + Checksum::BYTES {
            return bytes;
        }
        let checksum = Checksum::of(&bytes[..at + body]);
        bytes[at + body..at + body + Checksum::BYTES].copy_from_slice(&checksum.0);
        at += body + Checksum::BYTES;
    }
}

fuzz_target!(|input: &[u8]| {
    let bytes = sealed(input);
    let whole = decode(&bytes, bytes.len().max(1));
    assert_eq!(decode(&bytes, 7), whole);
    let Some(parts) = whole else { return };
    let Some((Part::Header(header), rest)) = parts.split_first() else { panic!("a header comes first") };
    let (encoder, mut again) = StreamEncoder::new(header);
    let mut encoder = Some(encoder);
    for part in rest {
        match part {
            Part::Header(_) => panic!("one header"),
            Part::Data { offset, bytes } => {
                encoder.as_mut().expect("the end is the last").data(*offset, bytes, &mut again);
            }
            Part::Zero { offset, length } => {
                encoder.as_mut().expect("the end is the last").zeros(*offset, *length, &mut again);
            }
            Part::End { result_digest } => {
                encoder.take().expect("one end").end(*result_digest, &mut again);
            }
        }
    }
    assert_eq!(again, bytes);
});

//! Any bytes are a list of first reads or an error, and a list has one encoding. Its beginning says its length.
#![no_main]

use cairn::volume::format::codec::Kind;
use cairn::volume::format::first_reads::FirstReads;
use cairn_fuzz::{SEALING, object};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let bytes = object(Kind::FirstReads, input);
    if let Ok(list) = FirstReads::decode(SEALING, &bytes) {
        assert_eq!(list.encode(SEALING), bytes);
        assert_eq!(FirstReads::object_bytes(SEALING, &bytes), Ok(bytes.len() as u64));
    }
});

//! Any bytes are a head or an error, and a head has one encoding.
#![no_main]

use cairn::volume::format::codec::Kind;
use cairn::volume::format::head::Head;
use cairn_fuzz::{VOLUME, object};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let bytes = object(Kind::Head, input);
    if let Ok(head) = Head::decode(VOLUME, &bytes) {
        assert_eq!(head.encode(), bytes);
    }
});

//! Any bytes are an identity or an error, and an identity has one encoding.
#![no_main]

use cairn::volume::format::codec::Kind;
use cairn::volume::format::identity::Identity;
use cairn_fuzz::{VOLUME, object};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let bytes = object(Kind::Identity, input);
    if let Ok(identity) = Identity::decode(VOLUME, &bytes) {
        assert_eq!(identity.encode(), bytes);
    }
});

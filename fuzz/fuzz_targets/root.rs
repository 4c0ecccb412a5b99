//! Any bytes are a root or an error, and a root has one encoding.
#![no_main]

use cairn::volume::format::codec::Kind;
use cairn::volume::format::keys::ObjectId;
use cairn::volume::format::root::Root;
use cairn_fuzz::{SEALING, object, pair_at};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let bytes = object(Kind::Root, input);
    let (epoch, k) = pair_at(&bytes, 26);
    if let Ok(root) = Root::decode(SEALING, ObjectId { epoch, k }, &bytes) {
        assert_eq!(root.encode(SEALING), bytes);
    }
});

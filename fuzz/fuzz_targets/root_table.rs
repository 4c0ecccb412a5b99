//! Any bytes are a root table or an error, and a root table has one encoding.
#![no_main]

use cairn::volume::format::codec::Kind;
use cairn::volume::format::keys::ObjectId;
use cairn::volume::format::root::RootTable;
use cairn_fuzz::{SEALING, object, pair_at};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let bytes = object(Kind::RootTable, input);
    let (epoch, k) = pair_at(&bytes, 26);
    if let Ok(table) = RootTable::decode(SEALING, ObjectId { epoch, k }, &bytes) {
        assert_eq!(table.encode(SEALING), bytes);
    }
});

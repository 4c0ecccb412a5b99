//! Any bytes are a pack or an error. Blocks whose tags fit are a pack if, and only if, they are in order.
#![no_main]

use cairn::volume::format::codec::Kind;
use cairn::volume::format::keys::ObjectId;
use cairn::volume::format::pack::{Pack, decode_index};
use cairn_fuzz::{SEALING, object, pack, pair_at};
use libfuzzer_sys::fuzz_target;

/// The most blocks of a pack: enough for every order of a few.
const MOST: usize = 16;

fuzz_target!(|input: &[u8]| {
    let bytes = object(Kind::Pack, input);
    let (epoch, k) = pair_at(&bytes, 26);
    let id = ObjectId { epoch, k };
    if let Ok(pack) = Pack::decode(SEALING, &bytes) {
        assert_eq!(pack.id, id);
    }
    // An index ends with its tag, which is as long as two blocks of the index.
    let frames = u32::try_from(input.len() / 8).expect("an input is short").saturating_sub(2);
    if let Ok(blocks) = decode_index(SEALING, id, frames, input) {
        assert!(blocks.is_sorted_by(|a, b| a < b));
    }

    let (blocks, _) = input.as_chunks::<8>();
    let blocks: Vec<u64> = blocks.iter().take(MOST).map(|block| u64::from_le_bytes(*block)).collect();
    let is_valid = !blocks.is_empty()
        && blocks.is_sorted_by(|a, b| a < b)
        && blocks.iter().all(|block| *block < 1 << 41);
    let bytes = pack(id, &blocks);
    match Pack::decode(SEALING, &bytes) {
        Ok(pack) => {
            assert!(is_valid);
            assert!(pack.blocks.iter().map(|(block, _)| block.0).eq(blocks));
            for (number, (_, payload)) in (0_u8..).zip(&pack.blocks) {
                assert!(payload.iter().all(|byte| *byte == number));
            }
        }
        Err(error) => assert!(!is_valid, "{error}"),
    }
});

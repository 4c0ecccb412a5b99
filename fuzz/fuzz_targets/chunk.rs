//! Any bytes are a chunk object or an error.
#![no_main]

use cairn::volume::format::chunk::ChunkObject;
use cairn::volume::format::codec::Kind;
use cairn_fuzz::{SEALING, object};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let bytes = object(Kind::Chunk, input);
    if let Ok(chunk) = ChunkObject::decode(SEALING, &bytes) {
        assert_eq!(chunk.blocks.len(), 16 * chunk.stored.len() as usize);
    }
});

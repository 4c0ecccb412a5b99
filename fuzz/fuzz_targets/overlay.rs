//! Any bytes are an overlay or an error, an overlay has one encoding, and its runs keep within what they
//! refer to.
#![no_main]

use cairn::volume::format::codec::Kind;
use cairn::volume::format::geometry::Geometry;
use cairn::volume::format::keys::ObjectId;
use cairn::volume::format::overlay::{Overlay, Target};
use cairn_fuzz::{SEALING, VOLUME, number_at, object, pair_at};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let bytes = object(Kind::Overlay, input);
    let (page, (epoch, k)) = (number_at(&bytes, 26), pair_at(&bytes, 30));
    let id = ObjectId { epoch, k };
    for shift in [16, 20, 22, 25] {
        let geometry = Geometry::new(1 << shift).expect("a chunk size");
        let Ok(overlay) = Overlay::decode(SEALING, page, id, geometry, &bytes) else { continue };
        assert_eq!(overlay.encode(SEALING, page, id), bytes);
        let (blocks, mut end) = (geometry.map_page_blocks() / 4096, 0);
        for run in overlay.runs() {
            let range = run.range();
            assert!(end <= range.start && range.start / blocks == (range.end - 1) / blocks);
            if let Target::Frame { pack, frame } = run.target() {
                let _owner = overlay.pack(VOLUME, pack);
                assert!(u32::from(frame) + run.count() <= 65_535);
            }
            end = range.end;
        }
        assert!(end <= geometry.map_page_blocks());
        let all = overlay.overlaps(0..geometry.map_page_blocks());
        let runs = overlay.runs().iter().map(|run| (run.range(), run.target()));
        assert!(all.eq(runs), "the overlay locates exactly its runs");
    }
});

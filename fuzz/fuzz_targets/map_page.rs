//! Any bytes are a map page or an error; each entry alone is as among all, and a map page has one encoding.
#![no_main]

use cairn::volume::format::codec::Kind;
use cairn::volume::format::geometry::{Geometry, PAGE_BYTES};
use cairn::volume::format::keys::ObjectId;
use cairn::volume::format::map::MapPage;
use cairn_fuzz::{SEALING, number_at, object, pair_at};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let bytes = object(Kind::MapPage, input);
    let (page, (epoch, k)) = (number_at(&bytes, 26), pair_at(&bytes, 30));
    let pages_per_chunk = number_at(&bytes, 42) & 0xffff;
    let Ok(geometry) = Geometry::new(u64::from(pages_per_chunk) * PAGE_BYTES) else { return };
    let id = ObjectId { epoch, k };
    if let Ok(map) = MapPage::decode(SEALING, page, id, geometry, &bytes) {
        let entries = map.entries();
        for (slot, entry) in &entries {
            assert_eq!(map.entry(*slot).as_ref(), Some(entry));
            let applies = map.overlays().iter().any(|overlay| overlay.chunks.contains(*slot));
            assert_eq!(applies, entry.overlaid > 0);
        }
        assert_eq!(map.encode(SEALING, id), bytes);
        let (origins, overlays) = (map.origins().to_vec(), map.overlays().to_vec());
        assert_eq!(MapPage::new(page, geometry, origins, overlays, &entries), map);
    }
});

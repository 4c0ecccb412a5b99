//! Any bytes are a record of the journal or an error; the data of a record lies within it.
#![no_main]

use cairn::volume::format::codec::Kind;
use cairn::volume::format::keys::Slot;
use cairn::volume::format::record::{Change, Record};
use cairn_fuzz::{SEALING, object, pair_at};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let bytes = object(Kind::Record, input);
    let (epoch, n) = pair_at(&bytes, 28);
    let slot = Slot { epoch, n };
    let table =
        Record::table_bytes(SEALING, &bytes, bytes.len() as u64).ok().map(|end| &bytes[..end as usize]);
    let of_table = table.and_then(|table| Record::decode_table(SEALING, slot, table).ok());
    if let Ok((record, checksum)) = Record::decode(SEALING, slot, &bytes) {
        assert!(table.is_some_and(|table| table.ends_with(&checksum.0)));
        assert_eq!(of_table.as_ref(), Some(&(record.clone(), checksum)), "the table alone says the same");
        let end = (bytes.len() - checksum.0.len()) as u64;
        let mut next = end - record.data_bytes;
        for change in &record.changes {
            if let Change::Data { at, length, .. } = change {
                assert_eq!(*at, next, "data lies in order and without gaps");
                next += u64::from(*length);
            }
        }
        assert_eq!(next, end);
    }
});

//! Any bytes are a name or an error, and a name has one encoding.
#![no_main]

use cairn::volume::format::codec::Kind;
use cairn::volume::format::identity::NameBinding;
use cairn_fuzz::object;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let bytes = object(Kind::Name, input);
    if let Ok(name) = NameBinding::decode(&bytes) {
        assert_eq!(name.encode(), bytes);
    }
});

//! The SHA-256 of a disk's content, which `sha256sum` prints for a raw image of it.
//!
//! Owns the digest, and must not know where the content comes from. Invariant: zeros count as bytes, whether
//! they are stored or not.

use aws_lc_rs::digest::{Context, SHA256};

use super::nbd::{Content, Part};
use crate::volume::format::stream::Digest;

/// Zeros that are hashed at a time.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The checksum of what was added so far.
#[derive(Clone)]
pub(super) struct Checksum(Context);

impl Checksum {
    pub(super) fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    /// Adds bytes.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Adds zeros.
    pub(super) fn add_zeros(&mut self, length: u64) {
        let mut left = length;
        while left > 0 {
            let now = left.min(ZEROS.len() as u64);
            self.0.update(&ZEROS[..usize::try_from(now).expect("at most 64 KiB")]);
            left -= now;
        }
    }

    /// Adds the content of the next range.
    pub(super) fn add_part(&mut self, part: &Part) {
        match &part.content {
            Content::Zeros(length) => self.add_zeros(*length),
            Content::Data(data) => self.add(data),
        }
    }

    /// Returns the checksum.
    pub(super) fn digest(&self) -> Digest {
        Digest(self.0.clone().finish().as_ref().try_into().expect("32 bytes"))
    }

    /// Returns the checksum in hexadecimal digits.
    pub(super) fn text(&self) -> String {
        self.digest().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_sha256sum_prints() {
        let mut checksum = Checksum::new();
        checksum.add(b"abc");
        assert_eq!(
            checksum.text(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "the first example of FIPS 180"
        );
        let (mut some, mut other) = (Checksum::new(), Checksum::new());
        some.add(&[0; 200_000]);
        other.add_zeros(200_000);
        assert_eq!(some.text(), other.text());
        assert_ne!(some.text(), Checksum::new().text());
    }
}

//! A set of pages of one chunk: the bitmaps in map entries, chunk objects and records.
//!
//! Must not know what the pages in a set have in common. Invariant: a decoded set contains only
//! pages of the chunk.

use super::codec::{DecodeError, Decoder, Encoder, invalid};
use super::geometry::{MAX_PAGES_PER_CHUNK, PageIndex};

const WORDS: usize = MAX_PAGES_PER_CHUNK as usize / 64;

/// A set of pages, each below 512.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    /// One bit for each page, page 0 in the lowest bit of the first word.
    words: [u64; WORDS],
}

impl PageSet {
    /// The set without pages.
    pub const EMPTY: Self = Self { words: [0; WORDS] };

    /// Returns the set of the pages `0..count`.
    #[must_use]
    pub fn first(count: u16) -> Self {
        let mut set = Self::EMPTY;
        for page in 0..count {
            set.insert(PageIndex(page));
        }
        set
    }

    /// Whether the set contains a page.
    #[must_use]
    pub fn contains(&self, PageIndex(page): PageIndex) -> bool {
        self.words[usize::from(page / 64)] >> (page % 64) & 1 == 1
    }

    /// Adds a page to the set.
    pub fn insert(&mut self, PageIndex(page): PageIndex) {
        self.words[usize::from(page / 64)] |= 1 << (page % 64);
    }

    /// Removes a page from the set.
    pub fn remove(&mut self, PageIndex(page): PageIndex) {
        self.words[usize::from(page / 64)] &= !(1 << (page % 64));
    }

    /// Returns how many pages of the set come before `page`. In an object that stores the set, this is the
    /// rank of its frame.
    #[must_use]
    pub fn rank(&self, PageIndex(page): PageIndex) -> u32 {
        let word = usize::from(page / 64);
        let before: u32 = self.words[..word].iter().map(|w| w.count_ones()).sum();
        before + (self.words[word] & ((1 << (page % 64)) - 1)).count_ones()
    }

    /// Returns the number of pages in the set.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.words.iter().map(|w| w.count_ones()).sum()
    }

    /// Whether the set contains no page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words == [0; WORDS]
    }

    /// Returns the pages in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = PageIndex> + '_ {
        let places = (0..MAX_PAGES_PER_CHUNK).step_by(64).zip(self.words).filter(|(_, word)| *word != 0);
        places.flat_map(|(first, word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| PageIndex(first + bit))
        })
    }

    /// Returns the length of an encoded set in bytes, for a chunk of `pages` pages. It consists
    /// of whole 64-bit words.
    #[must_use]
    pub fn encoded_bytes(pages: u16) -> usize {
        usize::from(pages.div_ceil(64)) * 8
    }

    /// Appends the set to an object, for a chunk of `pages` pages.
    pub fn encode(&self, pages: u16, to: &mut Encoder) {
        for word in &self.words[..usize::from(pages.div_ceil(64))] {
            to.u64(*word);
        }
    }

    /// Writes the set into space that was reserved for it.
    pub fn write(&self, to: &mut [u8]) {
        for (word, room) in self.words.iter().zip(to.chunks_exact_mut(8)) {
            room.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Reads a set from an object, for a chunk of `pages` pages.
    ///
    /// # Errors
    /// Returns an error if the set contains pages that the chunk does not have, or if too few bytes are left.
    pub fn decode(pages: u16, from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let mut set = Self::EMPTY;
        for word in &mut set.words[..usize::from(pages.div_ceil(64))] {
            *word = from.u64()?;
        }
        if !pages.is_multiple_of(64) && set.words[usize::from(pages / 64)] >> (pages % 64) != 0 {
            return Err(invalid("pages", format!("a page from {pages} on in a chunk of {pages}")));
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_counts_the_pages_before() {
        let mut set = PageSet::EMPTY;
        let pages = [0, 3, 63, 64, 200, 511].map(PageIndex);
        pages.into_iter().for_each(|page| set.insert(page));
        assert_eq!(set.iter().collect::<Vec<_>>(), pages);
        assert_eq!(
            [0, 3, 4, 63, 64, 65, 200, 511].map(|page| set.rank(PageIndex(page))),
            [0, 1, 2, 2, 3, 4, 4, 5]
        );
        set.remove(PageIndex(63));
        assert_eq!((set.len(), set.rank(PageIndex(511)), set.contains(PageIndex(63))), (5, 4, false));
        assert_eq!(PageSet::first(70).len(), 70);
    }
}

//! Reading and writing of wire values: big-endian integers and bounded strings.
//!
//! Every decoder of the protocol is built on [`Decoder`]. Invariant: decoding is total; it neither panics nor
//! allocates more than the bytes it was given.

use std::fmt;

use bytes::{BufMut, BytesMut};

/// Longest string of the protocol in bytes ("Conventions": MUST be no longer than 4096 bytes).
pub const MAXIMUM_STRING_BYTES: usize = 4096;

/// Why bytes are not a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Fewer bytes than the value needs.
    #[error("message ends too early")]
    Truncated,
    /// More bytes than the value needs.
    #[error("{0} bytes too many")]
    TrailingBytes(usize),
    /// Not the magic number that belongs here.
    #[error("wrong magic number {0:#x}")]
    BadMagic(u64),
    /// Not UTF-8, or with a NUL.
    #[error("string is not UTF-8 without NUL")]
    BadString,
    /// Longer than [`MAXIMUM_STRING_BYTES`].
    #[error("string of {0} bytes, longer than 4096")]
    StringTooLong(usize),
    /// A field that must not have this value.
    #[error("{0}")]
    Invalid(&'static str),
}

/// A string as the protocol has it: UTF-8, no NUL, at most [`MAXIMUM_STRING_BYTES`] bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "String", into = "String"))]
pub struct WireString(String);

impl WireString {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Length in bytes.
    #[must_use]
    pub fn len_u16(&self) -> u16 {
        u16::try_from(self.0.len()).expect("a wire string has at most 4096 bytes")
    }

    /// Text for people, cut at the first NUL and at the last character that fits.
    #[must_use]
    pub fn truncated(text: &str) -> Self {
        let text = text.split('\0').next().unwrap_or_default();
        let mut end = text.len().min(MAXIMUM_STRING_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self(text[..end].to_owned())
    }

    /// Appends the bytes.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_slice(self.0.as_bytes());
    }

    /// Appends a 32-bit length and the bytes.
    pub fn encode_with_length(&self, out: &mut BytesMut) {
        out.put_u32(u32::from(self.len_u16()));
        self.encode(out);
    }
}

impl TryFrom<&[u8]> for WireString {
    type Error = DecodeError;

    fn try_from(bytes: &[u8]) -> Result<Self, DecodeError> {
        //= Conventions: MUST be no longer than 4096 bytes
        if bytes.len() > MAXIMUM_STRING_BYTES {
            return Err(DecodeError::StringTooLong(bytes.len()));
        }
        match std::str::from_utf8(bytes) {
            //= Conventions: which is not `NUL` terminated, MUST NOT contain `NUL` characters
            Ok(text) if !text.contains('\0') => Ok(Self(text.to_owned())),
            _ => Err(DecodeError::BadString),
        }
    }
}

impl TryFrom<&str> for WireString {
    type Error = DecodeError;

    fn try_from(text: &str) -> Result<Self, DecodeError> {
        Self::try_from(text.as_bytes())
    }
}

impl TryFrom<String> for WireString {
    type Error = DecodeError;

    fn try_from(text: String) -> Result<Self, DecodeError> {
        Self::try_from(text.as_str())
    }
}

impl From<WireString> for String {
    fn from(text: WireString) -> Self {
        text.0
    }
}

impl AsRef<str> for WireString {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for WireString {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl fmt::Display for WireString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A reader of one message, from its first byte to its last.
#[derive(Clone, Copy, Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Reads `message`.
    #[must_use]
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The next `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// The next 16 bits.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next 32 bits.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    /// The next `length` bytes as a string.
    pub fn string(&mut self, length: u32) -> Result<WireString, DecodeError> {
        WireString::try_from(self.bytes(usize::try_from(length).map_err(|_| DecodeError::Truncated)?)?)
    }

    /// A 32-bit length and so many bytes as a string.
    pub fn string_with_length(&mut self) -> Result<WireString, DecodeError> {
        let length = self.u32()?;
        self.string(length)
    }

    /// All bytes that are left.
    #[must_use]
    pub fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// How many bytes are left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Checks a 32-bit magic number.
    pub fn magic_u32(&mut self, expected: u32) -> Result<(), DecodeError> {
        match self.u32()? {
            found if found == expected => Ok(()),
            found => Err(DecodeError::BadMagic(u64::from(found))),
        }
    }

    /// Checks a 64-bit magic number.
    pub fn magic_u64(&mut self, expected: u64) -> Result<(), DecodeError> {
        match self.u64()? {
            found if found == expected => Ok(()),
            found => Err(DecodeError::BadMagic(found)),
        }
    }

    /// Checks that nothing is left.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(DecodeError::TrailingBytes(left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_has_no_nul_is_utf8_and_has_at_most_4096_bytes() {
        assert_eq!(WireString::try_from(&b"a\0b"[..]), Err(DecodeError::BadString));
        assert_eq!(WireString::try_from(&[0xff][..]), Err(DecodeError::BadString));
        assert_eq!(WireString::try_from(&[b'a'; 4097][..]), Err(DecodeError::StringTooLong(4097)));
        assert_eq!(WireString::try_from(&[b'a'; 4096][..]).unwrap().len_u16(), 4096);
    }

    #[test]
    fn text_for_people_is_cut_at_nul_and_between_characters() {
        assert_eq!(WireString::truncated("one\0two").as_str(), "one");
        let long = format!("{}é", "a".repeat(4095));
        assert_eq!(WireString::truncated(&long).as_str(), "a".repeat(4095));
    }

    #[test]
    fn a_decoder_tells_short_from_long() {
        let mut short = Decoder::new(&[0, 1, 2]);
        assert_eq!(short.u32(), Err(DecodeError::Truncated));
        assert_eq!(short.u16(), Ok(1));
        assert_eq!(short.finish(), Err(DecodeError::TrailingBytes(1)));
    }
}

//! Encoding and decoding of wire values: big-endian integers and bounded strings.
//!
//! Every decoder of the protocol uses [`Decoder`]. Must not know messages. Invariant: decoding is total; it
//! never panics and never allocates more than the bytes it was given.

use std::fmt;

use bytes::{BufMut, BytesMut};

/// Maximum length of a string in bytes ("Conventions": MUST be no longer than 4096 bytes).
pub const MAXIMUM_STRING_BYTES: usize = 4096;

/// Why bytes do not decode to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// There are fewer bytes than the value needs.
    #[error("message ends too early")]
    Truncated,
    /// There are this many more bytes than the value needs.
    #[error("{0} bytes too many")]
    TrailingBytes(usize),
    /// This magic number was found where another one was expected.
    #[error("wrong magic number {0:#x}")]
    BadMagic(u64),
    /// The string is not UTF-8, or contains NUL.
    #[error("string is not UTF-8 without NUL")]
    BadString,
    /// The string has this many bytes, more than [`MAXIMUM_STRING_BYTES`].
    #[error("string of {0} bytes, longer than 4096")]
    StringTooLong(usize),
    /// A field has a value that it must not have.
    #[error("{0}")]
    Invalid(&'static str),
}

/// A protocol string: UTF-8 without NUL, at most [`MAXIMUM_STRING_BYTES`] bytes long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "String", into = "String"))]
pub struct WireString(String);

impl WireString {
    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the string is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Length in bytes, which always fits because of [`MAXIMUM_STRING_BYTES`].
    #[must_use]
    pub fn len_u16(&self) -> u16 {
        u16::try_from(self.0.len()).expect("a wire string has at most 4096 bytes")
    }

    /// Makes a string for people from any text: cuts it before the first NUL and to the maximum length,
    /// between characters.
    #[must_use]
    pub fn truncated(text: &str) -> Self {
        let text = text.split('\0').next().unwrap_or_default();
        let mut end = text.len().min(MAXIMUM_STRING_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self(text[..end].to_owned())
    }

    /// Appends the bytes without a length.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_slice(self.0.as_bytes());
    }

    /// Appends the length as a 32-bit integer, then the bytes.
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

/// Decodes one message from its first byte to its last.
#[derive(Clone, Copy, Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Creates a decoder at the start of `message`.
    #[must_use]
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// Takes the next `length` bytes.
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

    /// Takes a 16-bit big-endian integer.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    /// Takes a 32-bit big-endian integer.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    /// Takes a 64-bit big-endian integer.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Takes the next `length` bytes as a string.
    pub fn string(&mut self, length: u32) -> Result<WireString, DecodeError> {
        WireString::try_from(self.bytes(usize::try_from(length).map_err(|_| DecodeError::Truncated)?)?)
    }

    /// Takes a 32-bit length and a string of this length in bytes.
    pub fn string_with_length(&mut self) -> Result<WireString, DecodeError> {
        let length = self.u32()?;
        self.string(length)
    }

    /// Takes all remaining bytes.
    #[must_use]
    pub fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Number of remaining bytes.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Takes a 32-bit magic number and checks that it is the expected one.
    pub fn magic_u32(&mut self, expected: u32) -> Result<(), DecodeError> {
        match self.u32()? {
            found if found == expected => Ok(()),
            found => Err(DecodeError::BadMagic(u64::from(found))),
        }
    }

    /// Takes a 64-bit magic number and checks that it is the expected one.
    pub fn magic_u64(&mut self, expected: u64) -> Result<(), DecodeError> {
        match self.u64()? {
            found if found == expected => Ok(()),
            found => Err(DecodeError::BadMagic(found)),
        }
    }

    /// Checks that no bytes remain.
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

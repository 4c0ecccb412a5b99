//! Foreign text on terminals and in logs: what a server, a client or a store sends is shown, but not
//! interpreted.
//!
//! Owns the escaping, and must not know where a text comes from. Invariant: what [`printable`] returns
//! contains no control character. It is one line and moves no cursor.

use std::borrow::Cow;

/// Escapes every character that a terminal or a reader of lines would interpret: control characters, line
/// ends, and characters that change the direction of writing.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if acts(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

/// Returns whether a character does more than show something.
fn acts(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Shortens a text to its first `bytes` bytes or fewer, and appends how many bytes were omitted.
pub(super) fn shortened(text: &str, bytes: usize) -> Cow<'_, str> {
    if text.len() <= bytes {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(bytes);
    Cow::Owned(format!("{}… ({} bytes more)", &text[..end], text.len() - end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_control_a_terminal_are_escaped() {
        for (text, expected) in [
            ("plain, ünïcödé and 日本", "plain, ünïcödé and 日本"),
            ("\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}"),
            ("a\r\nb\tc", "a\\r\\nb\\tc"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("user\u{202e}txt.exe\u{2028}", "user\\u{202e}txt.exe\\u{2028}"),
        ] {
            assert_eq!(printable(text), expected);
        }
    }

    #[test]
    fn a_long_text_is_cut_between_two_characters() {
        assert_eq!(shortened("abc", 3), "abc");
        assert_eq!(shortened("abcd", 3), "abc… (1 bytes more)");
        assert_eq!(shortened("aé", 2), "a… (2 bytes more)");
    }
}

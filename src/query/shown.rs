//! Texts as people are shown them: what steers a terminal is written out.

use std::borrow::Cow;
use std::fmt::Write as _;

/// A text of which nothing moves the cursor, changes colours or turns the direction of reading; lines and
/// what is in them stay. A model may write anything.
pub fn shown(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        match letter {
            '\r' => shown.push_str("\\r"),
            letter if steers(letter) && (letter as u32) < 0x100 => {
                let _ = write!(shown, "\\x{:02x}", letter as u32);
            }
            letter if steers(letter) => {
                let _ = write!(shown, "\\u{{{:x}}}", letter as u32);
            }
            letter => shown.push(letter),
        }
    }
    Cow::Owned(shown)
}

fn steers(letter: char) -> bool {
    let turns = matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (letter.is_control() && letter != '\n' && letter != '\t') || turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_written_out() {
        assert_eq!(shown("a\u{1b}[31mred\u{7}"), "a\\x1b[31mred\\x07");
        assert_eq!(shown("over\rwrite\tit\u{9b}2J"), "over\\rwrite\tit\\x9b2J");
        assert_eq!(shown("\u{202e}txt.exe"), "\\u{202e}txt.exe");
        assert!(matches!(shown("two\nlines, naïve"), Cow::Borrowed(_)));
    }
}

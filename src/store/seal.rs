//! Small files of text with a checksum: a last line that says the blake3 of what stands before it.

/// How the last line begins.
const WORD: &str = "blake3 ";

/// A text with its checksum.
pub(super) fn seal(text: &str) -> String {
    format!("{text}\n{WORD}{}\n", blake3::hash(text.as_bytes()).to_hex())
}

/// The text, if its checksum holds or it has none, as in earlier versions; or what is wrong with it.
pub(super) fn open(bytes: &str) -> Result<&str, &'static str> {
    // JSON on one line has no line break of its own.
    let Some((text, last)) = bytes.split_once('\n') else {
        return Ok(bytes);
    };
    let hash = last.strip_suffix('\n').and_then(|last| last.strip_prefix(WORD));
    if hash == Some(blake3::hash(text.as_bytes()).to_hex().as_str()) {
        return Ok(text);
    }
    Err("its bytes have another checksum")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bit_of_a_sealed_text_can_be_flipped_unseen() {
        let sealed = seal("{\"weights\":\"00ff\",\"steps\":3}");
        assert_eq!(open(&sealed), Ok("{\"weights\":\"00ff\",\"steps\":3}"));
        for at in 0..sealed.len() * 8 {
            let mut bytes = sealed.clone().into_bytes();
            bytes[at / 8] ^= 1 << (at % 8);
            if let Ok(text) = std::str::from_utf8(&bytes) {
                // A text of one line, as earlier versions wrote it, is no JSON then.
                let is_read = open(text)
                    .is_ok_and(|read| serde_json::from_str::<serde_json::Value>(read).is_ok());
                assert!(!is_read, "bit {at}: {text}");
            }
        }
    }
}

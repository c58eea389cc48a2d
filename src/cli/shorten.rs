//! Values in one line, for people.

use std::fmt::Write as _;

use serde_json::Value;

use crate::query::shown::shown;

/// A value as a person would say it: a conversation as its turns, a text as itself.
pub(super) fn said(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(turns) if turns.iter().any(|turn| turn.get("role").is_some()) => {
            let turn = |turn: &Value| {
                let part = |name: &str| {
                    turn.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
                };
                format!("[{}] {}", part("role"), part("content"))
            };
            turns.iter().map(turn).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

/// A text in one line of at most so many characters; what is cut is counted.
pub(super) fn one_line(text: &str, most: usize) -> String {
    let mut line = String::with_capacity(text.len().min(most));
    for (at, c) in text.trim().chars().enumerate() {
        if at == most {
            let _ = write!(line, "… ({} more)", text.trim().chars().count() - most);
            break;
        }
        match c {
            '\n' => line.push('⏎'),
            '\t' => line.push(' '),
            c => line.push_str(&shown(c.encode_utf8(&mut [0; 4]))),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_long_text_is_cut_and_says_by_how_much() {
        assert_eq!(one_line("a\nb\u{1b}[31m", 20), "a⏎b\\x1b[31m");
        assert_eq!(one_line("abcdef", 2), "ab… (4 more)");
        assert_eq!(said(&json!([{ "role": "user", "content": "hi" }])), "[user] hi");
    }
}

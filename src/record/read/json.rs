//! JSON: a value, or why a text is none and in which column. A key that an object has twice is an
//! error: which of its values is meant, nothing says.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::fields::Fields;

/// The fields that a line says.
pub(super) fn object(text: &str) -> Result<Fields, String> {
    match value(text)? {
        Value::Object(map) => Ok(map.into_iter().collect()),
        Value::Array(_) => Err("it is a list of JSON; JSON lines have one object a line \
                                (`jq -c '.[]'` makes them of a list)"
            .to_owned()),
        _ => Err("it is JSON but not an object".to_owned()),
    }
}

/// The value that a text says, or the column and what is wrong there.
pub(super) fn value(text: &str) -> Result<Value, String> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Strict.deserialize(&mut deserializer);
    value.and_then(|value| deserializer.end().map(|()| value)).map_err(|error| {
        let before = text.split('\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
        let byte = error.column().saturating_sub(1).min(before.len());
        let characters = before.bytes().take(byte).filter(|byte| byte & 0xc0 != 0x80).count();
        let place = match error.line() {
            0 | 1 => format!("column {}", characters + usize::from(error.column() > 0)),
            line => format!("line {line} of it, column {}", characters + 1),
        };
        format!("{place}: {}", what(&error, before, byte))
    })
}

/// What is wrong, in words that say what to look for.
fn what(error: &serde_json::Error, line: &str, byte: usize) -> String {
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    // The parser stops at the second letter.
    let from = |back: usize| line.get(byte.saturating_sub(back)..).unwrap_or_default();
    let number = ["NaN", "Infinity"]
        .into_iter()
        .find(|name| (0..3).any(|back| from(back).starts_with(name)));
    if message.starts_with(TWICE) {
        return message.to_owned();
    }
    if message.contains("surrogate") || message.starts_with("unexpected end of hex escape") {
        return "it is not JSON: half of a surrogate pair (`\\ud800` to `\\udfff`) is no character"
            .to_owned();
    }
    if message.starts_with("recursion limit") {
        return "it is nested more than 127 deep".to_owned();
    }
    let is_number = message.starts_with("expected") || message == "invalid number";
    if let (true, Some(number)) = (is_number, number) {
        return format!("it is not JSON: {number} is no number of JSON (write null)");
    }
    format!("it is not JSON: {message}")
}

/// How the message of a repeated key begins.
const TWICE: &str = "it has the key ";

/// Reads a value in which no object has a key twice.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Strict)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(de::Error::custom(format!("{TWICE}{key:?} twice")));
            }
            let value = entries.next_value_seed(Strict)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        value(text).unwrap_err()
    }

    #[test]
    fn a_value_is_what_serde_json_reads() {
        for text in [
            r#"{"a": [1, -2, 1.5, 1e300, true, null, {"b": "é\u0000\n"}], "z": 18446744073709551615}"#,
            "\u{2028} ",
            "3",
        ] {
            let plain = serde_json::from_str::<Value>(text);
            assert_eq!(value(text).ok(), plain.ok(), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_column() {
        insta::assert_snapshot!(
            [
                r#"{"a": 1, "a": 2}"#,
                r#"{"é": [{"role": 1, "content": 2, "role": 3}]}"#,
                r#"{"é": "\ud800"}"#,
                r#"{"é": "\ud800\u0041"}"#,
                r#"{"é": "\udc00"}"#,
                r#"{"é": NaN}"#,
                r#"{"é": -Infinity}"#,
                "{\"a\": \"\u{0}\"}",
                r#"{"a": 1} {"a": 2}"#,
            ]
            .map(said)
            .join("\n"),
            @r#"
        column 12: it has the key "a" twice
        column 39: it has the key "role" twice
        column 14: it is not JSON: half of a surrogate pair (`\ud800` to `\udfff`) is no character
        column 19: it is not JSON: half of a surrogate pair (`\ud800` to `\udfff`) is no character
        column 13: it is not JSON: half of a surrogate pair (`\ud800` to `\udfff`) is no character
        column 7: it is not JSON: NaN is no number of JSON (write null)
        column 8: it is not JSON: Infinity is no number of JSON (write null)
        column 8: it is not JSON: control character (\u0000-\u001F) found while parsing a string
        column 10: it is not JSON: trailing characters
        "#
        );
        let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
        assert_eq!(said(&deep), "column 128: it is nested more than 127 deep");
    }
}

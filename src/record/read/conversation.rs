//! Conversations as files have them: a text, a transcript, or a list of messages, which a text may
//! hold as JSON.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::json;
use crate::record::Message;
use crate::record::transcript;

/// The turns that the value of a column says. A transcript that ends in `Assistant:` ends before it.
pub(super) fn turns(column: &str, value: &Value) -> Result<Vec<Message>, String> {
    match &*listed(column, value)? {
        Value::String(text) if transcript::is_transcript(text) => {
            let mut turns = transcript::parse(text).map_err(|error| error.to_string())?;
            turns.pop_if(|turn| turn.role == "assistant" && turn.content.trim().is_empty());
            Ok(turns)
        }
        Value::String(text) => Ok(vec![Message::user(text)]),
        Value::Array(items) => {
            items.iter().enumerate().map(|(at, item)| message(at, item)).collect()
        }
        Value::Null => Err("it is null".to_owned()),
        _ => Err("it is neither a text nor a list of messages".to_owned()),
    }
}

/// A value, or the list of messages that it holds as JSON: files whose columns are texts have them so.
/// What another program printed of such a list is an error, as is a column `messages` of one text.
pub(super) fn listed<'a>(column: &str, value: &'a Value) -> Result<Cow<'a, Value>, String> {
    let Value::String(text) = value else { return Ok(Cow::Borrowed(value)) };
    let is_messages = column == "messages";
    let text = text.trim().trim_start_matches('\u{feff}');
    let read = text.starts_with(['[', '{', '"']).then(|| json::value(text));
    match read {
        Some(Ok(Value::Array(items))) if is_messages || items.iter().any(is_message) => {
            return Ok(Cow::Owned(Value::Array(items)));
        }
        Some(Ok(object)) if is_message(&object) || object.get("messages").is_some() => {
            return Err(
                "it is a text that holds an object of JSON and no list of messages".to_owned()
            );
        }
        Some(Ok(Value::String(inner))) if seems_messages(&inner) => {
            return Err(
                "it is a text that holds messages as JSON within JSON: write the list itself"
                    .to_owned(),
            );
        }
        Some(Err(detail)) if seems_messages(text) => {
            let detail = detail.replacen(": it is not JSON: ", ": ", 1);
            return Err(format!(
                "it seems to be a list of messages, and is not JSON but what a program printed, or \
                 cut short ({detail}): write it as JSON"
            ));
        }
        None if seems_messages(text) => {
            return Err(
                "it seems to be a list of messages as a program printed it: write it as JSON"
                    .to_owned(),
            );
        }
        _ => {}
    }
    if is_messages && !transcript::is_transcript(text) {
        return Err("it is a text, and neither a list of messages as JSON nor a transcript \
                    (a text that is one prompt is a column `prompt`)"
            .to_owned());
    }
    Ok(Cow::Borrowed(value))
}

/// Whether an object is a message, rightly or not.
fn is_message(value: &Value) -> bool {
    let has = |name: &str| value.get(name).is_some();
    value.is_object() && (has("role") && has("content") || has("from") && has("value"))
}

/// Whether a text is what a program printed of a list of messages, or the beginning of it: it begins
/// with a map, or with the call that makes an object, of which some keys are those of a message.
fn seems_messages(text: &str) -> bool {
    static BEGINS: LazyLock<Regex> = LazyLock::new(|| {
        let containers = r"(?:[\s\[(]|(?:np\.|numpy\.)?array\(|OrderedDict\()*";
        let map = r#"[{(]\s*\\*['"]\w+\\*['"]\s*[:,]"#;
        let call = r"\w+\(\s*\w+=";
        Regex::new(&format!(r"^{containers}(?:{map}|{call})")).expect("the pattern is one")
    });
    static CUT: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#"^\s*\[\s*\{\s*\\*['"](?:role|content|from|value)\b"#)
            .expect("the pattern is one")
    });
    static KEYS: LazyLock<[Regex; 4]> = LazyLock::new(|| {
        ["role", "content", "from", "value"].map(|key| {
            let quoted = format!(r#"['"]{key}\\*['"]\s*[:,]"#);
            Regex::new(&format!(r#"{quoted}|\b{key}=\s*['"\[<]"#)).expect("the pattern is one")
        })
    });
    if CUT.is_match(text) {
        return true;
    }
    let [role, content, from, value] = &*KEYS;
    let is_list = text.trim_start().starts_with(['[', '(']) || text.contains("array(");
    BEGINS.is_match(text)
        && (role.is_match(text) && content.is_match(text)
            || is_list && from.is_match(text) && value.is_match(text))
}

/// A message: `{role, content}`, or ShareGPT's `{from, value}`.
fn message(at: usize, item: &Value) -> Result<Message, String> {
    let text = |name: &str| item.get(name).and_then(Value::as_str);
    let role = text("role").or_else(|| text("from"));
    let content = text("content").or_else(|| text("value"));
    let (Some(role), Some(content)) = (role, content) else {
        return Err(format!("message {} has no `role` and `content` of text", at + 1));
    };
    let role = match role {
        "human" => "user",
        "gpt" => "assistant",
        role @ ("user" | "assistant" | "system" | "tool") => role,
        other => return Err(format!("message {} has the role \"{other}\"", at + 1)),
    };
    Ok(Message { role: role.to_owned(), content: content.to_owned() })
}

/// Checks that turns are a prompt: none is empty, no side speaks twice, the human speaks last.
pub(super) fn check_prompt(turns: &[Message]) -> Result<(), String> {
    let Some(last) = turns.last() else { return Err("the prompt has no turn".to_owned()) };
    if let Some(at) = turns.iter().position(|turn| turn.content.trim().is_empty()) {
        return Err(format!("turn {} of the prompt is empty", at + 1));
    }
    let twice = turns.windows(2).position(|pair| pair[0].role == pair[1].role);
    if let Some(at) = twice {
        let side = if turns[at].role == "user" { "human" } else { &turns[at].role };
        return Err(format!("turns {} and {} of the prompt are both the {side}'s", at + 1, at + 2));
    }
    if !matches!(last.role.as_str(), "user" | "tool") {
        return Err(format!("the prompt ends on the side of the {}", last.role));
    }
    Ok(())
}

/// The answer that turns are: one of the assistant, not empty, without white space around it.
pub(super) fn answer(name: &str, turns: &[Message]) -> Result<Vec<Message>, String> {
    match turns {
        [] => Err(format!("`{name}` is empty")),
        [turn] if turn.content.trim().is_empty() => Err(format!("`{name}` is empty")),
        [turn] if turn.role == "assistant" => Ok(vec![Message::assistant(turn.content.trim())]),
        [turn] => Err(format!("`{name}` is of the {}, not of the assistant", turn.role)),
        more => Err(format!("`{name}` has {} turns after the prompt", more.len())),
    }
}

/// The common beginning of two transcripts that ends in the last `\n\nAssistant:`, and what each
/// says after it.
pub(super) fn common_prompt<'a>(
    chosen: &'a str,
    rejected: &'a str,
) -> Option<(&'a str, [&'a str; 2])> {
    let common = chosen.bytes().zip(rejected.bytes()).take_while(|(a, b)| a == b).count();
    let marker = transcript::ASSISTANT.as_bytes();
    let at =
        chosen.as_bytes()[..common].windows(marker.len()).rposition(|window| window == marker)?;
    let end = at + marker.len();
    Some((&chosen[..at], [&chosen[end..], &rejected[end..]]))
}

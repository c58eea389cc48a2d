//! Conversations as files have them: a text, a transcript, or a list of messages.

use serde_json::Value;

use crate::record::Message;
use crate::record::transcript;

/// The turns that a value says. A transcript that ends in `Assistant:` ends before it.
pub(super) fn turns(value: &Value) -> Result<Vec<Message>, String> {
    match value {
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

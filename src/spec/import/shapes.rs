//! The published shapes, told apart by what they hold.

use serde_json::{Map, Value};

use crate::spec::constitution::{Constitution, JudgeExample, Principle};
use crate::spec::place::{Name, Spanned};

/// Adds what a JSON value holds, or says what was found instead of a known shape.
pub(super) fn add(value: &Value, to: &mut Constitution) -> Result<(), String> {
    let known = match value {
        Value::Object(object) if object.contains_key("constitutions") => handbook(object, to),
        Value::Object(object) => instructions(object, to),
        Value::Array(items) => list(items, to),
        _ => None,
    };
    known.ok_or_else(|| found(value))
}

/// `{"harmful0": {"prompt": ["\n\nCritiqueRequest: …\n\nCritique:"], "edit_request": "\n\nRevisionRequest: …\n\nRevision:"}}`
fn instructions(object: &Map<String, Value>, to: &mut Constitution) -> Option<()> {
    if object.is_empty() {
        return None;
    }
    for (id, entry) in object {
        let prompt = entry.get("prompt")?;
        let critique = prompt.as_str().or_else(|| prompt.get(0)?.as_str())?;
        let revise = entry.get("edit_request")?.as_str()?;
        to.principles.push(critic(id, critique, revise));
    }
    Some(())
}

/// `{"constitutions": [{"critic", "revision"}], "system_chat": [[six messages], …]}`
fn handbook(object: &Map<String, Value>, to: &mut Constitution) -> Option<()> {
    for (index, entry) in object.get("constitutions")?.as_array()?.iter().enumerate() {
        let (critique, revise) = (entry.get("critic")?.as_str()?, entry.get("revision")?.as_str()?);
        to.principles.push(critic(&format!("principle{index}"), critique, revise));
    }
    let Some(chats) = object.get("system_chat") else { return Some(()) };
    let chats = chats.as_array()?;
    let messages: Vec<&Value> = match chats.first() {
        Some(Value::Array(_)) => chats.iter().filter_map(Value::as_array).flatten().collect(),
        _ => chats.iter().collect(),
    };
    for chat in messages.chunks_exact(6) {
        let names =
            ["Human", "Assistant", "CritiqueRequest", "Critique", "RevisionRequest", "Revision"];
        let turns: Option<Vec<_>> = names
            .iter()
            .zip(chat)
            .map(|(name, message)| {
                Some(format!("{name}: {}", message.get("content")?.as_str()?.trim()))
            })
            .collect();
        to.few_shot.critique_revise.push(Spanned::nowhere(turns?.join("\n\n")));
    }
    messages.len().is_multiple_of(6).then_some(())
}

/// A list: instructions or examples of Anthropic's, or LangChain's principles.
fn list(items: &[Value], to: &mut Constitution) -> Option<()> {
    if items.is_empty() {
        return None;
    }
    for (index, item) in items.iter().enumerate() {
        match item {
            Value::String(text) if text.contains("\n\nCritique:") => {
                let text = text.trim_start_matches('\n');
                let text = text.strip_suffix("\n\nHuman:").unwrap_or(text);
                to.few_shot.critique_revise.push(Spanned::nowhere(text.to_owned()));
            }
            Value::String(text) => {
                let judge = text.strip_prefix('\n')?.strip_suffix(" Options:")?;
                to.principles.push(Principle {
                    judge: Some(text_of(judge)),
                    ..principle(&format!("rl{index}"))
                });
            }
            Value::Object(object) if object.contains_key("critique_request") => {
                let text = |key: &str| object.get(key).and_then(Value::as_str);
                to.principles.push(critic(
                    text("name")?,
                    text("critique_request")?,
                    text("revision_request")?,
                ));
            }
            Value::Object(object) => example(object, to)?,
            _ => return None,
        }
    }
    Some(())
}

/// `{"prompt", "corrects": [text], "incorrects": [text]}`, or `{"prompt"}` with a place for the principle.
fn example(object: &Map<String, Value>, to: &mut Constitution) -> Option<()> {
    let prompt = object.get("prompt")?.as_str()?;
    let first = |key: &str| object.get(key)?.get(0)?.as_str().map(str::to_owned);
    match (first("corrects"), first("incorrects")) {
        (Some(chosen), Some(rejected)) => {
            let prompt = Spanned::nowhere(prompt.trim_start_matches('\n').to_owned());
            to.few_shot.judge.push(JudgeExample { prompt, chosen, rejected });
        }
        (None, None) if prompt.contains("{}") => {
            to.few_shot
                .judge_cot
                .push(Spanned::nowhere(prompt.trim_start_matches('\n').to_owned()));
        }
        _ => return None,
    }
    Some(())
}

/// A principle of the first stage, without the words that templates put around its texts.
fn critic(id: &str, critique: &str, revise: &str) -> Principle {
    Principle {
        critique: Some(text_of(between(critique, "CritiqueRequest:", "Critique:"))),
        revise: Some(text_of(between(revise, "RevisionRequest:", "Revision:"))),
        ..principle(id)
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let text = text.trim();
    let text = text.strip_prefix(before).unwrap_or(text);
    text.strip_suffix(after).unwrap_or(text).trim()
}

fn text_of(text: &str) -> Spanned<String> {
    Spanned::nowhere(text.to_owned())
}

fn principle(id: &str) -> Principle {
    Principle {
        id: Name::from(id),
        critique: None,
        revise: None,
        judge: None,
        weight: Spanned::nowhere(1.0),
        tags: Vec::new(),
        stage: None,
        was: None,
    }
}

fn found(value: &Value) -> String {
    match value {
        Value::Object(object) => {
            let keys: Vec<_> = object.keys().take(5).map(|key| format!("\"{key}\"")).collect();
            format!("an object with the keys {}", keys.join(", "))
        }
        Value::Array(items) => match items.first() {
            Some(first @ (Value::Object(_) | Value::Array(_))) => {
                format!("a list of {}", found(first))
            }
            Some(_) => "a list of texts or numbers that are neither instructions nor transcripts"
                .to_owned(),
            None => "an empty list".to_owned(),
        },
        _ => "a text or a number".to_owned(),
    }
}

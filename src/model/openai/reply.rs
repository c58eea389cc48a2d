//! Replies: what is read of them, in every dialect of the protocol that is known to be spoken.
//!
//! A field that is not needed never makes a reply unreadable; one that is needed and missing is
//! named.

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, SeqAccess};
use serde_json::Value;

use super::lenient::{Field, Shape, object};
use crate::model::answer::{Billed, Finish};

/// A reply, as far as it is read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Reply {
    pub(super) model: Field<String>,
    pub(super) system_fingerprint: Field<String>,
    pub(super) choices: Field<Vec<Field<Choice>>>,
    pub(super) usage: Field<Usage>,
    /// vLLM's chat puts it here, its completions into the choice.
    pub(super) prompt_logprobs: Field<Vec<Field<PromptToken>>>,
    /// Some gateways answer 200 and put the error here.
    pub(super) error: Value,
    /// `error` where the whole reply is one, as vLLM's were.
    pub(super) object: Field<String>,
    /// The message of such a reply.
    pub(super) message: Value,
    /// The code of such a reply.
    pub(super) code: Value,
}

impl Reply {
    /// The first choice.
    ///
    /// # Panics
    ///
    /// Where there is none: [`super::failure::Failure::check`] refuses such replies.
    pub(super) fn choice(&self) -> &Choice {
        self.choices().next().expect("a checked reply has a choice")
    }

    /// All choices.
    pub(super) fn choices(&self) -> impl Iterator<Item = &Choice> {
        self.choices.get().into_iter().flatten().filter_map(Field::get)
    }

    /// All choices, by their `index` where they have one.
    pub(super) fn in_order(&self) -> Vec<&Choice> {
        let mut choices: Vec<&Choice> = self.choices().collect();
        choices.sort_by_key(|choice| choice.index.get().copied().unwrap_or(0));
        choices
    }

    /// What the server says that it counted, if it counted.
    pub(super) fn billed(&self) -> Option<Billed> {
        let usage = self.usage.get()?;
        let read = usage.prompt_tokens.get().or(usage.input_tokens.get());
        let written = usage.completion_tokens.get().or(usage.output_tokens.get());
        // Gateways relay null, or 0 and 0, where the server behind them does not count.
        let (read, written) = (*read?, *written?);
        let is_counted = read > 0 || written > 0;
        is_counted.then_some(Billed {
            requests: 1,
            prompt_tokens: read,
            completion_tokens: written,
        })
    }
}

/// One of the answers of a reply.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Choice {
    pub(super) index: Field<u32>,
    pub(super) text: Field<Content>,
    pub(super) message: Field<Message>,
    pub(super) finish_reason: Field<String>,
    pub(super) logprobs: Field<Logprobs>,
    pub(super) prompt_logprobs: Field<Vec<Field<PromptToken>>>,
    /// `OpenRouter`'s place for an error of the server behind it.
    pub(super) error: Value,
}

/// A message that the model wrote.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Message {
    pub(super) content: Field<Content>,
    pub(super) refusal: Field<String>,
    /// vLLM's, SGLang's and DeepSeek's.
    pub(super) reasoning_content: Field<Content>,
    /// `OpenRouter`'s, and vLLM's since 0.12.
    pub(super) reasoning: Field<Content>,
    /// Ollama's.
    pub(super) thinking: Field<Content>,
}

/// What a model wrote: a text, or parts of which some are reasoning.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Content {
    pub(super) text: String,
    pub(super) reasoning: String,
    /// The type of a part that cannot be read.
    pub(super) unknown: Option<String>,
}

impl Shape for Content {
    const WHAT: &'static str = "a text or a list of parts";

    fn of_text(text: &str) -> Option<Content> {
        Some(Content { text: text.to_owned(), ..Content::default() })
    }

    fn of_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Content>, A::Error> {
        let mut content = Content::default();
        while let Some(part) = list.next_element::<Value>()? {
            content.part(&part);
        }
        Ok(Some(content))
    }
}

impl Content {
    /// Adds a part: a text, or an object whose `type` says what it is.
    fn part(&mut self, part: &Value) {
        if let Some(text) = part.as_str() {
            self.text.push_str(text);
            return;
        }
        let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
        let inner = |names: &[&str]| names.iter().find_map(|name| part.get(*name)).map(texts);
        match kind {
            "text" | "output_text" | "refusal" => match inner(&["text", "refusal"]) {
                Some(text) => self.text.push_str(&text),
                None => self.unknown = Some(kind.to_owned()),
            },
            "thinking" | "reasoning" | "reasoning_content" | "redacted_thinking" => {
                let text = inner(&["thinking", "reasoning", "text", "content", "summary"]);
                self.reasoning.push_str(&text.unwrap_or_default());
            }
            // What the model cites is beside the text.
            "reference" => {}
            other => match part.get("text").and_then(Value::as_str) {
                Some(text) => self.text.push_str(text),
                None => self.unknown = Some(other.to_owned()),
            },
        }
    }
}

/// All texts of a text, an object with a `text`, or a list of such.
fn texts(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(texts).collect(),
        Value::Object(fields) => fields.get("text").map(texts).unwrap_or_default(),
        _ => String::new(),
    }
}

/// What a choice comes to as text.
#[derive(Debug, PartialEq)]
pub(super) struct Text {
    pub(super) text: String,
    pub(super) reasoning: Option<String>,
}

impl Choice {
    /// The text that the model wrote, and its reasoning where the server gives it apart.
    pub(super) fn text(&self) -> Result<Text, String> {
        let Some(message) = self.message.get() else {
            let text = self.text.needed("choices[0].text")?;
            return Ok(Text { text: text.text.clone(), reasoning: None });
        };
        if let Field::Other(_) = message.content {
            message.content.needed("choices[0].message.content")?;
        }
        let content = message.content.get();
        if let Some(unknown) = content.and_then(|content| content.unknown.as_ref()) {
            return Err(format!("`choices[0].message.content` has a part of type {unknown:?}"));
        }
        let text = content.map(|content| content.text.as_str()).filter(|text| !text.is_empty());
        let refusal = message.refusal.get().map(String::as_str);
        let text = text.or(refusal).unwrap_or_default().to_owned();
        let beside = [&message.reasoning_content, &message.reasoning, &message.thinking];
        let beside = beside.iter().filter_map(|field| field.get());
        let beside = beside.map(|content| format!("{}{}", content.reasoning, content.text));
        let inside = content.map(|content| content.reasoning.clone());
        let mut reasoning = beside.chain(inside).filter(|text| !text.trim().is_empty());
        Ok(Text { text, reasoning: reasoning.next() })
    }

    /// Why the model stopped; none where the server ended it, with what it said.
    pub(super) fn finish(&self) -> Result<Finish, End> {
        let Some(name) = self.finish_reason.get() else {
            return match &self.finish_reason {
                Field::Other(kind) => {
                    Err(End::Unknown(format!("`finish_reason` of the reply is {kind}")))
                }
                // Older servers leave it out of a reply that is whole.
                _ => Ok(Finish::Stop),
            };
        };
        match name.to_lowercase().as_str() {
            "" | "stop" | "eos" | "eos_token" | "end_turn" | "stop_sequence" | "stop_token"
            | "stop_string" | "complete" | "completed" | "end" | "finished" => Ok(Finish::Stop),
            "length"
            | "max_tokens"
            | "max_output_tokens"
            | "max_length"
            | "model_length"
            | "context_length"
            | "model_context_window_exceeded" => Ok(Finish::Length),
            "content_filter"
            | "content_filtered"
            | "refusal"
            | "safety"
            | "recitation"
            | "blocklist"
            | "prohibited_content"
            | "spii"
            | "sensitive"
            | "language"
            | "guardrail_intervened"
            | "image_safety" => Ok(Finish::ContentFilter),
            "tool_calls" | "function_call" | "tool_use" | "tool_call" => Ok(Finish::ToolCalls),
            "abort"
            | "aborted"
            | "error"
            | "insufficient_system_resource"
            | "cancelled"
            | "canceled"
            | "cancel"
            | "timeout"
            | "failed"
            | "server_error"
            | "network_error"
            | "engine_overloaded"
            | "interrupted"
            | "shutdown"
            | "unload"
            | "pause_turn"
            | "incomplete" => Err(End::Cut(name.clone())),
            _ => Err(End::Unknown(format!("the reply has an unknown `finish_reason`: {name:?}"))),
        }
    }
}

/// An end that is not the model's own.
#[derive(Debug, PartialEq)]
pub(super) enum End {
    /// The server broke off, and calls it so.
    Cut(String),
    /// Nobody knows what it means; the message says so.
    Unknown(String),
}

/// The log-probabilities of a choice: `content` in chat (and in llama.cpp's completions), the
/// three lists in completions.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_field_names, reason = "the names are the protocol's")]
pub(super) struct Logprobs {
    pub(super) content: Field<Vec<Field<Token>>>,
    pub(super) tokens: Field<Vec<Field<String>>>,
    pub(super) token_logprobs: Field<Vec<Field<f64>>>,
    pub(super) top_logprobs: Field<Places>,
}

/// Places whose alternatives are kept: more than the tokens of any label. An echo lists them for
/// each token of the prompt, and nobody reads those.
const PLACES_MAX: usize = 16;

/// For the first tokens written, what could have stood there.
#[derive(Debug, Default)]
pub(super) struct Places(pub(super) Vec<Field<Alternatives>>);

impl Shape for Places {
    const WHAT: &'static str = "a list of alternatives";

    fn of_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Places>, A::Error> {
        let mut places = Vec::new();
        while places.len() < PLACES_MAX {
            match list.next_element()? {
                Some(place) => places.push(place),
                None => return Ok(Some(Places(places))),
            }
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Some(Places(places)))
    }
}

/// Tokens and their log-probabilities, in the server's order.
#[derive(Debug, Default)]
pub(super) struct Alternatives(pub(super) Vec<(String, Field<f64>)>);

impl Shape for Alternatives {
    const WHAT: &'static str = "an object of log-probabilities";

    fn of_object<'de, A: MapAccess<'de>>(mut object: A) -> Result<Option<Alternatives>, A::Error> {
        let mut all = Vec::new();
        while let Some(entry) = object.next_entry()? {
            all.push(entry);
        }
        Ok(Some(Alternatives(all)))
    }
}

/// A token of a chat answer, or one that could have stood there.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_field_names, reason = "the names are the protocol's")]
pub(super) struct Token {
    pub(super) token: Field<String>,
    pub(super) logprob: Field<f64>,
    pub(super) top_logprobs: Field<Vec<Field<Token>>>,
}

impl Token {
    /// The token and its log-probability, where both are there.
    pub(super) fn pair(&self) -> Option<(&str, f64)> {
        Some((self.token.get()?.as_str(), *self.logprob.get()?))
    }
}

/// A token of a prompt. vLLM lists several by token id; the prompt's own comes first.
#[derive(Debug, Default)]
pub(super) struct PromptToken {
    pub(super) text: String,
    pub(super) logprob: f64,
}

impl Shape for PromptToken {
    const WHAT: &'static str = "an object of tokens";

    fn of_object<'de, A: MapAccess<'de>>(mut object: A) -> Result<Option<PromptToken>, A::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Listed {
            logprob: Field<f64>,
            decoded_token: Field<String>,
        }
        object!(Listed: "a token");

        let first = object.next_entry::<IgnoredAny, Field<Listed>>()?;
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        let own = first.and_then(|(_, own)| own.take());
        Ok(own.and_then(|own| {
            let text = own.decoded_token.take().unwrap_or_default();
            Some(PromptToken { text, logprob: own.logprob.take()? })
        }))
    }
}

/// What was counted.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Usage {
    pub(super) prompt_tokens: Field<u32>,
    pub(super) completion_tokens: Field<u32>,
    /// Some gateways relay Anthropic's names.
    pub(super) input_tokens: Field<u32>,
    pub(super) output_tokens: Field<u32>,
    pub(super) prompt_tokens_details: Field<PromptTokensDetails>,
}

/// What was counted of the prompt.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PromptTokensDetails {
    pub(super) cached_tokens: Field<u32>,
}

object! {
    Choice: "an object",
    Message: "a message",
    Logprobs: "an object of log-probabilities",
    Token: "a token",
    Usage: "an object of counts",
    PromptTokensDetails: "an object of counts",
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> Reply {
        serde_json::from_str(text).unwrap()
    }

    fn said(choice: &str) -> Result<Text, String> {
        reply(&format!(r#"{{"choices":[{choice}]}}"#)).choice().text()
    }

    fn check(choice: &str, text: &str, reasoning: Option<&str>) {
        let expected = Text { text: text.to_owned(), reasoning: reasoning.map(str::to_owned) };
        assert_eq!(said(choice), Ok(expected), "{choice}");
    }

    #[test]
    fn content_is_a_text_or_parts_and_reasoning_is_kept_apart() {
        check(r#"{"text":"a"}"#, "a", None);
        check(r#"{"message":{"content":"a"}}"#, "a", None);
        check(r#"{"message":{"content":null}}"#, "", None);
        check(r#"{"message":{"content":null,"refusal":"no"}}"#, "no", None);
        check(r#"{"message":{"content":["a",{"type":"text","text":"b"}]}}"#, "ab", None);
        check(r#"{"message":{"content":[{"type":"output_text","text":"b"}]}}"#, "b", None);
        let thinking = r#"{"type":"thinking","thinking":[{"type":"text","text":"hm"}]}"#;
        check(
            &format!(
                r#"{{"message":{{"content":[{thinking},{{"type":"text","text":"a"}},{{"type":"reference","reference_ids":[1]}}]}}}}"#
            ),
            "a",
            Some("hm"),
        );
        check(r#"{"message":{"content":"a","reasoning_content":"hm"}}"#, "a", Some("hm"));
        check(r#"{"message":{"content":"a","reasoning":"hm","thinking":null}}"#, "a", Some("hm"));
        check(r#"{"message":{"content":"a","reasoning_content":""}}"#, "a", None);
    }

    #[test]
    fn a_needed_field_that_is_missing_or_malformed_is_named() {
        assert_eq!(said(r#"{"index":0}"#).unwrap_err(), "the reply has no `choices[0].text`");
        assert_eq!(
            said(r#"{"message":{"content":7}}"#).unwrap_err(),
            "`choices[0].message.content` of the reply is a number, and should be a text or a list of parts"
        );
        assert_eq!(
            said(r#"{"message":{"content":[{"type":"image_url"}]}}"#).unwrap_err(),
            "`choices[0].message.content` has a part of type \"image_url\""
        );
    }

    #[test]
    fn a_field_that_is_not_needed_never_makes_a_reply_unreadable() {
        let odd = reply(
            r#"{"model":7,"system_fingerprint":[],"usage":{"prompt_tokens":null,"completion_tokens":1.5},
                "prompt_logprobs":{},"object":false,
                "choices":[null,{"index":"0","logprobs":"none","text":"a","finish_reason":"stop"}]}"#,
        );
        assert_eq!(odd.choice().text().unwrap().text, "a");
        assert_eq!((odd.billed(), odd.choice().finish()), (None, Ok(Finish::Stop)));
        let counted =
            r#"{"usage":{"prompt_tokens":3,"completion_tokens":0,"prompt_tokens_details":null}}"#;
        let billed = Billed { requests: 1, prompt_tokens: 3, completion_tokens: 0 };
        assert_eq!(reply(counted).billed(), Some(billed));
        let anthropic = r#"{"usage":{"input_tokens":3,"output_tokens":0}}"#;
        assert_eq!(reply(anthropic).billed(), Some(billed));
        assert_eq!(reply(r#"{"usage":{"prompt_tokens":0,"completion_tokens":0}}"#).billed(), None);
    }

    #[test]
    fn ends_of_all_servers_are_known_and_an_unknown_one_is_no_stop() {
        let finish = |reason: &str| {
            let text = format!(r#"{{"choices":[{{"text":"a","finish_reason":{reason}}}]}}"#);
            reply(&text).choice().finish()
        };
        for stop in ["null", r#""stop""#, r#""eos""#, r#""end_turn""#, r#""COMPLETE""#, r#""STOP""#]
        {
            assert_eq!(finish(stop), Ok(Finish::Stop), "{stop}");
        }
        for cut in [r#""length""#, r#""max_tokens""#, r#""MAX_TOKENS""#, r#""model_length""#] {
            assert_eq!(finish(cut), Ok(Finish::Length), "{cut}");
        }
        for filter in [r#""content_filter""#, r#""refusal""#, r#""SAFETY""#, r#""sensitive""#] {
            assert_eq!(finish(filter), Ok(Finish::ContentFilter), "{filter}");
        }
        assert_eq!(finish(r#""tool_calls""#), Ok(Finish::ToolCalls));
        for broken in ["abort", "error", "insufficient_system_resource"] {
            assert_eq!(finish(&format!("{broken:?}")), Err(End::Cut(broken.to_owned())));
        }
        assert!(
            matches!(finish(r#""magic""#), Err(End::Unknown(message)) if message.contains("magic"))
        );
        assert!(matches!(finish("7"), Err(End::Unknown(_))));
    }
}

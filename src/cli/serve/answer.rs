//! What clients are told: OpenAI's objects, whole or in chunks.

use serde_json::{Value, json};

use super::wire::Fault;
use crate::model::torch::Token;
use crate::model::{Answer, CallError, Finish};

/// What all objects of one answer say.
#[derive(Clone)]
pub(super) struct About {
    pub(super) id: String,
    pub(super) created: i64,
    pub(super) model: String,
    pub(super) fingerprint: String,
    pub(super) is_chat: bool,
    /// Whether log-probabilities are told.
    pub(super) has_logprobs: bool,
    /// How many answers there are to each prompt.
    pub(super) count: usize,
}

/// One answer, as far as it is written.
#[derive(Clone, Default)]
pub(super) struct Written {
    pub(super) text: String,
    /// A transcript's answer begins after a space, which is not part of it.
    pub(super) is_transcript: bool,
    pub(super) tokens: Vec<Token>,
    pub(super) finish: Option<Finish>,
    pub(super) prompt_tokens: i64,
    pub(super) completion_tokens: i64,
}

impl Written {
    /// Takes more of the text, and gives what of it is part of the answer.
    pub(super) fn add<'a>(&mut self, text: &'a str) -> &'a str {
        let is_begin = self.is_transcript && self.text.is_empty();
        let text = if is_begin { text.trim_start() } else { text };
        self.text.push_str(text);
        text
    }

    /// Takes how it ended.
    pub(super) fn end(&mut self, answer: &Answer) {
        self.finish = Some(answer.finish);
        self.prompt_tokens = i64::from(answer.prompt_tokens);
        self.completion_tokens = i64::from(answer.completion_tokens);
    }
}

impl About {
    fn object(&self, is_chunk: bool) -> &'static str {
        match (self.is_chat, is_chunk) {
            (true, false) => "chat.completion",
            (true, true) => "chat.completion.chunk",
            (false, _) => "text_completion",
        }
    }

    fn envelope(&self, is_chunk: bool, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": self.object(is_chunk),
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }

    /// The whole of an answer.
    pub(super) fn whole(&self, written: &[Written]) -> Value {
        let choice = |(index, written): (usize, &Written)| {
            let mut choice = json!({
                "index": index,
                "finish_reason": written.finish.map(Finish::name),
                "logprobs": self.logprobs(&written.tokens, 0),
            });
            if self.is_chat {
                choice["message"] =
                    json!({ "role": "assistant", "content": written.text, "refusal": null });
            } else {
                choice["text"] = Value::from(written.text.as_str());
            }
            choice
        };
        let mut whole = self.envelope(false, written.iter().enumerate().map(choice).collect());
        whole["usage"] = self.usage(written);
        whole
    }

    /// The first chunk of a chat's answer: who speaks.
    pub(super) fn role(&self, index: usize) -> Value {
        self.chunk(index, json!({ "role": "assistant", "content": "" }), Value::Null, None)
    }

    /// More of an answer, of which so many characters were told.
    pub(super) fn more(&self, index: usize, text: &str, tokens: &[Token], offset: usize) -> Value {
        let delta = if self.is_chat { json!({ "content": text }) } else { Value::from(text) };
        self.chunk(index, delta, self.logprobs(tokens, offset), None)
    }

    /// The last chunk: why it ended.
    pub(super) fn last(&self, index: usize, finish: Finish) -> Value {
        let delta = if self.is_chat { json!({}) } else { Value::from("") };
        self.chunk(index, delta, Value::Null, Some(finish))
    }

    /// What all took, in a chunk without an answer.
    pub(super) fn used(&self, written: &[Written]) -> Value {
        let mut chunk = self.envelope(true, Vec::new());
        chunk["usage"] = self.usage(written);
        chunk
    }

    /// What all took: a prompt counts once, whatever the number of its answers.
    fn usage(&self, written: &[Written]) -> Value {
        let prompt: i64 = written.chunks(self.count).map(|answers| answers[0].prompt_tokens).sum();
        let completion: i64 = written.iter().map(|written| written.completion_tokens).sum();
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        })
    }

    fn chunk(&self, index: usize, delta: Value, logprobs: Value, finish: Option<Finish>) -> Value {
        let part = if self.is_chat { "delta" } else { "text" };
        let choice = json!({
            "index": index,
            part: delta,
            "logprobs": logprobs,
            "finish_reason": finish.map(Finish::name),
        });
        self.envelope(true, vec![choice])
    }

    fn logprobs(&self, tokens: &[Token], offset: usize) -> Value {
        match (self.has_logprobs, self.is_chat) {
            (false, _) => Value::Null,
            (true, true) => json!({ "content": tokens.iter().map(chat_token).collect::<Vec<_>>() }),
            (true, false) => plain_tokens(tokens, offset),
        }
    }
}

fn chat_token(token: &Token) -> Value {
    let entry = |text: &str, logprob: f32| json!({ "token": text, "logprob": logprob, "bytes": text.as_bytes() });
    let top = token.alternatives.iter().map(|(text, logprob)| entry(text, *logprob));
    let mut told = entry(&token.text, token.logprob.unwrap_or(0.0));
    told["top_logprobs"] = Value::from(top.collect::<Vec<_>>());
    told
}

/// Of plain completions: lists side by side.
fn plain_tokens(tokens: &[Token], mut offset: usize) -> Value {
    let mut offsets = Vec::with_capacity(tokens.len());
    for token in tokens {
        offsets.push(offset);
        offset += token.text.chars().count();
    }
    let top = tokens.iter().map(|token| {
        // Of tokens that are the same text, such as parts of characters, the likeliest is told.
        let mut pairs = serde_json::Map::new();
        for (text, logprob) in &token.alternatives {
            pairs.entry(text.as_str()).or_insert(Value::from(*logprob));
        }
        // Nothing predicts the first token of a prompt.
        token.logprob.map_or(Value::Null, |_| Value::Object(pairs))
    });
    json!({
        "tokens": tokens.iter().map(|token| token.text.as_str()).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
        "top_logprobs": top.collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

impl From<CallError> for Fault {
    fn from(error: CallError) -> Fault {
        let (status, code) = match &error {
            CallError::Permanent { too_long: true, .. } => (400, Some("context_length_exceeded")),
            CallError::Permanent { .. } => (400, None),
            CallError::Transient { .. } => (503, None),
            CallError::Outage { .. } => (500, None),
        };
        Fault { status, message: error.to_string(), param: None, code }
    }
}

impl Fault {
    /// The object of an error.
    pub(super) fn object(&self) -> Value {
        let kind = match self.status {
            401 => "authentication_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        };
        json!({ "error": {
            "message": self.message, "type": kind, "param": self.param, "code": self.code,
        } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_alternatives_with_the_same_text_the_likeliest_is_told() {
        let alternatives = vec![
            ("\u{FFFD}".to_owned(), -0.5),
            ("a".to_owned(), -1.5),
            ("\u{FFFD}".to_owned(), -2.5),
        ];
        let token = Token { text: "a".to_owned(), logprob: Some(-1.5), alternatives };
        let told = plain_tokens(&[token], 0);
        assert_eq!(told["top_logprobs"], json!([{ "\u{FFFD}": -0.5, "a": -1.5 }]));
    }
}

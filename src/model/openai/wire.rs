//! What goes over the wire: the body of a request, and what is read of a reply.

use std::fmt;

use indexmap::IndexMap;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::record::Message;

/// The body of a request to `/chat/completions` or `/completions`; what is none is not sent.
#[derive(Debug, Default, Serialize)]
pub(super) struct Body<'a> {
    pub(super) model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) messages: Option<Vec<&'a Message>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt: Option<Texts<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_tokens: Option<u32>,
    /// The same, for hosted models that know it by this name alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) top_k: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) min_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) repetition_penalty: Option<f64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub(super) stop: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) logprobs: Option<Alternatives>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) top_logprobs: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_logprobs: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) echo: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) add_generation_prompt: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) continue_final_message: Option<bool>,
}

impl Body<'_> {
    /// The body as it is sent.
    pub(super) fn json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a body has no map with keys that are not text")
    }
}

/// One text to continue, or several in one request.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Texts<'a> {
    One(&'a str),
    Many(Vec<String>),
}

/// `logprobs`: chat takes a switch, completions a number of alternatives.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Alternatives {
    Switch(bool),
    Number(u32),
}

/// A reply, as far as it is read.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Reply {
    pub(super) model: Option<String>,
    pub(super) system_fingerprint: Option<String>,
    #[serde(default)]
    pub(super) choices: Vec<Choice>,
    pub(super) usage: Option<Usage>,
    /// vLLM's chat puts it here, its completions into the choice.
    pub(super) prompt_logprobs: Option<PromptLogprobs>,
    /// Some gateways answer 200 and put the error here.
    pub(super) error: Option<serde_json::Value>,
}

/// One of the answers of a reply.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Choice {
    #[serde(default)]
    pub(super) index: usize,
    pub(super) text: Option<String>,
    pub(super) message: Option<Written>,
    pub(super) finish_reason: Option<String>,
    pub(super) logprobs: Option<Logprobs>,
    pub(super) prompt_logprobs: Option<PromptLogprobs>,
}

/// A message that the model wrote.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Written {
    pub(super) content: Option<String>,
    pub(super) refusal: Option<String>,
}

/// The log-probabilities of a choice: `content` in chat (and in llama.cpp's completions), the
/// three lists in completions.
#[derive(Debug, Default, Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names are the protocol's")]
pub(super) struct Logprobs {
    pub(super) content: Option<Vec<Token>>,
    pub(super) tokens: Option<Vec<String>>,
    pub(super) token_logprobs: Option<Vec<Option<f64>>>,
    #[serde(default, deserialize_with = "first_places")]
    pub(super) top_logprobs: Option<Places>,
}

/// Places whose alternatives are kept: more than the tokens of any label. An echo lists them for
/// each token of the prompt, and nobody reads those.
const PLACES_MAX: usize = 16;

type Places = Vec<Option<IndexMap<String, Option<f64>>>>;

fn first_places<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Places>, D::Error> {
    struct First;

    impl<'de> Visitor<'de> for First {
        type Value = Option<Places>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of alternatives")
        }

        fn visit_unit<E>(self) -> Result<Option<Places>, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Option<Places>, A::Error> {
            let mut places = Vec::new();
            while places.len() < PLACES_MAX {
                match all.next_element()? {
                    Some(place) => places.push(place),
                    None => return Ok(Some(places)),
                }
            }
            while all.next_element::<IgnoredAny>()?.is_some() {}
            Ok(Some(places))
        }
    }

    from.deserialize_any(First)
}

/// A token of a chat answer.
#[derive(Debug, Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names are the protocol's")]
pub(super) struct Token {
    pub(super) token: String,
    pub(super) logprob: f64,
    #[serde(default)]
    pub(super) top_logprobs: Vec<Alternative>,
}

/// A token that could have stood there.
#[derive(Debug, Deserialize)]
pub(super) struct Alternative {
    pub(super) token: String,
    pub(super) logprob: f64,
}

/// vLLM's: for each token of the prompt, by token id; the prompt's own comes first.
pub(super) type PromptLogprobs = Vec<Option<IndexMap<String, PromptToken>>>;

/// A token of a prompt.
#[derive(Debug, Deserialize)]
pub(super) struct PromptToken {
    pub(super) logprob: f64,
    pub(super) decoded_token: Option<String>,
}

/// What was counted.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    pub(super) prompt_tokens: i32,
    #[serde(default)]
    pub(super) completion_tokens: i32,
    pub(super) prompt_tokens_details: Option<PromptTokensDetails>,
}

/// What was counted of the prompt.
#[derive(Debug, Default, Deserialize)]
pub(super) struct PromptTokensDetails {
    pub(super) cached_tokens: Option<i32>,
}

//! What goes over the wire: the body of a request, and the parameters that a server may not take.

use serde::Serialize;
use serde_json::{Map, Value};

use super::options::{Dialect, Thinking};
use crate::model::answer::Billed;
use crate::record::Message;

/// The body of a request to `/chat/completions` or `/completions`; what is none is not sent.
#[derive(Clone, Debug, Default, Serialize)]
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
    pub(super) logprobs: Option<Switch>,
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
    /// vLLM's and SGLang's name for the arguments of a chat template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) chat_template_kwargs: Option<&'a Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) chat_template: Option<&'a str>,
    /// Only the Messages API has it.
    #[serde(skip)]
    pub(super) thinking: Option<Thinking>,
}

/// A parameter of a body that some servers do not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Parameter {
    Seed,
    TopP,
    TopK,
    MinP,
    RepetitionPenalty,
    Temperature,
    Stop,
    TopLogprobs,
    PromptLogprobs,
    Logprobs,
    Echo,
    ChatTemplateKwargs,
    ChatTemplate,
    /// `add_generation_prompt` and `continue_final_message`.
    Prefill,
    MaxTokens,
    /// `thinking` and `output_config`.
    Thinking,
}

impl Parameter {
    pub(super) const ALL: [Parameter; 16] = [
        Parameter::Seed,
        Parameter::TopP,
        Parameter::TopK,
        Parameter::MinP,
        Parameter::RepetitionPenalty,
        Parameter::Temperature,
        Parameter::Stop,
        Parameter::TopLogprobs,
        Parameter::PromptLogprobs,
        Parameter::Logprobs,
        Parameter::Echo,
        Parameter::ChatTemplateKwargs,
        Parameter::ChatTemplate,
        Parameter::Prefill,
        Parameter::MaxTokens,
        Parameter::Thinking,
    ];

    /// What servers call it; the first name is its own.
    pub(super) fn names(self) -> &'static [&'static str] {
        match self {
            Parameter::Seed => &["seed"],
            Parameter::TopP => &["top_p"],
            Parameter::TopK => &["top_k"],
            Parameter::MinP => &["min_p"],
            Parameter::RepetitionPenalty => &["repetition_penalty"],
            Parameter::Temperature => &["temperature"],
            Parameter::Stop => &["stop", "stop_sequences"],
            Parameter::TopLogprobs => &["top_logprobs"],
            Parameter::PromptLogprobs => &["prompt_logprobs"],
            Parameter::Logprobs => &["logprobs", "logprob"],
            Parameter::Echo => &["echo"],
            Parameter::ChatTemplateKwargs => &["chat_template_kwargs"],
            Parameter::ChatTemplate => &["chat_template", "chat template"],
            Parameter::Prefill => &["continue_final_message", "add_generation_prompt"],
            Parameter::MaxTokens => &["max_tokens"],
            Parameter::Thinking => &["thinking", "output_config", "effort"],
        }
    }

    /// The setting of the pipeline that it carries.
    pub(super) fn setting(self) -> &'static str {
        match self {
            Parameter::ChatTemplateKwargs => "template_args",
            other => other.names()[0],
        }
    }
}

impl Body<'_> {
    /// The body as it is sent in a dialect.
    pub(super) fn json(&self, dialect: Dialect) -> Vec<u8> {
        if dialect == Dialect::Messages {
            return super::messages::json(self);
        }
        serde_json::to_vec(self).expect("a body has no map with keys that are not text")
    }

    /// Whether a parameter is sent.
    pub(super) fn has(&self, parameter: Parameter) -> bool {
        match parameter {
            Parameter::Seed => self.seed.is_some(),
            Parameter::TopP => self.top_p.is_some(),
            Parameter::TopK => self.top_k.is_some(),
            Parameter::MinP => self.min_p.is_some(),
            Parameter::RepetitionPenalty => self.repetition_penalty.is_some(),
            Parameter::Temperature => self.temperature.is_some(),
            Parameter::Stop => !self.stop.is_empty(),
            Parameter::TopLogprobs => self.top_logprobs.is_some(),
            Parameter::PromptLogprobs => self.prompt_logprobs.is_some(),
            Parameter::Logprobs => self.logprobs.is_some(),
            Parameter::Echo => self.echo.is_some(),
            Parameter::ChatTemplateKwargs => self.chat_template_kwargs.is_some(),
            Parameter::ChatTemplate => self.chat_template.is_some(),
            Parameter::Prefill => self.continue_final_message.is_some(),
            Parameter::MaxTokens => self.max_tokens.is_some(),
            Parameter::Thinking => self.thinking.is_some(),
        }
    }

    /// Leaves a parameter out; `max_tokens` is sent under its other name.
    pub(super) fn omit(&mut self, parameter: Parameter) {
        match parameter {
            Parameter::Seed => self.seed = None,
            Parameter::TopP => self.top_p = None,
            Parameter::TopK => self.top_k = None,
            Parameter::MinP => self.min_p = None,
            Parameter::RepetitionPenalty => self.repetition_penalty = None,
            Parameter::Temperature => self.temperature = None,
            Parameter::Stop => self.stop = &[],
            Parameter::TopLogprobs => self.top_logprobs = None,
            Parameter::PromptLogprobs => self.prompt_logprobs = None,
            Parameter::Logprobs => self.logprobs = None,
            Parameter::Echo => self.echo = None,
            Parameter::ChatTemplateKwargs => self.chat_template_kwargs = None,
            Parameter::ChatTemplate => self.chat_template = None,
            Parameter::Prefill => {
                self.add_generation_prompt = None;
                self.continue_final_message = None;
            }
            Parameter::MaxTokens => self.max_completion_tokens = self.max_tokens.take(),
            Parameter::Thinking => self.thinking = None,
        }
    }

    /// Whether a parameter only states what the protocol takes for granted.
    pub(super) fn is_default(&self, parameter: Parameter) -> bool {
        let is_one =
            |number: Option<f64>| number.is_some_and(|number| (number - 1.0).abs() < 1e-12);
        match parameter {
            Parameter::TopP => is_one(self.top_p),
            Parameter::Temperature => is_one(self.temperature),
            Parameter::RepetitionPenalty => is_one(self.repetition_penalty),
            Parameter::TopK => self.top_k.is_some_and(|top_k| top_k <= 0),
            Parameter::MinP => self.min_p.is_some_and(|min_p| min_p <= 0.0),
            _ => false,
        }
    }

    /// The number that a parameter carries, where it is a count with a limit.
    pub(super) fn number(&self, parameter: Parameter) -> Option<u32> {
        match parameter {
            Parameter::TopLogprobs => self.top_logprobs,
            Parameter::Logprobs => match self.logprobs? {
                Switch::Number(number) => Some(number),
                // Chat says "logprobs" of the number beside the switch, too.
                Switch::On(_) => self.top_logprobs,
            },
            Parameter::Stop => Some(self.stop.len() as u32),
            _ => None,
        }
    }

    /// Asks for at most so many alternatives.
    pub(super) fn limit_logprobs(&mut self, most: u32) {
        if let Some(Switch::Number(number)) = &mut self.logprobs {
            *number = most.min(*number);
        }
        if let Some(number) = &mut self.top_logprobs {
            *number = most.min(*number);
        }
    }

    /// The most that the request can take: no text has more tokens than bytes.
    pub(super) fn most(&self) -> Billed {
        let messages = self.messages.iter().flatten().map(|message| message.content.len());
        let (texts, bytes) = match &self.prompt {
            Some(Texts::One(text)) => (1, text.len()),
            Some(Texts::Many(texts)) => (texts.len(), texts.iter().map(String::len).sum()),
            None => (1, messages.sum()),
        };
        let written = self.max_tokens.or(self.max_completion_tokens).unwrap_or(0);
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Billed {
            requests: 1,
            prompt_tokens: count(bytes),
            completion_tokens: written.saturating_mul(count(texts)),
        }
    }
}

/// One text to continue, or several in one request.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Texts<'a> {
    One(&'a str),
    Many(Vec<String>),
}

/// `logprobs`: chat takes a switch, completions a number of alternatives.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Switch {
    On(bool),
    Number(u32),
}

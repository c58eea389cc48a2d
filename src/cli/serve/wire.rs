//! What clients send: OpenAI's requests, of which the fields that a local model heeds are read. A
//! field that would change the answer and is not heeded is refused, not ignored.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::model::torch::Input;
use crate::model::{Prompt, Sampling};
use crate::record::Message;

/// The most answers to one prompt, and prompts in one request.
const MANY: usize = 128;

/// The most alternatives of a token.
const ALTERNATIVES_MAX: u32 = 20;

/// Fields of OpenAI's requests and of vLLM's that would change an answer, and are not heeded.
const NOT_HEEDED: [&str; 21] = [
    "audio",
    "bad_words",
    "chat_template",
    "chat_template_kwargs",
    "documents",
    "frequency_penalty",
    "functions",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "ignore_eos",
    "logit_bias",
    "min_tokens",
    "presence_penalty",
    "prompt_logprobs",
    "stop_token_ids",
    "structured_outputs",
    "suffix",
    "tools",
    "truncate_prompt_tokens",
];

/// Why a request is not answered.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) status: u16,
    pub(super) message: String,
    pub(super) param: Option<&'static str>,
    pub(super) code: Option<&'static str>,
}

impl Fault {
    /// A request that is wrong in a field.
    pub(super) fn of(param: &'static str, message: impl Into<String>) -> Fault {
        Fault { status: 400, message: message.into(), param: Some(param), code: None }
    }

    /// A request that is wrong as a whole.
    pub(super) fn bad(message: impl Into<String>) -> Fault {
        Fault { status: 400, message: message.into(), param: None, code: None }
    }
}

/// Fields that chat and plain completions share; the rest is read beside them.
#[derive(Deserialize)]
pub(super) struct Common {
    pub(super) model: Option<String>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    /// −1 is all, as in vLLM.
    top_k: Option<i64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    stop: Option<OneOrMany>,
    pub(super) seed: Option<i64>,
    n: Option<usize>,
    best_of: Option<usize>,
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    response_format: Option<Value>,
    /// All other fields.
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        }
    }
}

/// A request to `/chat/completions`.
#[derive(Deserialize)]
pub(super) struct Chat {
    messages: Vec<Turn>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// A request to `/completions`.
#[derive(Deserialize)]
pub(super) struct Completion {
    prompt: Value,
    logprobs: Option<u32>,
    #[serde(default)]
    echo: Option<bool>,
}

impl Chat {
    /// The conversation.
    pub(super) fn messages(&mut self) -> Result<Vec<Message>, Fault> {
        if self.messages.is_empty() {
            return Err(Fault::of("messages", "a conversation has a message"));
        }
        std::mem::take(&mut self.messages).into_iter().map(Turn::into_message).collect()
    }

    /// How many alternatives of each token are told, if log-probabilities are.
    pub(super) fn alternatives(&self) -> Result<Option<usize>, Fault> {
        match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (true, most) => alternatives("top_logprobs", most.unwrap_or(0)).map(Some),
            (false, None | Some(0)) => Ok(None),
            (false, Some(_)) => Err(Fault::of("top_logprobs", "it needs \"logprobs\": true")),
        }
    }
}

impl Turn {
    fn into_message(self) -> Result<Message, Fault> {
        let content = match self.content {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                let text = |part: Part| match (part.kind.as_str(), part.text) {
                    ("text", Some(text)) => Ok(text),
                    (kind, _) => {
                        let message = format!("a part of type {kind:?} is not read; text is");
                        Err(Fault::of("messages", message))
                    }
                };
                parts.into_iter().map(text).collect::<Result<String, Fault>>()?
            }
            None => String::new(),
        };
        match self.role.as_str() {
            "system" | "user" | "assistant" => Ok(Message { role: self.role, content }),
            "developer" => Ok(Message::system(content)),
            other => Err(Fault::of("messages", format!("role {other:?} is not known"))),
        }
    }
}

impl Completion {
    /// The prompts: one or several, each as text or as tokens.
    pub(super) fn prompts(&mut self) -> Result<Vec<Input>, Fault> {
        let prompts = match self.prompt.take() {
            Value::String(text) => vec![Input::Prompt(Prompt::Text(text))],
            Value::Array(items) if items.iter().any(Value::is_number) => vec![tokens(&items)?],
            Value::Array(items) if !items.is_empty() => {
                items.into_iter().map(one_prompt).collect::<Result<_, _>>()?
            }
            _ => return Err(no_prompt()),
        };
        if prompts.len() > MANY {
            return Err(Fault::of("prompt", format!("at most {MANY} prompts at once")));
        }
        Ok(prompts)
    }

    /// How many alternatives of each token are told, if log-probabilities are.
    pub(super) fn alternatives(&self) -> Result<Option<usize>, Fault> {
        self.logprobs.map(|most| alternatives("logprobs", most)).transpose()
    }

    /// Whether the prompt is part of the answer.
    pub(super) fn echo(&self) -> bool {
        self.echo.unwrap_or(false)
    }
}

/// One of several prompts.
fn one_prompt(item: Value) -> Result<Input, Fault> {
    match item {
        Value::String(text) => Ok(Input::Prompt(Prompt::Text(text))),
        Value::Array(ids) => tokens(&ids),
        _ => Err(no_prompt()),
    }
}

fn tokens(ids: &[Value]) -> Result<Input, Fault> {
    let id = |id: &Value| {
        let message = || format!("{id} is no token id in a list of them");
        id.as_i64().ok_or_else(|| Fault::of("prompt", message()))
    };
    ids.iter().map(id).collect::<Result<_, _>>().map(Input::Tokens)
}

fn no_prompt() -> Fault {
    Fault::of("prompt", "a prompt is a text or a list of token ids, or a list of one or the other")
}

fn alternatives(param: &'static str, most: u32) -> Result<usize, Fault> {
    if most > ALTERNATIVES_MAX {
        return Err(Fault::of(param, format!("it is at most {ALTERNATIVES_MAX}")));
    }
    Ok(most as usize)
}

impl Common {
    /// Whether the answer is told as it is written, and then whether with its usage.
    pub(super) fn streams(&self) -> Option<bool> {
        let include_usage = self.stream_options.as_ref().is_some_and(|given| given.include_usage);
        self.stream.unwrap_or(false).then_some(include_usage)
    }

    /// How many answers there are to one prompt.
    pub(super) fn count(&self) -> Result<usize, Fault> {
        match self.n.unwrap_or(1) {
            n @ 1..=MANY => Ok(n),
            _ => Err(Fault::of("n", format!("it is from 1 to {MANY}"))),
        }
    }

    /// The most tokens of an answer.
    pub(super) fn max_tokens(&self) -> Option<u32> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    /// How an answer is sampled; `usual` is what holds where nothing is said.
    pub(super) fn sampling(&mut self, usual: Sampling) -> Result<Sampling, Fault> {
        self.refuse_what_is_not_heeded()?;
        let within = |name: &'static str, value: Option<f64>, low: f64, high: f64| match value {
            Some(value) if !(low..=high).contains(&value) => {
                Err(Fault::of(name, format!("it is from {low} to {high}, not {value}")))
            }
            other => Ok(other),
        };
        let stop = self.stop.take().map(OneOrMany::into_vec).unwrap_or_default();
        if stop.len() > 16 {
            return Err(Fault::of("stop", "at most 16 texts"));
        }
        let top_k = match self.top_k {
            None => usual.top_k,
            Some(-1) => 0,
            Some(top_k) => u32::try_from(top_k)
                .map_err(|_| Fault::of("top_k", "it is −1 or a number of tokens"))?,
        };
        Ok(Sampling {
            temperature: within("temperature", self.temperature, 0.0, 2.0)?
                .unwrap_or(usual.temperature),
            top_p: within("top_p", self.top_p, 0.0, 1.0)?.unwrap_or(usual.top_p),
            min_p: within("min_p", self.min_p, 0.0, 1.0)?.unwrap_or(usual.min_p),
            repetition_penalty: within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?
                .unwrap_or(usual.repetition_penalty),
            top_k,
            max_tokens: self.max_tokens().unwrap_or(usual.max_tokens),
            stop,
            seed: None,
        })
    }

    fn refuse_what_is_not_heeded(&self) -> Result<(), Fault> {
        let is_text = |format: &Value| format.get("type") == Some(&Value::from("text"));
        let is_asked = |name: &&str| self.others.get(*name).is_some_and(|value| !is_nothing(value));
        let is_formatted = self.response_format.as_ref().is_some_and(|format| !is_text(format));
        let is_chosen = self.best_of.is_some_and(|of| of != self.n.unwrap_or(1));
        let refused = NOT_HEEDED.into_iter().find(is_asked);
        let refused = refused.or(is_formatted.then_some("response_format"));
        let refused = refused.or(is_chosen.then_some("best_of"));
        refused.map_or(Ok(()), |name| Err(Fault::of(name, "it is not supported here")))
    }
}

/// Whether a field asks for nothing.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64().is_some_and(|number| number.abs() <= 0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

//! `models`: what answers, either a checkpoint run in this process or an endpoint.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use indexmap::IndexMap;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::place::{FilePath, Name, Spanned};

/// One entry of `models`: exactly one of `checkpoint` and `endpoint`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// A directory in Hugging Face layout, run in this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Spanned<FilePath>>,
    /// Base URL of an OpenAI-compatible server, such as `http://localhost:8000/v1`; with `api: messages`, of one with
    /// Anthropic's Messages API, such as `https://api.anthropic.com`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Name>,
    /// Name of the model at the endpoint. With `revision` it identifies the model; the URL and the key do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// A word that tells two models of one name apart. Change it when the endpoint serves other weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Another entry that is the same model at another endpoint: answers of one are those of the other. Without it, two
    /// endpoints that know their models by one name and revision are warned of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<Name>,
    /// Key sent to the endpoint. Take it from the environment: `"${OPENAI_API_KEY:-}"`. It is written nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<Secret>,
    /// Which of the endpoint's interfaces answers. Without it, the one that `format` needs: `chat` for messages,
    /// `completions` for a transcript. `messages` is Anthropic's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<Spanned<Api>>,
    /// Whether the model thinks before it writes, by `api: messages`: `disabled`, `{ budget_tokens: 2048 }`, or
    /// `{ effort: low }` for models that decide themselves. What was thought goes to the column `reasoning`. Votes are
    /// asked without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<Spanned<Thinking>>,
    /// How a conversation becomes text.
    #[serde(default)]
    pub format: Format,
    /// Jinja template that renders the messages, instead of the model's own. An endpoint is sent it as `chat_template`,
    /// which vLLM takes when it is started with `--trust-request-chat-template`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<Name>,
    /// Arguments of the chat template, such as `enable_thinking: false`. An endpoint is sent them as
    /// `chat_template_kwargs`, which vLLM, SGLang and llama.cpp read.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub template_args: IndexMap<String, serde_json::Value>,
    /// System message put before every conversation that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Texts that end an answer, besides those of the node. `format: transcript` always adds `"\n\nHuman:"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Whether a leading `<think>…</think>` is cut off answers, and kept in the column `reasoning`. An answer that
    /// `max_tokens` cuts before its `</think>` is a reject.
    #[serde(default)]
    pub strip_thinking: bool,
    /// How log-probabilities of labels are had. The estimator used is a column of every judged row.
    #[serde(default)]
    pub scoring: Scoring,
    /// What the judge's two options look like as continuations, with their leading space.
    #[serde(default = "label_tokens")]
    pub label_tokens: [String; 2],
    /// Samples taken per question by `scoring: votes`.
    #[serde(default = "votes")]
    pub votes: Spanned<u32>,
    /// Requests under way at once, over all nodes and workers. It bounds what a crash can lose.
    #[serde(default = "max_in_flight")]
    pub max_in_flight: Spanned<u32>,
    /// Times that a call is tried again, instead of `limits.retries`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// Seconds that one attempt may take, instead of `limits.timeout_s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<Spanned<f64>>,
    /// What tokens cost. Without it costs are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// Number format of a checkpoint's weights and activations.
    #[serde(default)]
    pub dtype: Dtype,
    /// Where a checkpoint runs.
    #[serde(default)]
    pub device: Device,
    /// Threads inside one tensor operation of a checkpoint on CPU. Without it, 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<Spanned<u32>>,
    /// Replicas of a checkpoint on CPU, each at work on rows of its own with as many threads. They share the weights, and
    /// an answer is the same bits whoever gives it. Without it, one for each core, if each has 32 of `max_in_flight`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<Spanned<u32>>,
    /// Mebibytes that the keys and values of a checkpoint's rows and shared prefixes take, about. Without it, 2048.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_mib: Option<Spanned<u32>>,
}

fn label_tokens() -> [String; 2] {
    [" (A)".to_owned(), " (B)".to_owned()]
}

fn votes() -> Spanned<u32> {
    Spanned::nowhere(9)
}

fn max_in_flight() -> Spanned<u32> {
    Spanned::nowhere(16)
}

/// What stands behind a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Backend<'a> {
    /// A directory in Hugging Face layout.
    Checkpoint(&'a Spanned<FilePath>),
    /// A server and the model's name there.
    Endpoint {
        /// Base URL.
        url: &'a Name,
        /// Name of the model at the server.
        name: &'a Name,
    },
}

impl Model {
    /// What a model is taken for that a node trained from nothing: a checkpoint that reads and
    /// writes transcripts.
    pub fn from_scratch() -> Model {
        Model {
            checkpoint: Some(Spanned::default()),
            endpoint: None,
            name: None,
            revision: None,
            same_as: None,
            api_key: None,
            api: None,
            thinking: None,
            format: Format::Transcript,
            chat_template: None,
            template_args: IndexMap::new(),
            system: None,
            stop: Vec::new(),
            strip_thinking: false,
            scoring: Scoring::Echo,
            label_tokens: label_tokens(),
            votes: votes(),
            max_in_flight: max_in_flight(),
            retries: None,
            timeout_s: None,
            price: None,
            dtype: Dtype::default(),
            device: Device::default(),
            threads: None,
            replicas: None,
            cache_mib: None,
        }
    }

    /// Whether its calls cost something that nobody said: an endpoint's without a `price`.
    pub fn is_unpriced(&self) -> bool {
        self.endpoint.is_some() && self.price.is_none()
    }

    /// Whether it is one of the two that it may be.
    pub(super) fn is_complete(&self) -> bool {
        matches!(
            (&self.checkpoint, &self.endpoint, &self.name),
            (Some(_), None, _) | (None, Some(_), Some(_))
        )
    }

    /// The checkpoint or the endpoint.
    ///
    /// # Panics
    ///
    /// When the model has neither or both. `load` reports that as a mistake, so no loaded pipeline does.
    pub fn backend(&self) -> Backend<'_> {
        match (&self.checkpoint, &self.endpoint, &self.name) {
            (Some(checkpoint), None, _) => Backend::Checkpoint(checkpoint),
            (None, Some(url), Some(name)) => Backend::Endpoint { url, name },
            _ => unreachable!("a loaded model is either a checkpoint, or an endpoint with a name"),
        }
    }
}

/// Text that is never shown: `Debug` and `Serialize` give `***`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text that must not be shown.
    pub(super) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The text itself, for a request's header and for keeping it out of messages. `None` when it is empty.
    pub fn reveal(&self) -> Option<&str> {
        (!self.0.is_empty()).then_some(self.0.as_str())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// How a conversation becomes text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Messages, rendered by the model's chat template.
    #[default]
    Chat,
    /// The paper's transcript: `\n\nHuman: …\n\nAssistant: …`.
    Transcript,
}

/// Which interface of an endpoint generates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// `POST /chat/completions`, with messages.
    #[default]
    Chat,
    /// `POST /completions`, with rendered text.
    Completions,
    /// `POST /messages`, Anthropic's Messages API. It takes no seed and gives no log-probabilities.
    Messages,
}

/// Whether and how much a model thinks before it writes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Thinking {
    /// Not at all.
    Disabled,
    /// At most so many tokens, from 1024. They are part of `max_tokens`. For models up to Claude 4.6.
    BudgetTokens(Spanned<u32>),
    /// As much as the model finds right for this effort. For models from Claude 4.6.
    Effort(Effort),
}

/// How much effort a model makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Effort {
    /// The least.
    Low,
    /// Some.
    Medium,
    /// Much.
    High,
    /// More.
    Xhigh,
    /// The most.
    Max,
}

impl Effort {
    /// The name, as it is written.
    pub fn name(self) -> &'static str {
        match self {
            Effort::Low => "low",
            Effort::Medium => "medium",
            Effort::High => "high",
            Effort::Xhigh => "xhigh",
            Effort::Max => "max",
        }
    }
}

/// How the log-probability of a label is had from a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// A checkpoint computes it; an endpoint is asked for the best that it offers, in the order below.
    #[default]
    Auto,
    /// `POST /completions` with `echo: true` and `logprobs`.
    Echo,
    /// vLLM's `prompt_logprobs`.
    PromptLogprobs,
    /// The most likely first tokens of an answer; a label that is not among them gets a floor.
    TopLogprobs,
    /// The share of sampled answers, with Laplace's rule.
    Votes,
}

/// US dollars per million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Tokens read.
    pub input: f64,
    /// Tokens written.
    pub output: f64,
}

/// Number format of weights and activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// What the checkpoint is stored in; on CPU, `f32`.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats; on CPU of the weights alone, and what is computed with them is `f32`.
    Bf16,
}

/// Where a checkpoint runs: `auto`, `cpu`, `cuda` or `cuda:1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// CUDA where there is one, else CPU.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// That GPU; `cuda` is the first.
    Cuda(u32),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(0) => f.write_str("cuda"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let cuda = |index: &str| index.parse().ok().map(Device::Cuda);
        let device = match text {
            "auto" => Some(Device::Auto),
            "cpu" => Some(Device::Cpu),
            "cuda" => Some(Device::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(cuda),
        };
        device.ok_or_else(|| format!("device {text:?} is none of `auto`, `cpu`, `cuda`, `cuda:1`"))
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Device, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Device {
    fn schema_name() -> Cow<'static, str> {
        "Device".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "description": "Where a checkpoint runs: `auto` is CUDA where there is one, else CPU.",
            "type": "string",
            "pattern": "^(auto|cpu|cuda(:[0-9]+)?)$"
        })
    }
}

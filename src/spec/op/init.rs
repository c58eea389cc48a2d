//! Where a training starts, how its learning rate goes, and what of it is kept.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::spec::place::{Name, Spanned};

/// The weights that a training starts from.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// An entry of `models` with a checkpoint, or a node that trains a model.
    Model(Name),
    /// New weights and a new tokenizer.
    Scratch(Scratch),
}

/// An entry of `models` or a node that trains one, or `{ scratch: … }`.
#[derive(Deserialize, JsonSchema)]
#[serde(rename = "$by_shape")]
#[schemars(untagged)]
enum Written {
    #[serde(rename = "$text")]
    Model(Name),
    #[serde(rename = "$map")]
    Scratch(FromScratch),
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FromScratch {
    /// New weights and a new tokenizer.
    scratch: Scratch,
}

impl<'de> Deserialize<'de> for Init {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Written::deserialize(deserializer)? {
            Written::Model(name) => Self::Model(name),
            Written::Scratch(FromScratch { scratch }) => Self::Scratch(scratch),
        })
    }
}

impl Serialize for Init {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Model(name) => name.serialize(serializer),
            Self::Scratch(scratch) => {
                FromScratch { scratch: scratch.clone() }.serialize(serializer)
            }
        }
    }
}

impl JsonSchema for Init {
    fn schema_name() -> Cow<'static, str> {
        "Init".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Written::json_schema(generator)
    }
}

/// A small model made from nothing: its shape, and a tokenizer trained on the same rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scratch {
    /// The shape, in the words of Hugging Face's `config.json`.
    pub architecture: Architecture,
    /// The tokenizer.
    #[serde(default)]
    pub tokenizer: Tokenizer,
}

/// Shape of a Llama-family model, in the words of Hugging Face's `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Width of the residual stream; a multiple of the heads.
    pub hidden_size: Spanned<u32>,
    /// Layers.
    pub num_hidden_layers: Spanned<u32>,
    /// Heads of queries.
    pub num_attention_heads: Spanned<u32>,
    /// Heads of keys and values, a divisor of the heads of queries. Without it, as many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_key_value_heads: Option<Spanned<u32>>,
    /// Width of the feed-forward layer. Without it, 8/3 of `hidden_size`, rounded up to a multiple of 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intermediate_size: Option<Spanned<u32>>,
    /// Tokens of the longest sequence.
    #[serde(default = "max_position_embeddings")]
    pub max_position_embeddings: Spanned<u32>,
    /// Base of the rotary embedding's wavelengths.
    #[serde(default = "rope_theta")]
    pub rope_theta: Spanned<f64>,
    /// Standard deviation of the new weights.
    #[serde(default = "initializer_range")]
    pub initializer_range: Spanned<f64>,
    /// Whether the output layer is the embedding.
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
}

impl Architecture {
    /// Heads of keys and values.
    pub fn key_value_heads(&self) -> u32 {
        self.num_key_value_heads.map_or(self.num_attention_heads.value, |heads| heads.value)
    }

    /// Width of the feed-forward layer.
    pub fn intermediate(&self) -> u32 {
        self.intermediate_size.map_or_else(
            || (self.hidden_size.value.saturating_mul(8).div_ceil(3)).next_multiple_of(32),
            |size| size.value,
        )
    }
}

fn max_position_embeddings() -> Spanned<u32> {
    Spanned::nowhere(1024)
}

fn initializer_range() -> Spanned<f64> {
    Spanned::nowhere(0.02)
}

fn rope_theta() -> Spanned<f64> {
    Spanned::nowhere(10_000.0)
}

fn yes() -> bool {
    true
}

/// A byte-level BPE tokenizer, trained on the rows of the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tokenizer {
    /// Tokens it has, special ones included; above 260.
    pub vocab_size: Spanned<u32>,
}

impl Default for Tokenizer {
    fn default() -> Self {
        Self { vocab_size: Spanned::nowhere(2048) }
    }
}

/// How the learning rate changes after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It stays, as in the paper.
    #[default]
    Constant,
    /// It falls in a line to 0.
    Linear,
    /// It falls in half a cosine to 0.
    Cosine,
}

/// A low-rank change of chosen matrices, in the words of PEFT. All else is frozen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// The rank of the change.
    #[serde(default = "rank")]
    pub r: Spanned<u32>,
    /// The change is scaled by `alpha / r`.
    #[serde(default = "alpha")]
    pub alpha: Spanned<f64>,
    /// The matrices that change, by the last word of their names. Without it, those of attention and of the
    /// feed-forward layers.
    #[serde(default = "target_modules")]
    pub target_modules: Vec<String>,
}

fn rank() -> Spanned<u32> {
    Spanned::nowhere(16)
}

fn alpha() -> Spanned<f64> {
    Spanned::nowhere(32.0)
}

fn target_modules() -> Vec<String> {
    let names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    names.map(str::to_owned).to_vec()
}

/// A program that trains in amend's place: `docs/trainer.md` says what it is given and what it gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct External {
    /// The program and its arguments, run in the folder of the pipeline file. `{dataset}`, `{init}`, `{out}`,
    /// `{state}` and `{settings}` stand for paths, and `{reward}`, `{reference}` and `{test_reward}` for those of
    /// models, where the verb has them.
    pub command: Vec<Name>,
    /// Changed by hand when the program would give other weights: what is in its files, amend does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

/// How sources of a preference model weigh against each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Each source as a whole by its `weight`, however many rows it has.
    Source,
    /// Each row by its source's `weight`.
    #[default]
    Rows,
}

/// What a training node does when its rows changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnChange {
    /// Train again.
    #[default]
    Retrain,
    /// Keep the checkpoint, and mark what is below as stale.
    Hold,
    /// Go on from the last checkpoint, over all rows; after a change of settings or models, train again. The model is
    /// then a function of earlier runs too, which the manifest says.
    WarmStart,
}

/// A share: `2%`, or the same as a number, `0.02`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Share(pub f64);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;

        impl Visitor<'_> for Read {
            type Value = Share;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a share such as 2% or 0.02")
            }
            fn visit_f64<E: Error>(self, share: f64) -> Result<Share, E> {
                Ok(Share(share))
            }
            fn visit_i64<E: Error>(self, share: i64) -> Result<Share, E> {
                Ok(Share(share as f64))
            }
            fn visit_u64<E: Error>(self, share: u64) -> Result<Share, E> {
                Ok(Share(share as f64))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Share, E> {
                let number =
                    text.trim().strip_suffix('%').map(|number| number.trim().parse::<f64>());
                let found = format!("the text \"{text}\"");
                let wrong = || E::invalid_value(Unexpected::Other(&found), &self);
                number.and_then(Result::ok).map(|share| Share(share / 100.0)).ok_or_else(wrong)
            }
            fn visit_unit<E: Error>(self) -> Result<Share, E> {
                Ok(Share::default())
            }
        }
        deserializer.deserialize_any(Read)
    }
}

impl JsonSchema for Share {
    fn schema_name() -> Cow<'static, str> {
        "Share".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "description": "A share: `2%`, or the same as a number, `0.02`.",
            "anyOf": [
                { "type": "number" },
                { "type": "string", "pattern": "^ *[0-9.]+ *%$" },
            ],
        })
    }
}

/// How a policy's advantages are had of its rewards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// A critic, and generalised advantage estimation (arXiv 1707.06347, 1506.02438).
    #[default]
    Ppo,
    /// A rollout's reward less the mean of the others of its prompt (arXiv 2402.14740). No critic.
    Rloo,
    /// A rollout's score, standardised among those of its prompt, and the KL divergence in the loss (arXiv
    /// 2402.03300). No critic.
    Grpo,
}

/// What the critic of a `ppo-update` sees by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CriticTrunk {
    /// A model of its own, which begins at the preference model, as TRL's `PPOTrainer` has it.
    #[default]
    Separate,
    /// The policy: the critic is a head on its states, which begins at zero. An update takes half the time and the
    /// memory, and what the critic learns moves the policy too.
    Shared,
}

/// How the weight of the KL divergence follows it (arXiv 1909.08593, section 2.2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveKl {
    /// The divergence of an episode that is aimed at: the mean of the sum over tokens, as in the metric `objective/kl`.
    pub target: Spanned<f64>,
    /// Episodes over which the weight is moved by as much as the divergence is off, a fifth at most.
    #[serde(default = "horizon")]
    pub horizon: Spanned<f64>,
}

fn horizon() -> Spanned<f64> {
    Spanned::nowhere(10_000.0)
}

/// Which policy of a `ppo-update` is the node's model: `last` or `{ below_kl: number }`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The last.
    #[default]
    Last,
    /// The last whose KL divergence from the reference is at most this: the mean over rollouts of the sum over
    /// tokens, as in the metric `objective/kl`.
    BelowKl(Spanned<f64>),
}

//! `pairwise-judge`: which of two responses is better, under one principle.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::feedback::FewShot;
use crate::spec::place::{Name, Spanned};
use crate::spec::selector::Selector;

/// `pairwise-judge`: the probability that response A is better than B. `responses -> comparisons`, one a pair.
///
/// For each order of presentation it is the softmax over the log-probabilities of the two labels;
/// chain-of-thought samples are averaged, then orders, then principles, and the clamp comes last.
/// A pair of equal responses makes no call and becomes a reject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PairwiseJudge {
    /// The node whose responses are paired: a `sample` with an even `n`.
    pub from: Name,
    /// The model that judges.
    pub model: Name,
    /// The principles that may be drawn: those that have a judge instruction.
    #[serde(default)]
    pub principles: Selector,
    /// Principles drawn for a pair, whose probabilities are averaged. The paper draws one.
    #[serde(default = "one")]
    pub draws: Spanned<u32>,
    /// Whether the target is the probability or the better response.
    #[serde(default)]
    pub labels: Labels,
    /// In which order the pair is shown.
    #[serde(default)]
    pub order: Order,
    /// Which responses to a prompt are paired.
    #[serde(default)]
    pub pairs: Pairs,
    /// Chain of thought before the label. Without it the label is asked for at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cot: Option<Cot>,
    /// Worked examples put before the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub few_shot: Option<FewShot>,
    /// Divides the labels' log-probabilities, above 0.
    #[serde(default = "one_f64")]
    pub label_temperature: Spanned<f64>,
    /// Probability that both labels have together below which a pair is a reject, in [0, 1]; 0 is off.
    #[serde(default)]
    pub min_label_mass: Spanned<f64>,
    /// Seed of the draws, orders and samples, instead of the pipeline's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl PairwiseJudge {
    /// Raised when the same request would be rendered or its answer read otherwise.
    pub const VERSION: u32 = 1;
}

fn one() -> Spanned<u32> {
    Spanned::nowhere(1)
}

fn one_f64() -> Spanned<f64> {
    Spanned::nowhere(1.0)
}

/// What the target of a comparison is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Labels {
    /// The probability itself, as in the paper.
    #[default]
    Soft,
    /// 1 for the likelier response, 0 for the other.
    Hard,
}

/// In which order a pair is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Both, averaged: costs twice and removes position bias.
    #[default]
    Both,
    /// One, by a hash of the pair.
    Random,
    /// The first sample is always (A).
    Fixed,
}

/// Which responses to a prompt are paired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pairs {
    /// (0, 1), (2, 3), …
    #[default]
    Adjacent,
    /// Every two.
    All,
}

/// Chain of thought before the label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cot {
    /// Thoughts sampled for each order and principle, from 1, whose probabilities are averaged.
    pub samples: Spanned<u32>,
    /// Tokens after which a thought is cut.
    pub max_tokens: Spanned<u32>,
    /// Temperature of the thoughts.
    pub temperature: Spanned<f64>,
    /// Least and greatest probability; the paper's is `[0.4, 0.6]`.
    pub clamp: Option<Spanned<[f64; 2]>>,
}

impl Default for Cot {
    fn default() -> Self {
        Self {
            samples: Spanned::nowhere(1),
            max_tokens: Spanned::nowhere(256),
            temperature: Spanned::nowhere(1.0),
            clamp: Some(Spanned::nowhere([0.4, 0.6])),
        }
    }
}

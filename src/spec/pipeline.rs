//! The pipeline file: models, constitution, nodes and limits, as written.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model::Model;
use super::op::{Op, Revise};
use super::place::{FilePath, Name, Spanned};

/// A pipeline file.
///
/// ```yaml
/// name: cai
/// seed: 17
/// constitution: constitutions/harmless.yaml
/// models:
///   assistant: { endpoint: "${OPENAI_BASE_URL}", name: qwen3-8b }
/// nodes:
///   prompts: { read: { path: data/prompts.jsonl } }
///   drafts:  { sample: { from: prompts, model: assistant } }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Name of the pipeline and of its folder in the store: letters, digits, `_` and `-`.
    pub name: Name,
    /// Seed of every draw, split and sample that states none of its own.
    #[serde(default)]
    pub seed: u64,
    /// Path of the constitution file, relative to this file. Needed by `critique`, `revise`, `repeat` and `pairwise-judge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constitution: Option<Spanned<FilePath>>,
    /// The models that nodes name, besides the nodes that train one.
    #[serde(default)]
    pub models: IndexMap<Name, Model>,
    /// The steps, each one verb, in any order.
    pub nodes: IndexMap<Name, Op>,
    /// Limits that hold for every node that states none of its own.
    #[serde(default)]
    pub limits: Limits,
    /// What a run may spend. It stops before it would spend more, and can be resumed.
    #[serde(default)]
    pub budget: Budget,
}

impl Pipeline {
    /// Whether a node revises the critiques of `critique`, directly or behind filters and splits:
    /// then a principle that is drawn needs both texts.
    pub fn is_revised(&self, critique: &str) -> bool {
        self.nodes.values().any(|op| match op {
            Op::Revise(revise) => self.made_by(&revise.from) == critique,
            _ => false,
        })
    }

    /// Whether a revision draws its own principle: it revises what no `critique` was made of. One that
    /// revises nothing that is there is a mistake that is said elsewhere.
    pub fn draws_itself(&self, revise: &Revise) -> bool {
        let of = self.nodes.get(self.made_by(&revise.from));
        of.is_some_and(|of| !matches!(of, Op::Critique(_)))
    }

    /// The node that made the rows of a name, above what keeps rows as they are.
    fn made_by<'a>(&'a self, name: &'a str) -> &'a str {
        let mut at = name;
        // Nodes in a circle are a mistake, which is said elsewhere.
        for _ in 0..=self.nodes.len() {
            let written = at.split('.').next().unwrap_or(at);
            at = match self.nodes.get(written) {
                Some(Op::Filter(filter)) => &filter.from,
                Some(Op::Split(split)) => &split.from,
                _ => return written,
            };
        }
        at
    }
}

/// When to give up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Rejected rows of one node above which the run stops. Without it, rejects never stop a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rejects: Option<u64>,
    /// Times that a call is tried again after a failure that may pass.
    pub retries: u32,
    /// Seconds that one attempt of a call may take.
    pub timeout_s: Spanned<f64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_rejects: None, retries: 6, timeout_s: Spanned::nowhere(600.0) }
    }
}

/// What a run may spend, in any of three units.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// Calls made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
    /// Tokens read and written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// US dollars, by the models' `price`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd: Option<f64>,
}

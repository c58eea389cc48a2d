//! `evaluate`: scores for responses, or for a model by multiple-choice questions.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::source::OneOrMany;
use crate::spec::place::Name;

/// `evaluate`: one score a row. `responses | revisions -> scores`, or `prompts -> scores` with `choices`.
///
/// ```yaml
/// refusals:                    # each response gets the first label whose pattern matches, else `other`
///   evaluate: { from: [drafts, revisions], labels: { refused: "(?i)i can't help", answered: "." } }
/// hhh:                         # each question goes to the choice with the greatest log-probability
///   evaluate: { from: questions, model: sl, choices: [" (A)", " (B)"], truth: corrects }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// The nodes whose rows are scored.
    pub from: OneOrMany<Name>,
    /// Label and regular expression; the first that matches a completion names it, and none names it `other`.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub labels: IndexMap<Name, Name>,
    /// The model that chooses among `choices`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Name>,
    /// Continuations of the prompt of which the likeliest is the model's answer, with their leading space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choices: Option<Vec<Name>>,
    /// Column of the prompts that holds the right choice, or the label wanted; `extra` is searched too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truth: Option<Name>,
    /// Column by which scores are grouped.
    #[serde(default = "category")]
    pub group: Name,
    /// Whether prompts may be training rows of the model measured. Else `check` reports it.
    #[serde(default)]
    pub allow_overlap: bool,
}

fn category() -> Name {
    Name::from("category")
}

impl Evaluate {
    /// Raised when the same rows would be scored otherwise.
    pub const VERSION: u32 = 1;
}

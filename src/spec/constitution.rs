//! The constitution file: principles, worked examples and templates, as written.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::place::{Name, Spanned};

/// A constitution file.
///
/// ```yaml
/// principles:
///   - id: unharmful
///     critique: Name everything in the assistant's last answer that could hurt someone.
///     revise: Write the answer again without what could hurt someone.
///     judge: Which answer is less likely to hurt someone?
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Constitution {
    /// The principles. Their order decides nothing but `limit`.
    pub principles: Vec<Principle>,
    /// Worked examples.
    #[serde(default, skip_serializing_if = "Examples::is_empty")]
    pub few_shot: Examples,
    /// Jinja templates instead of the built-in ones, by the name of the request.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub templates: IndexMap<Name, Name>,
}

/// The requests that a template may render.
pub const TEMPLATES: [&str; 5] = ["sample", "critique", "revise", "judge", "judge_cot"];

/// One rule, and how it is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Principle {
    /// Its name, unique in the file. Draws go by it, so a renamed principle states what it `was`.
    pub id: Name,
    /// The critique request: text only, without the words that templates put around it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub critique: Option<Spanned<String>>,
    /// The revision request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revise: Option<Spanned<String>>,
    /// The judge's instruction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<Spanned<String>>,
    /// Share of the draws, relative to the others; 0 is never drawn.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: Spanned<f64>,
    /// Words that selectors ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The only stage that it is for. Without it, each stage whose texts it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// Its former id, which draws keep to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<Name>,
}

fn one() -> Spanned<f64> {
    Spanned::nowhere(1.0)
}

fn is_one(weight: &Spanned<f64>) -> bool {
    weight.value.to_bits() == 1.0_f64.to_bits()
}

impl Principle {
    /// The id that draws go by: what it was, where it was something else.
    pub fn draw_id(&self) -> &str {
        self.was.as_ref().unwrap_or(&self.id)
    }

    /// Whether it has the texts that a purpose needs.
    pub fn serves(&self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::Critique => self.critique.is_some() && self.revise.is_some(),
            Purpose::CritiqueAlone => self.critique.is_some(),
            Purpose::Revise => self.revise.is_some(),
            Purpose::Judge => self.judge.is_some(),
        }
    }

    /// Whether it belongs to a stage.
    pub fn is_for(&self, stage: Stage) -> bool {
        match (self.stage, stage) {
            (Some(own), stage) => own == stage,
            (None, Stage::Sl) => self.revise.is_some(),
            (None, Stage::Rl) => self.judge.is_some(),
        }
    }
}

/// The two stages of the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Critique and revision.
    Sl,
    /// Judgement of pairs.
    Rl,
}

impl Stage {
    /// As it is written, and as the column `stage` says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sl => "sl",
            Self::Rl => "rl",
        }
    }
}

/// What a principle is drawn for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A critique that a revision follows: both texts.
    Critique,
    /// A critique that nothing follows.
    CritiqueAlone,
    /// A direct revision.
    Revise,
    /// A judgement of a pair.
    Judge,
}

/// Worked examples, put before requests by `few_shot: { count: … }`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Examples {
    /// Conversations with critique and revision, as whole transcripts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub critique_revise: Vec<Spanned<String>>,
    /// Judged pairs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub judge: Vec<JudgeExample>,
    /// Judged pairs with a chain of thought, as whole transcripts with one `{}` where the instruction goes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub judge_cot: Vec<Spanned<String>>,
}

impl Examples {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A judged pair: a conversation, its better and its worse answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JudgeExample {
    /// The conversation as a transcript that ends with `\n\nAssistant:`.
    pub prompt: Spanned<String>,
    /// The better answer.
    pub chosen: String,
    /// The worse answer.
    pub rejected: String,
}

//! Verbs that ask a model for text: `sample`, `critique`, `revise`, `repeat`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::spec::place::{Name, Spanned};
use crate::spec::selector::Selector;

/// How text is sampled: the settings that `sample`, `critique` and `revise` share.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sampling {
    /// Temperature; 0 is greedy.
    pub temperature: f64,
    /// Nucleus, in (0, 1].
    pub top_p: f64,
    /// Most likely tokens considered; 0 is all.
    pub top_k: u32,
    /// Least probability of a token, as a share of the likeliest one's.
    pub min_p: f64,
    /// How much less likely tokens are that occurred; 1 is not at all.
    pub repetition_penalty: f64,
    /// Tokens after which an answer is cut.
    pub max_tokens: u32,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// The node's seed, if it states one.
    pub seed: Option<u64>,
}

/// The numbers of a sampling, each with its place.
pub(in crate::spec) struct SamplingWritten {
    pub(in crate::spec) temperature: Spanned<f64>,
    pub(in crate::spec) top_p: Spanned<f64>,
    pub(in crate::spec) min_p: Spanned<f64>,
    pub(in crate::spec) repetition_penalty: Spanned<f64>,
    pub(in crate::spec) max_tokens: Spanned<u32>,
}

/// Declares a struct with the fields written, then those of [`Sampling`], which serde cannot share without
/// losing their places.
macro_rules! sampled {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
            /// Temperature; 0 is greedy, 1 the paper's.
            #[serde(default = "one")]
            pub temperature: Spanned<f64>,
            /// Nucleus, in (0, 1]; 1 is off.
            #[serde(default = "one")]
            pub top_p: Spanned<f64>,
            /// Most likely tokens considered; 0 is all.
            #[serde(default)]
            pub top_k: u32,
            /// Least probability of a token, as a share of the likeliest one's, in [0, 1]; 0 is off.
            #[serde(default)]
            pub min_p: Spanned<f64>,
            /// What the logits of tokens that occurred are divided by (or multiplied, where negative); 1 is off.
            #[serde(default = "one")]
            pub repetition_penalty: Spanned<f64>,
            /// Tokens after which an answer is cut.
            #[serde(default = "max_tokens")]
            pub max_tokens: Spanned<u32>,
            /// Texts that end an answer, besides the model's.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            pub stop: Vec<String>,
            /// Seed of the samples, instead of the pipeline's.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub seed: Option<u64>,
        }

        impl $name {
            /// The numbers of the sampling, each with its place.
            pub(in crate::spec) fn sampling_written(&self) -> SamplingWritten {
                SamplingWritten {
                    temperature: self.temperature,
                    top_p: self.top_p,
                    min_p: self.min_p,
                    repetition_penalty: self.repetition_penalty,
                    max_tokens: self.max_tokens,
                }
            }

            /// How text is sampled.
            pub fn sampling(&self) -> Sampling {
                Sampling {
                    temperature: self.temperature.value,
                    top_p: self.top_p.value,
                    top_k: self.top_k,
                    min_p: self.min_p.value,
                    repetition_penalty: self.repetition_penalty.value,
                    max_tokens: self.max_tokens.value,
                    stop: self.stop.clone(),
                    seed: self.seed,
                }
            }
        }
    };
}

fn one() -> Spanned<f64> {
    Spanned::nowhere(1.0)
}

fn max_tokens() -> Spanned<u32> {
    Spanned::nowhere(256)
}

fn one_draw() -> Spanned<u32> {
    Spanned::nowhere(1)
}

fn with_replacement() -> bool {
    true
}

sampled! {
    /// `sample`: a model's answers to prompts. `prompts -> responses`, `n` for each row.
    pub struct Sample {
        /// The node whose prompts are answered.
        pub from: Name,
        /// The model that answers.
        pub model: Name,
        /// Answers for each prompt, from 1.
        #[serde(default = "one_draw")]
        pub n: Spanned<u32>,
    }
}

impl Sample {
    /// Raised when the same request would be rendered otherwise.
    pub const VERSION: u32 = 1;
}

sampled! {
    /// `critique`: what is wrong with a response, under one principle. `responses | revisions -> critiques`, row for row.
    pub struct Critique {
        /// The node whose responses are critiqued.
        pub from: Name,
        /// The model that critiques.
        pub model: Name,
        /// The principles that may be drawn: those that have a critique request.
        #[serde(default)]
        pub principles: Selector,
        /// Principles drawn for a row; their requests are put together.
        #[serde(default = "one_draw")]
        pub draws: Spanned<u32>,
        /// Worked examples put before the request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub few_shot: Option<FewShot>,
    }
}

impl Critique {
    /// Raised when the same request would be rendered otherwise.
    pub const VERSION: u32 = 1;
}

sampled! {
    /// `revise`: the response written again. `critiques -> revisions`, row for row, under the critique's principle.
    ///
    /// From responses or revisions it revises directly, without a critique, under a principle that it draws itself.
    pub struct Revise {
        /// The node whose critiques are followed, or whose responses are revised directly.
        pub from: Name,
        /// The model that revises.
        pub model: Name,
        /// The principles that may be drawn for a direct revision. With a critique, its principle holds.
        #[serde(default)]
        pub principles: Selector,
        /// Worked examples put before the request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub few_shot: Option<FewShot>,
    }
}

impl Revise {
    /// Raised when the same request would be rendered otherwise.
    pub const VERSION: u32 = 1;
}

/// `repeat`: rounds of critique and revision, each on the revision before. `responses -> revisions`, one a round.
///
/// The plan unrolls it into nodes `name[1].critique`, `name[1].revise`, `name[2].critique`, ….
/// Each round draws anew; critique and revision of a round share the draw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Repeat {
    /// The node whose responses are the drafts.
    pub from: Name,
    /// Rounds, from 1; the paper's are 4.
    pub times: Spanned<u32>,
    /// The principles that may be drawn, where `critique` states none.
    #[serde(default)]
    pub principles: Selector,
    /// Whether a principle of an earlier round may be drawn again for the same draft, as in the paper.
    #[serde(default = "with_replacement")]
    pub replacement: bool,
    /// How each round critiques; `none` revises directly.
    pub critique: Critiquing,
    /// How each round revises.
    pub revise: Reviser,
    /// Regular expression: where the critique matches, the revision is skipped and the response stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_if: Option<Name>,
}

impl Repeat {
    /// Raised when the same settings would unroll otherwise.
    pub const VERSION: u32 = 1;

    /// The principles that every round draws from.
    pub fn selector(&self) -> &Selector {
        match &self.critique {
            Critiquing::Asked(critic) => critic.principles.as_ref().unwrap_or(&self.principles),
            Critiquing::None => &self.principles,
        }
    }
}

sampled! {
    /// How a round of `repeat` critiques.
    pub struct Critic {
        /// The model that critiques.
        pub model: Name,
        /// The principles that may be drawn, instead of the `repeat`'s.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub principles: Option<Selector>,
        /// Principles drawn for a row; their requests are put together.
        #[serde(default = "one_draw")]
        pub draws: Spanned<u32>,
        /// Worked examples put before the request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub few_shot: Option<FewShot>,
    }
}

sampled! {
    /// How a round of `repeat` revises.
    pub struct Reviser {
        /// The model that revises.
        pub model: Name,
        /// Worked examples put before the request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub few_shot: Option<FewShot>,
    }
}

/// How a round of `repeat` critiques: `none`, or the settings of a critique.
#[derive(Clone, Debug, PartialEq)]
pub enum Critiquing {
    /// Direct revision, without a critique.
    None,
    /// A model is asked.
    Asked(Box<Critic>),
}

/// `none`, or how each round critiques.
#[derive(Deserialize, JsonSchema)]
#[serde(rename = "$by_shape")]
#[schemars(untagged)]
enum Written {
    #[serde(rename = "$text")]
    Word(NoCritique),
    #[serde(rename = "$map")]
    Asked(Box<Critic>),
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum NoCritique {
    None,
}

impl<'de> Deserialize<'de> for Critiquing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Written::deserialize(deserializer)? {
            Written::Word(NoCritique::None) => Self::None,
            Written::Asked(critic) => Self::Asked(critic),
        })
    }
}

impl Serialize for Critiquing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => NoCritique::None.serialize(serializer),
            Self::Asked(critic) => critic.serialize(serializer),
        }
    }
}

impl JsonSchema for Critiquing {
    fn schema_name() -> Cow<'static, str> {
        "Critiquing".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Written::json_schema(generator)
    }
}

/// Worked examples of the constitution's `few_shot`, put before a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FewShot {
    /// Examples used; at most as many as the constitution has.
    pub count: Spanned<u32>,
    /// Which principle a judge's example is shown under.
    #[serde(default)]
    pub principles: Shots,
}

/// Which principle each of a judge's examples is shown under. Drawn ids are columns of the row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shots {
    /// One of 32 sets of draws, by the row's bucket: an edit touches few rows, and rows share a prefix.
    #[default]
    PerBucket,
    /// One set of draws for the node.
    Fixed,
    /// Drawn for every row and example, as in the paper: an edit of 1 of 16 principles touches a third of the rows.
    PerRow,
}

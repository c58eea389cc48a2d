//! The language's reference page: the fourteen verbs, what each reads and what it makes.
//!
//! | verb | reads | makes | in |
//! |---|---|---|---|
//! | `read` | files | prompts, comparisons or demonstrations | [`Read`] |
//! | `split` | anything | the same, in parts `node.part` | [`Split`] |
//! | `sample` | prompts | responses | [`Sample`] |
//! | `critique` | responses or revisions | critiques | [`Critique`] |
//! | `revise` | critiques; responses or revisions when direct | revisions | [`Revise`] |
//! | `repeat` | responses or revisions | revisions | [`Repeat`] |
//! | `pairwise-judge` | responses, several a prompt | comparisons | [`PairwiseJudge`] |
//! | `mix` | prompts, responses, revisions, demonstrations, comparisons | see [`Mix`] | [`Mix`] |
//! | `filter` | anything | the same | [`Filter`] |
//! | `evaluate` | responses or revisions, or multiple-choice prompts | scores | [`Evaluate`] |
//! | `train-sl` | demonstrations, responses, revisions | a model | [`TrainSl`] |
//! | `train-pm` | comparisons | a preference model | [`TrainPm`] |
//! | `train-dpo` | comparisons | a model | [`TrainDpo`] |
//! | `ppo-update` | prompts | a model, and rollouts | [`PpoUpdate`] |
//!
//! A node is one verb with its settings. Adding a verb is a documented struct here with its signature and version,
//! a file in `operators/` with its tests, and one arm in `operators::build`.

mod data;
mod evaluate;
mod feedback;
mod init;
mod judge;
mod reward;
mod source;
mod train;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::place::Name;
use crate::record::Relation;

pub use data::{
    Columns, Dedupe, FileFormat, Filter, Flaw, KeepRow, Mix, OnDrop, Read, Readable, Split,
};
pub use evaluate::Evaluate;
pub(in crate::spec) use feedback::SamplingWritten;
pub use feedback::{
    Critic, Critique, Critiquing, FewShot, Repeat, Revise, Reviser, Sample, Sampling, Shots,
};
pub use init::{
    AdaptiveKl, Algorithm, Architecture, Balance, CriticTrunk, External, Init, Keep, Lora,
    OnChange, Schedule, Scratch, Share, Tokenizer,
};
pub use judge::{Cot, Labels, Order, Pairs, PairwiseJudge};
pub use reward::{Reward, RewardJudge};
pub use source::{OneOrMany, Rounds, Source};
pub use train::{Optimiser, PpoUpdate, TrainDpo, TrainPm, TrainSl};

/// A node: one verb with its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// Read rows from files.
    Read(Read),
    /// Assign rows to parts, by a hash of their key.
    Split(Split),
    /// Ask a model to answer prompts.
    Sample(Sample),
    /// Ask a model what is wrong with a response, under one principle.
    Critique(Critique),
    /// Ask a model to write a response again.
    Revise(Revise),
    /// Critique and revise, several rounds.
    Repeat(Box<Repeat>),
    /// Ask a model which of two responses is better, under one principle.
    PairwiseJudge(Box<PairwiseJudge>),
    /// Put rows of several nodes together.
    Mix(Mix),
    /// Leave rows out.
    Filter(Filter),
    /// Score responses, or a model by multiple-choice questions.
    Evaluate(Evaluate),
    /// Train a model on completions.
    TrainSl(Box<TrainSl>),
    /// Train a preference model on comparisons.
    TrainPm(Box<TrainPm>),
    /// Train a policy on comparisons, without a preference model.
    TrainDpo(Box<TrainDpo>),
    /// Train a policy against a preference model.
    PpoUpdate(Box<PpoUpdate>),
}

/// What a reference from one node to another carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Rows of a node; parts of a split are named `node.part`.
    Rows,
    /// An entry of `models`, or a node that trains one.
    Model,
}

/// A name that a node mentions.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference<'a> {
    /// The key under which it stands: `from`, `model`, `policy`, …
    pub key: &'static str,
    /// What the edge carries.
    pub edge: Edge,
    /// The name and its place.
    pub name: &'a Name,
}

impl Op {
    /// The verb as it is written.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::Split(_) => "split",
            Self::Sample(_) => "sample",
            Self::Critique(_) => "critique",
            Self::Revise(_) => "revise",
            Self::Repeat(_) => "repeat",
            Self::PairwiseJudge(_) => "pairwise-judge",
            Self::Mix(_) => "mix",
            Self::Filter(_) => "filter",
            Self::Evaluate(_) => "evaluate",
            Self::TrainSl(_) => "train-sl",
            Self::TrainPm(_) => "train-pm",
            Self::TrainDpo(_) => "train-dpo",
            Self::PpoUpdate(_) => "ppo-update",
        }
    }

    /// The operator's version: raised when the same settings and rows would make other rows.
    pub fn version(&self) -> u32 {
        match self {
            Self::Read(_) => Read::VERSION,
            Self::Split(_) => Split::VERSION,
            Self::Sample(_) => Sample::VERSION,
            Self::Critique(_) => Critique::VERSION,
            Self::Revise(_) => Revise::VERSION,
            Self::Repeat(_) => Repeat::VERSION,
            Self::PairwiseJudge(_) => PairwiseJudge::VERSION,
            Self::Mix(_) => Mix::VERSION,
            Self::Filter(_) => Filter::VERSION,
            Self::Evaluate(_) => Evaluate::VERSION,
            Self::TrainSl(_) => TrainSl::VERSION,
            Self::TrainPm(_) => TrainPm::VERSION,
            Self::TrainDpo(_) => TrainDpo::VERSION,
            Self::PpoUpdate(_) => PpoUpdate::VERSION,
        }
    }

    /// Whether the node makes a model.
    pub fn trains(&self) -> bool {
        matches!(self, Self::TrainSl(_) | Self::TrainPm(_) | Self::TrainDpo(_) | Self::PpoUpdate(_))
    }

    /// The relations whose rows the verb takes. Empty for `read`.
    pub fn takes(&self) -> &'static [Relation] {
        use Relation::{Comparisons, Critiques, Demonstrations, Prompts, Responses, Revisions};
        match self {
            Self::Read(_) => &[],
            Self::Split(_) | Self::Filter(_) | Self::Mix(_) => {
                &[Prompts, Responses, Critiques, Revisions, Comparisons, Demonstrations]
            }
            Self::Sample(_) | Self::PpoUpdate(_) => &[Prompts],
            Self::Revise(_) => &[Critiques, Responses, Revisions],
            Self::PairwiseJudge(_) => &[Responses],
            Self::Evaluate(op) if op.choices.is_some() => &[Prompts],
            Self::Evaluate(_) | Self::Critique(_) | Self::Repeat(_) => &[Responses, Revisions],
            Self::TrainSl(_) => &[Demonstrations, Responses, Revisions],
            Self::TrainPm(_) | Self::TrainDpo(_) => &[Comparisons],
        }
    }

    /// The relation that the verb makes of rows of the relation `of`.
    pub fn makes(&self, of: Relation) -> Relation {
        match self {
            Self::Read(op) => op.relation.relation(),
            Self::Split(_) | Self::Filter(_) => of,
            Self::Sample(_) => Relation::Responses,
            Self::Critique(_) => Relation::Critiques,
            Self::Revise(_) | Self::Repeat(_) => Relation::Revisions,
            Self::PairwiseJudge(_) => Relation::Comparisons,
            Self::Mix(_) => match of {
                Relation::Responses | Relation::Revisions => Relation::Demonstrations,
                same => same,
            },
            Self::Evaluate(_) => Relation::Scores,
            Self::TrainSl(_) | Self::TrainPm(_) | Self::TrainDpo(_) | Self::PpoUpdate(_) => {
                Relation::Checkpoints
            }
        }
    }

    /// Every name that the node mentions, in the order of the struct's fields.
    pub fn references(&self) -> Vec<Reference<'_>> {
        let mut all = Vec::new();
        match self {
            Self::Read(_) => {}
            Self::Split(op) => rows(&mut all, "from", &op.from),
            Self::Sample(op) => {
                rows(&mut all, "from", &op.from);
                model(&mut all, "model", &op.model);
            }
            Self::Critique(op) => {
                rows(&mut all, "from", &op.from);
                model(&mut all, "model", &op.model);
            }
            Self::Revise(op) => {
                rows(&mut all, "from", &op.from);
                model(&mut all, "model", &op.model);
            }
            Self::Repeat(op) => {
                rows(&mut all, "from", &op.from);
                if let Critiquing::Asked(critic) = &op.critique {
                    model(&mut all, "model", &critic.model);
                }
                model(&mut all, "model", &op.revise.model);
            }
            Self::PairwiseJudge(op) => {
                rows(&mut all, "from", &op.from);
                model(&mut all, "model", &op.model);
            }
            Self::Mix(op) => op.from.iter().for_each(|source| rows(&mut all, "rows", &source.rows)),
            Self::Filter(op) => rows(&mut all, "from", &op.from),
            Self::Evaluate(op) => {
                op.from.iter().for_each(|name| rows(&mut all, "from", name));
                op.model.iter().for_each(|name| model(&mut all, "model", name));
            }
            Self::TrainSl(op) => {
                op.from.iter().for_each(|source| rows(&mut all, "rows", &source.rows));
                init(&mut all, &op.init);
            }
            Self::TrainPm(op) => {
                op.from.iter().for_each(|source| rows(&mut all, "rows", &source.rows));
                init(&mut all, &op.init);
            }
            Self::TrainDpo(op) => {
                op.from.iter().for_each(|source| rows(&mut all, "rows", &source.rows));
                model(&mut all, "init", &op.init);
                op.reference.iter().for_each(|name| model(&mut all, "reference", name));
            }
            Self::PpoUpdate(op) => {
                op.prompts.iter().for_each(|source| rows(&mut all, "rows", &source.rows));
                model(&mut all, "policy", &op.policy);
                let (key, reward) = op.reward.model();
                model(&mut all, key, reward);
                op.reference.iter().for_each(|name| model(&mut all, "reference", name));
                op.test_reward.iter().for_each(|name| model(&mut all, "test_reward", name));
            }
        }
        all
    }
}

fn rows<'a>(all: &mut Vec<Reference<'a>>, key: &'static str, name: &'a Name) {
    all.push(Reference { key, edge: Edge::Rows, name });
}

fn model<'a>(all: &mut Vec<Reference<'a>>, key: &'static str, name: &'a Name) {
    all.push(Reference { key, edge: Edge::Model, name });
}

fn init<'a>(all: &mut Vec<Reference<'a>>, init: &'a Init) {
    if let Init::Model(name) = init {
        model(all, "init", name);
    }
}

//! Building: from a node as written to the operator that runs it, one arm a verb.

use std::sync::Arc;

use regex::Regex;

use crate::model::Estimator;
use crate::record::Relation;
use crate::spec::model::{Api, Scoring};
use crate::spec::op::Critiquing;
use crate::spec::{Backend, Constitution, Model, Name, Op, Place, Stage};

use super::Operator;
use super::critique::{self, Critique};
use super::evaluate::Evaluate;
use super::filter::{Filter, Predicate};
use super::judge::PairwiseJudge;
use super::mix::Mix;
use super::revise::{self, Revise};
use super::sample::Sample;
use super::split::Split;

/// What an operator is built from, besides the settings of its node.
#[derive(Clone)]
pub struct Build<'a> {
    /// The node's name: the `evaluator` of its scores, the `source` of its comparisons.
    pub node: &'a str,
    /// The pipeline's seed, for nodes that state none.
    pub seed: u64,
    /// What the node's rows are made of.
    pub reads: Relation,
    /// The model it asks; for a node that trains one, the entry of `models` it began with.
    pub model: Option<&'a Model>,
    /// How the model's label log-probabilities are had, where that has been found out; else it
    /// follows from the model's `scoring`.
    pub estimator: Option<Estimator>,
    /// The constitution.
    pub constitution: Option<&'a Constitution>,
    /// The round of `critique` and `revise`, from 1.
    pub round: u32,
    /// Which half of a round, for `repeat`.
    pub half: Half,
    /// The node or part that this input comes from, for `mix`, trainings and `evaluate`.
    pub source: &'a str,
    /// The place of this input among the node's inputs, from 0.
    pub ordinal: usize,
    /// How many rounds this input has, where it is a `repeat`: what `rounds: last` means.
    pub rounds: u32,
    /// The part of a `split`.
    pub part: &'a str,
    /// The condition of a `filter: where`.
    pub predicate: Option<Arc<dyn Predicate>>,
}

/// Half a round of `repeat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The critique of a response.
    Critique,
    /// The revision, of a critique or direct.
    Revise,
}

impl<'a> Build<'a> {
    /// What a node without a model, a constitution or rounds is built from.
    pub fn new(node: &'a str, seed: u64, reads: Relation) -> Build<'a> {
        Build {
            node,
            seed,
            reads,
            model: None,
            estimator: None,
            constitution: None,
            round: 1,
            half: Half::Critique,
            source: "",
            ordinal: 0,
            rounds: 1,
            part: "",
            predicate: None,
        }
    }

    pub(super) fn model(&self) -> &'a Model {
        self.model.expect("a node that asks a model is built with one")
    }

    /// How label log-probabilities are had from the model.
    pub(super) fn estimator(&self) -> Estimator {
        let model = self.model();
        let is_messages = model.api.is_some_and(|api| api.value == Api::Messages);
        self.estimator.unwrap_or(match (model.scoring, model.backend()) {
            (Scoring::Auto, Backend::Checkpoint(_)) | (Scoring::Echo, _) => Estimator::Echo,
            (Scoring::PromptLogprobs, _) => Estimator::PromptLogprobs,
            (Scoring::Auto, Backend::Endpoint { .. }) if is_messages => Estimator::Votes,
            (Scoring::Auto, Backend::Endpoint { .. }) | (Scoring::TopLogprobs, _) => {
                Estimator::TopLogprobs
            }
            (Scoring::Votes, _) => Estimator::Votes,
        })
    }
}

/// Why a node cannot be built: a mistake in the files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BuildError {
    /// What is wrong.
    pub message: String,
    /// What can be done.
    pub help: Option<String>,
    /// Where the files say it.
    pub place: Option<Place>,
}

impl BuildError {
    /// A mistake at a place, with help.
    pub(super) fn at(place: Place, message: String, help: impl Into<String>) -> BuildError {
        BuildError { message, help: Some(help.into()), place: Some(place) }
    }
}

/// The operator of a node, for one of its inputs.
///
/// A training's inputs are mixed, so its operator is a mix; what it trains on is in
/// [`train`](super::train).
///
/// # Panics
///
/// For `read`, which has no input.
pub fn build(op: &Op, build: &Build<'_>) -> Result<Arc<dyn Operator>, BuildError> {
    Ok(match op {
        Op::Read(_) => panic!("a read has no input, and so no operator"),
        Op::Split(op) => Arc::new(Split::new(op, build)?),
        Op::Sample(op) => Arc::new(Sample::new(op, build)?),
        Op::Critique(op) => {
            let sampling = op.sampling();
            let stage = op.principles.stage.unwrap_or(Stage::Sl);
            let few_shot = op.few_shot.as_ref();
            Arc::new(Critique::new(critique::Settings { sampling, few_shot, stage }, build)?)
        }
        Op::Revise(op) => {
            let sampling = op.sampling();
            let stage = op.principles.stage.unwrap_or(Stage::Sl);
            let few_shot = op.few_shot.as_ref();
            let settings = revise::Settings { sampling, few_shot, stage, skip_if: None };
            Arc::new(Revise::new(settings, build)?)
        }
        Op::Repeat(op) => {
            let stage = op.selector().stage.unwrap_or(Stage::Sl);
            match (build.half, &op.critique) {
                (Half::Critique, Critiquing::Asked(critic)) => {
                    let (sampling, few_shot) = (critic.sampling(), critic.few_shot.as_ref());
                    Arc::new(Critique::new(
                        critique::Settings { sampling, few_shot, stage },
                        build,
                    )?)
                }
                (Half::Critique, Critiquing::None) => panic!("a direct round has no critique"),
                (Half::Revise, _) => {
                    let (sampling, few_shot) = (op.revise.sampling(), op.revise.few_shot.as_ref());
                    let skip_if = op.skip_if.as_ref();
                    let settings = revise::Settings { sampling, few_shot, stage, skip_if };
                    Arc::new(Revise::new(settings, build)?)
                }
            }
        }
        Op::PairwiseJudge(op) => Arc::new(PairwiseJudge::new(op, build)?),
        Op::Mix(op) => Arc::new(Mix::new(&op.from[build.ordinal], op.seed, build)),
        Op::TrainSl(op) => Arc::new(Mix::new(&op.from[build.ordinal], op.seed, build)),
        Op::TrainPm(op) => Arc::new(Mix::new(&op.from[build.ordinal], op.seed, build)),
        Op::TrainDpo(op) => Arc::new(Mix::new(&op.from[build.ordinal], op.seed, build)),
        Op::PpoUpdate(op) => Arc::new(Mix::new(&op.prompts[build.ordinal], op.seed, build)),
        Op::Filter(op) => Arc::new(Filter::new(op, build)?),
        Op::Evaluate(op) => Arc::new(Evaluate::new(op, build)?),
    })
}

/// A regular expression as written.
pub(super) fn pattern(written: &Name) -> Result<Regex, BuildError> {
    Regex::new(&written.value).map_err(|error| {
        let error = error.to_string();
        let last = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
        BuildError::at(
            written.place,
            format!("regular expression \"{}\": {last}", written.value),
            "look-around and back-references are not supported; `(?i)` ignores case",
        )
    })
}

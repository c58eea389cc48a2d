//! An entry: one finished call as the memo keeps it.

use crate::model::Answer;
use crate::record::{CallKey, Id};

/// A finished call: the request, what came of it, and what it cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The hash of the request under the model's fingerprint; a training's recipe.
    pub key: CallKey,
    /// What was done.
    pub kind: CallKind,
    /// The model's name in the pipeline.
    pub model: String,
    /// The model's fingerprint.
    pub model_fingerprint: Id,
    /// The request as canonical JSON, without secrets.
    pub request_json: String,
    /// What came of it.
    pub outcome: Outcome,
    /// The seed, when the request was sampled.
    pub seed: Option<i64>,
    /// What it cost, when the model has a price.
    pub cost_usd: Option<f64>,
}

/// What came of a call: an answer, or a failure that asking again would not mend.
pub type Outcome = Result<Answer, Failure>;

/// Why a request will never be answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// The HTTP status, when there was one.
    pub status: Option<u16>,
    /// What the server said, without secrets.
    pub message: String,
    /// Whether the prompt is longer than the model's context.
    pub too_long: bool,
}

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// It writes a text.
    Generate,
    /// It gives log-probabilities of choices.
    Score,
    /// It makes weights; the answer's text is the weights id.
    Train,
}

impl CallKind {
    /// The name, as in the table `calls`.
    pub fn name(self) -> &'static str {
        match self {
            CallKind::Generate => "generate",
            CallKind::Score => "score",
            CallKind::Train => "train",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<CallKind> {
        [CallKind::Generate, CallKind::Score, CallKind::Train]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

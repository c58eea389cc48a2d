//! `operators`: one file a verb. An operator is a step: given a row and the answers so far, it
//! asks, it is done, or it rejects the row.
//!
//! Nothing here knows of time, workers, files or dataflow. The engine calls [`Operator::step`]
//! with no turns first; when it asks, the engine has the requests answered and calls again with
//! one turn more, until the operator is done. A step is a function of its arguments: calling it
//! again gives the same.

use std::sync::Arc;

use crate::model::{Answer, Request};
use crate::record::{Cell, Id, Relation, Row};

/// What an operator does with one row.
pub enum Step {
    /// Asks a model; the answers come as the next turn, in the order of the requests.
    Ask(Vec<Request>),
    /// Is done with the row: what it passed to [`Out::row`] are the rows made of it.
    Done,
    /// The row does not go on: it was left out on purpose, and is counted.
    Drop,
    /// The row failed.
    Reject(Reject),
}

/// Why a row failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// The reason, from the closed list.
    pub reason: Reason,
    /// What exactly, for a person.
    pub detail: String,
    /// The answer that could not be used, if that was it.
    pub answer: Option<String>,
}

/// The closed list of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is its own name, and `name` gives it")]
pub enum Reason {
    BadInput,
    Empty,
    Refused,
    Unparseable,
    TooLong,
    Truncated,
    IdenticalPair,
    LabelMass,
    Duplicate,
    Filtered,
    HttpPermanent,
    /// Retries were exhausted: the next run asks again.
    HttpTransient,
    ParentRejected,
}

impl Reason {
    /// The name, as in the table `rejects`.
    pub fn name(self) -> &'static str {
        match self {
            Reason::BadInput => "bad_input",
            Reason::Empty => "empty",
            Reason::Refused => "refused",
            Reason::Unparseable => "unparseable",
            Reason::TooLong => "too_long",
            Reason::Truncated => "truncated",
            Reason::IdenticalPair => "identical_pair",
            Reason::LabelMass => "label_mass",
            Reason::Duplicate => "duplicate",
            Reason::Filtered => "filtered",
            Reason::HttpPermanent => "http_permanent",
            Reason::HttpTransient => "http_transient",
            Reason::ParentRejected => "parent_rejected",
        }
    }
}

/// A model as an operator sees it, once its fingerprint is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRef {
    /// The name in the pipeline: of an entry of `models`, or of a training node.
    pub name: Arc<str>,
    /// What the answers depend on.
    pub fingerprint: Id,
}

/// A principle drawn for a row: the texts as used.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// The principle's id in the constitution.
    pub id: Arc<str>,
    /// The hash of its texts, as used.
    pub hash: Id,
    /// The critique request.
    pub critique: Option<Arc<str>>,
    /// The revision request.
    pub revise: Option<Arc<str>>,
    /// The instruction of the judge.
    pub judge: Option<Arc<str>>,
}

/// What a step is given.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The row: of the operator's input relation. For a pair, the first of the two.
    pub row: Row<'a>,
    /// The second row of a pair.
    pub other: Option<Row<'a>>,
    /// The row at the head of the chain, where rounds are chained: the draft.
    pub head: Row<'a>,
    /// The row's id (the id of the pair, for a pair): seeds and buckets hash it.
    pub row_id: Id,
    /// The principles drawn, best first; empty where the operator draws none.
    pub drawn: &'a [Drawn],
    /// The model, where the operator asks one.
    pub model: Option<&'a ModelRef>,
    /// The answers so far, a turn each.
    pub turns: &'a [Vec<Answer>],
}

/// Takes the rows that an operator makes.
pub trait Out {
    /// A row: its index among its siblings (sample 0, 1, …), and its columns but the common ones.
    fn row(&mut self, index: u64, cells: &[(&'static str, Cell<'_>)]);
}

/// The running form of a node, or of one round of a `repeat`.
pub trait Operator: Send + Sync {
    /// The relation of the rows it makes.
    fn relation(&self) -> Relation;

    /// What it does with a row.
    fn step(&self, input: Input<'_>, out: &mut dyn Out) -> Step;

    /// The most requests it makes for one row: what `plan` says when the row is not yet known.
    fn calls_max(&self) -> u64;

    /// How many rows it makes of one.
    fn fan_out(&self) -> u64 {
        1
    }

    /// The hash of everything in it that a step depends on, but for the arguments of `step`.
    fn fingerprint(&self) -> Id;
}

//! `operators`: one file a verb. An operator is a step: given a row and the answers so far, it
//! asks, it is done, or it rejects the row.
//!
//! Nothing here knows of time, workers, files or dataflow. The engine calls [`Operator::step`]
//! with no turns first; when it asks, the engine has the requests answered and calls again with
//! one turn more, until the operator is done. A step is a function of its arguments: calling it
//! again gives the same.

pub mod critique;
pub mod evaluate;
pub mod filter;
pub mod judge;
pub mod mix;
pub mod read;
pub mod revise;
pub mod reward;
pub mod sample;
pub mod split;
pub mod train;

mod build;
mod principles;
mod prompt;
mod question;
mod shots;
mod template;

#[cfg(test)]
mod testing;

use std::borrow::Cow;
use std::sync::Arc;

use crate::model::{Answer, Request, Sampling};
use crate::record::{Cell, Id, KeyHasher, Part, Relation, Row, Turns};

pub use build::{Build, BuildError, Half, build};
pub use filter::Predicate;
pub use reward::RewardWords;

use build::pattern;
use principles::Principles;

/// What an operator does with one row.
pub enum Step {
    /// Asks a model; the answers come as the next turn, in the order of the requests. A request
    /// that fails makes the engine reject the row: a step sees answers only.
    Ask(Vec<Request>),
    /// Is done with the row: it passed one row to [`Out::row`].
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
    /// Fewer principles can be drawn for the row than it needs.
    NoPrinciple,
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
            Reason::NoPrinciple => "no_principle",
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
    /// The id of the row (of the pair, for a pair).
    pub row_id: Id,
    /// The id of the row that will be made: seeds hash it.
    pub made_id: Id,
    /// Which of the rows made of this one: 0 to `fan_out` - 1.
    pub index: u64,
    /// The principles drawn, best first; empty where the operator draws none.
    pub drawn: &'a [Drawn],
    /// The model, where the operator asks one.
    pub model: Option<&'a ModelRef>,
    /// The answers so far, a turn each.
    pub turns: &'a [Vec<Answer>],
}

/// Takes the row that an operator makes.
pub trait Out {
    /// The row's columns, but the common ones. A column that is not named is null.
    fn row(&mut self, cells: &[(&'static str, Cell<'_>)]);
}

/// The running form of a node, or of one round of a `repeat`.
pub trait Operator: Send + Sync {
    /// The relation of the rows it makes.
    fn relation(&self) -> Relation;

    /// What the ids of the rows it makes are hashed with, such as `sample`; `None` where rows keep
    /// the ids they come with.
    fn role(&self) -> Option<&'static str>;

    /// What it does with a row.
    fn step(&self, input: Input<'_>, out: &mut dyn Out) -> Step;

    /// The most requests it makes for one row: what `plan` says when the row is not yet known.
    fn calls_max(&self) -> u64;

    /// How many rows it makes of one, each in a step of its own (`n` samples).
    fn fan_out(&self) -> u64 {
        1
    }

    /// The number hashed into the made row's id: the sample's index, the round.
    fn sibling(&self, index: u64) -> u64 {
        index
    }

    /// The round, for rejects.
    fn round(&self) -> Option<i64> {
        None
    }

    /// The rank of a row, where only so many are taken: the lowest are.
    fn rank(&self, row: Id) -> u64 {
        row.low()
    }

    /// What rows that are duplicates of each other share.
    fn dedupe_key(&self, _row: Row<'_>) -> Option<Id> {
        None
    }

    /// Whether duplicates are dropped, rather than rejected.
    fn drops_duplicates(&self) -> bool {
        false
    }

    /// The hash of everything in it that a step depends on, but for the arguments of `step`.
    fn fingerprint(&self) -> Id;
}

/// The id of a row made of others: where it comes from, not what it says.
pub fn made_id(role: &str, parents: &[Id], sibling: u64) -> Id {
    let mut hasher = KeyHasher::new("amend/row/1");
    hasher.add_text(role);
    parents.iter().for_each(|parent| hasher.add_id(*parent));
    hasher.add_u64(sibling);
    hasher.id()
}

/// The id of a reject: of the row that is lost, of the node that loses it, and of a number that tells
/// several rejects of one row at one node apart. A row may live on elsewhere, and two nodes may lose
/// the same one.
pub fn reject_id(lost: Id, node: &str, number: u64) -> Id {
    made_id("reject", &[lost, KeyHasher::new(node).id()], number)
}

/// The text of a conversation's part that one side said.
fn content(mut turns: Turns<'_>) -> Cow<'_, str> {
    let first = turns.next().map_or("", |(_, content)| content);
    turns
        .fold(Cow::Borrowed(first), |text, (_, content)| Cow::Owned(format!("{text}\n\n{content}")))
}

/// All columns of a row but the common ones.
pub fn copy(row: Row<'_>) -> Vec<(&'static str, Cell<'_>)> {
    let own = row.relation().columns().iter().filter(|column| column.part != Part::Common);
    own.map(|column| (column.name, row.cell(column.name))).collect()
}

/// Puts another value in a column that is there.
fn set<'a>(cells: &mut [(&'static str, Cell<'a>)], name: &str, value: Cell<'a>) {
    let cell = cells.iter_mut().find(|(column, _)| *column == name);
    cell.expect("the column is one of the copied ones").1 = value;
}

fn hash_sampling(sampling: &Sampling, hasher: &mut KeyHasher) {
    hasher.add_f64(sampling.temperature);
    hasher.add_f64(sampling.top_p);
    hasher.add_u64(u64::from(sampling.top_k));
    hasher.add_f64(sampling.min_p);
    if sampling.is_penalised() {
        hasher.add_f64(sampling.repetition_penalty);
    }
    hasher.add_u64(u64::from(sampling.max_tokens));
    sampling.stop.iter().for_each(|stop| hasher.add_text(stop));
}

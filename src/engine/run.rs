//! Running a plan against a store: the types that `cli` is written against.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use crate::operators::Predicate;
use crate::plan::Plan;
use crate::spec::Place;

/// How to run.
pub struct Options {
    /// The store.
    pub store: PathBuf,
    /// Worker threads.
    pub workers: usize,
    /// Runs only what this node needs.
    pub until: Option<String>,
    /// Nodes whose checkpoints are held.
    pub hold: Vec<String>,
    /// The most calls to make.
    pub max_calls: Option<u64>,
    /// The most US dollars to spend.
    pub max_cost: Option<f64>,
    /// Asks again what failed for good.
    pub retry_rejects: bool,
    /// Told how far the run is.
    pub progress: Arc<dyn Progress>,
    /// The time, milliseconds since 1970.
    pub now_ms: i64,
    /// Conditions in SQL.
    pub predicates: Arc<dyn Predicates>,
    /// Set when the run is to stop.
    pub interrupt: Arc<AtomicBool>,
}

/// Compiles the conditions of `filter: where`.
pub trait Predicates: Send + Sync {
    /// The condition, or what is wrong with it.
    fn predicate(&self, sql: &str) -> Result<Arc<dyn Predicate>, String>;
}

/// Told how far a run is.
pub trait Progress: Send + Sync {
    /// Rows of a node done, of so many.
    fn node(&self, name: &str, done: u64, total: u64);
    /// What the calls of the run came to so far.
    fn calls(&self, in_flight: usize, made: u64, memo: u64, tokens: u64, cost_usd: f64);
    /// Steps of a training done, of so many.
    fn training(&self, node: &str, line: &str, done: u64, all: u64);
    /// A line for a person.
    fn message(&self, line: &str);
}

/// Why a run made no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another run holds the store.
    #[error("{0}")]
    Locked(String),
    /// The user stopped it.
    #[error("{0}")]
    Interrupted(String),
    /// A limit or the outside world stopped it.
    #[error("{0}")]
    Stopped(String),
    /// A mistake in the files.
    #[error("{message}")]
    Mistake {
        /// Where it is.
        place: Option<Place>,
        /// What is wrong.
        message: String,
        /// What can be done.
        help: Option<String>,
    },
    /// Something else.
    #[error("{0}")]
    Failed(String),
}

/// What a run did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The snapshot that says what the run made.
    pub snapshot: u64,
    /// Its digest.
    pub digest: String,
    /// What each node did.
    pub nodes: Vec<NodeReport>,
    /// The calls of all nodes.
    pub calls: RunCalls,
    /// How long it took.
    pub seconds: f64,
}

/// What one node did.
#[derive(Clone, Debug, Serialize)]
pub struct NodeReport {
    /// The node.
    pub name: String,
    /// Its verb.
    pub op: String,
    /// Its rows.
    pub rows: u64,
    /// Rows that failed.
    pub rejects: u64,
    /// Rows left out on purpose.
    pub dropped: u64,
    /// Its calls.
    pub calls: NodeCalls,
    /// How long it took.
    pub seconds: f64,
    /// The digest of its table.
    pub digest: String,
}

/// The calls of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RunCalls {
    /// Calls made.
    pub made: u64,
    /// Calls that the memo had.
    pub memo: u64,
}

/// The calls of a node.
#[derive(Clone, Debug, Default, Serialize)]
pub struct NodeCalls {
    /// Calls made.
    pub made: u64,
    /// Calls that the memo had.
    pub memo: u64,
    /// Requests sent.
    pub attempts: u64,
}

/// What a run would do.
#[derive(Clone, Debug, Serialize)]
pub struct Forecast {
    /// The pipeline.
    pub pipeline: String,
    /// What each node would do.
    pub nodes: Vec<NodeForecast>,
    /// All nodes together.
    pub totals: Totals,
}

/// What one node would do.
#[derive(Clone, Debug, Serialize)]
pub struct NodeForecast {
    /// The node.
    pub name: String,
    /// Its verb.
    pub op: String,
    /// Its rows.
    pub rows: RowsForecast,
    /// Its calls.
    pub calls: CallsForecast,
    /// Its training, if it trains.
    pub training: Option<TrainingForecast>,
    /// Tokens of the calls to make.
    pub tokens: u64,
    /// Their price.
    pub cost_usd: Option<f64>,
}

/// Rows of a node.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RowsForecast {
    /// All.
    pub total: u64,
    /// Those that change.
    pub changed: u64,
    /// Whether that is known; else it is "up to".
    pub exact: bool,
}

/// Calls of a node.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CallsForecast {
    /// All.
    pub total: u64,
    /// Those that the memo has.
    pub memo: u64,
    /// Those to make.
    pub to_make: u64,
    /// Whether that is known; else it is "up to".
    pub exact: bool,
}

/// A training.
#[derive(Clone, Debug, Serialize)]
pub struct TrainingForecast {
    /// `fresh`, `retrain`, `resume`, `unchanged` or `held`.
    pub state: String,
    /// Whether that is known.
    pub exact: bool,
}

/// All nodes together.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    /// Rows.
    pub rows: RowsForecast,
    /// Calls.
    pub calls: CallsForecast,
    /// Trainings that run.
    pub trainings: u64,
    /// Tokens.
    pub tokens: u64,
    /// Their price.
    pub cost_usd: Option<f64>,
}

/// Runs a plan.
pub fn run(plan: &Plan, _options: &Options) -> Result<Report, RunError> {
    Err(RunError::Failed(format!("\"{}\" cannot be run yet", plan.pipeline().name)))
}

/// Says what a run would do.
pub fn foretell(plan: &Plan, _options: &Options) -> Result<Forecast, RunError> {
    Err(RunError::Failed(format!("\"{}\" cannot be planned yet", plan.pipeline().name)))
}

//! What a run did, and what it would do: the JSON that users script against.

use serde::Serialize;

use super::basis::Basis;
use crate::spec::Mistake;

/// What a run did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The snapshot that says what the run made; none of a part of a pipeline, which is not
    /// published.
    pub snapshot: Option<u64>,
    /// Its digest.
    pub digest: Option<String>,
    /// What each node did.
    pub nodes: Vec<NodeReport>,
    /// The calls of all nodes.
    pub calls: RunCalls,
    /// What it spent.
    pub spent: RunSpent,
    /// How long it took.
    pub seconds: f64,
}

/// What a run spent, failed attempts and each request of a vote included.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RunSpent {
    /// Requests that are charged for.
    pub requests: u64,
    /// Tokens read and written.
    pub tokens: u64,
    /// US dollars, of the models that have a price.
    pub cost_usd: f64,
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
    /// How long it was at work: from the first row that it acted on to the last that came of it.
    /// Nodes work side by side.
    pub seconds: f64,
    /// The digest of its table, if that is published.
    pub digest: Option<String>,
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
    /// What it was made of.
    pub from: Basis,
    /// What is to be said of the endpoints that it asks, with the places of the plan's files.
    #[serde(skip)]
    pub warnings: Vec<Mistake>,
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
    /// About how many tokens the calls to make read and write; nothing where no call like them is
    /// known.
    pub tokens: Option<u64>,
    /// Whether the model that is asked has a price.
    #[serde(skip)]
    pub has_price: bool,
    /// About what they cost; nothing where that is not known, or the model has no price.
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
    /// `fresh`, `retrain`, `warm_start`, `resume`, `unchanged`, `held` or `min_changed`.
    pub state: String,
    /// Whether that is known.
    pub exact: bool,
    /// Under `min_changed`, the share of the rows last trained on that changed, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed: Option<f64>,
}

impl TrainingForecast {
    /// Whether something is trained.
    pub fn trains(&self) -> bool {
        ["fresh", "retrain", "warm_start", "resume"].contains(&self.state.as_str())
    }
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
    /// About how many tokens, if it is known of every node.
    pub tokens: Option<u64>,
    /// About what the calls of models with a price cost, if it is known of every node that makes any.
    pub cost_usd: Option<f64>,
}

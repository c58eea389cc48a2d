//! `run`: one epoch from the files as they are, over the store: the world is opened, the plan is
//! compiled and applied, and what comes of it is published as a snapshot.

mod basis;
mod check;
mod foretell;
mod moved;
mod publish;
mod renamed;
mod report;
mod same;
mod served;
mod unchanged;
mod world;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use basis::Basis;
pub use check::check;
pub use foretell::foretell;
pub use moved::moved;
pub use renamed::renamed;
pub use report::{
    CallsForecast, Forecast, NodeCalls, NodeForecast, NodeReport, Report, RowsForecast, RunCalls,
    RunSpent, Totals, TrainingForecast,
};

use super::compile::{CompileError, compile};
use super::dispatch::{Dispatcher, Limits, Mode, Seen};
use super::progress::{Far, HowFar};
use super::session::{Desired, Session, Settled};
use crate::model::train;
use crate::operators::Predicate;
use crate::plan::{Plan, Step};
use crate::record::Relation;
use crate::spec::Place;
use crate::store::{Store, StoreError};
use world::LocalWorld;

/// How to run.
pub struct Options {
    /// The store.
    pub store: PathBuf,
    /// Worker threads.
    pub workers: usize,
    /// Runs only what this node needs, and publishes nothing.
    pub until: Option<String>,
    /// Nodes whose checkpoints are held.
    pub hold: Vec<String>,
    /// The most calls to make.
    pub max_calls: Option<u64>,
    /// The most US dollars to spend.
    pub max_cost: Option<f64>,
    /// Asks again what failed for good.
    pub retry_rejects: bool,
    /// The basis of the plan that is to be followed: the run is refused if it is another now.
    pub planned: Option<Basis>,
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
    /// The condition over rows of a relation, or what is wrong with it.
    fn predicate(&self, sql: &str, over: Relation) -> Result<Arc<dyn Predicate>, String>;
}

/// Told how far a run is.
pub trait Progress: Send + Sync {
    /// How far the nodes are that ask a model, by table.
    fn rows(&self, far: &[Far]);
    /// What the calls of the run came to so far.
    fn calls(&self, seen: &Seen);
    /// How far the training of a node is.
    fn training(&self, node: &str, told: &train::Progress<'_>);
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
    /// What the plan to be followed was made of is no longer so.
    #[error("{0}")]
    Moved(String),
    /// Something else.
    #[error("{0}")]
    Failed(String),
}

impl From<StoreError> for RunError {
    fn from(error: StoreError) -> RunError {
        match error {
            StoreError::Locked { .. } => RunError::Locked(error.to_string()),
            error => RunError::Failed(error.to_string()),
        }
    }
}

impl From<CompileError> for RunError {
    fn from(error: CompileError) -> RunError {
        match error {
            CompileError::Build(error) => {
                RunError::Mistake { place: error.place, message: error.message, help: error.help }
            }
            CompileError::World(message) => RunError::Failed(message),
        }
    }
}

/// The report of a run that has nothing to do, if this is one: no model is opened, nothing is read
/// but the manifest and what tells whether a file changed.
pub fn run_unchanged(plan: &Plan, options: &Options) -> Result<Option<Report>, RunError> {
    let began = Instant::now();
    let store = Store::new(&options.store);
    let _lock = store.lock(&plan.pipeline().name, options.now_ms * 1000)?;
    let snapshots = store.snapshots(&plan.pipeline().name);
    unchanged::unchanged(plan, options, &snapshots, began)
}

/// Runs a plan.
pub fn run(plan: &Plan, options: &Options) -> Result<Report, RunError> {
    let began = Instant::now();
    let store = Store::new(&options.store);
    let _lock = store.lock(&plan.pipeline().name, options.now_ms * 1000)?;
    let snapshots = store.snapshots(&plan.pipeline().name);
    if let Some(report) = unchanged::unchanged(plan, options, &snapshots, began)? {
        return Ok(report);
    }
    let plan = match &options.until {
        Some(node) => &until(plan, node)?,
        None => plan,
    };
    let memo = Arc::new(store.memo()?);
    let world = LocalWorld::new(plan, options, &store, Arc::clone(&memo), true)?;
    let desired = desired(plan, &world, options)?;
    // The files are those that were read just now, and nothing was asked yet.
    basis::check(plan, options, world.sources(), world.latest.as_ref(), &snapshots)?;
    let limits = Limits {
        max_calls: least(options.max_calls, plan.pipeline().budget.calls),
        max_tokens: plan.pipeline().budget.tokens,
        max_cost: least(options.max_cost, plan.pipeline().budget.usd),
        retry_rejects: options.retry_rejects,
    };
    let dispatcher = world.dispatcher(Mode::Live, limits);
    let trainings = world.trainings();
    let mut session =
        Session::new(options.workers, Arc::clone(world.rows()), Arc::clone(&dispatcher), trainings);
    let far = Arc::clone(session.far());
    let settled = watched(&dispatcher, &far, options, || session.apply(&desired));
    if settled.is_err() {
        drain(&dispatcher);
    }
    let interrupted = options.interrupt.load(Ordering::Acquire);
    let settled = settled.map_err(|stopped| match interrupted {
        true => RunError::Interrupted(format!("{stopped}; run again to go on")),
        false => {
            RunError::Stopped(format!("{stopped}; what was paid for is kept: run again to go on"))
        }
    });
    let report = settled.and_then(|settled| {
        over_limits(plan, &session)?;
        publish::publish(plan, options, &world, &session, &settled, &snapshots, began)
    });
    let seen = dispatcher.seen();
    let spent = RunSpent { requests: seen.requests, tokens: seen.tokens, cost_usd: seen.cost_usd };
    let report = report.map(|report| Report { spent, ..report });
    drop(session);
    memo.close()?;
    report
}

/// What a plan asks of the dataflow, with chunks that keep the models busy.
fn desired(plan: &Plan, world: &LocalWorld<'_>, options: &Options) -> Result<Desired, RunError> {
    let mut desired = compile(plan, world, &options.hold)?;
    let in_flight = plan.pipeline().models.values().map(|model| model.max_in_flight.value as usize);
    let rows: usize = desired.sources.values().map(|source| source.rows.len()).sum();
    desired.chunk = in_flight.max().unwrap_or(64).max(64).max(rows / 128);
    Ok(desired)
}

fn least<T: PartialOrd>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b < a { b } else { a }),
        (a, b) => a.or(b),
    }
}

/// Runs something while another thread looks for an interrupt and tells of progress.
fn watched<T>(
    dispatcher: &Dispatcher,
    far: &HowFar,
    options: &Options,
    run: impl FnOnce() -> T,
) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                if options.interrupt.load(Ordering::Acquire) {
                    dispatcher.stop("interrupted".to_owned());
                }
                options.progress.rows(&far.tables());
                options.progress.calls(&dispatcher.seen());
                std::thread::park_timeout(Duration::from_millis(50));
            }
        });
        let _ended = Ended(&done);
        run()
    })
}

/// Says that something ended, also by a panic: whoever looks on would else do so for ever.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Waits a while for the calls that are under way: they are paid for.
fn drain(dispatcher: &Dispatcher) {
    let began = Instant::now();
    while dispatcher.in_flight() > 0 && began.elapsed() < Duration::from_secs(20) {
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn over_limits(plan: &Plan, session: &Session) -> Result<(), RunError> {
    let Some(most) = plan.pipeline().limits.max_rejects else { return Ok(()) };
    for (node, table) in plan.nodes.iter().zip(session.tables()) {
        let rejects = table.rejects.len() as u64;
        if rejects > most {
            let message = format!("node \"{}\" has {rejects} rejects, above {most}", node.name);
            return Err(RunError::Stopped(message));
        }
    }
    Ok(())
}

/// The part of a plan that a node needs.
fn until(plan: &Plan, name: &str) -> Result<Plan, RunError> {
    let wanted: Vec<usize> = (0..plan.nodes.len())
        .filter(|at| plan.nodes[*at].name == name || plan.nodes[*at].written == name)
        .collect();
    if wanted.is_empty() {
        let names = plan.nodes.iter().map(|node| node.name.as_str());
        return Err(RunError::Mistake {
            place: None,
            message: format!("\"{name}\" is not a node"),
            help: crate::spec::did_you_mean(name, names),
        });
    }
    Ok(plan.restrict(|at| wanted.iter().any(|wanted| plan.reaches(at, *wanted))))
}

/// Whether a plan trains.
fn trains(step: &Step) -> bool {
    matches!(step, Step::Train { .. })
}

/// What of a plan an epoch came to, by table: rows of one `repeat` are one table.
fn by_table<'p, T>(
    plan: &'p Plan,
    settled: &Settled,
    each: impl Fn(&'p str, &[usize], super::dispatch::Calls) -> T,
) -> Vec<T> {
    let tables = plan.tables();
    let sum = |(table, nodes): (&&'p str, &Vec<usize>)| {
        let mut calls = super::dispatch::Calls::default();
        for node in nodes {
            calls.add(settled.calls[*node]);
        }
        each(table, nodes, calls)
    };
    tables.iter().map(sum).collect()
}

//! A session: a dataflow that lives, and takes edits.
//!
//! [`Session::apply`] is the tested core: it is given what is desired (rows, settings, texts),
//! finds what that changes, feeds the change as an epoch, and gives the tables that come of it.
//! An edit may be accepted while an earlier one still runs: the earlier one is superseded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use timely::WorkerConfig;

use super::context::{Stage, Stages};
use super::dispatch::{Calls, Dispatcher};
use super::draw::Candidate;
use super::once::Once;
use super::progress::{Count, HowFar};
use super::rows::{Rec, Rows};
use super::shape::{Kind, NodeIdx, Shape};
use super::shared::{Shared, Span, Stream, TrainingState};
use super::train::{Training, Trainings};
use super::worker::{Changes, Command, Report, work};
use crate::model::panics::caught;
use crate::operators::Drawn;
use crate::record::Id;

/// What is desired: everything the dataflow is fed with.
#[derive(Clone, Default)]
pub struct Desired {
    /// The nodes and edges.
    pub shape: Shape,
    /// The rows and the rejects of each source. Where an edit gives the very same ones, they are
    /// not compared.
    pub sources: BTreeMap<NodeIdx, Arc<Source>>,
    /// The stages of each chain, at its head, and of each local step, an input each.
    pub stages: BTreeMap<NodeIdx, Vec<Stage>>,
    /// The principles that each chain with draws draws from.
    pub candidates: BTreeMap<NodeIdx, Vec<Candidate>>,
    /// The texts of those principles.
    pub texts: BTreeMap<NodeIdx, Vec<(Id, Drawn)>>,
    /// The settings of each training.
    pub trainings: BTreeMap<NodeIdx, Training>,
    /// Rows to a chunk.
    pub chunk: usize,
}

/// The rows of a source, and what of it could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The rows.
    pub rows: Vec<Rec>,
    /// The rejects.
    pub rejects: Vec<Rec>,
}

/// What is fed now, as keys.
#[derive(Clone, Default)]
struct Fed {
    sources: BTreeMap<NodeIdx, Arc<Source>>,
    settings: BTreeMap<NodeIdx, Id>,
    candidates: BTreeMap<NodeIdx, Id>,
    texts: BTreeMap<(NodeIdx, Id), Id>,
}

/// The rows of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Rows, by id.
    pub rows: BTreeMap<Id, Rec>,
    /// Rejects, by the id of the lost row.
    pub rejects: BTreeMap<Id, Rec>,
    /// A training's logged numbers.
    pub metrics: BTreeMap<Id, Rec>,
    /// A training's episodes.
    pub rollouts: BTreeMap<Id, Rec>,
    /// The policies on a training's way that were kept.
    pub snapshots: BTreeMap<Id, Rec>,
    /// Rows left out on purpose.
    pub dropped: u64,
}

/// What an epoch came to.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// For each node, what it asked in this epoch.
    pub calls: Vec<Calls>,
    /// For each node, how many records it acted on in this epoch.
    pub records: Vec<u64>,
    /// For each node, when it was at work in this epoch, if it was.
    pub spans: Vec<Option<Span>>,
    /// For each training node, what it came to.
    pub trainings: BTreeMap<NodeIdx, TrainingState>,
}

/// A run was stopped before it was done; what was paid for is remembered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Stopped(pub String);

/// A dataflow that lives.
pub struct Session {
    workers: usize,
    rows: Arc<Rows>,
    dispatcher: Arc<Dispatcher>,
    trainings: Arc<dyn Trainings>,
    far: Arc<HowFar>,
    running: Option<Running>,
}

struct Running {
    shape: Shape,
    shared: Arc<Shared>,
    fed: Fed,
    epoch: u64,
    done: Vec<u64>,
    tables: Vec<Table>,
    commands: Vec<Sender<Command>>,
    reports: Receiver<(usize, Report)>,
    guards: Option<timely::communication::WorkerGuards<()>>,
}

impl Session {
    /// A session of so many worker threads.
    pub fn new(
        workers: usize,
        rows: Arc<Rows>,
        dispatcher: Arc<Dispatcher>,
        trainings: Arc<dyn Trainings>,
    ) -> Session {
        assert!(workers > 0, "a session has a worker");
        let trainings = Arc::new(Once::new(trainings));
        Session { workers, rows, dispatcher, trainings, far: Arc::default(), running: None }
    }

    /// The rows that keys stand for.
    pub fn rows(&self) -> &Arc<Rows> {
        &self.rows
    }

    /// How far its nodes are, also while they work.
    pub fn far(&self) -> &Arc<HowFar> {
        &self.far
    }

    /// Accepts an edit and waits until it is settled.
    pub fn apply(&mut self, desired: &Desired) -> Result<Settled, Stopped> {
        self.submit(desired);
        self.wait()
    }

    /// Accepts an edit; an earlier one that still runs is superseded.
    pub fn submit(&mut self, desired: &Desired) {
        if self.running.as_ref().is_none_or(|running| running.shape != desired.shape) {
            self.running = None;
            self.dispatcher.forget_calls();
            self.running = Some(self.begin(&desired.shape));
        }
        let running = self.running.as_mut().expect("it was just begun");
        self.far.expect(desired);
        let fed = running.keys(desired);
        let mut changes = running.fed.changes(&fed);
        running.fed = fed;
        running.epoch += 1;
        changes.epoch = running.epoch;
        changes.chunk = desired.chunk.max(1);
        running.shared.accept_epoch(running.epoch);
        let changes = Arc::new(changes);
        for commands in &running.commands {
            drop(commands.send(Command::Epoch(Arc::clone(&changes))));
        }
    }

    /// Waits until the last accepted edit is settled.
    pub fn wait(&mut self) -> Result<Settled, Stopped> {
        let nodes = self.running.as_ref().map_or(0, |running| running.shape.nodes.len());
        let running = self.running.as_mut().expect("an edit was accepted");
        while running.done.iter().any(|done| *done < running.epoch) {
            match running.reports.recv_timeout(Duration::from_millis(50)) {
                Ok((worker, Report::Done(epoch))) => running.done[worker] = epoch,
                Ok((_, Report::Stopped)) | Err(RecvTimeoutError::Disconnected) => {
                    let reason = self.dispatcher.stopped();
                    return Err(Stopped(reason.unwrap_or_else(|| "a worker ended".to_owned())));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        running.take_in();
        Ok(Settled {
            calls: self.dispatcher.take_calls(nodes),
            records: running.shared.take_records(),
            spans: running.shared.take_spans(),
            trainings: running.shared.trainings_seen(),
        })
    }

    /// The table of each node, as of the last settled epoch.
    pub fn tables(&self) -> &[Table] {
        self.running.as_ref().map_or(&[], |running| &running.tables)
    }

    fn begin(&self, shape: &Shape) -> Running {
        let nodes = shape.nodes.len();
        let rows = Arc::clone(&self.rows);
        let (dispatcher, trainings) = (Arc::clone(&self.dispatcher), Arc::clone(&self.trainings));
        let counts: Arc<[Count]> = (0..nodes).map(|_| Count::default()).collect();
        self.far.begin(shape, &counts);
        let shared = Shared::new(rows, dispatcher, trainings, counts);
        let (report, reports) = unbounded();
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..self.workers).map(|_| unbounded::<Command>()).unzip();
        let config = timely::Config {
            communication: match self.workers {
                1 => timely::CommunicationConfig::Thread,
                workers => timely::CommunicationConfig::Process(workers),
            },
            worker: WorkerConfig::default(),
        };
        let (of_worker, of_shape) = (Arc::clone(&shared), shape.clone());
        let guards = timely::execute(config, move |worker| {
            let index = worker.index();
            let (inner, outer) = unbounded();
            let tell = report.clone();
            // Reports carry the worker's number; a channel of its own keeps `work` free of it.
            let forward = std::thread::spawn(move || {
                for report in outer {
                    drop(tell.send((index, report)));
                }
            });
            let working = || work(worker, &of_shape, &of_worker, &receivers[index], &inner);
            if let Err(message) = caught(working) {
                let message = format!("a worker ended by a fault of amend itself: {message}");
                of_worker.dispatcher.stop(message);
                drop(inner.send(Report::Stopped));
                // A dataflow that is left is stepped on, for ever.
                for dataflow in worker.installed_dataflows() {
                    worker.drop_dataflow(dataflow);
                }
            }
            drop(inner);
            drop(forward.join());
        });
        let guards = guards.expect("threads of one process start without a network");
        Running {
            shape: shape.clone(),
            shared,
            fed: Fed::default(),
            epoch: 0,
            done: vec![0; self.workers],
            tables: vec![Table::default(); nodes],
            commands: senders,
            reports,
            guards: Some(guards),
        }
    }
}

impl Running {
    /// The keys of what is desired; what they stand for is kept.
    fn keys(&self, desired: &Desired) -> Fed {
        let contexts = &self.shared.contexts;
        let mut fed = Fed::default();
        fed.sources.clone_from(&desired.sources);
        for (node, stages) in &desired.stages {
            fed.settings.insert(*node, contexts.keep_stages(Stages::new(stages.clone())));
        }
        for (node, training) in &desired.trainings {
            fed.settings.insert(*node, contexts.keep_training(training.clone()));
        }
        for (node, candidates) in &desired.candidates {
            fed.candidates.insert(*node, contexts.keep_candidates(candidates.clone()));
        }
        for (node, texts) in &desired.texts {
            for (key, drawn) in texts {
                fed.texts.insert((*node, *key), contexts.keep_texts(drawn.clone()));
            }
        }
        fed
    }

    /// Takes in what the sinks saw.
    fn take_in(&mut self) {
        let shared = &self.shared;
        std::thread::scope(|scope| {
            for (at, (node, table)) in self.shape.nodes.iter().zip(&mut self.tables).enumerate() {
                let Table { rows, rejects, metrics, rollouts, snapshots, dropped } = table;
                let changes = shared.take_seen(at, Stream::Rows);
                // Tables have nothing in common: large changes of several go side by side.
                match changes.len() {
                    0..MANY => apply(rows, changes),
                    _ => drop(scope.spawn(|| apply(rows, changes))),
                }
                apply(rejects, shared.take_seen(at, Stream::Rejects));
                if matches!(node.kind, Kind::Train { .. }) {
                    apply(metrics, shared.take_seen(at, Stream::Metrics));
                    apply(rollouts, shared.take_seen(at, Stream::Rollouts));
                    apply(snapshots, shared.take_seen(at, Stream::Snapshots));
                }
                let net = *dropped as i64 + shared.take_dropped(at) as i64;
                *dropped = u64::try_from(net).expect("what was dropped was there");
            }
        });
    }
}

/// From so many changes on a table is worth a thread.
const MANY: usize = 4096;

fn apply(table: &mut BTreeMap<Id, Rec>, mut changes: Vec<(Rec, isize)>) {
    differential_dataflow::consolidation::consolidate(&mut changes);
    // Sorted by row: what a row was and what it is now lie side by side.
    for of_row in changes.chunk_by(|(a, _), (b, _)| a.row == b.row) {
        let of = |sign: isize| {
            let mut recs = of_row.iter().filter(|(_, diff)| *diff == sign).map(|(rec, _)| *rec);
            (recs.next(), recs.next())
        };
        let (went, came) = (of(-1), of(1));
        let known = [went.0, came.0].into_iter().flatten().count();
        assert_eq!((known, went.1, came.1), (of_row.len(), None, None), "a row is there once");
        let before = match came.0 {
            Some(rec) => table.insert(rec.row, rec),
            None => table.remove(&of_row[0].0.row),
        };
        assert_eq!(before, went.0, "what goes was there, and what comes was not");
    }
}

impl Fed {
    fn changes(&self, next: &Fed) -> Changes {
        let mut changes = Changes::default();
        let nothing = Arc::default();
        let nodes: BTreeSet<NodeIdx> =
            self.sources.keys().chain(next.sources.keys()).copied().collect();
        for node in nodes {
            let before = self.sources.get(&node).unwrap_or(&nothing);
            let after = next.sources.get(&node).unwrap_or(&nothing);
            if Arc::ptr_eq(before, after) {
                continue;
            }
            for (is_reject, before, after) in
                [(false, &before.rows, &after.rows), (true, &before.rejects, &after.rejects)]
            {
                let (before, after) = (by_row(before), by_row(after));
                for (of, other, diff) in [(&before, &after, -1), (&after, &before, 1)] {
                    let recs = removed(of, other).map(|(_, rec)| (node, is_reject, *rec, diff));
                    changes.rows.extend(recs);
                }
            }
        }
        for (before, after, diff) in [(self, next, -1), (next, self, 1)] {
            let settings = removed(&before.settings, &after.settings);
            changes.settings.extend(settings.map(|(node, id)| (*node, *id, diff)));
            let candidates = removed(&before.candidates, &after.candidates);
            changes.candidates.extend(candidates.map(|(node, id)| (*node, *id, diff)));
            let texts = removed(&before.texts, &after.texts);
            changes.texts.extend(texts.map(|((node, key), text)| (*node, (*key, *text), diff)));
        }
        changes
    }
}

fn by_row(recs: &[Rec]) -> BTreeMap<Id, Rec> {
    recs.iter().map(|rec| (rec.row, *rec)).collect()
}

/// The entries of `a` that `b` has not.
fn removed<'a, K: Ord, V: PartialEq>(
    a: &'a BTreeMap<K, V>,
    b: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    a.iter().filter(|(key, value)| b.get(key) != Some(value))
}

impl Drop for Running {
    fn drop(&mut self) {
        for commands in &self.commands {
            drop(commands.send(Command::Stop));
        }
        if let Some(guards) = self.guards.take() {
            drop(guards);
        }
    }
}

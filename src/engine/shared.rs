//! What all workers of a session share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::context::Contexts;
use super::dispatch::Dispatcher;
use super::policy::Standing;
use super::progress::Count;
use super::rows::{Rec, Rows};
use super::train::Trainings;
use crate::record::Id;

/// What a sink saw: a row and whether it came or went.
pub(super) type Change = (Rec, isize);

/// What all workers of a session share.
pub(super) struct Shared {
    pub(super) rows: Arc<Rows>,
    pub(super) contexts: Contexts,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) trainings: Arc<dyn Trainings>,
    /// Records that each node acted on.
    records: Vec<AtomicU64>,
    /// When each node first acted, and when something last came of it.
    spans: Vec<Mutex<Option<Span>>>,
    /// For each node, rows and rejects that came and went since they were last taken.
    sinks: Vec<[Mutex<Vec<Change>>; 5]>,
    /// For each node, what came of it so far.
    counts: Arc<[Count]>,
    /// For each node, rows left out on purpose, net.
    dropped: Vec<Mutex<isize>>,
    /// For each training node, what it came to.
    trainings_seen: Mutex<BTreeMap<usize, TrainingState>>,
    /// The latest epoch that was accepted: an earlier one starts no training.
    latest: AtomicU64,
}

/// When a node was at work: from the first record that it acted on to the last that came of it.
pub type Span = (Instant, Instant);

/// Which of a node's collections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Rows = 0,
    Rejects = 1,
    Metrics = 2,
    Rollouts = 3,
    Snapshots = 4,
}

/// What a training node came to in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainingState {
    /// The recipe was known, or it was trained now.
    Done {
        /// The recipe.
        recipe: Id,
        /// The weights.
        weights: Id,
        /// How they stand to what the node asks for.
        standing: Standing,
    },
    /// In a plan: it will be trained; surely, or only if its data changes.
    Would {
        /// Whether it is sure.
        exact: bool,
        /// Whether it goes on from a state that a killed run left.
        resumes: bool,
        /// Whether it goes on from the node's last checkpoint.
        warm: bool,
    },
}

impl Shared {
    pub(super) fn new(
        rows: Arc<Rows>,
        dispatcher: Arc<Dispatcher>,
        trainings: Arc<dyn Trainings>,
        counts: Arc<[Count]>,
    ) -> Arc<Shared> {
        let nodes = counts.len();
        Arc::new(Shared {
            rows,
            contexts: Contexts::default(),
            dispatcher,
            trainings,
            records: (0..nodes).map(|_| AtomicU64::new(0)).collect(),
            spans: (0..nodes).map(|_| Mutex::default()).collect(),
            sinks: (0..nodes).map(|_| Default::default()).collect(),
            counts,
            dropped: (0..nodes).map(|_| Mutex::default()).collect(),
            trainings_seen: Mutex::default(),
            latest: AtomicU64::new(0),
        })
    }

    pub(super) fn count_records(&self, node: usize, records: usize) {
        self.records[node].fetch_add(records as u64, Ordering::Relaxed);
        self.counts[node].begin();
        let now = Instant::now();
        self.spans[node].lock().expect("no holder panics").get_or_insert((now, now));
    }

    /// The records that each node acted on since this was last taken.
    pub(super) fn take_records(&self) -> Vec<u64> {
        self.records.iter().map(|count| count.swap(0, Ordering::Relaxed)).collect()
    }

    /// When each node was at work since this was last taken.
    pub(super) fn take_spans(&self) -> Vec<Option<Span>> {
        self.spans.iter().map(|span| span.lock().expect("no holder panics").take()).collect()
    }

    pub(super) fn saw(&self, node: usize, stream: Stream, changes: impl Iterator<Item = Change>) {
        let mut sink = self.sinks[node][stream as usize].lock().expect("no holder panics");
        let before = sink.len();
        sink.extend(changes);
        self.counts[node].saw(stream, sink[before..].iter().map(|(_, diff)| diff).sum());
        if let Some((_, end)) = &mut *self.spans[node].lock().expect("no holder panics") {
            *end = Instant::now();
        }
    }

    pub(super) fn saw_dropped(&self, node: usize, net: isize) {
        *self.dropped[node].lock().expect("no holder panics") += net;
        self.counts[node].dropped(net);
    }

    pub(super) fn take_seen(&self, node: usize, stream: Stream) -> Vec<Change> {
        let mut sink = self.sinks[node][stream as usize].lock().expect("no holder panics");
        std::mem::take(&mut *sink)
    }

    pub(super) fn take_dropped(&self, node: usize) -> isize {
        std::mem::take(&mut *self.dropped[node].lock().expect("no holder panics"))
    }

    pub(super) fn may_train(&self, node: usize, exact: bool, resumes: bool, warm: bool) {
        let mut seen = self.trainings_seen.lock().expect("no holder panics");
        seen.insert(node, TrainingState::Would { exact, resumes, warm });
    }

    pub(super) fn trained(&self, node: usize, recipe: Id, weights: Id, standing: Standing) {
        let mut seen = self.trainings_seen.lock().expect("no holder panics");
        seen.insert(node, TrainingState::Done { recipe, weights, standing });
    }

    /// What the training came to holds no more.
    pub(super) fn untrained(&self, node: usize) {
        self.trainings_seen.lock().expect("no holder panics").remove(&node);
    }

    /// What each training node last came to.
    pub(super) fn trainings_seen(&self) -> BTreeMap<usize, TrainingState> {
        self.trainings_seen.lock().expect("no holder panics").clone()
    }

    pub(super) fn latest_epoch(&self) -> u64 {
        self.latest.load(Ordering::Acquire)
    }

    pub(super) fn accept_epoch(&self, epoch: u64) {
        self.latest.store(epoch, Ordering::Release);
    }
}

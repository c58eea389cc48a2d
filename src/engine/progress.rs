//! How far the nodes of a dataflow are: rows done, and rows to do as far as that is known.
//!
//! Workers add to two counters a node and batch; whoever shows progress works the rest out when it
//! looks. A row that goes in comes out, is rejected or is dropped, so what a node has to do is what
//! those above it have made and may still make.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::session::Desired;
use super::shape::{Kind, NodeIdx, Pairs, Shape};
use super::shared::Stream;

/// What came of one node so far, net of what was taken back.
#[derive(Default)]
pub(super) struct Count {
    begun: AtomicBool,
    made: AtomicI64,
    lost: AtomicI64,
}

impl Count {
    /// The node acts on a row.
    pub(super) fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    /// Rows or rejects came and went.
    pub(super) fn saw(&self, stream: Stream, net: isize) {
        match stream {
            Stream::Rows => drop(self.made.fetch_add(net as i64, Ordering::Relaxed)),
            Stream::Rejects => self.dropped(net),
            Stream::Metrics | Stream::Rollouts | Stream::Snapshots => {}
        }
    }

    /// Rows were left out on purpose, or no longer are.
    pub(super) fn dropped(&self, net: isize) {
        self.lost.fetch_add(net as i64, Ordering::Relaxed);
    }

    fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed).max(0) as u64
    }

    fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed).max(0) as u64
    }
}

/// How far a node is, or all nodes whose rows are in one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Far {
    /// The node's name, or the table's.
    pub name: String,
    /// Rows that came of it, rejects and rows left out included.
    pub done: u64,
    /// Rows that will have come of it.
    pub total: u64,
    /// Whether that is known; else it is "up to": a node above may still lose rows.
    pub exact: bool,
    /// Whether it has acted on a row.
    pub begun: bool,
}

/// How far the nodes of a dataflow are, for whoever shows it while they work.
#[derive(Default)]
pub struct HowFar(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    shape: Shape,
    counts: Arc<[Count]>,
    /// Of each node that is a source, its rows; of one that asks, how many come of one.
    sizes: Vec<u64>,
}

impl HowFar {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A dataflow begins.
    pub(super) fn begin(&self, shape: &Shape, counts: &Arc<[Count]>) {
        *self.lock() =
            Inner { shape: shape.clone(), counts: Arc::clone(counts), sizes: Vec::new() };
    }

    /// The dataflow is fed.
    pub(super) fn expect(&self, desired: &Desired) {
        let size = |at: NodeIdx| match (desired.sources.get(&at), desired.stages.get(&at)) {
            (Some(source), _) => source.rows.len() as u64,
            (None, Some(stages)) => stages[0].operator.fan_out(),
            (None, None) => 1,
        };
        self.lock().sizes = (0..desired.shape.nodes.len()).map(size).collect();
    }

    /// How far each node is, in plan order.
    pub fn nodes(&self) -> Vec<Far> {
        self.lock().nodes()
    }

    /// How far those are that ask a model, the nodes of a table together, in plan order.
    pub fn tables(&self) -> Vec<Far> {
        let inner = self.lock();
        let mut tables: Vec<Far> = Vec::new();
        for (node, far) in inner.shape.nodes.iter().zip(inner.nodes()) {
            if !matches!(node.kind, Kind::Head { .. } | Kind::Follow { .. }) {
                continue;
            }
            match tables.iter_mut().find(|table| table.name == node.table) {
                None => tables.push(Far { name: node.table.clone(), ..far }),
                Some(table) => {
                    table.done += far.done;
                    table.total += far.total;
                    table.exact &= far.exact;
                    table.begun |= far.begun;
                }
            }
        }
        tables
    }
}

/// What goes out of a node.
#[derive(Clone, Copy)]
struct Out {
    rows: u64,
    exact: bool,
    /// How many rows it would be, had none been lost since siblings were made.
    siblings: u64,
    /// Whether none was.
    whole: bool,
}

impl Out {
    /// What goes out of several nodes together.
    fn of(parts: impl Iterator<Item = Out>) -> Out {
        let nothing = Out { rows: 0, exact: true, siblings: 0, whole: true };
        parts.fold(nothing, |sum, part| Out {
            rows: sum.rows + part.rows,
            exact: sum.exact && part.exact,
            siblings: sum.siblings + part.siblings,
            whole: sum.whole && part.whole,
        })
    }

    /// What a step that makes so many rows of one makes of it, before any is lost.
    fn times(self, fan_out: u64) -> Out {
        let rows = self.rows * fan_out;
        let siblings = Out { rows, exact: self.exact, siblings: rows, whole: true };
        if fan_out == 1 { self } else { siblings }
    }

    /// The pairs of siblings; one of which an answer is missing is a reject, so it counts.
    fn paired(self, pairs: &Pairs) -> Out {
        let rows = self.siblings / pairs.of.max(1) * pairs.count();
        Out { rows, exact: self.exact && self.whole, siblings: rows, whole: true }
    }

    /// What is left, when so many are lost so far and so many done.
    fn less(self, lost: u64, done: u64) -> Out {
        Out {
            rows: self.rows.saturating_sub(lost),
            exact: self.exact && done == self.rows,
            whole: self.whole && lost == 0,
            ..self
        }
    }
}

impl Inner {
    fn nodes(&self) -> Vec<Far> {
        let mut nodes: Vec<Far> = Vec::with_capacity(self.sizes.len());
        let mut out: Vec<Out> = Vec::with_capacity(self.sizes.len());
        let parts = self.shape.nodes.iter().zip(self.counts.iter()).zip(&self.sizes);
        for ((node, count), size) in parts {
            let of = |of: &[NodeIdx]| Out::of(of.iter().map(|of| out[*of]));
            let all = Out { rows: *size, exact: true, siblings: *size, whole: true };
            let whole = match &node.kind {
                Kind::Source => all,
                Kind::Train { .. } => Out { exact: false, ..all },
                Kind::Union { of: nodes } | Kind::Local { of: nodes, .. } => of(nodes),
                Kind::Follow { of: node, .. } => of(&[*node]),
                Kind::Head { of: node, pairs: None, .. } => of(&[*node]).times(*size),
                Kind::Head { of: node, pairs: Some(pairs), .. } => {
                    of(&[*node]).paired(pairs).times(*size)
                }
            };
            let (made, lost) = (count.made(), count.lost());
            // What of a source could not be read is none of its rows, and no step loses one of it.
            let is_step = !matches!(node.kind, Kind::Source | Kind::Union { .. });
            let done = if is_step { made + lost } else { made };
            out.push(if is_step { whole.less(lost, done) } else { whole });
            let begun = count.begun.load(Ordering::Relaxed);
            let (name, total, exact) = (node.name.clone(), whole.rows, whole.exact);
            nodes.push(Far { name, done, total, exact, begun });
        }
        nodes
    }
}

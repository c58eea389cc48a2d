//! A worker: one thread that holds the dataflow, feeds it its share of the rows, and steps it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use timely::dataflow::operators::probe::Handle as ProbeHandle;
use timely::worker::Worker;

use super::render::{Inputs, render};
use super::rows::Rec;
use super::shape::{NodeIdx, Shape};
use super::shared::Shared;
use super::time::{self, Time};
use crate::record::Id;

/// How many chunks may be under way at once: enough for a later stage to work while an earlier
/// one does, few enough that what was begun is finished first.
const WINDOW: u64 = 4;

/// How long an idle worker sleeps before it looks for commands again.
const NAP: Duration = Duration::from_millis(1);

/// What an epoch changes.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) epoch: u64,
    /// Rows and, where the flag is set, rejects of source nodes.
    pub(super) rows: Vec<(NodeIdx, bool, Rec, isize)>,
    pub(super) settings: Vec<(NodeIdx, Id, isize)>,
    pub(super) candidates: Vec<(NodeIdx, Id, isize)>,
    pub(super) texts: Vec<(NodeIdx, (Id, Id), isize)>,
    /// Rows to a chunk, over all workers.
    pub(super) chunk: usize,
}

/// What a worker is told.
#[derive(Clone)]
pub(super) enum Command {
    /// Take in an epoch.
    Epoch(Arc<Changes>),
    /// Drop everything and end.
    Stop,
}

/// What a worker tells.
pub(super) enum Report {
    /// The worker has seen the end of an epoch.
    Done(u64),
    /// The run was stopped.
    Stopped,
}

/// Runs a worker until it is told to stop.
pub(super) fn work(
    worker: &mut Worker,
    shape: &Shape,
    shared: &Arc<Shared>,
    commands: &Receiver<Command>,
    reports: &Sender<Report>,
) {
    let probe = ProbeHandle::new();
    let inputs = worker.dataflow::<Time, _, _>(|scope| render(scope, shape, shared, &probe));
    let (index, peers) = (worker.index() as u64, worker.peers() as u64);
    let mut feeder = Feeder { inputs, index, peers, waiting: VecDeque::new(), fed: 0 };
    let mut told = 0;
    loop {
        let idle = told == feeder.fed && feeder.waiting.is_empty();
        let command = match idle {
            true => commands.recv().map_err(|_| TryRecvError::Disconnected),
            false => commands.try_recv(),
        };
        match command {
            Ok(Command::Epoch(changes)) => feeder.accept(&changes),
            Ok(Command::Stop) | Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {}
        }
        feeder.feed(&probe);
        worker.step_or_park(Some(NAP));
        if shared.dispatcher.stopped().is_some() {
            drop(reports.send(Report::Stopped));
            break;
        }
        while told < feeder.fed && !probe.less_than(&time::first(told + 2)) {
            told += 1;
            drop(reports.send(Report::Done(told)));
        }
    }
    for dataflow in worker.installed_dataflows() {
        worker.drop_dataflow(dataflow);
    }
}

/// An epoch that is being fed.
struct Feeding {
    epoch: u64,
    rows: VecDeque<(NodeIdx, bool, Rec)>,
    chunk: u64,
    size: usize,
}

struct Feeder {
    inputs: Inputs,
    index: u64,
    peers: u64,
    waiting: VecDeque<Feeding>,
    /// The last epoch that was fed whole.
    fed: u64,
}

impl Feeder {
    /// Takes an epoch's changes. All retractions and all changes of settings, candidates and
    /// texts go at its first time; insertions are spread.
    fn accept(&mut self, changes: &Arc<Changes>) {
        let mine = |rec: &Rec| rec.row.low() % self.peers == self.index;
        let rows: VecDeque<_> = changes
            .rows
            .iter()
            .filter(|(_, _, rec, diff)| *diff > 0 && mine(rec))
            .map(|(node, reject, rec, _)| (*node, *reject, *rec))
            .collect();
        let first = time::first(changes.epoch);
        for (node, reject, rec, diff) in &changes.rows {
            if *diff < 0 && mine(rec) {
                let input = self.inputs.rows.get_mut(&(*node, *reject)).expect("a source");
                input.update_at(*rec, first, *diff);
            }
        }
        if self.index == 0 {
            for (node, id, diff) in &changes.settings {
                let input = self.inputs.settings.get_mut(node).expect("a node with settings");
                input.update_at(*id, first, *diff);
            }
            for (node, id, diff) in &changes.candidates {
                let input = self.inputs.candidates.get_mut(node).expect("a node that draws");
                input.update_at(*id, first, *diff);
            }
            for (node, text, diff) in &changes.texts {
                let input = self.inputs.texts.get_mut(node).expect("a node that draws");
                input.update_at(*text, first, *diff);
            }
        }
        let size = changes.chunk.div_ceil(self.peers as usize).max(1);
        self.waiting.push_back(Feeding { epoch: changes.epoch, rows, chunk: 0, size });
    }

    /// Feeds as many chunks as may be under way. An epoch that another waits behind is fed whole:
    /// its rows ask nothing until the other's changes are known, so no chunk of it would end.
    fn feed(&mut self, probe: &ProbeHandle<Time>) {
        loop {
            let is_superseded = self.waiting.len() > 1;
            let Some(feeding) = self.waiting.front_mut() else { return };
            let behind = time::chunk(feeding.epoch, feeding.chunk.saturating_sub(WINDOW));
            if !is_superseded && feeding.chunk > WINDOW && probe.less_than(&behind) {
                return;
            }
            let at = time::chunk(feeding.epoch, feeding.chunk);
            let size = feeding.size.min(feeding.rows.len());
            for (node, reject, rec) in feeding.rows.drain(..size) {
                let input = self.inputs.rows.get_mut(&(node, reject)).expect("a source");
                input.update_at(rec, at, 1);
            }
            feeding.chunk += 1;
            if feeding.rows.is_empty() {
                self.fed = feeding.epoch;
                let next = time::first(feeding.epoch + 1);
                self.waiting.pop_front();
                self.inputs.advance_to(next);
            } else {
                let next = time::chunk(feeding.epoch, feeding.chunk);
                self.inputs.advance_to(next);
            }
        }
    }
}

//! Rendering: one straight walk over the shape makes the dataflow.

mod training;

use std::collections::BTreeMap;
use std::sync::Arc;

use differential_dataflow::AsCollection;
use differential_dataflow::input::{Input, InputSession};
use timely::dataflow::Scope;
use timely::dataflow::operators::probe::Handle as ProbeHandle;
use timely::dataflow::operators::vec::Map;

use super::ask::{Ask, Coll, Made};
use super::call::{Spec, call};
use super::draw::{Draw, NOBODY};
use super::gather;
use super::rows::Rec;
use super::shape::{DrawShape, Kind, Node, NodeIdx, Shape, Take};
use super::shared::{Shared, Stream};
use super::time::{self, Time};
use crate::operators::ModelRef;
use crate::record::{Id, IdMap};

/// How many keys a one-row collection is copied to, so that joining it is shared by workers.
const SPREAD: u64 = 16;

type Session<D> = InputSession<Time, D, isize>;

/// The ends of the dataflow that the world holds.
#[derive(Default)]
pub(super) struct Inputs {
    pub(super) rows: BTreeMap<(NodeIdx, bool), Session<Rec>>,
    pub(super) settings: BTreeMap<NodeIdx, Session<Id>>,
    pub(super) candidates: BTreeMap<NodeIdx, Session<Id>>,
    pub(super) texts: BTreeMap<NodeIdx, Session<(Id, Id)>>,
}

impl Inputs {
    /// Advances every input.
    pub(super) fn advance_to(&mut self, time: Time) {
        fn all<'a, K, D: differential_dataflow::Data>(
            inputs: impl Iterator<Item = (K, &'a mut Session<D>)>,
            time: Time,
        ) {
            for (_, input) in inputs {
                input.advance_to(time);
                input.flush();
            }
        }
        all(self.rows.iter_mut(), time);
        all(self.settings.iter_mut(), time);
        all(self.candidates.iter_mut(), time);
        all(self.texts.iter_mut(), time);
    }
}

/// What a node offers to those after it.
#[derive(Clone)]
struct Rendered<'s> {
    rows: Coll<'s, Rec>,
    /// What the next stage of the chain acts on.
    asks: Option<Coll<'s, Ask>>,
    /// The weights id, of a training.
    model: Option<Coll<'s, Id>>,
}

struct Renderer<'s, 'a> {
    scope: Scope<'s, Time>,
    shared: &'a Arc<Shared>,
    probe: &'a ProbeHandle<Time>,
    inputs: Inputs,
    done: Vec<Rendered<'s>>,
    /// For each node done, whether it waits for the end of the epoch: a training is above it, or
    /// rows are compared with each other there.
    late: Vec<bool>,
    shape: &'a Shape,
}

/// Makes the dataflow of a shape.
pub(super) fn render(
    scope: Scope<'_, Time>,
    shape: &Shape,
    shared: &Arc<Shared>,
    probe: &ProbeHandle<Time>,
) -> Inputs {
    let inputs = Inputs::default();
    let (done, late) = (Vec::new(), Vec::new());
    let mut renderer = Renderer { scope, shared, probe, inputs, done, late, shape };
    for (at, node) in shape.nodes.iter().enumerate() {
        renderer.late.push(renderer.is_late(&node.kind));
        let rendered = renderer.node(at, node);
        renderer.done.push(rendered);
    }
    renderer.inputs
}

impl<'s> Renderer<'s, '_> {
    fn is_late(&self, kind: &Kind) -> bool {
        let trained = |node: &NodeIdx| {
            self.late[*node] || matches!(self.shape.nodes[*node].kind, Kind::Train { .. })
        };
        match kind {
            Kind::Source => false,
            // Which rows stay is not known before the last of them came: what an earlier chunk
            // kept would be spent on, and a later one would take it back.
            Kind::Local { take: Take::Count(_) | Take::Dedupe, .. } => true,
            Kind::Union { of } | Kind::Local { of, .. } => of.iter().any(trained),
            Kind::Head { of, models, .. } | Kind::Train { of, models } => {
                trained(of) || models.iter().flatten().any(trained)
            }
            Kind::Follow { of, .. } => trained(of),
        }
    }

    /// Below a training everything waits for the end of the epoch: a change that came earlier
    /// would be spent on rows that the training is about to replace. So it does where rows are
    /// compared with each other.
    fn settled<D: differential_dataflow::Data>(&self, at: NodeIdx, of: Coll<'s, D>) -> Coll<'s, D> {
        if !self.late[at] {
            return of;
        }
        of.inner.map(|(row, time, diff)| (row, time::close(time), diff)).as_collection()
    }

    fn node(&mut self, at: NodeIdx, node: &Node) -> Rendered<'s> {
        match &node.kind {
            Kind::Source => self.source(at),
            Kind::Union { of } => self.union(at, of),
            Kind::Local { of, take } => self.local(at, node, of, take),
            Kind::Head { of, draws, models, .. } => {
                let stages = self.stages(at, models);
                let asks = self.head(at, node, *of, draws, stages);
                let pairs = matches!(&node.kind, Kind::Head { pairs: Some(_), .. });
                self.call(at, node, asks, Some(0), true, pairs)
            }
            Kind::Follow { of, stage } => {
                let asks = self.done[*of].asks.clone().expect("a chain goes on from a stage");
                self.call(at, node, asks, Some(*stage), false, false)
            }
            Kind::Train { of, models } => self.train(at, node, *of, models),
        }
    }

    fn source(&mut self, at: NodeIdx) -> Rendered<'s> {
        let scope = self.scope;
        let (rows_input, rows) = scope.new_collection::<Rec, isize>();
        let (rejects_input, rejects) = scope.new_collection::<Rec, isize>();
        self.inputs.rows.insert((at, false), rows_input);
        self.inputs.rows.insert((at, true), rejects_input);
        self.sink(at, Stream::Rows, rows.clone());
        self.sink(at, Stream::Rejects, rejects);
        Rendered { rows, asks: None, model: None }
    }

    fn union(&mut self, at: NodeIdx, of: &[NodeIdx]) -> Rendered<'s> {
        let parts: Vec<_> = of.iter().map(|node| self.done[*node].rows.clone()).collect();
        let rows = differential_dataflow::collection::concatenate(self.scope, parts);
        self.sink(at, Stream::Rows, rows.clone());
        Rendered { rows, asks: None, model: None }
    }

    fn local(&mut self, at: NodeIdx, node: &Node, of: &[NodeIdx], take: &Take) -> Rendered<'s> {
        let stages = self.stages(at, &[]);
        let shared = Arc::clone(self.shared);
        let context = stages.clone().map(move |stages| shared.contexts.keep(stages, &[]));
        let tagged = of.iter().enumerate().map(|(input, node)| {
            let rows = self.done[*node].rows.clone();
            rows.map(move |rec| (input as u64, rec))
        });
        let tagged: Vec<_> = tagged.collect();
        let mut rows = differential_dataflow::collection::concatenate(self.scope, tagged);
        if *take != Take::All {
            rows = self.gathered(at, node, self.settled(at, rows), take, stages);
        }
        let asks = rows.map(|(input, rec)| (rec.row.low() % SPREAD, (input, rec))).join_map(
            spread(context),
            |_, (index, rec), context| Ask {
                row: rec.row,
                content: rec.version,
                head: rec.version,
                context: *context,
                index: *index,
            },
        );
        self.call(at, node, asks, None, true, false)
    }

    /// The rows that stay of those that are compared with each other.
    fn gathered(
        &self,
        at: NodeIdx,
        node: &Node,
        rows: Coll<'s, (u64, Rec)>,
        take: &Take,
        stages: Coll<'s, Id>,
    ) -> Coll<'s, (u64, Rec)> {
        let gathered = match take {
            Take::All => return rows,
            Take::Count(counts) => gather::lowest(rows, counts.clone(), stages, self.shared),
            Take::Dedupe => gather::dedupe(rows, stages, &node.name, self.shared),
        };
        if let Some(rejects) = gathered.rejects {
            self.sink(at, Stream::Rejects, rejects);
        }
        let shared = Arc::clone(self.shared);
        let dropped = gathered.dropped.inspect_batch(move |_, changes| {
            shared.saw_dropped(at, changes.iter().map(|(_, _, diff)| diff).sum());
        });
        dropped.probe_with(self.probe);
        gathered.kept
    }

    /// The settings of a node, with the models that other nodes train filled in.
    fn stages(&mut self, at: NodeIdx, models: &[Option<NodeIdx>]) -> Coll<'s, Id> {
        let scope = self.scope;
        let (input, stages) = scope.new_collection::<Id, isize>();
        self.inputs.settings.insert(at, input);
        let mut stages = self.settled(at, stages);
        for (stage, node) in models.iter().enumerate() {
            let Some(node) = node else { continue };
            let name: Arc<str> = self.shape.nodes[*node].name.as_str().into();
            let model = self.done[*node].model.clone().expect("a model edge ends at a training");
            let shared = Arc::clone(self.shared);
            stages = stages.map(|stages| ((), stages)).join_map(
                model.map(|fingerprint| ((), fingerprint)),
                move |(), stages, fingerprint| {
                    let model = ModelRef { name: Arc::clone(&name), fingerprint: *fingerprint };
                    shared.contexts.with_model(*stages, stage, &model)
                },
            );
        }
        stages
    }

    /// What the first stage of a chain acts on: rows with settings and draws.
    fn head(
        &mut self,
        at: NodeIdx,
        node: &Node,
        of: NodeIdx,
        draws: &[DrawShape],
        stages: Coll<'s, Id>,
    ) -> Coll<'s, Ask> {
        let pairs = match &node.kind {
            Kind::Head { pairs, .. } => pairs.clone(),
            _ => None,
        };
        let rows = self.settled(at, self.done[of].rows.clone());
        let rows = match pairs {
            None => rows.map(|rec| (rec.row, rec.content)),
            Some(pairs) => {
                let (pairs, broken) = gather::pairs(rows, &pairs, &node.name, self.shared);
                self.sink(at, Stream::Rejects, broken);
                pairs
            }
        };
        let rows = rows.consolidate();
        let asks = if draws.is_empty() {
            let shared = Arc::clone(self.shared);
            let context = stages.map(move |stages| shared.contexts.keep(stages, &[]));
            rows.map(|(row, content)| (row.low() % SPREAD, (row, content)))
                .join_map(spread(context), |_, row, context| (*row, *context))
        } else {
            self.draw(at, rows, draws, stages)
        };
        let shared = Arc::clone(self.shared);
        asks.flat_map(move |((row, content), context)| {
            let stages = Arc::clone(&shared.contexts.get(context).stages);
            let fan_out = stages.stage(0).operator.fan_out();
            (0..fan_out).map(move |index| Ask { row, content, head: content, context, index })
        })
    }

    /// Rows with the context of their draws.
    fn draw(
        &mut self,
        at: NodeIdx,
        rows: Coll<'s, (Id, Id)>,
        draws: &[DrawShape],
        stages: Coll<'s, Id>,
    ) -> Coll<'s, ((Id, Id), Id)> {
        let scope = self.scope;
        let (candidates_input, candidates) = scope.new_collection::<Id, isize>();
        let (texts_input, texts) = scope.new_collection::<(Id, Id), isize>();
        self.inputs.candidates.insert(at, candidates_input);
        self.inputs.texts.insert(at, texts_input);
        let (candidates, texts) = (self.settled(at, candidates), self.settled(at, texts));

        let total: usize = draws.iter().map(|draw| draw.count).sum();
        let fresh = draws.iter().any(|draw| draw.fresh);
        let counts: Vec<usize> = draws.iter().map(|draw| draw.count).collect();
        let picks = draws.iter().enumerate().map(|(which, draw)| {
            let most = if fresh { total } else { draw.count };
            let taken: usize = if fresh { counts[..which].iter().sum() } else { 0 };
            let ranks = Ranks { most, least: taken + draw.count };
            self.pick(rows.clone(), candidates.clone(), which as u64, draw, ranks)
        });
        let picks: Vec<_> = picks.collect();
        let mut picks = differential_dataflow::collection::concatenate(self.scope, picks);
        if fresh {
            picks = without_replacement(picks, counts.clone());
        }
        // Settings and models ride on the texts: rows are arranged once, by principle.
        let texts = texts
            .map(|text| ((), text))
            .join_map(stages.clone().map(|stages| ((), stages)), |(), text, stages| {
                (text.0, (text.1, *stages))
            })
            .concat(stages.map(|stages| (NOBODY, (NOBODY, stages))));
        let drawn = picks.join_map(texts, |_, (row, which, rank), (text, stages)| {
            (*row, (*which, *rank, *text, *stages))
        });
        let shared = Arc::clone(self.shared);
        if total == 1 {
            let mut contexts = IdMap::<(Id, Id), Id>::default();
            return drawn.map(move |(row, (_, _, text, stages))| {
                let texts = if text == NOBODY { Vec::new() } else { vec![text] };
                let keep = || shared.contexts.keep(stages, &[texts]);
                (row, *contexts.entry((stages, text)).or_insert_with(keep))
            });
        }
        drawn.reduce_named("Draws", move |_row, picks, output| {
            let mut drawn: Vec<Vec<Id>> = vec![Vec::new(); counts.len()];
            for ((which, _, text, _), _) in picks {
                drawn[*which as usize].push(*text);
            }
            // Half of a row's draws is seen only while an edit is being taken in.
            let is_whole = |(texts, count): (&Vec<Id>, &usize)| {
                texts.len() == *count || texts.as_slice() == [NOBODY]
            };
            if drawn.iter().zip(&counts).all(is_whole) {
                drawn.iter_mut().for_each(|texts| texts.retain(|text| *text != NOBODY));
                let stages = picks[0].0.3;
                output.push((shared.contexts.keep(stages, &drawn), 1isize));
            }
        })
    }

    /// Rows under the keys of the principles that one draw gives them:
    /// `(principle, (row, which draw, rank))`.
    fn pick(
        &self,
        rows: Coll<'s, (Id, Id)>,
        candidates: Coll<'s, Id>,
        which: u64,
        shape: &DrawShape,
        Ranks { most, least }: Ranks,
    ) -> Coll<'s, Pick> {
        let draw = Draw { seed: shape.seed, purpose: shape.purpose, round: shape.round };
        let (shared, of_parent) = (Arc::clone(self.shared), shape.of_parent);
        let rows = rows.map(move |(row, content)| {
            let root = if of_parent { shared.rows.lineage(row).parents[0] } else { row };
            (draw.bucket(root), (row, content))
        });
        // Winners are computed for occupied buckets only; what did not change cancels where it is
        // arranged, so that a changed constitution moves its own buckets.
        let occupied = rows.clone().map(|(bucket, _)| bucket).distinct();
        let shared = Arc::clone(self.shared);
        let winners = occupied
            .map(|bucket| (bucket % SPREAD, bucket))
            .join_map(spread(candidates), |_, bucket, candidates| (*bucket, *candidates))
            .flat_map(move |(bucket, candidates)| {
                let candidates = shared.contexts.candidates(candidates);
                let mut winners = draw.winners(bucket, &candidates, most);
                if candidates.len() < least {
                    winners = vec![NOBODY];
                }
                winners.into_iter().enumerate().map(move |(rank, key)| (bucket, (rank as u64, key)))
            });
        rows.join_map(winners, move |_, row, (rank, key)| (*key, (*row, which, *rank)))
    }

    fn call(
        &mut self,
        at: NodeIdx,
        node: &Node,
        asks: Coll<'s, Ask>,
        stage: Option<usize>,
        settle: bool,
        pairs: bool,
    ) -> Rendered<'s> {
        let (name, table) = (node.name.clone(), node.table.clone());
        let spec = Spec { node: at, name, table, stage, settle, pairs };
        let made = call(asks, spec, self.shared);
        let rows = made.clone().flat_map(|made| match made {
            Made::Row(rec, _) => Some(rec),
            _ => None,
        });
        let asks = made.clone().flat_map(|made| match made {
            Made::Row(_, ask) => Some(ask),
            _ => None,
        });
        let rejects = made.clone().flat_map(|made| match made {
            Made::Reject(rec) => Some(rec),
            _ => None,
        });
        let shared = Arc::clone(self.shared);
        made.inspect_batch(move |_, changes| {
            let dropped = changes.iter().filter(|(made, _, _)| matches!(made, Made::Dropped(..)));
            shared.saw_dropped(at, dropped.map(|(_, _, diff)| diff).sum());
        })
        .probe_with(self.probe);
        self.sink(at, Stream::Rows, rows.clone());
        self.sink(at, Stream::Rejects, rejects);
        Rendered { rows, asks: Some(asks), model: None }
    }

    fn sink(&self, at: NodeIdx, stream: Stream, rows: Coll<'s, Rec>) {
        let shared = Arc::clone(self.shared);
        rows.inspect_batch(move |_, changes| {
            shared.saw(at, stream, changes.iter().map(|(rec, _, diff)| (*rec, *diff)));
        })
        .probe_with(self.probe);
    }
}

/// A row under the key of a principle: `(principle, ((row, content), which draw, rank))`.
type Pick = (Id, ((Id, Id), u64, u64));

/// How far a draw ranks principles.
struct Ranks {
    /// The most that are ranked.
    most: usize,
    /// The fewest there must be: with fewer, nobody is drawn.
    least: usize,
}

/// Copies a one-row collection to every key that rows are spread over.
fn spread(one: Coll<'_, Id>) -> Coll<'_, (u64, Id)> {
    one.flat_map(|id| (0..SPREAD).map(move |key| (key, id)))
}

/// Of each draw's ranking, the best that no earlier draw of the row took.
fn without_replacement(picks: Coll<'_, Pick>, counts: Vec<usize>) -> Coll<'_, Pick> {
    let by_row = picks.map(|(key, (row, which, rank))| (row, (which, rank, key)));
    let chosen = by_row.reduce_named("WithoutReplacement", move |_row, picks, output| {
        let mut taken: Vec<Id> = Vec::new();
        let mut left = counts.clone();
        // Sorted by draw, then by rank.
        for ((which, _, key), _) in picks {
            let left = &mut left[*which as usize];
            if *key == NOBODY {
                *left = 0;
                output.push(((*which, 0, NOBODY), 1isize));
            } else if *left > 0 && !taken.contains(key) {
                let rank = (counts[*which as usize] - *left) as u64;
                *left -= 1;
                taken.push(*key);
                output.push(((*which, rank, *key), 1isize));
            }
        }
    });
    chosen.map(|(row, (which, rank, key))| (key, (row, which, rank)))
}

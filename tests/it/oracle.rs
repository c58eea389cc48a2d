//! The oracle: does everything from scratch in the plainest way, and is the truth for the engine.
//!
//! It knows the operators' steps and the definition of the draw; it knows nothing of dataflow,
//! time, memo or workers. Loops over rows, a map a table, every call made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use amend::engine::context::Stage;
use amend::engine::draw::{Candidate, Draw};
use amend::engine::rows::Rows;
use amend::engine::session::Desired;
use amend::engine::shape::{DrawShape, Kind, NodeIdx, Pairs, Take};
use amend::model::{Answer, CallError, Request};
use amend::operators::{Drawn, Input, ModelRef, Operator, Out, Step, made_id};
use amend::record::{Batch, BatchBuilder, CallKey, Cell, Id, KeyHasher, Origin};

/// What a model answers to a request: a function.
pub type Answers<'a> = &'a dyn Fn(&ModelRef, &Request) -> Result<Answer, CallError>;

/// What a training gives: a function of its settings, its models and its rows.
pub type Weights<'a> = &'a dyn Fn(&amend::engine::train::Training, &[(Id, Id)]) -> Id;

/// A row, as the oracle holds it.
#[derive(Clone)]
struct Held {
    batch: Batch,
    index: usize,
    content: Id,
    version: Id,
    root: Id,
    parents: Vec<Id>,
    sibling: u64,
}

/// What a run from scratch gives.
#[derive(Default)]
pub struct Truth {
    /// For each node, row id to version.
    pub tables: Vec<BTreeMap<Id, Id>>,
    /// For each node, the ids of lost rows.
    pub rejects: Vec<BTreeSet<Id>>,
    /// For each node, rows left out on purpose.
    pub dropped: Vec<u64>,
    /// Every call, with the first node that needs it.
    pub calls: BTreeMap<CallKey, NodeIdx>,
    /// For each training node that has a model, its weights, and whether they are held.
    pub weights: BTreeMap<NodeIdx, (Id, bool)>,
}

impl Truth {
    /// The number of calls that count for each node, leaving out those of `known`.
    pub fn calls_by_node(&self, known: &BTreeSet<CallKey>) -> Vec<u64> {
        let mut counts = vec![0; self.tables.len()];
        for (key, node) in &self.calls {
            counts[*node] += u64::from(!known.contains(key));
        }
        counts
    }
}

/// Runs what is desired from scratch.
pub fn oracle(desired: &Desired, read: &Rows, answers: Answers<'_>, weights: Weights<'_>) -> Truth {
    let nodes = desired.shape.nodes.len();
    let mut run = Run {
        desired,
        answers,
        truth: Truth {
            tables: vec![BTreeMap::new(); nodes],
            rejects: vec![BTreeSet::new(); nodes],
            dropped: vec![0; nodes],
            calls: BTreeMap::new(),
            weights: BTreeMap::new(),
        },
        rows: vec![BTreeMap::new(); nodes],
        models: BTreeMap::new(),
        contexts: BTreeMap::new(),
    };
    for (at, node) in desired.shape.nodes.iter().enumerate() {
        match &node.kind {
            Kind::Source => run.source(at, read),
            Kind::Union { of } => {
                let rows: Vec<_> = of.iter().flat_map(|of| run.rows[*of].clone()).collect();
                run.rows[at].extend(rows);
            }
            Kind::Local { of, take } => run.local(at, of, take),
            Kind::Head { of, pairs, draws, models } => {
                run.head(at, *of, pairs.as_ref(), draws, models);
            }
            Kind::Follow { of, stage } => run.follow(at, *of, *stage),
            Kind::Train { of, models } => run.train(at, *of, models, weights),
        }
        run.truth.tables[at] =
            run.rows[at].iter().map(|(row, held)| (*row, held.version)).collect();
    }
    run.truth
}

/// What a chain carries for a row: the head's row, the draws, the models.
#[derive(Clone)]
struct Carried {
    head: Held,
    drawn: Vec<Vec<Drawn>>,
    stages: Vec<Stage>,
}

struct Run<'a> {
    desired: &'a Desired,
    answers: Answers<'a>,
    truth: Truth,
    rows: Vec<BTreeMap<Id, Held>>,
    models: BTreeMap<NodeIdx, Id>,
    contexts: BTreeMap<(NodeIdx, Id), Carried>,
}

struct Sink<'a> {
    origin: &'a Origin,
    builder: Option<BatchBuilder>,
    ids: Option<(Id, Id)>,
}

impl Out for Sink<'_> {
    fn row(&mut self, cells: &[(&'static str, Cell<'_>)]) {
        self.ids = Some(self.builder.as_mut().unwrap().push(self.origin, cells));
    }
}

impl Run<'_> {
    fn source(&mut self, at: NodeIdx, read: &Rows) {
        let source = &self.desired.sources[&at];
        for rec in &source.rows {
            let slot = read.get(rec.version).unwrap();
            let lineage = read.lineage(rec.row);
            let held = Held {
                batch: Batch::clone(slot.batch()),
                index: slot.index(),
                content: rec.content,
                version: rec.version,
                root: lineage.root,
                parents: lineage.parents.clone(),
                sibling: lineage.sibling,
            };
            self.rows[at].insert(rec.row, held);
        }
        self.truth.rejects[at].extend(source.rejects.iter().map(|rec| rec.row));
    }

    fn local(&mut self, at: NodeIdx, of: &[NodeIdx], take: &Take) {
        let stages = self.desired.stages[&at].clone();
        for (ordinal, input) in of.iter().enumerate() {
            let operator = &stages[ordinal].operator;
            let mut rows: Vec<(Id, Held)> = self.rows[*input].clone().into_iter().collect();
            if let Take::Count(counts) = take
                && let Some(count) = counts[ordinal]
            {
                rows.sort_by_key(|(row, _)| (operator.rank(*row), *row));
                self.truth.dropped[at] += (rows.len() as u64).saturating_sub(count);
                rows.truncate(count as usize);
            }
            if *take == Take::Dedupe {
                rows = self.unique(at, operator, rows);
            }
            for (row, held) in rows {
                let carried =
                    Carried { head: held.clone(), drawn: Vec::new(), stages: stages.clone() };
                self.step(at, row, &held, None, &carried, ordinal, ordinal as u64, &[row]);
            }
        }
    }

    /// Of rows with the same key, the one of the lowest rank.
    fn unique(
        &mut self,
        at: NodeIdx,
        operator: &Arc<dyn Operator>,
        rows: Vec<(Id, Held)>,
    ) -> Vec<(Id, Held)> {
        let mut by_key: BTreeMap<Id, Vec<(Id, Held)>> = BTreeMap::new();
        for (row, held) in rows {
            let key = operator.dedupe_key(held.batch.row(held.index)).unwrap_or(row);
            by_key.entry(key).or_default().push((row, held));
        }
        let mut kept = Vec::new();
        for mut same in by_key.into_values() {
            same.sort_by_key(|(row, _)| (operator.rank(*row), *row));
            for (row, _) in same.drain(1..) {
                match operator.drops_duplicates() {
                    true => self.truth.dropped[at] += 1,
                    false => self.lose(at, row, 0),
                }
            }
            kept.extend(same);
        }
        kept
    }

    fn head(
        &mut self,
        at: NodeIdx,
        of: NodeIdx,
        pairs: Option<&Pairs>,
        draws: &[DrawShape],
        models: &[Option<NodeIdx>],
    ) {
        let mut stages = self.desired.stages[&at].clone();
        for (stage, model) in models.iter().enumerate() {
            let Some(node) = model else { continue };
            let Some(fingerprint) = self.models.get(node) else { return };
            let name = self.desired.shape.nodes[*node].name.as_str().into();
            stages[stage].model = Some(ModelRef { name, fingerprint: *fingerprint });
        }
        let fan_out = stages[0].operator.fan_out();
        for (row, held, other, parents) in self.inputs(at, of, pairs) {
            let drawn = self.draws(at, row, &held, draws);
            let carried = Carried { head: held.clone(), drawn, stages: stages.clone() };
            for index in 0..fan_out {
                self.step(at, row, &held, other.as_ref(), &carried, 0, index, &parents);
            }
        }
    }

    fn inputs(
        &mut self,
        at: NodeIdx,
        of: NodeIdx,
        pairs: Option<&Pairs>,
    ) -> Vec<(Id, Held, Option<Held>, Vec<Id>)> {
        let rows = self.rows[of].clone();
        let Some(pairs) = pairs else {
            return rows.into_iter().map(|(row, held)| (row, held, None, vec![row])).collect();
        };
        let mut by_parent: BTreeMap<Id, BTreeMap<u64, (Id, Held)>> = BTreeMap::new();
        for (row, held) in rows {
            let siblings = by_parent.entry(held.parents[0]).or_default();
            siblings.insert(held.sibling, (row, held));
        }
        let mut made = Vec::new();
        for siblings in by_parent.into_values() {
            for (first, second) in wanted(pairs) {
                match (siblings.get(&first), siblings.get(&second)) {
                    (Some((a, held)), Some((b, other))) => {
                        let id = made_id("pair", &[*a, *b], 0);
                        made.push((id, held.clone(), Some(other.clone()), vec![*a, *b]));
                    }
                    (Some((one, _)), None) => self.lose(at, *one, second),
                    (None, Some((one, _))) => self.lose(at, *one, first),
                    (None, None) => {}
                }
            }
        }
        made
    }

    /// The draws of a row, by definition: in its bucket, the candidates of the greatest score.
    fn draws(&self, at: NodeIdx, row: Id, held: &Held, draws: &[DrawShape]) -> Vec<Vec<Drawn>> {
        let (Some(candidates), Some(texts)) =
            (self.desired.candidates.get(&at), self.desired.texts.get(&at))
        else {
            return Vec::new();
        };
        let mut taken: Vec<Id> = Vec::new();
        let mut all = Vec::new();
        for shape in draws {
            let draw = Draw { seed: shape.seed, purpose: shape.purpose, round: shape.round };
            let root = if shape.of_parent { held.parents[0] } else { row };
            let fresh: Vec<Candidate> = candidates
                .iter()
                .filter(|candidate| !shape.fresh || !taken.contains(&candidate.key))
                .cloned()
                .collect();
            let keys = draw.winners(draw.bucket(root), &fresh, shape.count);
            // Too few are none: such a row is lost at the first stage that needs them.
            if keys.len() < shape.count {
                all.push(Vec::new());
                continue;
            }
            taken.extend(&keys);
            let text = |key: &Id| texts.iter().find(|(at, _)| at == key).unwrap().1.clone();
            all.push(keys.iter().map(text).collect());
        }
        all
    }

    fn follow(&mut self, at: NodeIdx, of: NodeIdx, stage: usize) {
        for (row, held) in self.rows[of].clone() {
            let carried = self.contexts[&(of, row)].clone();
            self.step(at, row, &held, None, &carried, stage, 0, &[row]);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "everything about one step, spelled out")]
    fn step(
        &mut self,
        at: NodeIdx,
        row: Id,
        held: &Held,
        other: Option<&Held>,
        carried: &Carried,
        stage: usize,
        index: u64,
        parents: &[Id],
    ) {
        let stage = &carried.stages[stage];
        let operator = &stage.operator;
        let sibling = operator.sibling(index);
        let made = operator.role().map_or(row, |role| made_id(role, parents, sibling));
        let drawn: &[Drawn] = stage.draw.map_or(&[], |draw| &carried.drawn[draw]);
        if stage.draw.is_some() && drawn.is_empty() {
            return self.lose(at, made, 0);
        }
        let (mut turns, mut keys) = (Vec::new(), Vec::new());
        loop {
            let of_row = held.batch.row(held.index);
            let keeps = operator.role().is_none();
            let origin = Origin {
                row_id: made,
                root_id: held.root,
                parents: if keeps { of_row.ids("parents") } else { parents.to_vec() },
                call_keys: if keeps { of_row.ids("call_keys") } else { ids(&keys) },
            };
            let builder = Some(BatchBuilder::new(operator.relation()));
            let mut sink = Sink { origin: &origin, builder, ids: None };
            let input = Input {
                row: of_row,
                other: other.map(|other| other.batch.row(other.index)),
                head: carried.head.batch.row(carried.head.index),
                row_id: row,
                made_id: made,
                index,
                drawn,
                model: stage.model.as_ref(),
                turns: &turns,
            };
            match operator.step(input, &mut sink) {
                Step::Drop => return self.truth.dropped[at] += 1,
                Step::Reject(_) => return self.lose(at, made, 0),
                Step::Done => {
                    let (content, version) = sink.ids.unwrap();
                    let (batch, _) = sink.builder.take().unwrap().finish();
                    let parents = if keeps { held.parents.clone() } else { parents.to_vec() };
                    let root = held.root;
                    let sibling = if keeps { held.sibling } else { sibling };
                    let held = Held { batch, index: 0, content, version, root, parents, sibling };
                    self.rows[at].insert(made, held);
                    self.contexts.insert((at, made), carried.clone());
                    return;
                }
                Step::Ask(requests) => {
                    let model = stage.model.as_ref().unwrap();
                    let mut turn = Vec::new();
                    for request in requests {
                        let key = request.key(model.fingerprint);
                        keys.push(key);
                        let first = self.truth.calls.entry(key).or_insert(at);
                        *first = (*first).min(at);
                        turn.push((self.answers)(model, &request));
                    }
                    let turn: Result<Vec<Answer>, CallError> = turn.into_iter().collect();
                    match turn {
                        Ok(turn) => turns.push(turn),
                        Err(_) => return self.lose(at, made, 0),
                    }
                }
            }
        }
    }

    /// Loses a row: another node may lose the same one, and it may live on elsewhere.
    fn lose(&mut self, at: NodeIdx, row: Id, number: u64) {
        let node = KeyHasher::new(&self.desired.shape.nodes[at].name).id();
        self.truth.rejects[at].insert(made_id("reject", &[row, node], number));
    }

    fn train(
        &mut self,
        at: NodeIdx,
        of: NodeIdx,
        models: &[Option<NodeIdx>],
        weights: Weights<'_>,
    ) {
        let mut training = self.desired.trainings[&at].clone();
        for (place, node) in models.iter().enumerate() {
            let Some(node) = node else { continue };
            let Some(fingerprint) = self.models.get(node) else { return };
            let name = self.desired.shape.nodes[*node].name.as_str().into();
            training.models[place] = Some(ModelRef { name, fingerprint: *fingerprint });
        }
        if let Some(held) = training.held() {
            self.models.insert(at, held.weights);
            self.truth.weights.insert(at, (held.weights, true));
            return;
        }
        let rows: Vec<(Id, Id)> =
            self.rows[of].iter().map(|(row, held)| (*row, held.content)).collect();
        if !rows.is_empty() {
            let weights = weights(&training, &rows);
            self.models.insert(at, weights);
            self.truth.weights.insert(at, (weights, false));
        }
    }
}

/// The pairs of siblings that a judge is given.
pub fn wanted(pairs: &Pairs) -> Vec<(u64, u64)> {
    let all = (0..pairs.of).flat_map(|a| (a + 1..pairs.of).map(move |b| (a, b)));
    all.filter(|(a, b)| pairs.all || (a % 2 == 0 && *b == a + 1)).collect()
}

fn ids(keys: &[CallKey]) -> Vec<Id> {
    keys.iter().map(CallKey::id).collect()
}

//! Compiling: from a plan to what is desired of the dataflow: its shape, and the settings, texts
//! and rows that are fed to it.

use std::sync::Arc;

use super::asked::JudgeSetup;
use super::context::Stage;
use super::draw::{Candidate, Draw, Purpose, principle_key};
use super::policy::Policy;
use super::session::{Desired, Source};
use super::shape::{DrawShape, Kind, Node, Pairs, Shape, Take};
use super::train::{Held, Setup, Training};
use crate::model::Estimator;
use crate::operators::train as training;
use crate::operators::{Build, BuildError, Drawn, Half, ModelRef, Predicate, RewardWords, build};
use crate::plan::{self, Ask, Chain, DrawSpec, Input, ModelEdge, NodeIdx, Plan, Step};
use crate::record::{Id, KeyHasher, Relation};
use crate::spec::op::{OnChange, Op, Pairs as PairsOf, Read, Reward};
use crate::spec::{Model, Name, Principle, Purpose as For};

/// What compiling asks of the world.
pub trait World {
    /// The rows and rejects of a file; of one that is as it was the very same, if they are at hand.
    fn read(&self, node: &str, read: &Read) -> Result<Arc<Source>, String>;

    /// The fingerprint of an entry of `models`.
    fn fingerprint(&self, name: &str, model: &Model) -> Result<Id, String>;

    /// How label log-probabilities are had from an entry of `models`, where that has to be found out;
    /// nothing where it follows from the entry.
    fn estimator(&self, name: &str, model: &Model) -> Result<Option<Estimator>, String>;

    /// The condition of a `filter: where` over rows of a relation, which is not known here.
    fn predicate(&self, sql: &str, over: Relation) -> Result<Arc<dyn Predicate>, String>;

    /// The finished training that a node came to last, if there is one.
    fn last(&self, node: &str) -> Option<Held>;
}

/// Why a plan cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// A mistake in the files.
    #[error("{0}")]
    Build(#[from] BuildError),
    /// The world does not give what is needed.
    #[error("{0}")]
    World(String),
}

type Result<T, E = CompileError> = std::result::Result<T, E>;

/// What a plan asks of the dataflow, now. `held` are the nodes that `--hold` names.
pub fn compile(plan: &Plan, world: &dyn World, held: &[String]) -> Result<Desired> {
    let mut desired = Desired { chunk: 64, ..Desired::default() };
    let compiler = Compiler { plan, world, held };
    for (at, node) in plan.nodes.iter().enumerate() {
        let kind = compiler.node(at, node, &mut desired)?;
        let (name, table, relation) = (node.name.clone(), node.table.clone(), node.relation);
        desired.shape.nodes.push(Node { name, table, relation, kind });
    }
    Ok(desired)
}

/// What of a plan cannot be built, node by node, where [`compile`] would stop at the first. What the
/// world does not give is not among it.
pub fn faults(plan: &Plan, world: &dyn World) -> Vec<BuildError> {
    let (mut desired, compiler) = (Desired::default(), Compiler { plan, world, held: &[] });
    let nodes = plan.nodes.iter().enumerate();
    let fault = |(at, node)| match compiler.node(at, node, &mut desired) {
        Err(CompileError::Build(fault)) => Some(fault),
        Ok(_) | Err(CompileError::World(_)) => None,
    };
    nodes.filter_map(fault).collect()
}

/// The shape alone, which says whether a running dataflow can take an edit.
pub fn shape(desired: &Desired) -> &Shape {
    &desired.shape
}

struct Compiler<'a> {
    plan: &'a Plan,
    world: &'a dyn World,
    held: &'a [String],
}

impl Compiler<'_> {
    fn node(&self, at: NodeIdx, node: &plan::Node, desired: &mut Desired) -> Result<Kind> {
        Ok(match &node.step {
            Step::Read => {
                let Op::Read(read) = self.plan.op(node) else { unreachable!("a read is a read") };
                let rows = self.world.read(&node.name, read).map_err(CompileError::World)?;
                desired.sources.insert(at, rows);
                Kind::Source
            }
            Step::Union { of } => Kind::Union { of: of.clone() },
            Step::Part { of, part } => {
                let build = Build { part, ..self.build(node, *of) };
                desired.stages.insert(at, vec![self.local(node, &build)?]);
                Kind::Local { of: vec![*of], take: Take::All }
            }
            Step::Filter { of } => {
                let stage = self.filter(node, *of)?;
                desired.stages.insert(at, vec![stage]);
                Kind::Local { of: vec![*of], take: self.dedupes(node) }
            }
            Step::Label { of } => {
                let stage = |(ordinal, of): (usize, &NodeIdx)| {
                    let source = self.plan.nodes[*of].name.as_str();
                    self.local(node, &Build { source, ordinal, ..self.build(node, *of) })
                };
                let stages: Result<Vec<Stage>> = of.iter().enumerate().map(stage).collect();
                desired.stages.insert(at, stages?);
                Kind::Local { of: of.clone(), take: Take::All }
            }
            Step::Mix { of } => self.mix(at, node, of, desired)?,
            Step::Ask(ask) => self.ask(at, node, ask, desired)?,
            Step::Train { of, models } => {
                desired.trainings.insert(at, self.training(node, models)?);
                Kind::Train { of: *of, models: models.iter().map(trained_by).collect() }
            }
        })
    }

    fn build(&self, node: &plan::Node, of: NodeIdx) -> Build<'_> {
        let name = self.plan.nodes[self.plan.find(&node.name).expect("a node of the plan")]
            .written
            .as_str();
        let pipeline = self.plan.pipeline();
        let reads = self.plan.nodes[of].relation;
        Build { constitution: self.plan.constitution(), ..Build::new(name, pipeline.seed, reads) }
    }

    fn local(&self, node: &plan::Node, given: &Build<'_>) -> Result<Stage> {
        let operator = build(self.plan.op(node), given)?;
        Ok(Stage { operator, model: None, draw: None })
    }

    fn filter(&self, node: &plan::Node, of: NodeIdx) -> Result<Stage> {
        let Op::Filter(filter) = self.plan.op(node) else { unreachable!("a filter is a filter") };
        let over = self.plan.nodes[of].relation;
        let compile = |sql: &Name| {
            let wrong = |message| BuildError { message, help: None, place: Some(sql.place) };
            self.world.predicate(sql, over).map_err(wrong)
        };
        let predicate = filter.condition.as_ref().map(compile).transpose()?;
        self.local(node, &Build { predicate, ..self.build(node, of) })
    }

    fn dedupes(&self, node: &plan::Node) -> Take {
        match self.plan.op(node) {
            Op::Filter(filter) if filter.dedupe.is_some() => Take::Dedupe,
            _ => Take::All,
        }
    }

    fn mix(
        &self,
        at: NodeIdx,
        node: &plan::Node,
        of: &[Input],
        desired: &mut Desired,
    ) -> Result<Kind> {
        let stage = |(ordinal, input): (usize, &Input)| {
            let (source, rounds) = (input.name.as_str(), input.rounds);
            self.local(node, &Build { source, ordinal, rounds, ..self.build(node, input.of) })
        };
        let stages: Result<Vec<Stage>> = of.iter().enumerate().map(stage).collect();
        desired.stages.insert(at, stages?);
        let counts: Vec<Option<u64>> = of.iter().map(|input| input.count).collect();
        let take = if counts.iter().any(Option::is_some) { Take::Count(counts) } else { Take::All };
        Ok(Kind::Local { of: of.iter().map(|input| input.of).collect(), take })
    }

    fn ask(
        &self,
        at: NodeIdx,
        node: &plan::Node,
        ask: &Ask,
        desired: &mut Desired,
    ) -> Result<Kind> {
        let (draws, stages) = match &ask.chain {
            Chain::Head { draws, stages } => (draws, stages),
            Chain::Follow { stage, .. } => return Ok(Kind::Follow { of: ask.of, stage: *stage }),
        };
        let stage = |(node, draw): &(NodeIdx, Option<usize>)| self.stage(*node, *draw);
        let built: Result<Vec<Stage>> = stages.iter().map(stage).collect();
        desired.stages.insert(at, built?);
        if let Some(draw) = draws.first() {
            let principles = self.principles(draw);
            desired.candidates.insert(at, principles.iter().map(|one| candidate(one)).collect());
            let texts = principles.iter().map(|one| (principle_key(&one.id), drawn(one, draw)));
            desired.texts.insert(at, texts.collect());
        }
        let trained = |(node, _): &(NodeIdx, Option<usize>)| match &self.plan.nodes[*node].step {
            Step::Ask(ask) => trained_by(&ask.model),
            _ => unreachable!("a stage of a chain asks"),
        };
        Ok(Kind::Head {
            of: ask.of,
            pairs: ask.siblings.map(|of| Pairs { of, all: self.pairs_all(node) }),
            draws: draws.iter().map(draw_shape).collect(),
            models: stages.iter().map(trained).collect(),
        })
    }

    fn pairs_all(&self, node: &plan::Node) -> bool {
        matches!(self.plan.op(node), Op::PairwiseJudge(judge) if judge.pairs == PairsOf::All)
    }

    fn principles(&self, draw: &DrawSpec) -> Vec<&Principle> {
        let constitution = self.plan.constitution();
        constitution.map_or_else(Vec::new, |all| draw.selector.select(all, draw.purpose))
    }

    /// One stage of a chain: its operator, with its model where that is an entry of `models`.
    fn stage(&self, at: NodeIdx, draw: Option<usize>) -> Result<Stage> {
        let node = &self.plan.nodes[at];
        let Step::Ask(ask) = &node.step else { unreachable!("a stage of a chain asks") };
        let scratch = Model::from_scratch();
        let entry = self.plan.entry(&ask.model).unwrap_or(&scratch);
        let half = if ask.revises { Half::Revise } else { Half::Critique };
        let estimator = match &ask.model {
            ModelEdge::Node(_) => Some(Estimator::Echo),
            ModelEdge::Entry(name) if scores(self.plan.op(node)) => {
                self.world.estimator(name, entry).map_err(CompileError::World)?
            }
            ModelEdge::Entry(_) => None,
        };
        let (model, round) = (Some(entry), ask.round);
        let given = Build { model, estimator, round, half, ..self.build(node, ask.of) };
        let operator = build(self.plan.op(node), &given)?;
        Ok(Stage { operator, model: self.model(&ask.model)?, draw })
    }

    fn model(&self, edge: &ModelEdge) -> Result<Option<ModelRef>> {
        let ModelEdge::Entry(name) = edge else { return Ok(None) };
        let entry = self.plan.pipeline().models.get(name.as_str()).expect("it was resolved");
        let fingerprint = self.world.fingerprint(name, entry).map_err(CompileError::World)?;
        Ok(Some(ModelRef { name: name.as_str().into(), fingerprint }))
    }

    fn training(&self, node: &plan::Node, models: &[ModelEdge]) -> Result<Training> {
        let op = self.plan.op(node);
        let seed = self.plan.pipeline().seed;
        let entry = models.first().and_then(|edge| self.plan.entry(edge));
        let (judge, judge_model) = self.judge(op, models)?.unzip();
        let setup = Setup {
            settings: training::settings(op, seed, entry),
            scratch: training::scratch(op),
            model: entry.cloned(),
            balanced: training::is_balanced(op),
            external: training::external(op),
            roles: training::roles(op),
            judge: judge.clone(),
            judge_model,
        };
        let mut settings = training::recipe(op, seed, entry);
        if let (Some(judge), Some(model)) = (&judge, &setup.judge_model) {
            settings = training::with_judge(&settings, judge.recipe(), model);
        }
        let mut policy = policy(op);
        if self.held.contains(&node.name) {
            policy = Policy { on_change: OnChange::Hold, min_changed: None };
        }
        let models: Result<Vec<_>> = models.iter().map(|edge| self.model(edge)).collect();
        Ok(Training {
            node: node.name.as_str().into(),
            verb: op.verb(),
            settings: KeyHasher::new("amend/settings/1").text(&settings).id(),
            settings_json: settings.into(),
            setup: Arc::new(setup),
            version: op.version(),
            models: models?,
            policy,
            last: if policy.is_of_inputs() { None } else { self.world.last(&node.name) },
        })
    }
}

impl Compiler<'_> {
    /// The judge whose verdicts are a reward, with the entry that says how it is spoken to.
    fn judge(&self, op: &Op, models: &[ModelEdge]) -> Result<Option<(Arc<JudgeSetup>, Model)>> {
        let Op::PpoUpdate(train) = op else { return Ok(None) };
        let Reward::Judge(judge) = &train.reward else { return Ok(None) };
        let seed = train.seed.unwrap_or(self.plan.pipeline().seed);
        let draw = DrawSpec {
            seed,
            purpose: For::Judge,
            round: 0,
            count: 1,
            selector: judge.principles.clone(),
            of_parent: false,
            fresh: false,
        };
        let place = training::roles(op).iter().position(|role| *role == "judge");
        let edge = &models[place.expect("a judge is one of the models")];
        let model = self.plan.entry(edge).cloned().unwrap_or_else(Model::from_scratch);
        let principles = self.principles(&draw);
        let text = |principle: &&Principle| {
            let text = drawn(principle, &draw).judge.expect("it was selected to judge");
            (principle_key(&principle.id), text)
        };
        let judge = JudgeSetup {
            words: RewardWords::new(&model, self.plan.constitution())?,
            draw: Draw { seed, purpose: Purpose::Judge, round: 0 },
            candidates: principles.iter().map(|principle| candidate(principle)).collect(),
            texts: principles.iter().map(text).collect(),
        };
        Ok(Some((Arc::new(judge), model)))
    }
}

/// Whether an operator has a model score labels.
fn scores(op: &Op) -> bool {
    match op {
        Op::PairwiseJudge(_) => true,
        Op::Evaluate(op) => op.choices.is_some(),
        _ => false,
    }
}

fn trained_by(edge: &ModelEdge) -> Option<NodeIdx> {
    match edge {
        ModelEdge::Node(node) => Some(*node),
        ModelEdge::Entry(_) => None,
    }
}

fn policy(op: &Op) -> Policy {
    let (on_change, min_changed) = match op {
        Op::TrainSl(train) => (train.on_change, train.min_changed),
        Op::TrainPm(train) => (train.on_change, train.min_changed),
        Op::TrainDpo(train) => (train.on_change, train.min_changed),
        Op::PpoUpdate(train) => (train.on_change, train.min_changed),
        _ => unreachable!("only trainings have a policy"),
    };
    Policy { on_change, min_changed: min_changed.map(|share| share.value.0) }
}

fn purpose(purpose: For) -> Purpose {
    match purpose {
        For::Critique | For::CritiqueAlone | For::Revise => Purpose::Critique,
        For::Judge => Purpose::Judge,
    }
}

fn draw_shape(draw: &DrawSpec) -> DrawShape {
    DrawShape {
        seed: draw.seed,
        purpose: purpose(draw.purpose),
        round: draw.round,
        count: draw.count,
        of_parent: draw.of_parent,
        fresh: draw.fresh,
    }
}

fn candidate(principle: &Principle) -> Candidate {
    Candidate {
        id: principle.draw_id().into(),
        key: principle_key(&principle.id),
        weight: principle.weight.value,
    }
}

/// A principle's texts as a purpose uses them: an edit of another text touches nobody here.
fn drawn(principle: &Principle, draw: &DrawSpec) -> Drawn {
    let text = |text: &Option<crate::spec::Spanned<String>>, used: bool| -> Option<Arc<str>> {
        text.as_ref().filter(|_| used).map(|text| text.value.as_str().into())
    };
    let judges = draw.purpose == For::Judge;
    let critique = text(&principle.critique, !judges && draw.purpose != For::Revise);
    let revise = text(&principle.revise, !judges && draw.purpose != For::CritiqueAlone);
    let judge = text(&principle.judge, judges);
    let mut hasher = KeyHasher::new("amend/principle-texts/1");
    hasher.add_text(&principle.id);
    for text in [&critique, &revise, &judge] {
        match text {
            Some(text) => hasher.add_text(text),
            None => hasher.add_u64(0),
        }
    }
    let (id, hash) = (principle.id.value.as_str().into(), hasher.id());
    Drawn { id, hash, critique, revise, judge }
}

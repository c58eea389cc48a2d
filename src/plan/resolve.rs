//! Resolving: from the pipeline as written to nodes in order, with every edge's relation checked.

use std::collections::BTreeMap;

use super::order::order;
use super::{Ask, Chain, DrawSpec, Input, ModelEdge, Node, NodeIdx, Plan, Step};
use crate::record::Relation;
use crate::spec::op::{
    Critique, Critiquing, Evaluate, Init, OneOrMany, Op, PairwiseJudge, Repeat, Revise, Sample,
    Source,
};
use crate::spec::{Loaded, Mistakes, Name, Pipeline, Purpose, Selector, did_you_mean};

/// Resolves a pipeline; what is wrong is added to the mistakes.
pub fn resolve(loaded: Loaded, mistakes: &mut Mistakes) -> Plan {
    let pipeline = loaded.pipeline.clone();
    let mut resolver = Resolver {
        pipeline: &pipeline,
        mistakes,
        nodes: Vec::new(),
        rows: BTreeMap::new(),
        models: BTreeMap::new(),
    };
    for name in order(&pipeline, resolver.mistakes) {
        let (written, op) = pipeline.nodes.get_key_value(name.as_str()).expect("it was ordered");
        // What cannot be resolved was reported here, or is broken and was reported by `spec`.
        let _ = resolver.node(written, op);
    }
    let nodes = resolver.nodes;
    Plan { loaded, nodes }
}

struct Resolver<'a, 'm> {
    pipeline: &'a Pipeline,
    mistakes: &'m mut Mistakes,
    nodes: Vec<Node>,
    /// The node whose rows a written name stands for.
    rows: BTreeMap<String, NodeIdx>,
    /// The node that trains the model of a written name.
    models: BTreeMap<String, NodeIdx>,
}

impl Resolver<'_, '_> {
    fn node(&mut self, name: &Name, op: &Op) -> Option<()> {
        match op {
            Op::Read(read) => {
                let relation = read.relation.relation();
                self.add(name, name.value.clone(), relation, Step::Read);
            }
            Op::Split(split) => {
                let of = self.input(op, &split.from)?;
                for part in split.parts.keys() {
                    let step = Step::Part { of, part: part.value.clone() };
                    let relation = self.nodes[of].relation;
                    self.add(name, format!("{name}.{part}"), relation, step);
                }
            }
            Op::Sample(sample) => self.sample(name, op, sample)?,
            Op::Critique(critique) => self.critique(name, op, critique)?,
            Op::Revise(revise) => self.revise(name, op, revise)?,
            Op::Repeat(repeat) => self.repeat(name, op, repeat)?,
            Op::PairwiseJudge(judge) => self.judge(name, op, judge)?,
            Op::Mix(mix) => {
                self.mix(name, name.value.clone(), op, &mix.from)?;
            }
            Op::Filter(filter) => {
                let of = self.input(op, &filter.from)?;
                let relation = self.nodes[of].relation;
                self.add(name, name.value.clone(), relation, Step::Filter { of });
            }
            Op::Evaluate(evaluate) => self.evaluate(name, op, evaluate)?,
            Op::TrainSl(train) => self.train(name, op, &train.from, &init(&train.init))?,
            Op::TrainPm(train) => self.train(name, op, &train.from, &init(&train.init))?,
            Op::TrainDpo(train) => {
                let models: Vec<&Name> = train.models().into_iter().map(|(_, name)| name).collect();
                self.train(name, op, &train.from, &models)?;
            }
            Op::PpoUpdate(train) => {
                let models: Vec<&Name> = train.models().into_iter().map(|(_, name)| name).collect();
                self.train(name, op, &train.prompts, &models)?;
            }
        }
        Some(())
    }

    fn add(&mut self, written: &Name, name: String, relation: Relation, step: Step) -> NodeIdx {
        let at = self.nodes.len();
        self.rows.insert(name.clone(), at);
        let (written, table) = (written.value.clone(), name.clone());
        self.nodes.push(Node { name, written, relation, step, table });
        at
    }

    /// The node of a name in an edge that carries rows, if its relation is one the verb takes.
    fn input(&mut self, op: &Op, name: &Name) -> Option<NodeIdx> {
        // Names that are no node are `spec`'s to report.
        let at = *self.rows.get(name.value.as_str())?;
        let relation = self.nodes[at].relation;
        if op.takes().contains(&relation) {
            return Some(at);
        }
        let takes: Vec<&str> = op.takes().iter().map(|relation| relation.name()).collect();
        let named =
            |node: &&Node| node.name == node.written || matches!(node.step, Step::Part { .. });
        let offers = self.nodes.iter().filter(named);
        let offers = offers.filter(|node| op.takes().contains(&node.relation));
        let offers: Vec<&str> = offers.map(|node| node.name.as_str()).collect();
        let help = match offers.as_slice() {
            [] => format!("it takes {}", takes.join(" or ")),
            offers => {
                format!("it takes {}, such as \"{}\"", takes.join(" or "), offers.join("\", \""))
            }
        };
        self.mistakes.push(
            name.place,
            format!("\"{name}\" gives {relation}, which {} does not take", op.verb()),
            help,
        );
        None
    }

    fn model(&mut self, name: &Name) -> Option<ModelEdge> {
        if let Some(node) = self.models.get(name.value.as_str()) {
            return Some(ModelEdge::Node(*node));
        }
        let entry = self.pipeline.models.get(name.value.as_str());
        entry.map(|_| ModelEdge::Entry(name.value.clone()))
    }

    fn sample(&mut self, name: &Name, op: &Op, sample: &Sample) -> Option<()> {
        let of = self.input(op, &sample.from)?;
        let model = self.model(&sample.model)?;
        let chain = self.alone(Vec::new());
        let ask = Ask { of, model, round: 1, revises: false, siblings: None, chain };
        self.add(name, name.value.clone(), Relation::Responses, Step::Ask(ask));
        Some(())
    }

    /// The chain of a step that stands alone, about to be added.
    fn alone(&self, draws: Vec<DrawSpec>) -> Chain {
        let draw = (!draws.is_empty()).then_some(0);
        Chain::Head { draws, stages: vec![(self.nodes.len(), draw)] }
    }

    fn critique(&mut self, name: &Name, op: &Op, critique: &Critique) -> Option<()> {
        let of = self.input(op, &critique.from)?;
        let model = self.model(&critique.model)?;
        // A revision that follows needs its text as well: then only principles with both are drawn.
        let revised = self.pipeline.is_revised(name);
        let purpose = if revised { Purpose::Critique } else { Purpose::CritiqueAlone };
        let count = critique.draws.value as usize;
        let chain = self.alone(vec![self.draw(purpose, 1, count, &critique.principles)]);
        let ask = Ask { of, model, round: 1, revises: false, siblings: None, chain };
        self.add(name, name.value.clone(), Relation::Critiques, Step::Ask(ask));
        Some(())
    }

    fn draw(&self, purpose: Purpose, round: u32, count: usize, selector: &Selector) -> DrawSpec {
        let (seed, selector) = (self.pipeline.seed, selector.clone());
        DrawSpec { seed, purpose, round, count, selector, of_parent: false, fresh: false }
    }

    fn revise(&mut self, name: &Name, op: &Op, revise: &Revise) -> Option<()> {
        let of = self.input(op, &revise.from)?;
        let model = self.model(&revise.model)?;
        let chain = if self.nodes[of].relation == Relation::Critiques {
            self.follow(of)
        } else {
            self.alone(vec![self.draw(Purpose::Revise, 1, 1, &revise.principles)])
        };
        let ask = Ask { of, model, round: 1, revises: true, siblings: None, chain };
        self.add(name, name.value.clone(), Relation::Revisions, Step::Ask(ask));
        Some(())
    }

    /// Makes the node about to be added the next stage of the chain of `of`, or the head of its
    /// own that draws as the critique did.
    fn follow(&mut self, of: NodeIdx) -> Chain {
        let next = self.nodes.len();
        let head = match &self.nodes[of].step {
            Step::Ask(Ask { chain: Chain::Head { .. }, .. }) => of,
            Step::Ask(Ask { chain: Chain::Follow { head, .. }, .. }) => *head,
            // A filter or a split stands between: the critique's draw is made again.
            _ => return self.alone(self.draws_above(of)),
        };
        let Step::Ask(Ask { chain: Chain::Head { stages, .. }, .. }) = &mut self.nodes[head].step
        else {
            unreachable!("the head of a chain is a head")
        };
        let draw = stages.last().and_then(|(_, draw)| *draw);
        stages.push((next, draw));
        Chain::Follow { head, stage: stages.len() - 1 }
    }

    fn draws_above(&self, of: NodeIdx) -> Vec<DrawSpec> {
        let mut at = of;
        loop {
            match &self.nodes[at].step {
                Step::Part { of, .. } | Step::Filter { of } => at = *of,
                Step::Ask(Ask { chain: Chain::Head { draws, .. }, .. }) => {
                    let of_parent = |draw: &DrawSpec| DrawSpec { of_parent: true, ..draw.clone() };
                    return draws.iter().map(of_parent).collect();
                }
                _ => return Vec::new(),
            }
        }
    }

    fn repeat(&mut self, name: &Name, op: &Op, repeat: &Repeat) -> Option<()> {
        let of = self.input(op, &repeat.from)?;
        let reviser = self.model(&repeat.revise.model)?;
        let critic = match &repeat.critique {
            Critiquing::Asked(critic) => Some((self.model(&critic.model)?, critic.draws.value)),
            Critiquing::None => None,
        };
        let (purpose, count) = match &critic {
            Some((_, draws)) => (Purpose::Critique, *draws as usize),
            None => (Purpose::Revise, 1),
        };
        let draws = (1..=repeat.times.value).map(|round| DrawSpec {
            fresh: !repeat.replacement,
            ..self.draw(purpose, round, count, repeat.selector())
        });
        let draws: Vec<DrawSpec> = draws.collect();
        let (mut from, mut revisions, head) = (of, Vec::new(), self.nodes.len());
        let mut stages = Vec::new();
        for round in 1..=repeat.times.value {
            let halves = critic.iter().map(|(model, _)| (false, model)).chain([(true, &reviser)]);
            for (revises, model) in halves {
                let at = self.nodes.len();
                stages.push((at, Some(round as usize - 1)));
                let stage = stages.len() - 1;
                let chain = match stage {
                    0 => Chain::Head { draws: draws.clone(), stages: Vec::new() },
                    stage => Chain::Follow { head, stage },
                };
                let model = model.clone();
                let ask = Ask { of: from, model, round, revises, siblings: None, chain };
                self.round(name, round, revises, ask);
                from = at;
            }
            revisions.push(from);
        }
        if let Step::Ask(Ask { chain: Chain::Head { stages: of_head, .. }, .. }) =
            &mut self.nodes[head].step
        {
            *of_head = stages;
        }
        self.add(name, name.value.clone(), Relation::Revisions, Step::Union { of: revisions });
        Some(())
    }

    /// Adds half a round. Rounds share one table of revisions and one of critiques.
    fn round(&mut self, name: &Name, round: u32, revises: bool, ask: Ask) {
        let (half, relation, table) = match revises {
            true => ("revise", Relation::Revisions, name.value.clone()),
            false => ("critique", Relation::Critiques, format!("{name}.critiques")),
        };
        let at = self.add(name, format!("{name}[{round}].{half}"), relation, Step::Ask(ask));
        self.nodes[at].table = table;
    }

    fn judge(&mut self, name: &Name, op: &Op, judge: &PairwiseJudge) -> Option<()> {
        let of = self.input(op, &judge.from);
        // One mistake of a node does not hide another.
        let siblings = of.and_then(|of| self.siblings(of, &judge.from));
        let (of, model, siblings) = (of?, self.model(&judge.model)?, siblings?);
        let count = judge.draws.value as usize;
        let mut draw = self.draw(Purpose::Judge, 0, count, &judge.principles);
        draw.seed = judge.seed.unwrap_or(draw.seed);
        let chain = self.alone(vec![draw]);
        let siblings = Some(siblings);
        let ask = Ask { of, model, round: 1, revises: false, siblings, chain };
        self.add(name, name.value.clone(), Relation::Comparisons, Step::Ask(ask));
        Some(())
    }

    /// How many answers each prompt has, up through what keeps rows as they are.
    fn siblings(&mut self, of: NodeIdx, name: &Name) -> Option<u64> {
        let mut at = of;
        loop {
            match &self.nodes[at].step {
                Step::Part { of, .. } | Step::Filter { of } => at = *of,
                Step::Ask(_) => match self.pipeline.nodes.get(self.nodes[at].written.as_str()) {
                    Some(Op::Sample(sample)) if sample.n.value % 2 == 0 => {
                        return Some(u64::from(sample.n.value));
                    }
                    Some(Op::Sample(sample)) => {
                        self.mistakes.push(
                            name.place,
                            format!(
                                "\"{name}\" gives {} answers to a prompt, which make no pairs",
                                sample.n.value
                            ),
                            "give the sample an even `n`, such as 2",
                        );
                        return None;
                    }
                    _ => break,
                },
                _ => break,
            }
        }
        self.mistakes.push(
            name.place,
            format!("\"{name}\" is not made by a sample, so its rows have no siblings to pair"),
            "judge the rows of a sample with an even `n`",
        );
        None
    }

    fn mix(
        &mut self,
        written: &Name,
        name: String,
        op: &Op,
        sources: &OneOrMany<Source>,
    ) -> Option<NodeIdx> {
        let mut inputs = Vec::new();
        let mut makes: Option<(Relation, &Name)> = None;
        let found = sources.iter().map(|source| (source, self.input(op, &source.rows)));
        for (source, of) in found.collect::<Vec<_>>() {
            let of = of?;
            let relation = made_by_mix(self.nodes[of].relation);
            if let Some((other, first)) = makes
                && other != relation
            {
                self.mistakes.push(
                    source.rows.place,
                    format!("\"{}\" gives {relation} and \"{first}\" gives {other}", source.rows),
                    "sources of one mix give the same kind of rows",
                );
                return None;
            }
            makes = Some((relation, &source.rows));
            let rounds = match self.pipeline.nodes.get(self.nodes[of].written.as_str()) {
                Some(Op::Repeat(repeat)) => repeat.times.value,
                _ => 1,
            };
            let name = source.rows.value.clone();
            inputs.push(Input { of, name, rounds, count: source.count });
        }
        let (relation, _) = makes?;
        Some(self.add(written, name, relation, Step::Mix { of: inputs }))
    }

    fn evaluate(&mut self, name: &Name, op: &Op, evaluate: &Evaluate) -> Option<()> {
        let of: Vec<Option<NodeIdx>> =
            evaluate.from.iter().map(|from| self.input(op, from)).collect();
        let of: Vec<NodeIdx> = of.into_iter().collect::<Option<_>>()?;
        let step = match (&evaluate.model, of.as_slice()) {
            (None, _) => Step::Label { of },
            (Some(model), [of]) => {
                let model = self.model(model)?;
                let chain = self.alone(Vec::new());
                Step::Ask(Ask { of: *of, model, round: 1, revises: false, siblings: None, chain })
            }
            (Some(_), _) => {
                self.mistakes.push(
                    name.place,
                    format!("node \"{name}\" asks its choices of several nodes"),
                    "evaluate one node of prompts at a time",
                );
                return None;
            }
        };
        self.add(name, name.value.clone(), Relation::Scores, step);
        Some(())
    }

    fn train(
        &mut self,
        name: &Name,
        op: &Op,
        sources: &OneOrMany<Source>,
        models: &[&Name],
    ) -> Option<()> {
        let models: Vec<Option<ModelEdge>> =
            models.iter().map(|model| self.model_checked(model)).collect();
        let of = self.mix(name, format!("{name}.data"), op, sources)?;
        let models = models.into_iter().collect::<Option<_>>()?;
        let step = Step::Train { of, models };
        let at = self.add(name, name.value.clone(), Relation::Checkpoints, step);
        self.models.insert(name.value.clone(), at);
        Some(())
    }

    /// A model that weights are taken of: an endpoint has none to give.
    fn model_checked(&mut self, name: &Name) -> Option<ModelEdge> {
        let edge = self.model(name)?;
        if let Some(entry) = self.pipeline.models.get(name.value.as_str())
            && entry.checkpoint.is_none()
        {
            let local = self.pipeline.models.iter().filter(|(_, model)| model.checkpoint.is_some());
            let help = did_you_mean(&name.value, local.map(|(name, _)| name.value.as_str()))
                .unwrap_or_else(|| {
                    "name a model with a `checkpoint`, or a node that trains one".into()
                });
            self.mistakes.push(
                name.place,
                format!("model \"{name}\" is an endpoint, and training needs weights"),
                help,
            );
            return None;
        }
        Some(edge)
    }
}

/// What a mix makes of rows of a relation.
fn made_by_mix(of: Relation) -> Relation {
    match of {
        Relation::Responses | Relation::Revisions => Relation::Demonstrations,
        same => same,
    }
}

fn init(init: &Init) -> Vec<&Name> {
    match init {
        Init::Model(name) => vec![name],
        Init::Scratch(_) => Vec::new(),
    }
}

//! `plan`: what will run: names resolved, rounds unrolled, relations checked, nodes in dependency
//! order.
//!
//! A [`Plan`] is straight: a node's inputs come before it, so that rendering it is a walk.

mod order;
mod resolve;
mod warn;

use indexmap::IndexMap;

use crate::record::Relation;
use crate::spec::{Constitution, Loaded, Mistakes, Model, Op, Pipeline, Purpose, Selector};

pub use resolve::resolve;
pub use warn::warnings;

/// A node of a plan, by its place.
pub type NodeIdx = usize;

/// What will run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The files, as loaded.
    pub loaded: Loaded,
    /// The nodes, each after what it reads.
    pub nodes: Vec<Node>,
}

/// One step of what will run. A `repeat` is several, a `split` is one a part.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The name: `revisions[1].critique`, `red.train`, or as written.
    pub name: String,
    /// The node of the pipeline file that it comes from.
    pub written: String,
    /// What its rows are.
    pub relation: Relation,
    /// What it does.
    pub step: Step,
    /// The table its rows are published in; rounds of one `repeat` share theirs.
    pub table: String,
}

/// What a node does.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Reads a file.
    Read,
    /// Takes one part of a split.
    Part {
        /// The rows split.
        of: NodeIdx,
        /// The part's name.
        part: String,
    },
    /// Puts rows of several nodes together, with nothing done to them.
    Union {
        /// The nodes.
        of: Vec<NodeIdx>,
    },
    /// Mixes: of each source, which rows. A training mixes its sources first.
    Mix {
        /// The sources.
        of: Vec<Input>,
    },
    /// Leaves rows out.
    Filter {
        /// The rows.
        of: NodeIdx,
    },
    /// Labels responses by patterns.
    Label {
        /// The rows, an input each.
        of: Vec<NodeIdx>,
    },
    /// Asks a model.
    Ask(Ask),
    /// Trains a model.
    Train {
        /// The data set.
        of: NodeIdx,
        /// The models it starts from or uses: init or policy, then reward, test reward.
        models: Vec<ModelEdge>,
    },
}

/// A source of a mix.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// The node.
    pub of: NodeIdx,
    /// The source's name, as written.
    pub name: String,
    /// Its rounds, where it is a `repeat`.
    pub rounds: u32,
    /// How many rows are taken, if a number is given.
    pub count: Option<u64>,
}

/// A step that asks a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// The rows.
    pub of: NodeIdx,
    /// The model.
    pub model: ModelEdge,
    /// The round, from 1.
    pub round: u32,
    /// Whether it is a revision: the second half of a round.
    pub revises: bool,
    /// Whether siblings are gathered to pairs: how many a parent has.
    pub siblings: Option<u64>,
    /// Its place in a chain.
    pub chain: Chain,
}

/// A place in a chain of steps that ask, each fed row by row by the one before.
#[derive(Clone, Debug, PartialEq)]
pub enum Chain {
    /// The first: its edge is `settled`.
    Head {
        /// The draws of the whole chain.
        draws: Vec<DrawSpec>,
        /// The stages, itself first, each with the draw it uses.
        stages: Vec<(NodeIdx, Option<usize>)>,
    },
    /// A further one: its edge is `final`.
    Follow {
        /// The head.
        head: NodeIdx,
        /// Which stage, from 1.
        stage: usize,
    },
}

/// A draw of principles.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawSpec {
    /// The seed.
    pub seed: u64,
    /// What the texts are for.
    pub purpose: Purpose,
    /// The round; 0 for judgements.
    pub round: u32,
    /// How many principles.
    pub count: usize,
    /// Which principles may be drawn.
    pub selector: Selector,
    /// Whether the draw is that of the row's parent.
    pub of_parent: bool,
    /// Whether principles of earlier rounds are left out.
    pub fresh: bool,
}

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelEdge {
    /// An entry of `models`.
    Entry(String),
    /// A node that trains it.
    Node(NodeIdx),
}

impl Plan {
    /// The pipeline as written.
    pub fn pipeline(&self) -> &Pipeline {
        &self.loaded.pipeline
    }

    /// The constitution.
    pub fn constitution(&self) -> Option<&Constitution> {
        self.loaded.constitution.as_ref()
    }

    /// What is written of a node.
    ///
    /// # Panics
    ///
    /// When the node is not of this plan.
    pub fn op(&self, node: &Node) -> &Op {
        self.loaded
            .pipeline
            .nodes
            .get(node.written.as_str())
            .expect("a node of the plan is written")
    }

    /// The node of that name.
    pub fn find(&self, name: &str) -> Option<NodeIdx> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// The entry of `models` that a model edge goes back to: its own, or that of the model which
    /// the training began with. `None` where a training began from scratch.
    pub fn entry(&self, edge: &ModelEdge) -> Option<&Model> {
        let mut edge = edge;
        loop {
            match edge {
                ModelEdge::Entry(name) => return self.loaded.pipeline.models.get(name.as_str()),
                ModelEdge::Node(node) => match &self.nodes[*node].step {
                    Step::Train { models, .. } => edge = models.first()?,
                    _ => return None,
                },
            }
        }
    }

    /// The name of a model edge.
    pub fn model_name<'a>(&'a self, edge: &'a ModelEdge) -> &'a str {
        match edge {
            ModelEdge::Entry(name) => name,
            ModelEdge::Node(node) => &self.nodes[*node].name,
        }
    }

    /// The nodes that a node reads or whose model it uses.
    pub fn inputs(&self, node: &Node) -> Vec<NodeIdx> {
        let model = |edge: &ModelEdge| match edge {
            ModelEdge::Node(node) => Some(*node),
            ModelEdge::Entry(_) => None,
        };
        let mut inputs = node.rows_of();
        match &node.step {
            Step::Ask(ask) => inputs.extend(model(&ask.model)),
            Step::Train { models, .. } => inputs.extend(models.iter().filter_map(model)),
            _ => {}
        }
        inputs
    }

    /// Whether `node` is `of` or is reached from it.
    pub fn reaches(&self, of: NodeIdx, node: NodeIdx) -> bool {
        node == of
            || self.inputs(&self.nodes[node]).into_iter().any(|input| self.reaches(of, input))
    }

    /// The tables that are published, each with the nodes whose rows it holds.
    pub fn tables(&self) -> IndexMap<&str, Vec<NodeIdx>> {
        let mut tables: IndexMap<&str, Vec<NodeIdx>> = IndexMap::new();
        for (at, node) in self.nodes.iter().enumerate() {
            if !matches!(node.step, Step::Union { .. }) {
                tables.entry(node.table.as_str()).or_default().push(at);
            }
        }
        tables
    }

    /// The plan of some of the nodes, among which are all that they read.
    #[must_use]
    pub fn restrict(&self, keep: impl Fn(NodeIdx) -> bool) -> Plan {
        let kept: Vec<NodeIdx> = (0..self.nodes.len()).filter(|at| keep(*at)).collect();
        let place = |old: NodeIdx| {
            kept.iter().position(|at| *at == old).expect("what a kept node reads is kept")
        };
        let nodes = kept.iter().map(|at| self.nodes[*at].moved(&place, &|old| kept.contains(&old)));
        Plan { loaded: self.loaded.clone(), nodes: nodes.collect() }
    }
}

impl Node {
    /// The nodes whose rows it reads.
    fn rows_of(&self) -> Vec<NodeIdx> {
        match &self.step {
            Step::Read => Vec::new(),
            Step::Part { of, .. } | Step::Filter { of } | Step::Train { of, .. } => vec![*of],
            Step::Union { of } | Step::Label { of } => of.clone(),
            Step::Mix { of } => of.iter().map(|input| input.of).collect(),
            Step::Ask(ask) => vec![ask.of],
        }
    }

    /// The node among nodes that stand elsewhere.
    fn moved(&self, place: &dyn Fn(NodeIdx) -> NodeIdx, kept: &dyn Fn(NodeIdx) -> bool) -> Node {
        let mut node = self.clone();
        let model = |edge: &mut ModelEdge| {
            if let ModelEdge::Node(node) = edge {
                *node = place(*node);
            }
        };
        match &mut node.step {
            Step::Read => {}
            Step::Part { of, .. } | Step::Filter { of } => *of = place(*of),
            Step::Union { of } | Step::Label { of } => {
                of.iter_mut().for_each(|of| *of = place(*of));
            }
            Step::Mix { of } => of.iter_mut().for_each(|input| input.of = place(input.of)),
            Step::Ask(ask) => {
                ask.of = place(ask.of);
                model(&mut ask.model);
                match &mut ask.chain {
                    Chain::Head { stages, .. } => {
                        stages.retain(|(node, _)| kept(*node));
                        stages.iter_mut().for_each(|(node, _)| *node = place(*node));
                    }
                    Chain::Follow { head, .. } => *head = place(*head),
                }
            }
            Step::Train { of, models } => {
                *of = place(*of);
                models.iter_mut().for_each(model);
            }
        }
        node
    }
}

/// Loads a pipeline file and plans it, or says everything that is wrong.
pub fn load(
    path: &std::path::Path,
    sets: &[String],
    environment: crate::spec::Environment<'_>,
) -> Result<Plan, Mistakes> {
    match load_partly(path, sets, environment) {
        (Some(plan), mistakes) => mistakes.into_result(plan),
        (None, mistakes) => Err(mistakes),
    }
}

/// As [`load`], but gives what could be planned beside the mistakes, so that a later layer can add
/// its own to them.
///
/// `None` only with mistakes.
pub fn load_partly(
    path: &std::path::Path,
    sets: &[String],
    environment: crate::spec::Environment<'_>,
) -> (Option<Plan>, Mistakes) {
    let (loaded, mut mistakes) = crate::spec::load_partly(path, sets, environment);
    let plan = loaded.map(|loaded| resolve(loaded, &mut mistakes));
    (plan, mistakes)
}

//! The shape of a dataflow: its nodes and edges, without the settings, which travel as data.
//!
//! Two plans of one shape differ in texts, templates, parameters and rows only: an edit from one
//! to the other is fed to the running dataflow. Another shape is another dataflow over the same
//! memo and rows.

use super::draw::Purpose;
use crate::record::Relation;

/// A node of the shape, by its place in [`Shape::nodes`].
pub type NodeIdx = usize;

/// Nodes in dependency order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// The nodes.
    pub nodes: Vec<Node>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The name, as in the plan: `revisions[1].critique`.
    pub name: String,
    /// The table that its rows are published in, which is what its rejects name.
    pub table: String,
    /// What its rows are.
    pub relation: Relation,
    /// What it does.
    pub kind: Kind,
}

/// What a node does, as far as the dataflow is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Rows come from outside.
    Source,
    /// Rows of several nodes are one collection.
    Union {
        /// The nodes.
        of: Vec<NodeIdx>,
    },
    /// A step without calls, on each row of each input. Input `i` uses stage `i` of the settings.
    Local {
        /// The inputs.
        of: Vec<NodeIdx>,
        /// Which rows are taken before the step.
        take: Take,
    },
    /// The head of a chain of spending steps: it settles, joins settings, models and draws.
    Head {
        /// The input.
        of: NodeIdx,
        /// How siblings are gathered to pairs first, if they are.
        pairs: Option<Pairs>,
        /// The draws of all stages of the chain.
        draws: Vec<DrawShape>,
        /// For each stage of the chain, the node that trains its model, if one does.
        models: Vec<Option<NodeIdx>>,
    },
    /// A further stage of a chain: fed row by row, each record final.
    Follow {
        /// The stage before.
        of: NodeIdx,
        /// Which stage of the chain it is, from 1.
        stage: usize,
    },
    /// A training.
    Train {
        /// The data set.
        of: NodeIdx,
        /// For each model it starts from or uses (init or policy, reward, test reward), the node
        /// that trains it, if one does.
        models: Vec<Option<NodeIdx>>,
    },
}

/// Which rows a local step takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Take {
    /// All.
    All,
    /// Of each input with a number, so many of the lowest rank.
    Count(Vec<Option<u64>>),
    /// One of each key.
    Dedupe,
}

/// How siblings become pairs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pairs {
    /// How many siblings a parent has.
    pub of: u64,
    /// Every pair, rather than (0,1), (2,3), ….
    pub all: bool,
}

impl Pairs {
    /// How many pairs the siblings of a parent are.
    pub fn count(&self) -> u64 {
        if self.all { self.of * self.of.saturating_sub(1) / 2 } else { self.of / 2 }
    }
}

/// A draw of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrawShape {
    /// The seed.
    pub seed: u64,
    /// What for.
    pub purpose: Purpose,
    /// The round; 0 for judgements.
    pub round: u32,
    /// How many principles.
    pub count: usize,
    /// Whether the bucket is the row's parent's: a revision draws as its critique did.
    pub of_parent: bool,
    /// Whether principles of earlier draws of the chain are left out.
    pub fresh: bool,
}

//! What travels between the stages of a chain: what is to be acted on, and what came of it.

use differential_dataflow::VecCollection;
use serde::{Deserialize, Serialize};

use super::rows::Rec;
use super::time::Time;
use crate::record::Id;

/// A collection of the engine.
pub(super) type Coll<'s, D> = VecCollection<'s, Time, D, isize>;

/// A row that a stage is to act on.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub(super) struct Ask {
    /// The row; of a pair, the pair.
    pub(super) row: Id,
    /// What the step reads: a content, a version (local steps), or a pair of contents.
    pub(super) content: Id,
    /// What the row at the head of the chain says.
    pub(super) head: Id,
    /// Settings, models and principles.
    pub(super) context: Id,
    /// Which of the rows made of this one; for a local step, which input it came by.
    pub(super) index: u64,
}

/// What a stage made of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) enum Made {
    /// A row, and what the next stage of the chain is to act on.
    Row(Rec, Ask),
    /// A reject.
    Reject(Rec),
    /// A row that was left out on purpose.
    Dropped(Id, u64),
}

impl Default for Made {
    fn default() -> Made {
        Made::Dropped(Id::ZERO, 0)
    }
}

impl Ask {
    /// What the next stage of the chain is to act on: the row that came of this one.
    pub(super) fn next(&self, rec: Rec) -> Ask {
        Ask { row: rec.row, content: rec.content, head: self.head, context: self.context, index: 0 }
    }
}

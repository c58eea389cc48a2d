//! A row at work: what is known of it, what it waits for, what comes of a step.

use std::sync::Arc;

use crate::engine::ask::{Ask, Made};
use crate::engine::context::{Context, Stage};
use crate::engine::dispatch::Outcome;
use crate::engine::rows::{Rows, Slot};
use crate::engine::time::Time;
use crate::model::{Answer, Request};
use crate::operators::{Input, Out};
use crate::record::{BatchBuilder, CallKey, Cell, Id, Origin};

/// A row being worked on, or worked on and standing.
pub(super) enum Task {
    Pending(Box<Pending>),
    Done(Made),
}

/// A row that waits for answers.
pub(super) struct Pending {
    pub(super) time: Time,
    /// The finished turns.
    pub(super) turns: Vec<Vec<Answer>>,
    /// What the requests of this turn came to, as far as they did.
    pub(super) replies: Vec<Option<Outcome>>,
    /// The requests of this turn that nothing came for.
    pub(super) waiting: Vec<(u64, CallKey)>,
    /// Every request so far.
    pub(super) keys: Vec<CallKey>,
    /// The row's place and what its step reads, once they were looked up.
    pub(super) at_hand: Option<(Place, Slots)>,
}

/// Everything about a row and its stage that does not change while answers come.
pub(super) struct Place {
    pub(super) ask: Ask,
    pub(super) context: Arc<Context>,
    pub(super) stage: Stage,
    pub(super) parents: Vec<Id>,
    pub(super) made: Id,
}

impl Place {
    /// What a step is given.
    pub(super) fn input<'a>(&'a self, slots: &'a Slots, turns: &'a [Vec<Answer>]) -> Input<'a> {
        Input {
            row: slots.row.row(),
            other: slots.other.as_ref().map(Slot::row),
            head: slots.head.as_ref().unwrap_or(&slots.row).row(),
            row_id: self.ask.row,
            made_id: self.made,
            index: self.ask.index,
            drawn: self.context.drawn(&self.stage),
            model: self.stage.model.as_ref(),
            turns,
        }
    }

    /// Whether the stage draws principles and none could be drawn for the row.
    pub(super) fn lacks_principles(&self) -> bool {
        self.stage.draw.is_some() && self.context.drawn(&self.stage).is_empty()
    }

    /// Where the row that is made comes from.
    pub(super) fn origin(&self, rows: &Rows, keys: &[CallKey]) -> Origin {
        Origin {
            row_id: self.made,
            root_id: rows.lineage(self.ask.row).root,
            parents: self.parents.clone(),
            call_keys: keys.iter().map(CallKey::id).collect(),
        }
    }
}

/// What came of a step.
pub(super) enum Stepped {
    Asks(Vec<Request>),
    Made(Made),
}

/// The rows that a step reads.
pub(super) struct Slots {
    pub(super) row: Slot,
    pub(super) other: Option<Slot>,
    pub(super) head: Option<Slot>,
}

impl Pending {
    /// A row of which nothing was asked yet.
    pub(super) fn new(time: Time) -> Pending {
        Pending {
            time,
            turns: Vec::new(),
            replies: Vec::new(),
            waiting: Vec::new(),
            keys: Vec::new(),
            at_hand: None,
        }
    }

    /// The replies of this turn, all of which came, are one turn more; or the first failure among
    /// them, in the order of the requests and not in that of the replies.
    pub(super) fn close_turn(&mut self) -> Result<(), Outcome> {
        let replies = std::mem::take(&mut self.replies).into_iter();
        let turn = replies.map(|reply| match reply.expect("every reply came") {
            Outcome::Answer(answer) => Ok(Arc::unwrap_or_clone(answer)),
            failure => Err(failure),
        });
        self.turns.push(turn.collect::<Result<_, _>>()?);
        Ok(())
    }

    /// Whether a reply of this turn is not known, in a plan.
    pub(super) fn is_unknown(&self) -> bool {
        self.replies.iter().any(|reply| matches!(reply, Some(Outcome::Unknown)))
    }
}

/// Takes the row that a step makes.
pub(super) struct RowSink<'a> {
    pub(super) builder: &'a mut BatchBuilder,
    pub(super) origin: &'a dyn Fn() -> Origin,
    pub(super) made: Option<(Id, Id)>,
}

impl Out for RowSink<'_> {
    fn row(&mut self, cells: &[(&'static str, Cell<'_>)]) {
        assert!(self.made.is_none(), "a step makes one row");
        self.made = Some(self.builder.push(&(self.origin)(), cells));
    }
}

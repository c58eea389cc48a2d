//! Rows that are lost: why, and what was asked of them.

use super::Caller;
use super::row::{Pending, Place};
use crate::engine::ask::Made;
use crate::engine::dispatch::Outcome;
use crate::engine::rows::Rec;
use crate::model::{Answer, Request};
use crate::operators::{Out, Reason, Reject, Step, reject_id};
use crate::record::Cell;

impl Caller {
    pub(super) fn fail(&mut self, place: &Place, pending: &Pending, failure: &Outcome) {
        let (reason, detail) = match failure {
            Outcome::Permanent { message, too_long: true } => (Reason::TooLong, message),
            Outcome::Permanent { message, too_long: false } => (Reason::HttpPermanent, message),
            Outcome::Transient { message } => (Reason::HttpTransient, message),
            Outcome::Answer(_) | Outcome::Unknown => unreachable!("neither ends a row as failed"),
        };
        let reject = Reject { reason, detail: detail.clone(), answer: None };
        let made = self.reject(place, pending, reject);
        self.finish(place.ask, pending.time, made);
    }

    /// The reject of a row that too few principles can be drawn for.
    pub(super) fn no_principle(&mut self, place: &Place, pending: &Pending) -> Made {
        let detail = "too few principles can be drawn for it: see the selector of the node, its `draws` and `replacement`".to_owned();
        self.reject(place, pending, Reject { reason: Reason::NoPrinciple, detail, answer: None })
    }

    /// What the last request of a row was: steps are functions, so it can be had again.
    fn last_request(&self, place: &Place, turns: &[Vec<Answer>]) -> Option<String> {
        let operator = &place.stage.operator;
        if operator.calls_max() == 0 || place.ask.content.is_unknown() || place.lacks_principles() {
            return None;
        }
        let slots = self.slots(&place.ask);
        let asked = |turns: &[Vec<Answer>]| {
            let step = operator.step(place.input(&slots, turns), &mut Nowhere);
            match step {
                Step::Ask(requests) => requests.last().map(Request::json),
                _ => None,
            }
        };
        asked(turns).or_else(|| asked(turns.split_last()?.1))
    }

    pub(super) fn reject(&mut self, place: &Place, pending: &Pending, reject: Reject) -> Made {
        let keys = &pending.keys;
        let request = self.last_request(place, &pending.turns);
        let principle = place.context.drawn(&place.stage).first().map(|drawn| drawn.id.to_string());
        let cells = [
            ("node", Cell::text(self.spec.table.clone())),
            ("reason", Cell::text(reject.reason.name())),
            ("detail", Cell::text(reject.detail)),
            ("round", Cell::or_null(place.stage.operator.round(), Cell::Int)),
            ("principle_id", Cell::or_null(principle, Cell::text)),
            ("call_key", Cell::or_null(keys.last(), |key| Cell::id(key.id()))),
            ("request", Cell::or_null(request, Cell::text)),
            ("answer", Cell::or_null(reject.answer, Cell::text)),
        ];
        let mut origin = place.origin(&self.shared.rows, keys);
        // A row of that id may be at another node, made or lost.
        origin.row_id = reject_id(place.made, &self.spec.name, 0);
        let (content, version) = self.rejects.push(&origin, &cells);
        Made::Reject(Rec { row: origin.row_id, content, version })
    }
}

/// Takes a row that nobody wants.
struct Nowhere;

impl Out for Nowhere {
    fn row(&mut self, _cells: &[(&'static str, Cell<'_>)]) {}
}

//! The call operator: runs the steps of a node over its rows, and asks what they ask.
//!
//! One hand-written timely operator, with nothing asynchronous inside. It holds one capability a
//! time. At the head of a chain it *settles*: a join shows half-joined rows within a time, so
//! records are kept until the frontier has passed theirs and only what is left then is spent on.
//! Further down a chain each record is final and acted on at once. A row that is retracted while
//! its call is queued cancels the call; one that is retracted later is retracted downstream as
//! the very record that was emitted.

mod lost;
mod row;

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};
use differential_dataflow::{AsCollection, consolidation};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::operator::Operator as _;

use super::ask::{Ask, Coll, Made};
use super::bell::Bell;
use super::dispatch::{Outcome, Waiter};
use super::rows::{Lineage, Rec};
use super::shared::Shared;
use super::time::{self, Time};
use crate::model::Request;
use crate::operators::{Step, made_id};
use crate::record::{BatchBuilder, Id, IdMap, KeyHasher, Relation};
use row::{Pending, Place, RowSink, Slots, Stepped, Task};

/// What a call operator is, but for its input.
#[derive(Clone)]
pub(super) struct Spec {
    /// The node, in plan order.
    pub(super) node: usize,
    /// Its name.
    pub(super) name: String,
    /// The table that its rows are published in.
    pub(super) table: String,
    /// Which stage of the context it runs; a local step runs the stage of its input.
    pub(super) stage: Option<usize>,
    /// Whether records must settle first.
    pub(super) settle: bool,
    /// Whether rows are pairs.
    pub(super) pairs: bool,
}

/// Runs the steps of a node over the rows it is asked to act on.
pub(super) fn call<'s>(input: Coll<'s, Ask>, spec: Spec, shared: &Arc<Shared>) -> Coll<'s, Made> {
    let scope = input.scope();
    let shared = Arc::clone(shared);
    let name = spec.name.clone();
    let exchange = Exchange::new(|record: &(Ask, Time, isize)| record.0.row.low());
    let stream = input.inner.unary_frontier::<CapacityContainerBuilder<Vec<_>>, _, _, _>(
        exchange,
        &name,
        move |_capability, info| {
            let bell = Bell::new(scope.worker().sync_activator_for(info.address.to_vec()));
            let mut caller = Caller::new(spec, shared, Arc::new(bell));
            move |(input, frontier), output| {
                caller.bell.heard();
                let latest = caller.shared.latest_epoch();
                caller.superseded = frontier.less_equal(&time::first(latest)).then_some(latest);
                caller.take_replies();
                input.for_each_stamp(|capability, data| {
                    let Some(capability) = capability.retain_least(output.output_index()) else {
                        return;
                    };
                    for (ask, time, diff) in data.flat_map(|batch| batch.drain(..)) {
                        caller.stash(&capability, ask, time, diff);
                    }
                });
                while let Some((time, asks)) = caller.unstash(|time| frontier.less_equal(time)) {
                    caller.act(time, asks);
                }
                caller.resume();
                for (time, made) in caller.flush() {
                    let (capability, _) = &caller.times[&time];
                    output.session(capability).give_iterator(made.into_iter());
                }
                caller.release();
            }
        },
    );
    stream.as_collection()
}

/// How many rows are begun before replies are looked for.
const AT_ONCE: usize = 64;

/// How many rows are made before they are kept.
const KEPT_AT_ONCE: usize = 1024;

struct Caller {
    spec: Spec,
    shared: Arc<Shared>,
    bell: Arc<Bell>,
    sender: Sender<(u64, Outcome)>,
    receiver: Receiver<(u64, Outcome)>,
    stashed: BTreeMap<Time, Vec<(Ask, isize)>>,
    /// A capability a time, with the number of rows that wait at it.
    times: BTreeMap<Time, (Capability<Time>, usize)>,
    tasks: IdMap<Ask, Task>,
    tickets: IdMap<u64, (Ask, usize)>,
    next_ticket: u64,
    rows: Option<BatchBuilder>,
    rejects: BatchBuilder,
    made: BTreeMap<Time, Vec<(Made, Time, isize)>>,
    /// While a later edit is accepted and what it retracts is not yet known: that edit's epoch.
    superseded: Option<u64>,
    /// Rows of earlier epochs that wait for it before they ask anything more.
    deferred: Vec<Ask>,
}

impl Caller {
    fn new(spec: Spec, shared: Arc<Shared>, bell: Arc<Bell>) -> Caller {
        let (sender, receiver) = unbounded();
        Caller {
            spec,
            shared,
            bell,
            sender,
            receiver,
            stashed: BTreeMap::new(),
            times: BTreeMap::new(),
            tasks: IdMap::default(),
            tickets: IdMap::default(),
            next_ticket: 0,
            rows: None,
            rejects: BatchBuilder::new(Relation::Rejects),
            made: BTreeMap::new(),
            superseded: None,
            deferred: Vec::new(),
        }
    }

    /// Goes on with rows that an edit has turned out not to retract.
    fn resume(&mut self) {
        if self.superseded.is_some() {
            return;
        }
        for ask in std::mem::take(&mut self.deferred) {
            if let Some(Task::Pending(pending)) = self.tasks.get(&ask)
                && pending.waiting.is_empty()
            {
                let Some(Task::Pending(pending)) = self.tasks.remove(&ask) else {
                    unreachable!("it was just seen")
                };
                self.hold(pending.time, -1);
                self.advance(ask, *pending);
            }
        }
    }

    fn stash(&mut self, capability: &Capability<Time>, ask: Ask, time: Time, diff: isize) {
        self.times.entry(time).or_insert_with(|| (capability.delayed(&time), 0));
        self.stashed.entry(time).or_default().push((ask, diff));
    }

    /// The first time's records, consolidated, if they may be acted on.
    fn unstash(&mut self, may_come: impl Fn(&Time) -> bool) -> Option<(Time, Vec<(Ask, isize)>)> {
        let time = *self.stashed.keys().next()?;
        if self.spec.settle && may_come(&time) {
            return None;
        }
        let mut asks = self.stashed.remove(&time)?;
        consolidation::consolidate(&mut asks);
        self.shared.count_records(self.spec.node, asks.len());
        Some((time, asks))
    }

    fn act(&mut self, time: Time, asks: Vec<(Ask, isize)>) {
        for (ask, diff) in asks.iter().filter(|(_, diff)| *diff < 0) {
            assert_eq!(*diff, -1, "a row is there once");
            self.retract(time, ask);
        }
        for (at, (ask, diff)) in asks.iter().filter(|(_, diff)| *diff > 0).enumerate() {
            assert_eq!(*diff, 1, "a row is there once");
            self.advance(*ask, Pending::new(time));
            // What has come is done with while it is in the processor's caches.
            if at % AT_ONCE == AT_ONCE - 1 {
                self.take_replies();
            }
        }
    }

    fn retract(&mut self, time: Time, ask: &Ask) {
        match self.tasks.remove(ask).expect("what is retracted was there") {
            Task::Done(made) => self.emit(time, made, -1),
            // Nothing was emitted for it, and nothing will be: its history is rewritten to absent,
            // which is sound because only a whole epoch is ever read.
            Task::Pending(mut pending) => {
                self.abandon(&mut pending);
                self.hold(pending.time, -1);
            }
        }
    }

    /// Waits no more, and takes back what is not yet sent.
    fn abandon(&mut self, pending: &mut Pending) {
        for (ticket, key) in pending.waiting.drain(..) {
            self.tickets.remove(&ticket);
            self.shared.dispatcher.cancel(&key, ticket, &self.bell);
        }
    }

    fn hold(&mut self, time: Time, more: isize) {
        let held = &mut self.times.get_mut(&time).expect("a time that is acted on is held").1;
        *held = held.checked_add_signed(more).expect("a time is held once a waiting row");
    }

    /// Takes a row as far as it goes without waiting.
    fn advance(&mut self, ask: Ask, mut pending: Pending) {
        let (place, slots) = match pending.at_hand.take() {
            Some(at_hand) => at_hand,
            None if ask.content.is_unknown() || ask.context.is_unknown() => {
                return self.guess(&self.place(ask), &pending);
            }
            None => (self.place(ask), self.slots(&ask)),
        };
        loop {
            let requests = match self.step(&place, &slots, &pending) {
                Stepped::Asks(requests) => requests,
                Stepped::Made(made) => return self.finish(ask, pending.time, made),
            };
            assert!(!requests.is_empty(), "a step that asks asks something");
            if self.superseded.is_some_and(|latest| time::epoch(pending.time) < latest) {
                self.deferred.push(ask);
                pending.at_hand = Some((place, slots));
                return self.wait(ask, pending);
            }
            self.request(&place, &mut pending, requests);
            if pending.is_unknown() {
                return self.guess(&place, &pending);
            }
            if !pending.waiting.is_empty() {
                pending.at_hand = Some((place, slots));
                return self.wait(ask, pending);
            }
            if let Err(failure) = pending.close_turn() {
                return self.fail(&place, &pending, &failure);
            }
        }
    }

    fn wait(&mut self, ask: Ask, pending: Pending) {
        self.hold(pending.time, 1);
        self.tasks.insert(ask, Task::Pending(Box::new(pending)));
    }

    fn place(&self, ask: Ask) -> Place {
        let context = self.shared.contexts.get(ask.context);
        let at = self.spec.stage.unwrap_or(ask.index as usize);
        let stage = context.stages.stage(at).clone();
        let parents = match self.spec.pairs {
            true => self.shared.rows.lineage(ask.row).parents.clone(),
            false => vec![ask.row],
        };
        let sibling = stage.operator.sibling(ask.index);
        let made = match stage.operator.role() {
            None => ask.row,
            Some(role) => {
                let (rows, made) = (&self.shared.rows, made_id(role, &parents, sibling));
                let root = || rows.lineage(ask.row).root;
                rows.descend(made, || Lineage { root: root(), parents: parents.clone(), sibling });
                made
            }
        };
        Place { ask, context, stage, parents, made }
    }

    fn slots(&self, ask: &Ask) -> Slots {
        let slot = |id: Id| self.shared.rows.get(id).unwrap_or_else(|| panic!("{id} is kept"));
        let (row, other) = match self.spec.pairs {
            true => {
                let (a, b) = self.shared.rows.pair(ask.content).expect("a pair is kept");
                (slot(a), Some(slot(b)))
            }
            false => (slot(ask.content), None),
        };
        let head = (ask.head != ask.content).then(|| slot(ask.head));
        Slots { row, other, head }
    }

    /// One step: the requests it makes, or what it made.
    fn step(&mut self, place: &Place, slots: &Slots, pending: &Pending) -> Stepped {
        if place.lacks_principles() {
            return Stepped::Made(self.no_principle(place, pending));
        }
        let (ask, operator) = (&place.ask, &place.stage.operator);
        let input = place.input(slots, &pending.turns);
        let rows = &self.shared.rows;
        let origin = || {
            let mut origin = place.origin(rows, &pending.keys);
            if operator.role().is_none() {
                origin.parents = slots.row.row().ids("parents");
                origin.call_keys = slots.row.row().ids("call_keys");
            }
            origin
        };
        let relation = operator.relation();
        let builder = self.rows.get_or_insert_with(|| BatchBuilder::new(relation));
        let mut sink = RowSink { builder, origin: &origin, made: None };
        let step = operator.step(input, &mut sink);
        let made = sink.made;
        match step {
            Step::Ask(requests) => Stepped::Asks(requests),
            Step::Drop => Stepped::Made(Made::Dropped(place.made, ask.index)),
            Step::Reject(reject) => Stepped::Made(self.reject(place, pending, reject)),
            Step::Done => {
                let (content, version) = made.expect("a step that is done made a row");
                let rec = Rec { row: place.made, content, version };
                Stepped::Made(Made::Row(rec, ask.next(rec)))
            }
        }
    }

    /// Asks. A turn is asked whole and waited for whole, whatever becomes of one of its requests: how
    /// many calls a run makes, and which failure a reject names, does not depend on what came first.
    fn request(&mut self, place: &Place, pending: &mut Pending, requests: Vec<Request>) {
        let model = place.stage.model.as_ref().expect("an operator that asks has a model");
        pending.replies = vec![None; requests.len()];
        for (at, request) in requests.into_iter().enumerate() {
            self.next_ticket += 1;
            let ticket = self.next_ticket;
            let waiter =
                || Waiter { replies: self.sender.clone(), bell: Arc::clone(&self.bell), ticket };
            let dispatcher = &self.shared.dispatcher;
            let (key, outcome) = dispatcher.ask(self.spec.node, model, request, waiter);
            pending.keys.push(key);
            match outcome {
                None => {
                    self.tickets.insert(ticket, (place.ask, at));
                    pending.waiting.push((ticket, key));
                }
                outcome => pending.replies[at] = outcome,
            }
        }
    }

    /// In a plan: what the row becomes depends on answers not yet known.
    fn guess(&mut self, place: &Place, pending: &Pending) {
        let asked = pending.keys.len() as u64;
        let may_ask = place.stage.operator.calls_max().saturating_sub(asked);
        if may_ask > 0 {
            self.shared.dispatcher.may_ask(self.spec.node, may_ask);
        }
        let mut hasher = KeyHasher::new("amend/unknown/1");
        hasher.add_id(place.made);
        hasher.add_id(place.ask.content);
        hasher.add_id(place.ask.context);
        let unknown = hasher.id().unknown();
        let rec = Rec { row: place.made, content: unknown, version: unknown };
        self.finish(place.ask, pending.time, Made::Row(rec, place.ask.next(rec)));
    }

    fn finish(&mut self, ask: Ask, time: Time, made: Made) {
        if self.rows.as_ref().is_some_and(|builder| builder.len() >= KEPT_AT_ONCE) {
            self.keep_rows();
        }
        self.tasks.insert(ask, Task::Done(made));
        self.emit(time, made, 1);
    }

    fn emit(&mut self, time: Time, made: Made, diff: isize) {
        self.made.entry(time).or_default().push((made, time, diff));
    }

    /// Takes the replies that came.
    fn take_replies(&mut self) {
        while let Ok((ticket, outcome)) = self.receiver.try_recv() {
            let Some((ask, at)) = self.tickets.remove(&ticket) else { continue };
            let Some(Task::Pending(mut pending)) = self.tasks.remove(&ask) else {
                unreachable!("a ticket belongs to a row that waits")
            };
            pending.waiting.retain(|(waiting, _)| *waiting != ticket);
            pending.replies[at] = Some(outcome);
            if !pending.waiting.is_empty() {
                self.tasks.insert(ask, Task::Pending(pending));
                continue;
            }
            self.hold(pending.time, -1);
            match pending.close_turn() {
                Ok(()) => self.advance(ask, *pending),
                Err(failure) => self.fail(&self.place(ask), &pending, &failure),
            }
        }
    }

    fn keep_rows(&mut self) {
        if let Some(builder) = self.rows.take_if(|builder| !builder.is_empty()) {
            let (batch, ids) = builder.finish();
            self.shared.rows.keep(batch, &ids);
        }
    }

    /// What was made, by time; the rows are kept before anybody hears of them.
    fn flush(&mut self) -> BTreeMap<Time, Vec<(Made, Time, isize)>> {
        self.keep_rows();
        if !self.rejects.is_empty() {
            let empty = BatchBuilder::new(Relation::Rejects);
            let (batch, ids) = std::mem::replace(&mut self.rejects, empty).finish();
            self.shared.rows.keep(batch, &ids);
        }
        std::mem::take(&mut self.made)
    }

    /// Lets go of the times at which nothing waits any more.
    fn release(&mut self) {
        let stashed = &self.stashed;
        self.times.retain(|time, (_, waiting)| *waiting > 0 || stashed.contains_key(time));
    }
}

impl Drop for Caller {
    /// The dataflow ends before its rows are done: what waits in a queue is not to be paid for.
    fn drop(&mut self) {
        for (_, task) in std::mem::take(&mut self.tasks) {
            if let Task::Pending(mut pending) = task {
                self.abandon(&mut pending);
            }
        }
    }
}

//! The dispatcher: one place through which every call of every node and worker goes.
//!
//! It looks a request's key up in the memo, lets equal keys wait for one call, queues the misses
//! by model with downstream nodes first, keeps at most `max_in_flight` of a model under way, and
//! tells an answer only after it is durable. In a plan it makes no call and counts.

mod ending;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crossbeam_channel::Sender;
use indexmap::IndexMap;

use super::bell::Bell;
pub use super::budget::Limits;
use super::budget::Spent;
use super::estimate::Volume;
use super::streak::Streak;
pub use super::tally::Calls;
use super::tally::Tally;
use crate::model::{Answer, Backend, Billed, CacheBytes, Meter, Request, Waiting, told_once};
use crate::operators::ModelRef;
use crate::record::{CallKey, Id, IdMap};
use ending::Failed;

/// What a call came to.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// An answer, which is durable.
    Answer(Arc<Answer>),
    /// The request will never be answered; that is durable too.
    Permanent {
        /// What the server said.
        message: String,
        /// Whether the prompt is longer than the model's context.
        too_long: bool,
    },
    /// Retries are exhausted; the next run asks again.
    Transient {
        /// What the server said.
        message: String,
    },
    /// A plan cannot know.
    Unknown,
}

/// A finished call, for the memo.
pub struct Finished {
    /// The call key.
    pub key: CallKey,
    /// The model asked.
    pub model: ModelRef,
    /// What its answers depend on besides the request: see [`Models::identity`].
    pub identity: Id,
    /// What it was asked.
    pub request: Arc<Request>,
    /// The answer, or why there will never be one.
    pub outcome: Result<Arc<Answer>, Refused>,
}

/// Why there will never be an answer: status, message, whether the prompt was too long.
pub type Refused = (Option<u16>, String, bool);

/// Told when what was remembered is durable.
pub type Durable = Box<dyn FnOnce(Result<(), String>) + Send>;

/// The durable record of finished calls, as the engine sees it.
pub trait Memory: Send + Sync {
    /// What a call came to, if it was made.
    fn recall(&self, key: &CallKey) -> Option<Outcome>;

    /// Writes a finished call, and calls `durable` once it cannot be lost any more.
    fn remember(&self, finished: Finished, durable: Durable);
}

/// Finds the backend of a model: of an entry of `models`, or of a checkpoint that a node trained.
pub trait Models: Send + Sync {
    /// The backend; opened the first time that a call is really made.
    fn backend(&self, model: &ModelRef) -> Result<Arc<dyn Backend>, String>;

    /// What the model's answers depend on besides the request: its fingerprint, and how it is run
    /// where that is not as usual (number format, chat template and its arguments).
    fn identity(&self, model: &ModelRef) -> Id {
        model.fingerprint
    }
}

/// Where an outcome is to be told: a ticket of the asking operator, which is woken.
#[derive(Clone)]
pub(super) struct Waiter {
    pub(super) replies: Sender<(u64, Outcome)>,
    pub(super) bell: Arc<Bell>,
    pub(super) ticket: u64,
}

impl Waiter {
    fn tell(&self, outcome: Outcome) {
        // The operator is gone when a run is being stopped: then nobody is to be told.
        if self.replies.send((self.ticket, outcome)).is_ok() {
            self.bell.ring();
        }
    }
}

/// What the calls of a run came to so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Calls under way.
    pub in_flight: usize,
    /// Calls made.
    pub made: u64,
    /// Calls that the memo had.
    pub memo: u64,
    /// Requests that are charged for.
    pub requests: u64,
    /// Tokens read and written.
    pub tokens: u64,
    /// US dollars.
    pub cost_usd: f64,
    /// What the local models hold.
    pub cache_bytes: CacheBytes,
    /// A server that does not answer, if one does not.
    pub waiting: Option<Waiting>,
}

/// Whether calls are made or counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Calls are made.
    Live,
    /// Calls are counted.
    Plan,
}

struct Pending {
    request: Arc<Request>,
    model: ModelRef,
    waiters: Vec<Waiter>,
    started: bool,
    /// What it may take, set aside while it is under way.
    reserved: Spent,
}

#[derive(Default)]
struct Queue {
    /// By node, last first, then by arrival.
    waiting: BTreeMap<(std::cmp::Reverse<usize>, u64), CallKey>,
    in_flight: usize,
    backend: Option<Arc<dyn Backend>>,
    streak: Streak,
    /// Failures of which it is not known yet whether they are their rows' or the model's.
    held: Vec<(CallKey, Failed)>,
}

/// The name and fingerprint of a model.
type QueueKey = (Arc<str>, u128);

fn queue_of(model: &ModelRef) -> QueueKey {
    (Arc::clone(&model.name), model.fingerprint.bits())
}

#[derive(Default)]
struct Inner {
    pending: IdMap<CallKey, Pending>,
    queues: IndexMap<QueueKey, Queue>,
    tally: Tally,
    failed: IdMap<CallKey, String>,
    arrivals: u64,
    started: u64,
    recalled: u64,
    spent: Spent,
    /// What the calls under way may take.
    reserved: Spent,
    /// Of the calls made, to know how many tokens a prompt has.
    read: Volume,
    stop: Option<String>,
}

/// The dispatcher. Shared by all workers and by the threads of the models.
pub struct Dispatcher {
    memory: Arc<dyn Memory>,
    models: Arc<dyn Models>,
    mode: Mode,
    limits: Limits,
    cost: Box<dyn Fn(&str, &Answer) -> f64 + Send + Sync>,
    stopped: AtomicBool,
    inner: Mutex<Inner>,
}

type Start = (CallKey, Arc<Request>, Arc<dyn Backend>);

/// Charges what failed attempts of one call take.
struct CallMeter {
    dispatcher: Arc<Dispatcher>,
    key: CallKey,
}

impl Meter for CallMeter {
    fn failed(&self, billed: Billed) -> bool {
        self.dispatcher.charge(&self.key, billed)
    }

    fn is_wanted(&self) -> bool {
        !self.dispatcher.stopped.load(Ordering::Acquire)
    }
}

impl Dispatcher {
    /// A dispatcher over a memo and models; `cost` is the price of an answer of a model, by name.
    pub fn new(
        memory: Arc<dyn Memory>,
        models: Arc<dyn Models>,
        mode: Mode,
        limits: Limits,
        cost: Box<dyn Fn(&str, &Answer) -> f64 + Send + Sync>,
    ) -> Arc<Dispatcher> {
        let (stopped, inner) = (AtomicBool::new(false), Mutex::default());
        Arc::new(Dispatcher { memory, models, mode, limits, cost, stopped, inner })
    }

    /// Whether calls are made or counted.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of the dispatcher panics")
    }

    /// Asks for node `node`. Either the outcome is known at once, or the waiter will be told.
    pub(super) fn ask(
        self: &Arc<Self>,
        node: usize,
        model: &ModelRef,
        request: Request,
        waiter: impl FnOnce() -> Waiter,
    ) -> (CallKey, Option<Outcome>) {
        let key = request.key(self.models.identity(model));
        let mut inner = self.lock();
        if let Some(message) = inner.failed.get(&key) {
            let outcome = Outcome::Transient { message: message.clone() };
            inner.tally.needed(&key, node);
            return (key, Some(outcome));
        }
        if let Some(pending) = inner.pending.get_mut(&key) {
            pending.waiters.push(waiter());
            inner.tally.asked(key, node);
            return (key, None);
        }
        if let Some(outcome) = self.recall(&key) {
            let is_first = inner.tally.recalled(key, node);
            if let (Mode::Plan, true, Outcome::Answer(answer)) = (self.mode, is_first, &outcome)
                && !answer.estimated_usage
            {
                inner.tally.estimate(node).made += Volume::made(&request, answer);
            }
            inner.recalled += 1;
            return (key, Some(outcome));
        }
        let is_first = inner.tally.asked(key, node);
        if self.mode == Mode::Plan {
            if is_first {
                inner.tally.estimate(node).wanted += Volume::wanted(&request);
            }
            return (key, Some(Outcome::Unknown));
        }
        let waiters = vec![waiter()];
        let (request, model) = (Arc::new(request), model.clone());
        let queue = queue_of(&model);
        inner.pending.insert(
            key,
            Pending { request, model, waiters, started: false, reserved: Spent::default() },
        );
        inner.arrivals += 1;
        let place = (std::cmp::Reverse(node), inner.arrivals);
        inner.queues.entry(queue.clone()).or_default().waiting.insert(place, key);
        let starts = self.pump(&mut inner, &queue);
        drop(inner);
        self.start(starts);
        (key, None)
    }

    fn recall(&self, key: &CallKey) -> Option<Outcome> {
        let outcome = self.memory.recall(key)?;
        let failed = matches!(outcome, Outcome::Permanent { .. });
        (!(failed && self.limits.retry_rejects)).then_some(outcome)
    }

    /// In a plan: a row of the node is not known and may need so many calls.
    pub(super) fn may_ask(&self, node: usize, calls: u64) {
        self.lock().tally.may_ask(node, calls);
    }

    /// The row that asked is gone: the call is not made, unless it is under way or others wait.
    pub(super) fn cancel(&self, key: &CallKey, ticket: u64, bell: &Arc<Bell>) {
        let mut inner = self.lock();
        let Some(pending) = inner.pending.get_mut(key) else { return };
        pending
            .waiters
            .retain(|waiter| waiter.ticket != ticket || !Arc::ptr_eq(&waiter.bell, bell));
        if pending.waiters.is_empty() && !pending.started {
            inner.pending.remove(key);
            inner.tally.cancelled(key);
        }
    }

    /// The most that one attempt at a call may take. How many tokens its prompt has is known by those
    /// of other calls alone.
    fn most(&self, pending: &Pending, backend: &dyn Backend, read: &Volume) -> Spent {
        let mut most = backend.most(&pending.request);
        // No text has more tokens than bytes; of texts like those read, half as many again is much.
        let a_byte = if read.read == 0 { 1.0 } else { (1.5 * read.tokens_a_byte()).min(1.0) };
        most.prompt_tokens = (f64::from(most.prompt_tokens) * a_byte).ceil() as u32;
        self.price(&pending.model, most)
    }

    /// What requests to a model come to.
    fn price(&self, model: &ModelRef, billed: Billed) -> Spent {
        let count = |tokens: u32| i32::try_from(tokens).unwrap_or(i32::MAX);
        let answer = Answer {
            prompt_tokens: count(billed.prompt_tokens),
            completion_tokens: count(billed.completion_tokens),
            ..Answer::default()
        };
        Spent {
            requests: u64::from(billed.requests),
            tokens: u64::from(billed.prompt_tokens) + u64::from(billed.completion_tokens),
            usd: (self.cost)(&model.name, &answer),
        }
    }

    /// A failed attempt of a call under way is paid for. Whether another may be made.
    fn charge(&self, key: &CallKey, billed: Billed) -> bool {
        let mut inner = self.lock();
        let pending = inner.pending.get(key).expect("a call under way stays pending");
        let (spent, next) = (self.price(&pending.model, billed), pending.reserved);
        inner.spent += spent;
        inner.tally.charged(key, spent.tokens);
        let mut others = inner.reserved;
        others -= next;
        if let Some(reason) = self.limits.exceeded(inner.spent, others, next) {
            self.stop_locked(&mut inner, reason);
        }
        inner.stop.is_none()
    }

    /// Takes from a model's queue what may be started now.
    fn pump(&self, inner: &mut Inner, queue: &(Arc<str>, u128)) -> Vec<Start> {
        let mut starts = Vec::new();
        while inner.stop.is_none() {
            let state = inner.queues.get_mut(queue).expect("a model that is asked has a queue");
            let Some((place, key)) = state.waiting.first_key_value() else { break };
            let (place, key) = (*place, *key);
            let Some(pending) = inner.pending.get_mut(&key).filter(|pending| !pending.started)
            else {
                state.waiting.remove(&place);
                continue;
            };
            if state.backend.is_none() {
                match self.models.backend(&pending.model) {
                    Ok(backend) => {
                        state.streak = Streak::new(backend.has_answered());
                        state.backend = Some(backend);
                    }
                    Err(message) => {
                        self.stop_locked(inner, message);
                        break;
                    }
                }
            }
            let backend = Arc::clone(state.backend.as_ref().expect("it was just opened"));
            if state.in_flight >= backend.max_in_flight().max(1) {
                break;
            }
            let next = self.most(pending, backend.as_ref(), &inner.read);
            if let Some(reason) = self.limits.exceeded(inner.spent, inner.reserved, next) {
                // What is under way may take less than is set aside for it.
                if inner.reserved == Spent::default() {
                    self.stop_locked(inner, reason);
                }
                break;
            }
            pending.reserved = next;
            inner.reserved += next;
            pending.started = true;
            state.waiting.remove(&place);
            state.in_flight += 1;
            inner.started += 1;
            starts.push((key, Arc::clone(&pending.request), backend));
        }
        starts
    }

    fn start(self: &Arc<Self>, starts: Vec<Start>) {
        for (key, request, backend) in starts {
            let this = Arc::clone(self);
            let meter = Arc::new(CallMeter { dispatcher: Arc::clone(self), key });
            let done = told_once(move |result| this.answered(key, result));
            backend.submit_metered(request, meter, done);
        }
    }

    /// Stops the run: nothing more is started, and what is under way is still remembered.
    pub fn stop(&self, reason: String) {
        self.stop_locked(&mut self.lock(), reason);
    }

    fn stop_locked(&self, inner: &mut Inner, reason: String) {
        inner.stop.get_or_insert(reason);
        self.stopped.store(true, Ordering::Release);
    }

    /// Why the run was stopped, if it was.
    pub fn stopped(&self) -> Option<String> {
        self.stopped.load(Ordering::Acquire).then(|| self.lock().stop.clone()).flatten()
    }

    /// Calls under way at this moment.
    pub fn in_flight(&self) -> usize {
        self.lock().queues.values().map(|queue| queue.in_flight).sum()
    }

    /// What the calls came to so far.
    pub fn seen(&self) -> Seen {
        let inner = self.lock();
        let in_flight = inner.queues.values().map(|queue| queue.in_flight).sum();
        let (mut cache_bytes, mut waiting) = (CacheBytes::default(), None);
        for backend in inner.queues.values().filter_map(|queue| queue.backend.as_ref()) {
            cache_bytes.add(backend.cache_bytes());
            waiting = waiting.or_else(|| backend.waiting());
        }
        Seen {
            in_flight,
            made: inner.started - in_flight as u64,
            memo: inner.recalled,
            requests: inner.spent.requests,
            tokens: inner.spent.tokens,
            cost_usd: inner.spent.usd,
            cache_bytes,
            waiting,
        }
    }

    /// Forgets what was asked so far: the nodes that asked are no more.
    pub(super) fn forget_calls(&self) {
        self.lock().tally = Tally::default();
    }

    /// What each of `nodes` nodes asked since the last time this was taken. A call counts for the
    /// first node in plan order that needs it.
    pub fn take_calls(&self, nodes: usize) -> Vec<Calls> {
        std::mem::take(&mut self.lock().tally).take(nodes)
    }
}

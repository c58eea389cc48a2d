//! How calls end: with an answer, with a failure of their row, or with one of the model, which ends
//! the run.

use std::sync::Arc;

use super::{Dispatcher, Finished, Outcome, Refused, queue_of};
use crate::engine::budget::Spent;
use crate::engine::estimate::Volume;
use crate::engine::streak::Verdict;
use crate::model::{Answer, Billed, CallError};
use crate::record::CallKey;

/// A call that failed for good, or until the next run.
pub(super) enum Failed {
    Permanent { status: Option<u16>, message: String, too_long: bool },
    Transient { message: String },
}

impl Failed {
    fn message(&self) -> &str {
        match self {
            Failed::Permanent { message, .. } | Failed::Transient { message } => message,
        }
    }
}

impl Dispatcher {
    /// An answer came, or will not come.
    pub(super) fn answered(self: &Arc<Self>, key: CallKey, result: Result<Answer, CallError>) {
        match result {
            Ok(answer) => {
                self.release(&key);
                self.keep(key, Ok(Arc::new(answer)));
            }
            Err(CallError::Permanent { status, message, too_long }) => {
                self.failed(key, Failed::Permanent { status, message, too_long });
            }
            Err(CallError::Transient { message, .. }) => {
                self.failed(key, Failed::Transient { message });
            }
            Err(CallError::Outage { message }) => self.give_up(&key, message),
        }
    }

    /// The model of a call answers: failures that were held are their rows'.
    fn release(self: &Arc<Self>, key: &CallKey) {
        let mut inner = self.lock();
        let queue = queue_of(&inner.pending[key].model);
        let state = inner.queues.get_mut(&queue).expect("a model that was asked has a queue");
        state.streak.answered();
        let held = std::mem::take(&mut state.held);
        state.in_flight += held.len();
        drop(inner);
        held.into_iter().for_each(|(key, failed)| self.conclude(key, failed));
    }

    /// A call failed: it is its row's failure or the model's.
    fn failed(self: &Arc<Self>, key: CallKey, failed: Failed) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let pending = inner.pending.get_mut(&key).expect("a call under way stays pending");
        let (queue, reserved) = (queue_of(&pending.model), std::mem::take(&mut pending.reserved));
        inner.reserved -= reserved;
        let state = inner.queues.get_mut(&queue).expect("a model that was asked has a queue");
        let is_rows_own = matches!(failed, Failed::Permanent { too_long: true, .. });
        let message = failed.message().to_owned();
        let mut verdict = match is_rows_own {
            true => Verdict::Settle,
            false => state.streak.failed(&message, matches!(failed, Failed::Permanent { .. })),
        };
        state.in_flight -= 1;
        state.held.push((key, failed));
        let mut starts = Vec::new();
        if verdict == Verdict::Hold {
            starts = self.pump(inner, &queue);
            let state = inner.queues.get_mut(&queue).expect("it was there before");
            if state.in_flight == 0 && inner.stop.is_none() {
                verdict = state.streak.drained();
            }
        }
        let state = inner.queues.get_mut(&queue).expect("it was there before");
        match verdict {
            Verdict::Hold => {
                drop(guard);
                self.start(starts);
            }
            Verdict::Settle => {
                let held = std::mem::take(&mut state.held);
                state.in_flight += held.len();
                drop(guard);
                self.start(starts);
                held.into_iter().for_each(|(key, failed)| self.conclude(key, failed));
            }
            Verdict::Stop(how_many) => {
                // None of them is remembered: once the cause is mended they are asked again.
                let held = std::mem::take(&mut state.held);
                inner.started -= held.len() as u64;
                held.iter().for_each(|(key, _)| drop(inner.pending.remove(key)));
                let reason = format!(
                    "model \"{}\": {how_many}, so nothing is published: {message}; mend the cause and run \
                     again",
                    queue.0
                );
                self.stop_locked(inner, reason);
            }
        }
    }

    /// A call that failed is its row's failure.
    fn conclude(self: &Arc<Self>, key: CallKey, failed: Failed) {
        match failed {
            Failed::Permanent { status, message, too_long } => {
                self.keep(key, Err((status, message, too_long)));
            }
            Failed::Transient { message } => {
                self.lock().failed.insert(key, message.clone());
                self.settle(key, Outcome::Transient { message }, 0);
            }
        }
    }

    /// What a call came to is made durable, and then told.
    fn keep(self: &Arc<Self>, key: CallKey, outcome: Result<Arc<Answer>, Refused>) {
        let (request, model) = {
            let inner = self.lock();
            let pending = inner.pending.get(&key).expect("a call under way stays pending");
            (Arc::clone(&pending.request), pending.model.clone())
        };
        let attempts = outcome.as_ref().map_or(1, |answer| answer.attempts.max(1) as u64);
        let told = match &outcome {
            Ok(answer) => Outcome::Answer(Arc::clone(answer)),
            Err((_, message, too_long)) => {
                Outcome::Permanent { message: message.clone(), too_long: *too_long }
            }
        };
        let this = Arc::clone(self);
        let durable = move |written: Result<(), String>| match written {
            Ok(()) => this.settle(key, told, attempts),
            Err(message) => this.give_up(&key, message),
        };
        let identity = self.models.identity(&model);
        let finished = Finished { key, model, identity, request, outcome };
        self.memory.remember(finished, Box::new(durable));
    }

    /// A call will have no outcome, and the run stops. Nobody waits for it any more, neither those
    /// who asked nor whoever lets calls under way come to their end.
    fn give_up(&self, key: &CallKey, reason: String) {
        let mut inner = self.lock();
        let pending = inner.pending.remove(key).expect("a call under way stays pending");
        inner.reserved -= pending.reserved;
        inner.started -= 1;
        let queue = queue_of(&pending.model);
        inner.queues.get_mut(&queue).expect("a model that was asked has a queue").in_flight -= 1;
        self.stop_locked(&mut inner, reason);
    }

    /// A call is over: its permit is free, its waiters are told.
    fn settle(self: &Arc<Self>, key: CallKey, outcome: Outcome, attempts: u64) {
        let mut inner = self.lock();
        let pending = inner.pending.remove(&key).expect("a call under way stays pending");
        inner.reserved -= pending.reserved;
        let mut tokens = 0;
        if let Outcome::Answer(answer) = &outcome {
            tokens = (answer.prompt_tokens + answer.completion_tokens).max(0) as u64;
            let requests = pending.reserved.requests;
            // Failed attempts were charged when they failed.
            let own = Answer { wasted: Billed::default(), ..Answer::clone(answer) };
            inner.spent += Spent { requests, tokens, usd: (self.cost)(&pending.model.name, &own) };
            if !answer.estimated_usage {
                inner.read += Volume::made(&pending.request, answer);
            }
        }
        inner.tally.made(&key, attempts, tokens);
        let queue = queue_of(&pending.model);
        inner.queues.get_mut(&queue).expect("a model that was asked has a queue").in_flight -= 1;
        // What was set aside and is free again may be what another model waits for.
        let starts = if self.limits.is_bound() {
            let queues: Vec<_> = inner.queues.keys().cloned().collect();
            queues.iter().flat_map(|queue| self.pump(&mut inner, queue)).collect()
        } else {
            self.pump(&mut inner, &queue)
        };
        drop(inner);
        for waiter in &pending.waiters {
            waiter.tell(outcome.clone());
        }
        self.start(starts);
    }
}

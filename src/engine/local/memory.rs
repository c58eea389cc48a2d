//! The memo as the engine sees it.

use std::sync::Arc;

use crate::engine::dispatch::{Durable, Finished, Memory, Outcome};
use crate::model::{Answer, Task};
use crate::record::CallKey;
use crate::store::{CallKind, Entry, Failure, Memo};

/// What an answer of a model costs, by the model's name.
pub type Cost = Box<dyn Fn(&str, &Answer) -> Option<f64> + Send + Sync>;

/// A memo of the store.
pub struct LocalMemory {
    memo: Arc<Memo>,
    cost: Cost,
}

impl LocalMemory {
    /// The memo, with what answers cost.
    pub fn new(memo: Arc<Memo>, cost: Cost) -> LocalMemory {
        LocalMemory { memo, cost }
    }
}

impl Memory for LocalMemory {
    fn recall(&self, key: &CallKey) -> Option<Outcome> {
        match self.memo.get_outcome(key) {
            Ok(found) => found.map(|outcome| match outcome {
                Ok(answer) => Outcome::Answer(Arc::new(answer)),
                Err(failure) => {
                    Outcome::Permanent { message: failure.message, too_long: failure.too_long }
                }
            }),
            // A segment that cannot be read any more holds no answer; the store says so itself.
            Err(error) => {
                tracing::warn!("{error}");
                None
            }
        }
    }

    fn remember(&self, finished: Finished, durable: Durable) {
        let seed = match &finished.request.task {
            Task::Generate(sampling) => sampling.seed.map(|seed| seed as i64),
            Task::Score { .. } => None,
        };
        let kind = match finished.request.task {
            Task::Generate(_) => CallKind::Generate,
            Task::Score { .. } => CallKind::Score,
        };
        let name = finished.model.name.to_string();
        let (cost_usd, outcome) = match finished.outcome {
            Ok(answer) => ((self.cost)(&name, &answer), Ok(Arc::unwrap_or_clone(answer))),
            Err((status, message, too_long)) => (None, Err(Failure { status, message, too_long })),
        };
        let entry = Entry {
            key: finished.key,
            kind,
            model: name,
            model_fingerprint: finished.identity,
            request_json: finished.request.json(),
            outcome,
            seed,
            cost_usd,
        };
        let told = move |written: crate::store::Result<()>| {
            durable(written.map_err(|error| error.to_string()));
        };
        self.memo.append(entry, Box::new(told));
    }
}

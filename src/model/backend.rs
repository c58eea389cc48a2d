//! A backend: one model, somewhere, that answers requests.

use std::sync::Arc;

use super::answer::{Answer, CallError};
use super::request::Request;

/// What a backend calls, from any thread, when an answer has come or will not come.
pub type Done = Box<dyn FnOnce(Result<Answer, CallError>) + Send>;

/// How much of this machine's memory a model's keys and values take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheBytes {
    /// At this moment.
    pub held: usize,
    /// At most, by its settings.
    pub most: usize,
}

impl CacheBytes {
    /// Adds another model's.
    pub fn add(&mut self, other: CacheBytes) {
        self.held += other.held;
        self.most += other.most;
    }
}

/// One model that answers requests, in any order, from its own threads.
///
/// The engine never has more than `max_in_flight` requests submitted and not done, over all nodes
/// and workers.
pub trait Backend: Send + Sync {
    /// Begins a request and returns at once; `done` is called exactly once.
    fn submit(&self, request: Arc<Request>, done: Done);

    /// The most requests to have in flight.
    fn max_in_flight(&self) -> usize;

    /// What it holds in this process; nothing, where it runs elsewhere.
    fn cache_bytes(&self) -> CacheBytes {
        CacheBytes::default()
    }
}

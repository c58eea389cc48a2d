//! A backend: one model, somewhere, that answers requests.

use std::fmt;
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

/// A server that does not answer, and is asked again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The server, without user, password, path and query.
    pub server: String,
    /// Why the last request failed, without the key.
    pub reason: String,
    /// How often the request that was tried most will have been, with the next.
    pub attempt: u32,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Waiting { server, reason, attempt } = self;
        write!(f, "waiting for {server}: {reason}, try {attempt}")
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

    /// Whom it waits for since its last success, where a request failed and will be sent again.
    fn waiting(&self) -> Option<Waiting> {
        None
    }

    /// What it holds in this process; nothing, where it runs elsewhere.
    fn cache_bytes(&self) -> CacheBytes {
        CacheBytes::default()
    }
}

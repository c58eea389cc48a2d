//! A backend: one model, somewhere, that answers requests.

use std::sync::Arc;

use super::answer::{Answer, CallError};
use super::request::Request;

/// What a backend calls, from any thread, when an answer has come or will not come.
pub type Done = Box<dyn FnOnce(Result<Answer, CallError>) + Send>;

/// One model that answers requests, in any order, from its own threads.
///
/// The engine never has more than `max_in_flight` requests submitted and not done, over all nodes
/// and workers.
pub trait Backend: Send + Sync {
    /// Begins a request and returns at once; `done` is called exactly once.
    fn submit(&self, request: Arc<Request>, done: Done);

    /// The most requests to have in flight.
    fn max_in_flight(&self) -> usize;
}

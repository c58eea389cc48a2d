//! A backend: one model, somewhere, that answers requests.

use std::fmt;
use std::sync::Arc;

use super::answer::{Answer, Billed, CallError};
use super::panics;
use super::request::{Request, Task};

/// What a backend calls, from any thread, when an answer has come or will not come.
pub type Done = Box<dyn FnOnce(Result<Answer, CallError>) + Send>;

/// Makes what a backend calls: if it is dropped instead, as by a thread that panics, that is an outage.
pub fn told_once(done: impl FnOnce(Result<Answer, CallError>) + Send + 'static) -> Done {
    let mut once = Once(Some(Box::new(done)));
    Box::new(move |result| {
        let done = once.0.take().expect("it is called once");
        done(result);
    })
}

struct Once(Option<Done>);

impl Drop for Once {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            panics::lost(|why| {
                let message = format!("a request was lost by a fault of amend itself: {why}");
                done(Err(CallError::Outage { message }));
            });
        }
    }
}

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

/// Whoever pays for a call: is told of each attempt that failed and that the server charges for.
pub trait Meter: Send + Sync {
    /// An attempt failed that took so much. Whether another may be made.
    fn failed(&self, billed: Billed) -> bool;

    /// Whether the answer is still wanted: not once the run is being stopped.
    fn is_wanted(&self) -> bool {
        true
    }
}

/// Nobody pays.
pub struct Unmetered;

impl Meter for Unmetered {
    fn failed(&self, _billed: Billed) -> bool {
        true
    }
}

/// One model that answers requests, in any order, from its own threads.
///
/// The engine never has more than `max_in_flight` requests submitted and not done, over all nodes
/// and workers.
pub trait Backend: Send + Sync {
    /// Begins a request and returns at once; `done` is called exactly once.
    fn submit(&self, request: Arc<Request>, done: Done);

    /// The same, and `meter` is told of attempts that failed and are paid for.
    fn submit_metered(&self, request: Arc<Request>, _meter: Arc<dyn Meter>, done: Done) {
        self.submit(request, done);
    }

    /// The most that one attempt at a request can take, with a token for each byte of its prompt: no
    /// text has more tokens than bytes.
    fn most(&self, request: &Request) -> Billed {
        let written = match &request.task {
            Task::Generate(sampling) => sampling.max_tokens,
            Task::Score { choices, .. } => choices.len() as u32,
        };
        let prompt_tokens = u32::try_from(request.prompt.bytes()).unwrap_or(u32::MAX);
        Billed { requests: 1, prompt_tokens, completion_tokens: written }
    }

    /// The most requests to have in flight.
    fn max_in_flight(&self) -> usize;

    /// Whether it ever answered, as far as is known: in this process or before.
    fn has_answered(&self) -> bool {
        true
    }

    /// Whom it waits for since its last success, where a request failed and will be sent again.
    fn waiting(&self) -> Option<Waiting> {
        None
    }

    /// What it holds in this process; nothing, where it runs elsewhere.
    fn cache_bytes(&self) -> CacheBytes {
        CacheBytes::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn who_waits_is_told_once_whatever_becomes_of_the_thread() {
        let (sender, told) = mpsc::channel();
        let other = sender.clone();
        let done = told_once(move |result| sender.send(result.is_ok()).unwrap());
        let lost = told_once(move |result| other.send(result.is_ok()).unwrap());
        done(Ok(Answer::default()));
        let thread = std::thread::spawn(move || {
            let _lost = lost;
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        assert_eq!(told.iter().collect::<Vec<_>>(), [true, false]);
    }
}

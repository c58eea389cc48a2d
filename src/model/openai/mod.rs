//! `openai`: a model behind an OpenAI-compatible endpoint: vLLM, SGLang, llama.cpp, Ollama, hosted.
//!
//! A conversation goes to `/chat/completions`, a text to `/completions`. Every endpoint of the
//! process shares one small runtime; each has its own connections and its own [`window`] of
//! requests in flight.
//!
//! ```text
//! Request ─ generate / score ─▶ Body ─ exchange (retries) ─ gate (AIMD) ─ http ─▶ server
//! Answer  ◀─ generate / score ── Reply ◀──────────────────────────────────┘
//! ```

mod exchange;
mod failure;
mod gate;
mod generate;
mod http;
mod labels;
mod options;
mod score;
mod window;
mod wire;

use std::fmt;
use std::sync::Arc;

pub use options::{OpenAiError, OpenAiOptions, Secret};

use exchange::Exchange;

use super::answer::{Answer, CallError};
use super::backend::{Backend, Done};
use super::request::{Request, Task};

/// A model behind an OpenAI-compatible endpoint.
///
/// ```no_run
/// use amend::model::openai::{OpenAi, OpenAiOptions};
///
/// let options = OpenAiOptions::new("http://127.0.0.1:8000", "qwen3-8b");
/// let assistant = OpenAi::new(options)?;
/// # Ok::<(), amend::model::openai::OpenAiError>(())
/// ```
pub struct OpenAi {
    exchange: Arc<Exchange>,
}

impl OpenAi {
    /// Reads the options; nothing is sent before the first request.
    pub fn new(options: OpenAiOptions) -> Result<OpenAi, OpenAiError> {
        Ok(OpenAi { exchange: Arc::new(Exchange::new(options)?) })
    }
}

impl Backend for OpenAi {
    /// `done` runs on the thread that does the input and output of all endpoints: it must be brief.
    fn submit(&self, request: Arc<Request>, done: Done) {
        let exchange = Arc::clone(&self.exchange);
        let done = Told(Some(done));
        http::runtime().spawn(async move {
            let outcome = answer(&exchange, &request).await;
            done.tell(outcome);
        });
    }

    fn max_in_flight(&self) -> usize {
        self.exchange.options.max_in_flight
    }
}

impl fmt::Debug for OpenAi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OpenAi").field(&self.exchange.options).finish()
    }
}

async fn answer(exchange: &Arc<Exchange>, request: &Request) -> Result<Answer, CallError> {
    match &request.task {
        Task::Generate(sampling) => generate::generate(exchange, &request.prompt, sampling).await,
        Task::Score { choices, estimator } => {
            score::score(exchange, &request.prompt, choices, *estimator).await
        }
    }
}

/// Who waits for an answer; told exactly once, also when the task that asks is dropped.
struct Told(Option<Done>);

impl Told {
    fn tell(mut self, outcome: Result<Answer, CallError>) {
        let done = self.0.take().expect("only `tell` and `drop` take it, and both once");
        done(outcome);
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            let message = "the request was dropped before its answer".to_owned();
            done(Err(CallError::Transient { message, attempts: 0 }));
        }
    }
}

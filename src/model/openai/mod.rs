//! `openai`: a model behind an OpenAI-compatible endpoint: vLLM, SGLang, llama.cpp, Ollama, hosted.
//!
//! A conversation goes to `/chat/completions`, a text to `/completions`. Every endpoint of the
//! process shares one small runtime; each has its own connections and its own window of
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
use super::backend::{Backend, Done, Waiting};
use super::request::{Estimator, Prompt, Request, Task};
use crate::record::Message;

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

    /// The first estimator of log-probabilities that the server offers for a text (`chat: false`)
    /// or a conversation, the exact ones first; `votes` when it offers none.
    ///
    /// Waits, on a thread that is not the endpoints' own, for up to three requests of a few tokens. The estimator is part of a scoring request's
    /// key: whoever asks should keep the result, so that a server's update changes no key.
    pub fn resolve(&self, chat: bool) -> Result<Estimator, CallError> {
        let choices = ["2", "3"].map(str::to_owned);
        let prompt = if chat {
            Prompt::Messages(vec![Message::user("1+1=")])
        } else {
            Prompt::Text("1+1=".to_owned())
        };
        let exact = [Estimator::Echo, Estimator::PromptLogprobs, Estimator::TopLogprobs];
        http::runtime().block_on(async {
            for estimator in exact {
                match score::score(&self.exchange, &prompt, &choices, estimator).await {
                    Ok(_) => return Ok(estimator),
                    // The server refused the parameters, or left them unread.
                    Err(CallError::Permanent { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(Estimator::Votes)
        })
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

    fn waiting(&self) -> Option<Waiting> {
        self.exchange.waiting()
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

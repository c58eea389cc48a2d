//! `openai`: a model behind an OpenAI-compatible endpoint: vLLM, SGLang, llama.cpp, Ollama, hosted.
//!
//! A conversation goes to `/chat/completions`, a text to `/completions`. Where the endpoint speaks
//! Anthropic's Messages API, a conversation goes to `/messages`: only how a body becomes bytes and how
//! bytes become a reply differ. Every endpoint of the process shares one small runtime; each has its
//! own connections and its own window of requests in flight.
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
mod lenient;
mod messages;
mod offers;
mod options;
mod pause;
mod profile;
mod refusal;
mod reply;
mod score;
mod window;
mod wire;

use std::fmt;
use std::sync::Arc;

pub use options::{Dialect, OpenAiError, OpenAiOptions, Secret, Thinking};
pub use profile::Profiles;

use exchange::{Caller, Exchange};

use super::answer::{Answer, Billed, CallError};
use super::backend::{Backend, Done, Meter, Unmetered, Waiting};
use super::request::{Estimator, Prompt, Request, Task};

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

    /// The first estimator of label log-probabilities that the server offers for a text
    /// (`chat: false`) or a conversation, the exact ones first; `votes` when it offers none.
    ///
    /// Waits, on a thread that is not the endpoints' own, for up to three requests of a few tokens. The
    /// estimator is part of a scoring request's key: the profile keeps it, so that a server's update
    /// changes no key.
    pub fn resolve(&self, chat: bool) -> Result<Estimator, String> {
        if self.exchange.options.dialect == Dialect::Messages {
            return Ok(Estimator::Votes);
        }
        let caller = self.caller(Arc::new(Unmetered));
        let exact = [Estimator::Echo, Estimator::PromptLogprobs, Estimator::TopLogprobs];
        let found = http::runtime().block_on(async {
            for estimator in exact {
                match offers::try_out(&caller, chat, estimator).await {
                    Ok(()) => return Ok(estimator),
                    // The server refused the parameters, or left them unread.
                    Err(CallError::Permanent { .. }) => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
            Ok(Estimator::Votes)
        })?;
        self.exchange.profile.offers(offers::route(chat), found);
        Ok(found)
    }

    /// The estimator that the profile knows for a route, if it does.
    pub fn known_estimator(&self, chat: bool) -> Option<Estimator> {
        // The Messages API tells no log-probabilities.
        if self.exchange.options.dialect == Dialect::Messages {
            return Some(Estimator::Votes);
        }
        self.exchange.profile.estimator(offers::route(chat))
    }

    fn caller(&self, meter: Arc<dyn Meter>) -> Caller {
        Caller { exchange: Arc::clone(&self.exchange), meter }
    }
}

impl Backend for OpenAi {
    fn submit(&self, request: Arc<Request>, done: Done) {
        self.submit_metered(request, Arc::new(Unmetered), done);
    }

    /// `done` runs on the thread that does the input and output of all endpoints: it must be brief.
    fn submit_metered(&self, request: Arc<Request>, meter: Arc<dyn Meter>, done: Done) {
        let caller = self.caller(meter);
        let done = Told(Some(done));
        http::runtime().spawn(async move {
            let outcome = answer(&caller, &request).await;
            done.tell(outcome);
        });
    }

    fn most(&self, request: &Request) -> Billed {
        let bytes = u32::try_from(request.prompt.bytes()).unwrap_or(u32::MAX);
        match &request.task {
            Task::Generate(sampling) => {
                Billed { requests: 1, prompt_tokens: bytes, completion_tokens: sampling.max_tokens }
            }
            Task::Score { choices, estimator } => {
                let is_chat = matches!(request.prompt, Prompt::Messages(_));
                score::most(bytes, is_chat, choices, *estimator, self.exchange.options.votes)
            }
        }
    }

    fn max_in_flight(&self) -> usize {
        self.exchange.options.max_in_flight
    }

    fn has_answered(&self) -> bool {
        self.exchange.profile.has_answered()
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

async fn answer(caller: &Caller, request: &Request) -> Result<Answer, CallError> {
    if caller.exchange.options.dialect == Dialect::Messages {
        messages::takes(&caller.exchange.options, request)?;
    }
    match &request.task {
        Task::Generate(sampling) => generate::generate(caller, &request.prompt, sampling).await,
        Task::Score { choices, estimator } => {
            offers::score(caller, &request.prompt, choices, *estimator).await
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

//! An answer: what came back for a request, and what it took.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// What came back for a request.
///
/// The last fields (attempts, times, names that the server returned, device) say what it took;
/// they reach the table `calls` and no other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// What the model wrote; empty for a score.
    pub text: String,
    /// The reasoning that the server returned beside the answer, where it did.
    #[serde(default)]
    pub reasoning: Option<String>,
    /// Why it stopped.
    pub finish: Finish,
    /// The log-probability of each token written, where it is known.
    pub token_logprobs: Option<Vec<f32>>,
    /// The log-probability of each choice, summed over its tokens, in the order of the request.
    pub choice_logprobs: Option<Vec<f64>>,
    /// How many samples `choice_logprobs` were estimated from, when by votes.
    pub votes: Option<i32>,
    /// Tokens read.
    pub prompt_tokens: i32,
    /// Tokens read that the server had cached.
    pub cached_tokens: i32,
    /// Tokens written.
    pub completion_tokens: i32,
    /// Whether the server did not count the tokens: then they are the most that they can be.
    #[serde(default)]
    pub estimated_usage: bool,
    /// Parameters that decide the answer and that the server refuses, so that they were left out.
    #[serde(default)]
    pub omitted: Vec<String>,
    /// What failed attempts before this answer took.
    #[serde(default)]
    pub wasted: Billed,
    /// Requests sent until this answer came.
    pub attempts: i32,
    /// Microseconds since 1970 when the first was sent.
    pub started_at_us: i64,
    /// Milliseconds until the answer.
    pub latency_ms: f64,
    /// The model that the server says it is.
    pub served_model: Option<String>,
    /// The server's fingerprint of itself.
    pub system_fingerprint: Option<String>,
    /// Where a local model ran.
    pub device: Option<String>,
}

/// What a server charges for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Billed {
    /// HTTP requests.
    pub requests: u32,
    /// Tokens read.
    pub prompt_tokens: u32,
    /// Tokens written.
    pub completion_tokens: u32,
}

impl AddAssign for Billed {
    fn add_assign(&mut self, other: Billed) {
        self.requests = self.requests.saturating_add(other.requests);
        self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(other.completion_tokens);
    }
}

/// Why a model stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// At its end token or at a stop text.
    #[default]
    Stop,
    /// At `max_tokens` or at the end of its context.
    Length,
    /// A filter of the server cut it.
    ContentFilter,
    /// It called a tool instead of answering.
    ToolCalls,
}

impl Finish {
    /// The name, as in tables.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::ContentFilter => "content_filter",
            Finish::ToolCalls => "tool_calls",
        }
    }

    /// The reason of that name, as in tables; none for a name that no table has.
    pub fn from_name(name: &str) -> Option<Finish> {
        let all = [Finish::Stop, Finish::Length, Finish::ContentFilter, Finish::ToolCalls];
        all.into_iter().find(|finish| finish.name() == name)
    }
}

/// Why no answer came.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The request will never be answered: remembered, and a reject.
    #[error("{message}")]
    Permanent {
        /// The HTTP status, when there was one.
        status: Option<u16>,
        /// What the server said, without secrets.
        message: String,
        /// Whether the prompt is longer than the model's context.
        too_long: bool,
    },
    /// Retries are exhausted: a reject that the next run asks again.
    #[error("{message} (after {attempts} attempts)")]
    Transient {
        /// What the server said, without secrets.
        message: String,
        /// How often it was asked.
        attempts: i32,
    },
    /// The outside world fails (endpoint down, key refused): the run stops and can be resumed.
    #[error("{message}")]
    Outage {
        /// What happened, without secrets, and what can be done.
        message: String,
    },
}

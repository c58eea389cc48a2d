//! A request: everything that decides an answer, and nothing else. Its hash is the call key.

use serde::{Deserialize, Serialize};

use crate::record::{CallKey, Id, KeyHasher, Message};

/// What a model is asked, fully rendered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// What the model reads.
    pub prompt: Prompt,
    /// What it is to do.
    pub task: Task,
}

/// What a model reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// A text to continue.
    Text(String),
    /// A conversation to answer, rendered by the model's own chat template.
    Messages(Vec<Message>),
}

impl Prompt {
    /// How many bytes of text it has.
    pub fn bytes(&self) -> u64 {
        match self {
            Prompt::Text(text) => text.len() as u64,
            Prompt::Messages(turns) => turns.iter().map(|turn| turn.content.len() as u64).sum(),
        }
    }
}

/// What a model is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Write a continuation.
    Generate(Sampling),
    /// Give the log-probability of each of the given continuations.
    Score {
        /// The continuations, such as ` (A)` and ` (B)`.
        choices: Vec<String>,
        /// How the log-probabilities are had.
        estimator: Estimator,
    },
}

/// How tokens are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Temperature; 0 is greedy.
    pub temperature: f64,
    /// Nucleus: the smallest set of tokens of this mass. 1 is all.
    pub top_p: f64,
    /// The most likely tokens. 0 is all.
    pub top_k: u32,
    /// The least share of the likeliest token's probability. 0 is none.
    pub min_p: f64,
    /// What the logits of tokens that occurred, in the prompt too, are divided by where they are
    /// positive, and multiplied by where they are negative. 1 is none.
    #[serde(default = "none")]
    pub repetition_penalty: f64,
    /// The most tokens to write.
    pub max_tokens: u32,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// The seed; none for a greedy request, so that equal ones are one call.
    pub seed: Option<u64>,
}

/// The penalty that is none.
fn none() -> f64 {
    1.0
}

/// How the log-probabilities of choices are had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// Exact: the prompt with each choice is scored by the model (a local model; completions with
    /// `echo`).
    Echo,
    /// Exact: vLLM's `prompt_logprobs`.
    PromptLogprobs,
    /// From the alternatives listed for the first generated token.
    TopLogprobs,
    /// From the shares of k sampled answers, with Laplace smoothing.
    Votes,
}

impl Estimator {
    /// The name, as in tables.
    pub fn name(self) -> &'static str {
        match self {
            Estimator::Echo => "echo",
            Estimator::PromptLogprobs => "prompt_logprobs",
            Estimator::TopLogprobs => "top_logprobs",
            Estimator::Votes => "votes",
        }
    }
}

impl Request {
    /// `generate` or `score`, as in the table `calls`.
    pub fn kind(&self) -> &'static str {
        match self.task {
            Task::Generate(_) => "generate",
            Task::Score { .. } => "score",
        }
    }

    /// The request as canonical JSON: the order of the fields is the order of the types.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("a request has no map with keys that are not text")
    }

    /// The call key under a model's fingerprint.
    pub fn key(&self, fingerprint: Id) -> CallKey {
        let mut hasher = KeyHasher::new("amend/call/1");
        hasher.add_id(fingerprint);
        match &self.prompt {
            Prompt::Text(text) => {
                hasher.add_u64(0);
                hasher.add_text(text);
            }
            Prompt::Messages(messages) => {
                hasher.add_u64(1 + messages.len() as u64);
                for message in messages {
                    hasher.add_text(&message.role);
                    hasher.add_text(&message.content);
                }
            }
        }
        match &self.task {
            Task::Generate(sampling) => {
                hasher.add_text("generate");
                sampling.hash_into(&mut hasher);
            }
            Task::Score { choices, estimator } => {
                hasher.add_text("score");
                hasher.add_text(estimator.name());
                choices.iter().for_each(|choice| hasher.add_text(choice));
            }
        }
        hasher.call_key()
    }
}

impl Sampling {
    fn hash_into(&self, hasher: &mut KeyHasher) {
        hasher.add_f64(self.temperature);
        hasher.add_f64(self.top_p);
        hasher.add_u64(u64::from(self.top_k));
        hasher.add_f64(self.min_p);
        if self.is_penalised() {
            hasher.add_text("repetition_penalty");
            hasher.add_f64(self.repetition_penalty);
        }
        hasher.add_u64(u64::from(self.max_tokens));
        hasher.add_u64(self.stop.len() as u64);
        self.stop.iter().for_each(|stop| hasher.add_text(stop));
        match self.seed {
            Some(seed) => hasher.add_u64(seed),
            None => hasher.add_text("no seed"),
        }
    }

    /// Whether tokens that occurred are less likely.
    pub fn is_penalised(&self) -> bool {
        (self.repetition_penalty - 1.0).abs() > 0.0
    }

    /// Whether the answer is a function of the prompt alone.
    pub fn is_greedy(&self) -> bool {
        self.temperature <= 0.0
    }
}

//! The exchange: one body sent until there is a reply, or a reason why there will be none.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::failure::{Failure, Meaning};
use super::gate::Gate;
use super::http::{Http, Route, Stamp};
use super::options::{OpenAiError, OpenAiOptions};
use super::wire::{Body, Reply};
use crate::model::answer::{Answer, CallError};
use crate::model::backend::Waiting;
use crate::record::KeyHasher;

/// The longest wait between two attempts is this many times the first.
const BACKOFF_DOUBLINGS_MAX: f64 = 60.0;

/// All that the requests to one endpoint share.
pub(super) struct Exchange {
    pub(super) options: OpenAiOptions,
    http: Http,
    gate: Arc<Gate>,
    /// Whether the server has ever answered: then it is there, and silence is about the request.
    heard: AtomicBool,
    /// Whether the server has asked for `max_completion_tokens` in place of `max_tokens`.
    renames_max_tokens: AtomicBool,
    /// What failed since the last reply; looked at only where the flag beside it is set.
    waiting: Mutex<Option<Waiting>>,
    is_waiting: AtomicBool,
}

/// A reply, and what it took.
pub(super) struct Heard {
    pub(super) reply: Reply,
    pub(super) attempts: i32,
    pub(super) sent: Stamp,
}

impl Heard {
    /// An answer without text or scores, of replies that were had together.
    pub(super) fn answer(all: &[Heard]) -> Answer {
        let first = all.iter().min_by_key(|heard| heard.sent.instant).expect("one was heard");
        let mut answer = Answer {
            started_at_us: first.sent.us,
            latency_ms: first.sent.elapsed_ms(),
            served_model: first.reply.model.clone(),
            system_fingerprint: first.reply.system_fingerprint.clone(),
            ..Answer::default()
        };
        for heard in all {
            answer.attempts += heard.attempts;
            if let Some(usage) = &heard.reply.usage {
                let details = usage.prompt_tokens_details.as_ref();
                answer.prompt_tokens += usage.prompt_tokens;
                answer.cached_tokens += details.and_then(|of| of.cached_tokens).unwrap_or(0);
                answer.completion_tokens += usage.completion_tokens;
            }
        }
        answer
    }
}

impl Exchange {
    pub(super) fn new(options: OpenAiOptions) -> Result<Exchange, OpenAiError> {
        assert!(options.max_in_flight > 0, "an endpoint takes at least one request");
        let http = Http::new(&options)?;
        let gate = Gate::new(options.max_in_flight);
        let (heard, renames_max_tokens) = (AtomicBool::new(false), AtomicBool::new(false));
        let (waiting, is_waiting) = (Mutex::default(), AtomicBool::new(false));
        Ok(Exchange { options, http, gate, heard, renames_max_tokens, waiting, is_waiting })
    }

    /// What the endpoint waits for, if a request failed since it last heard a reply.
    pub(super) fn waiting(&self) -> Option<Waiting> {
        let is_waiting = self.is_waiting.load(Ordering::Relaxed);
        is_waiting.then(|| self.waits().clone()).flatten()
    }

    fn waits(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request failed, and will be sent again as its `attempt`th.
    fn waits_for(&self, failure: &Failure, attempt: u32) {
        let (server, reason) = (self.options.address(), self.redact(failure.brief()));
        let mut waits = self.waits();
        let most = waits.as_ref().map_or(0, |waiting| waiting.attempt);
        *waits = Some(Waiting { server, reason, attempt: attempt.max(most) });
        self.is_waiting.store(true, Ordering::Relaxed);
    }

    /// A reply came.
    fn heard(&self) {
        self.heard.store(true, Ordering::Relaxed);
        if self.is_waiting.swap(false, Ordering::Relaxed) {
            *self.waits() = None;
        }
    }

    /// Sends a body until there is a reply.
    pub(super) async fn ask(&self, route: Route, mut said: Body<'_>) -> Result<Heard, CallError> {
        if self.renames_max_tokens.load(Ordering::Relaxed) {
            said.max_completion_tokens = said.max_tokens.take();
        }
        let mut body = said.json();
        let mut sent = None;
        let (mut attempts, mut refusals) = (0, 0);
        loop {
            let pass = self.gate.enter(refusals > 0).await;
            let sent = *sent.get_or_insert_with(Stamp::now);
            attempts += 1;
            let failure = match self.http.post(route, body.clone()).await {
                Ok(reply) => {
                    pass.served();
                    self.heard();
                    return Ok(Heard { reply, attempts, sent });
                }
                Err(failure) => failure,
            };
            if matches!(failure, Failure::Status { .. }) {
                self.heard.store(true, Ordering::Relaxed);
            }
            let failures = attempts as u32 - refusals;
            match failure.meaning() {
                Meaning::Refused if refusals < self.options.refusals() => {
                    let pause = failure.retry_after().unwrap_or_else(|| self.wait(&body, refusals));
                    if pause > self.options.wait_max {
                        return Err(self.asks_to_wait(pause, &failure));
                    }
                    refusals += 1;
                    pass.refused(pause);
                    self.waits_for(&failure, attempts as u32 + 1);
                }
                Meaning::Again if failures <= self.options.retries => {
                    drop(pass);
                    self.waits_for(&failure, attempts as u32 + 1);
                    let wait = self.wait(&body, failures - 1);
                    tokio::time::sleep(wait.max(failure.retry_after().unwrap_or_default())).await;
                }
                Meaning::Permanent if failure.renames_max_tokens() && said.max_tokens.is_some() => {
                    drop(pass);
                    self.renames_max_tokens.store(true, Ordering::Relaxed);
                    said.max_completion_tokens = said.max_tokens.take();
                    body = said.json();
                }
                meaning => return Err(self.give_up(meaning, &failure, attempts)),
            }
        }
    }

    /// The wait before the n-th retry: doubled each time, and cut by up to half by the request's
    /// hash, so that those that failed together do not come back together.
    fn wait(&self, body: &[u8], n: u32) -> Duration {
        let mut hasher = KeyHasher::new("amend/retry/1");
        hasher.add_bytes(body);
        hasher.add_u64(u64::from(n));
        let share = hasher.id().low() as f64 / u64::MAX as f64;
        let doubled = 2f64.powi(n as i32).min(BACKOFF_DOUBLINGS_MAX);
        self.options.backoff.mul_f64(doubled * (1.0 - share / 2.0))
    }

    fn give_up(&self, meaning: Meaning, failure: &Failure, attempts: i32) -> CallError {
        let message = self.redact(failure.message());
        let reached = self.heard.load(Ordering::Relaxed);
        match meaning {
            Meaning::Permanent => {
                // The server is there.
                self.heard();
                let (status, too_long) = (failure.status(), failure.is_too_long());
                CallError::Permanent { status, message, too_long }
            }
            Meaning::Outage => CallError::Outage { message: self.outage(failure, &message) },
            Meaning::Again | Meaning::Refused => match failure {
                Failure::Unreachable(_) => CallError::Outage { message: self.absent(&message) },
                Failure::Silent(_) if !reached => {
                    CallError::Outage { message: self.absent(&message) }
                }
                _ => CallError::Transient { message, attempts },
            },
        }
    }

    fn absent(&self, message: &str) -> String {
        let address = self.options.address();
        format!(
            "no answer from {address}: {message}; is the server running, and is the address right?"
        )
    }

    fn outage(&self, failure: &Failure, message: &str) -> String {
        let address = self.options.address();
        match failure.status() {
            // What the server says of a key may quote parts of it.
            Some(401) if self.options.api_key.is_none() => {
                format!("{address} wants an API key (401): set `api_key` of the model")
            }
            Some(401) => {
                format!("{address} refuses the API key (401): check `api_key` of the model")
            }
            Some(403) => {
                format!("{address} forbids this (403): {message}; check what the key allows")
            }
            Some(402 | 429) => format!("{address}: {message}; the account's quota is used up"),
            Some(404 | 405) => format!(
                "{address} does not know the model {:?} or the address: {message}; `GET /v1/models` \
                 there lists its models",
                self.options.model
            ),
            Some(300..=399) => format!("{address} redirects: {message}; give the final address"),
            _ => format!("{address}: {message}"),
        }
    }

    fn asks_to_wait(&self, pause: Duration, failure: &Failure) -> CallError {
        let (address, seconds) = (self.options.address(), pause.as_secs());
        let message = self.redact(failure.message());
        let message = format!("{address} asks to wait {seconds} s: {message}; resume the run then");
        CallError::Outage { message }
    }

    /// The text without the key, should the server have quoted it.
    fn redact(&self, message: String) -> String {
        match &self.options.api_key {
            Some(key) if !key.text().is_empty() => message.replace(key.text(), "…"),
            _ => message,
        }
    }
}

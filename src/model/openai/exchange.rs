//! The exchange: one body sent until there is a reply, or a reason why there will be none.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::failure::{Failure, Meaning};
use super::gate::Gate;
use super::http::{Http, Route, Stamp};
use super::options::{Dialect, OpenAiError, OpenAiOptions};
use super::profile::{self, Profile};
use super::refusal::{Objection, objection};
use super::reply::Reply;
use super::wire::{Body, Parameter};
use crate::model::answer::{Answer, Billed, CallError};
use crate::model::backend::{Meter, Waiting};
use crate::record::KeyHasher;

/// The longest wait between two attempts is this many times the first.
const BACKOFF_DOUBLINGS_MAX: f64 = 60.0;

/// How often a wait looks whether the answer is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The longest wait between two looks at a server that is loading.
const LOADING_PAUSE_MAX: Duration = Duration::from_secs(10);

/// The most alternatives that OpenAI's completions list: what is tried where a server names no number.
const LOGPROBS_FEW: u32 = 5;

/// The most stop texts that OpenAI takes: what is tried where a server names no number.
const STOP_FEW: u32 = 4;

/// All that the requests to one endpoint share.
pub(super) struct Exchange {
    pub(super) options: OpenAiOptions,
    pub(super) profile: Profile,
    http: Http,
    gate: Arc<Gate>,
    /// Whether the server has ever answered: then it is there, and silence is about the request.
    heard: AtomicBool,
    /// Held by the first request of an estimator that nobody knows the server to offer.
    pub(super) trying_out: tokio::sync::Mutex<()>,
    /// What failed since the last reply; looked at only where the flag beside it is set.
    waiting: Mutex<Option<Waiting>>,
    is_waiting: AtomicBool,
}

/// What a call asks with: the endpoint, and who pays.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) exchange: Arc<Exchange>,
    pub(super) meter: Arc<dyn Meter>,
}

/// A reply as it was read, and what it took.
pub(super) struct Heard<T> {
    pub(super) read: T,
    model: Option<String>,
    system_fingerprint: Option<String>,
    cached_tokens: u32,
    billed: Billed,
    is_estimated: bool,
    wasted: Billed,
    missed: Vec<Parameter>,
    attempts: i32,
    sent: Stamp,
}

impl<T> Heard<T> {
    /// What the reply took.
    pub(super) fn billed(&self) -> Billed {
        self.billed
    }

    /// What replies that were had together took, as an answer without text or scores, and what was
    /// read of each.
    pub(super) fn answer(all: Vec<Heard<T>>) -> (Answer, Vec<T>) {
        let mut answer = Answer::default();
        let (mut first, mut billed) = (None::<Stamp>, Billed::default());
        let mut read = Vec::with_capacity(all.len());
        for heard in all {
            if first.is_none_or(|first| heard.sent.instant < first.instant) {
                first = Some(heard.sent);
                answer.served_model = heard.model;
                answer.system_fingerprint = heard.system_fingerprint;
            }
            answer.attempts += heard.attempts;
            answer.cached_tokens += heard.cached_tokens as i32;
            answer.estimated_usage |= heard.is_estimated;
            answer.wasted += heard.wasted;
            billed += heard.billed;
            for parameter in heard.missed {
                let name = parameter.setting().to_owned();
                if !answer.omitted.contains(&name) {
                    answer.omitted.push(name);
                }
            }
            read.push(heard.read);
        }
        let first = first.expect("one was heard");
        (answer.started_at_us, answer.latency_ms) = (first.us, first.elapsed_ms());
        let count = |tokens: u32| i32::try_from(tokens).unwrap_or(i32::MAX);
        answer.prompt_tokens = count(billed.prompt_tokens);
        answer.completion_tokens = count(billed.completion_tokens);
        (answer, read)
    }
}

/// One request on its way to a reply.
struct Attempts<'a> {
    meant: Body<'a>,
    body: Body<'a>,
    bytes: Vec<u8>,
    missed: Vec<Parameter>,
    /// How often it was sent.
    sent_times: i32,
    refusals: u32,
    /// Attempts that failed, of those that are counted against `retries`.
    failures: u32,
    loading_since: Option<Instant>,
    wasted: Billed,
}

impl Attempts<'_> {
    /// Makes the body anew by what is known of the server now. Whether it is another.
    fn shape(&mut self, profile: &Profile, dialect: Dialect) -> bool {
        self.body = self.meant.clone();
        self.missed = profile.shape(&mut self.body);
        let bytes = self.body.json(dialect);
        let is_new = bytes != self.bytes;
        self.bytes = bytes;
        is_new
    }
}

/// Waits, but not for an answer that nobody wants any more.
async fn pause(wait: Duration, meter: &dyn Meter) {
    let until = Instant::now() + wait;
    while let Some(left) = until.checked_duration_since(Instant::now())
        && !left.is_zero()
        && meter.is_wanted()
    {
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
    }
}

impl Exchange {
    pub(super) fn new(options: OpenAiOptions) -> Result<Exchange, OpenAiError> {
        let http = Http::new(&options)?;
        let gate = Gate::new(options.max_in_flight.max(1));
        let (server, kept) = (options.server(), options.profiles.clone());
        let name = KeyHasher::new("amend/profile/1").text(&server).text(&options.model);
        let name = match options.dialect {
            Dialect::OpenAi => name,
            Dialect::Messages => name.text("messages"),
        };
        let profile = Profile::open(name.id().to_string(), &server, &options.model, kept);
        let (heard, is_waiting) = (AtomicBool::new(false), AtomicBool::new(false));
        let (trying_out, waiting) = (tokio::sync::Mutex::new(()), Mutex::new(None));
        Ok(Exchange { options, profile, http, gate, heard, trying_out, waiting, is_waiting })
    }

    /// Whom it waits for.
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

    /// What a failed attempt of a call means, by what is left to try: to send it again, or the error.
    async fn again(
        &self,
        failure: &Failure,
        state: &mut Attempts<'_>,
        pass: super::gate::Pass,
        meter: &dyn Meter,
    ) -> Result<(), CallError> {
        if let Some(billed) = failure.billed(state.body.most()) {
            state.wasted += billed;
            if !meter.failed(billed) {
                return Err(self.give_up(Meaning::Again, failure, state.sent_times));
            }
        }
        let next = state.sent_times as u32 + 1;
        match failure.meaning() {
            Meaning::Refused if state.refusals < self.options.refusals() => {
                let pause = failure.retry_after();
                let pause = pause.unwrap_or_else(|| self.wait(&state.bytes, state.refusals));
                if pause > self.options.wait_max {
                    return Err(self.asks_to_wait(pause, failure));
                }
                state.refusals += 1;
                pass.refused(pause);
                self.waits_for(failure, next);
                Ok(())
            }
            Meaning::Loading => {
                drop(pass);
                let since = *state.loading_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= self.options.timeout {
                    return Err(self.still_loading(failure));
                }
                self.waits_for(failure, next);
                let wait = self.wait(&state.bytes, state.sent_times as u32 - 1);
                let wait = failure.retry_after().unwrap_or(wait).min(LOADING_PAUSE_MAX);
                pause(wait, meter).await;
                Ok(())
            }
            Meaning::Again if state.failures < self.options.retries => {
                state.failures += 1;
                drop(pass);
                self.waits_for(failure, next);
                let wait = self.wait(&state.bytes, state.failures - 1);
                pause(wait.max(failure.retry_after().unwrap_or_default()), meter).await;
                Ok(())
            }
            Meaning::Permanent | Meaning::Again => {
                drop(pass);
                self.adapt(failure, state)
            }
            meaning => Err(self.give_up(meaning, failure, state.sent_times)),
        }
    }

    /// Learns from a refusal what the server does not take, and makes the body one that it may take.
    fn adapt(&self, failure: &Failure, state: &mut Attempts<'_>) -> Result<(), CallError> {
        let give_up = || self.give_up(failure.meaning(), failure, state.sent_times);
        let Some(objection) = objection(failure, &state.body) else {
            if let (Some(status), Meaning::Permanent) = (failure.status(), failure.meaning()) {
                self.profile.said(status, &self.redact(failure.message()));
            }
            return Err(give_up());
        };
        let is_score = |parameter| {
            use Parameter::{Echo, Logprobs, PromptLogprobs, TopLogprobs};
            matches!(parameter, Echo | Logprobs | PromptLogprobs | TopLogprobs)
        };
        match objection {
            Objection::Parameter(parameter) if profile::can_omit(parameter, &state.body) => {
                self.leave_out(parameter, &state.body);
            }
            Objection::Value(parameter @ (Parameter::Logprobs | Parameter::TopLogprobs), most) => {
                let most = most.unwrap_or(LOGPROBS_FEW);
                if state.body.number(parameter).is_none_or(|number| number <= most) {
                    return Err(give_up());
                }
                self.profile.limited(parameter, most);
            }
            Objection::Value(Parameter::Stop, most) => {
                self.profile.limited(Parameter::Stop, most.unwrap_or(STOP_FEW));
            }
            // Another estimator may do.
            Objection::Parameter(parameter) if is_score(parameter) => return Err(give_up()),
            Objection::Parameter(parameter) | Objection::Value(parameter, _) => {
                return Err(self.cannot_honour(parameter, failure));
            }
        }
        // What was learnt changes nothing: the server says no to something else.
        if state.shape(&self.profile, self.options.dialect) {
            Ok(())
        } else {
            Err(self.give_up(failure.meaning(), failure, state.sent_times))
        }
    }

    /// A parameter is refused, and left out from now on. Said once, where it decides answers.
    fn leave_out(&self, parameter: Parameter, body: &Body<'_>) {
        if self.profile.refused(parameter) && profile::is_missed(parameter, body) {
            let (address, name) = (self.options.address(), parameter.setting());
            tracing::warn!(
                "{address} refuses `{name}` for the model \"{}\": requests are sent without it, and \
                 their rows say so in the column `warnings`",
                self.options.model
            );
        }
    }

    /// A setting that the server does not take: every row would lack it.
    fn cannot_honour(&self, parameter: Parameter, failure: &Failure) -> CallError {
        let (address, setting) = (self.options.address(), parameter.setting());
        let message = self.redact(failure.message());
        CallError::Outage {
            message: format!(
                "{address} does not take the setting `{setting}` for the model \"{}\": {message}; \
                 leave the setting out, or use another server",
                self.options.model
            ),
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
            Meaning::Loading => self.still_loading(failure),
            Meaning::Again | Meaning::Refused | Meaning::Unusable => match failure {
                Failure::Unreachable(_) => CallError::Outage { message: self.absent(&message) },
                Failure::Silent(_) if !reached => {
                    CallError::Outage { message: self.absent(&message) }
                }
                _ => CallError::Transient { message, attempts },
            },
        }
    }

    fn still_loading(&self, failure: &Failure) -> CallError {
        let (address, seconds) = (self.options.address(), self.options.timeout.as_secs());
        let message = self.redact(failure.message());
        let message = format!(
            "{address} is still loading its model after {seconds} s: {message}; run again when it is \
             ready, or raise `timeout_s` of the model"
        );
        CallError::Outage { message }
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

    /// The text without the secrets that were sent, should the server have quoted one.
    fn redact(&self, message: String) -> String {
        let secrets = self.options.secrets();
        secrets.iter().fold(message, |message, secret| message.replace(secret, "…"))
    }
}

impl Caller {
    /// Sends a body until there is a reply that can be read. `read` takes what the call needs from a
    /// reply, or says which field is missing or malformed.
    pub(super) async fn ask<T>(
        &self,
        route: Route,
        meant: Body<'_>,
        read: impl Fn(&Reply) -> Result<T, String>,
    ) -> Result<Heard<T>, CallError> {
        let exchange = &*self.exchange;
        let mut state = Attempts {
            body: meant.clone(),
            meant,
            bytes: Vec::new(),
            missed: Vec::new(),
            sent_times: 0,
            refusals: 0,
            failures: 0,
            loading_since: None,
            wasted: Billed::default(),
        };
        let dialect = exchange.options.dialect;
        // The Messages API has no seed: that need not be found out.
        if dialect == Dialect::Messages && state.meant.has(Parameter::Seed) {
            exchange.leave_out(Parameter::Seed, &state.meant);
        }
        state.shape(&exchange.profile, dialect);
        let mut sent = None;
        loop {
            let pass = exchange.gate.enter(state.refusals > 0).await;
            let sent = *sent.get_or_insert_with(Stamp::now);
            state.sent_times += 1;
            let reply = exchange.http.post(route, state.bytes.clone()).await;
            let read = reply.and_then(|reply| match read(&reply) {
                Ok(read) => Ok((read, reply)),
                Err(message) => Err(Failure::Unusable(message, reply.billed())),
            });
            let failure = match read {
                Ok((read, reply)) => {
                    pass.served();
                    exchange.heard();
                    exchange.profile.accepted(&state.body);
                    return Ok(state.heard(read, reply, sent));
                }
                Err(failure) => failure,
            };
            if matches!(failure, Failure::Status(_) | Failure::Garbled(..) | Failure::Unusable(..))
            {
                exchange.heard.store(true, Ordering::Relaxed);
            }
            exchange.again(&failure, &mut state, pass, &*self.meter).await?;
            if !self.meter.is_wanted() {
                return Err(exchange.give_up(failure.meaning(), &failure, state.sent_times));
            }
        }
    }
}

impl Attempts<'_> {
    fn heard<T>(self, read: T, reply: Reply, sent: Stamp) -> Heard<T> {
        let counted = reply.billed();
        let cached = reply
            .usage
            .get()
            .and_then(|usage| usage.prompt_tokens_details.get()?.cached_tokens.get().copied());
        Heard {
            read,
            model: reply.model.take(),
            system_fingerprint: reply.system_fingerprint.take(),
            cached_tokens: cached.unwrap_or(0),
            billed: counted.unwrap_or_else(|| self.body.most()),
            is_estimated: counted.is_none(),
            wasted: self.wasted,
            missed: self.missed,
            attempts: self.sent_times,
            sent,
        }
    }
}

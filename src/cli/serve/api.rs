//! The routes, and what a request becomes: one row of the model for each answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, Request as HttpRequest, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;

use super::answer::{About, Written};
use super::listen::{Limits, whole_bodies};
use super::wire::{Chat, Common, Completion, Fault};
use crate::cli::local::LocalModel;
use crate::model::torch::{Event, Input, Piece};
use crate::model::{CallError, Finish, Sampling};
use crate::record::KeyHasher;

/// The end of a stream.
const DONE: &str = "[DONE]";

/// What is served.
pub(super) struct Served {
    model: LocalModel,
    name: String,
    /// The hash of the token that is asked for.
    token: Option<blake3::Hash>,
    created: i64,
    asked: AtomicU64,
}

impl Served {
    pub(super) fn new(
        model: LocalModel,
        name: String,
        token: Option<&str>,
        now_ms: i64,
    ) -> Arc<Served> {
        let token = token.map(|token| blake3::hash(token.as_bytes()));
        let (created, asked) = (now_ms / 1000, AtomicU64::new(0));
        Arc::new(Served { model, name, token, created, asked })
    }

    fn about(&self, number: u64, asked: &Asked) -> About {
        About {
            id: format!("{}-{number}", if asked.is_chat { "chatcmpl" } else { "cmpl" }),
            created: self.created,
            model: self.name.clone(),
            fingerprint: self.model.fingerprint.clone(),
            is_chat: asked.is_chat,
            has_logprobs: asked.alternatives.is_some(),
            count: asked.count,
        }
    }

    fn object(&self) -> Value {
        json!({ "id": self.name, "object": "model", "created": self.created, "owned_by": "amend" })
    }

    fn check_model(&self, asked: Option<&str>) -> Result<(), Fault> {
        match asked {
            Some(asked) if asked != self.name => Err(Fault {
                status: 404,
                message: format!("the model `{asked}` is not served here; `{}` is", self.name),
                param: Some("model"),
                code: Some("model_not_found"),
            }),
            _ => Ok(()),
        }
    }
}

/// The routes.
pub(super) fn router(served: Arc<Served>, limits: Limits) -> Router {
    let guarded = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_method);
    // The token is looked at before the body is read.
    let guarded =
        whole_bodies(guarded, limits).layer(from_fn_with_state(Arc::clone(&served), check_token));
    Router::new()
        .route("/health", get(|| async { "ok" }))
        .merge(guarded)
        .layer(DefaultBodyLimit::max(limits.body_bytes))
        .with_state(served)
}

/// A document with its status.
fn json(status: StatusCode, document: &Value) -> Response {
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    (status, content_type, document.to_string()).into_response()
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json(status, &self.object());
        if self.status == 401 {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        response
    }
}

async fn check_token(
    State(served): State<Arc<Served>>,
    headers: HeaderMap,
    request: HttpRequest,
    next: Next,
) -> Response {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    // Hashes are compared in constant time.
    let is_given = given.map(|token| blake3::hash(token.as_bytes()));
    if served.token.is_some() && served.token != is_given {
        let message = "a request needs the header \"Authorization: Bearer TOKEN\" with the token \
                       that amend serve was started with";
        let code = Some("invalid_api_key");
        return Fault { status: 401, message: message.to_owned(), param: None, code }
            .into_response();
    }
    next.run(request).await
}

async fn unknown_route(request: HttpRequest) -> Fault {
    let message = format!("there is no {}", request.uri().path());
    Fault { status: 404, message, param: None, code: None }
}

async fn unknown_method(request: HttpRequest) -> Fault {
    let message = format!("{} is not a method of {}", request.method(), request.uri().path());
    Fault { status: 405, message, param: None, code: None }
}

async fn models(State(served): State<Arc<Served>>) -> Response {
    json(StatusCode::OK, &json!({ "object": "list", "data": [served.object()] }))
}

async fn model(
    State(served): State<Arc<Served>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Fault> {
    let Path(id) = id.map_err(|refused| Fault::bad(refused.body_text()))?;
    served.check_model(Some(&id)).map(|()| json(StatusCode::OK, &served.object()))
}

/// What a client sent, if it was not too long.
type Body = Result<Bytes, BytesRejection>;

/// A request's two halves, each of which ignores the other's fields.
fn parse<T: DeserializeOwned>(body: Body) -> Result<(Common, T), Fault> {
    let refused = |body: BytesRejection| Fault {
        status: body.status().as_u16(),
        ..Fault::bad(body.body_text())
    };
    let body = &body.map_err(refused)?;
    let fault = |error: serde_json::Error| Fault::bad(format!("the body is not read: {error}"));
    Ok((serde_json::from_slice(body).map_err(fault)?, serde_json::from_slice(body).map_err(fault)?))
}

async fn chat(State(served): State<Arc<Served>>, body: Body) -> Result<Response, Fault> {
    let (mut common, mut chat): (Common, Chat) = parse(body)?;
    served.check_model(common.model.as_deref())?;
    let alternatives = chat.alternatives()?;
    let mut sampling = common.sampling(served.model.sampling(u32::MAX))?;
    let prompts = vec![Input::Prompt(served.model.prompt(chat.messages()?, &mut sampling))];
    let (echo, count) = (false, common.count()?);
    let asked = Asked { is_chat: true, prompts, count, sampling, alternatives, echo };
    answer(&served, &common, asked).await
}

async fn completions(State(served): State<Arc<Served>>, body: Body) -> Result<Response, Fault> {
    let (mut common, mut completion): (Common, Completion) = parse(body)?;
    served.check_model(common.model.as_deref())?;
    let alternatives = completion.alternatives()?;
    let sampling = common.sampling(served.model.sampling(16))?;
    let (prompts, echo, count) = (completion.prompts()?, completion.echo(), common.count()?);
    let asked = Asked { is_chat: false, prompts, count, sampling, alternatives, echo };
    answer(&served, &common, asked).await
}

/// What is asked of the model.
struct Asked {
    is_chat: bool,
    prompts: Vec<Input>,
    /// How many answers there are to each.
    count: usize,
    sampling: Sampling,
    /// How many alternatives of each token are told, if log-probabilities are.
    alternatives: Option<usize>,
    echo: bool,
}

async fn answer(served: &Arc<Served>, common: &Common, asked: Asked) -> Result<Response, Fault> {
    let number = served.asked.fetch_add(1, Ordering::Relaxed);
    let (about, count) = (served.about(number, &asked), asked.count);
    let mut written = Vec::with_capacity(asked.prompts.len() * count);
    for begun in begun(served, &asked).await? {
        written.extend(std::iter::repeat_n(begun, count));
    }
    let (sender, mut events) = unbounded_channel();
    let alternatives = asked.alternatives.unwrap_or(0);
    for (index, begun) in written.iter_mut().enumerate() {
        if asked.sampling.max_tokens == 0 && asked.echo {
            begun.finish = Some(Finish::Length);
            continue;
        }
        let mut sampling = asked.sampling.clone();
        sampling.seed = seed(common.seed, number, index, sampling.is_greedy());
        let input = asked.prompts[index / count].clone();
        let sender = sender.clone();
        // Nobody hears when the client is gone: the row is then not written on.
        let listener = move |event| sender.send((index, event)).is_ok();
        served.model.backend.listen(input, sampling, alternatives, Box::new(listener));
    }
    drop(sender);
    match common.streams() {
        None => {
            while let Some((index, event)) = events.recv().await {
                take(&mut written[index], event)?;
            }
            Ok(json(StatusCode::OK, &about.whole(&written)))
        }
        Some(with_usage) => streamed(about, written, events, with_usage).await,
    }
}

/// Each answer has its own seed: the client's and the answer's number, or, where the client has
/// none, the request's number as well.
fn seed(asked: Option<i64>, number: u64, index: usize, is_greedy: bool) -> Option<u64> {
    let hasher = KeyHasher::new("amend/serve/1").u64(index as u64);
    let hasher = match asked {
        Some(seed) => hasher.u64(seed as u64),
        None => hasher.text("no seed").u64(number),
    };
    (!is_greedy).then(|| hasher.id().low())
}

/// Takes more of an answer.
fn take(written: &mut Written, event: Event) -> Result<(), Fault> {
    match event {
        Event::Piece(piece) => {
            written.add(&piece.text);
            written.tokens.extend(piece.tokens);
        }
        Event::End(answer) => written.end(&answer?),
    }
    Ok(())
}

/// What answers begin with, for each prompt: nothing, or the prompt itself.
async fn begun(served: &Served, asked: &Asked) -> Result<Vec<Written>, Fault> {
    if !asked.echo {
        let is_transcript = asked.is_chat && served.model.is_transcript();
        return Ok(vec![Written { is_transcript, ..Written::default() }; asked.prompts.len()]);
    }
    let read = |input: &Input| {
        let (sender, told) = oneshot::channel();
        let done = move |told| drop(sender.send(told));
        let most = asked.alternatives.unwrap_or(0);
        served.model.backend.read_prompt(input.clone(), most, Box::new(done));
        told
    };
    // All are asked for before one is waited for.
    let told: Vec<oneshot::Receiver<Result<Piece, CallError>>> =
        asked.prompts.iter().map(read).collect();
    let mut begun = Vec::with_capacity(told.len());
    for told in told {
        let gone = |_| Fault { status: 500, ..Fault::bad("the model's thread is gone") };
        let Piece { text, tokens } = told.await.map_err(gone)??;
        begun.push(Written {
            text,
            prompt_tokens: tokens.len() as i64,
            tokens,
            ..Written::default()
        });
    }
    Ok(begun)
}

/// What a stream of chunks goes on from.
struct Streaming {
    about: About,
    written: Vec<Written>,
    events: UnboundedReceiver<(usize, Event)>,
    /// Chunks that wait to be sent.
    ready: std::collections::VecDeque<Value>,
    with_usage: bool,
    is_ended: bool,
}

async fn streamed(
    about: About,
    written: Vec<Written>,
    mut events: UnboundedReceiver<(usize, Event)>,
    with_usage: bool,
) -> Result<Response, Fault> {
    let mut ready = std::collections::VecDeque::new();
    for (index, begun) in written.iter().enumerate() {
        if about.is_chat {
            ready.push_back(about.role(index));
        } else if !begun.text.is_empty() {
            ready.push_back(about.more(index, &begun.text, &begun.tokens, 0));
        }
        // Of a prompt that is only told again, nothing more will be heard.
        ready.extend(begun.finish.map(|finish| about.last(index, finish)));
    }
    // A request that is refused is refused before a stream begins.
    let first = match events.recv().await {
        Some((_, Event::End(Err(error)))) => return Err(error.into()),
        first => first,
    };
    let mut streaming = Streaming { about, written, events, ready, with_usage, is_ended: false };
    if let Some((index, event)) = first {
        streaming.hear(index, event);
    }
    let chunks = stream::unfold(streaming, |mut streaming| async {
        let data = streaming.next().await?;
        Some((Ok::<_, Infallible>(SseEvent::default().data(data)), streaming))
    });
    Ok(Sse::new(chunks).keep_alive(KeepAlive::default()).into_response())
}

impl Streaming {
    async fn next(&mut self) -> Option<String> {
        while self.ready.is_empty() && !self.is_ended {
            if let Some((index, event)) = self.events.recv().await {
                self.hear(index, event);
                continue;
            }
            self.is_ended = true;
            if self.with_usage {
                self.ready.push_back(self.about.used(&self.written));
            }
            self.ready.push_back(Value::from(DONE));
        }
        let chunk = self.ready.pop_front()?;
        Some(chunk.as_str().map_or_else(|| chunk.to_string(), str::to_owned))
    }

    fn hear(&mut self, index: usize, event: Event) {
        let written = &mut self.written[index];
        match event {
            Event::Piece(piece) => {
                let offset = written.text.chars().count();
                let text = written.add(&piece.text);
                if !text.is_empty() || !piece.tokens.is_empty() {
                    self.ready.push_back(self.about.more(index, text, &piece.tokens, offset));
                }
            }
            Event::End(Ok(answer)) => {
                written.end(&answer);
                self.ready.push_back(self.about.last(index, answer.finish));
            }
            Event::End(Err(error)) => self.ready.push_back(Fault::from(error).object()),
        }
    }
}

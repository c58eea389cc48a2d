//! A fake OpenAI-compatible server for tests: deterministic, counting, and faulty when told to.
//!
//! | route | what |
//! |---|---|
//! | `POST …/chat/completions`, `POST …/completions` | an answer that is a function of the body |
//! | `POST …/messages` | the same, by Anthropic's Messages API |
//! | `GET /stats` | counters as JSON ([`Stats`]) |
//! | `GET /requests` | a JSON line a distinct body: `{"body", "kind", "asked", "answered"}` |
//! | `POST /config` | sets the fields of [`Config`] that it is given |
//! | `POST /reset` | forgets all counts |
//!
//! A body's key is its canonical JSON: fields sorted, no white space. It runs a thread a
//! connection, and ends when its standard input does.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::fake_dialects::{self as dialects, Spoken};
use super::fake_messages as messages;
use super::fake_model as model;

/// How the server misbehaves. 0 is never.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    /// Milliseconds until an answer.
    pub(crate) latency_ms: u64,
    /// 400 for each body whose hash is a multiple of this: the same bodies always.
    pub(crate) permanent_every: u64,
    /// 429 for what would be more than this in flight.
    pub(crate) cap: usize,
    /// The header `Retry-After` of a 429.
    pub(crate) retry_after: String,
    /// 500 for each n-th call.
    pub(crate) fail_every: u64,
    /// Something that is no JSON for each n-th call.
    pub(crate) garbage_every: u64,
    /// No answer any more after so many calls.
    pub(crate) hang_after: u64,
    /// 401 for other keys than this; none checks none.
    pub(crate) api_key: Option<String>,
    /// 400 for prompts longer than this many characters.
    pub(crate) context: usize,
    /// 400 for these fields of a body.
    pub(crate) refused_fields: Vec<String>,
    /// Whose dialect it speaks: one of [`DIALECTS`](super::fake_dialects::DIALECTS), or of
    /// [those](super::fake_messages) of the Messages API.
    pub(crate) dialect: String,
    /// What goes wrong: one of [`FAULTS`](super::fake_dialects::FAULTS); empty is nothing.
    pub(crate) fault: String,
    /// With which bodies it goes wrong: with those whose hash is a multiple of this; the first time
    /// only, where the fault passes.
    pub(crate) fault_every: u64,
    /// What it calls the system that answers.
    pub(crate) system_fingerprint: String,
    /// Seconds until the process ends, whatever happens.
    pub(crate) life_max_s: u64,
    /// Keep bodies for `GET /requests`.
    pub(crate) keep_bodies: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            latency_ms: 0,
            permanent_every: 0,
            cap: 0,
            retry_after: "1".to_owned(),
            fail_every: 0,
            garbage_every: 0,
            hang_after: 0,
            api_key: None,
            context: 0,
            refused_fields: vec![],
            dialect: String::new(),
            fault: String::new(),
            fault_every: 0,
            system_fingerprint: "fp_fake".to_owned(),
            life_max_s: 3600,
            keep_bodies: true,
        }
    }
}

/// What was counted since the last reset.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Stats {
    /// Requests for an answer, whatever became of them.
    pub(crate) calls: u64,
    /// Different bodies among them.
    pub(crate) distinct: u64,
    /// Calls answered with 200.
    pub(crate) answered: u64,
    /// Answers given again for a body that had been answered: money spent twice.
    pub(crate) repeats: u64,
    /// The most in flight at once.
    pub(crate) in_flight_max: usize,
    /// Calls by status; 0 for those left hanging.
    pub(crate) by_status: BTreeMap<u16, u64>,
    /// Calls by kind: `chat`, `completions`, `echo`, `prompt_logprobs`, `top_logprobs`.
    pub(crate) by_kind: BTreeMap<String, u64>,
    /// Requests that the server charges for.
    pub(crate) billed: u64,
    /// Tokens that it read for them.
    pub(crate) prompt_tokens: u64,
    /// Tokens that it wrote for them.
    pub(crate) completion_tokens: u64,
    /// Seconds from the first call to the last answer.
    pub(crate) span_s: f64,
}

#[derive(Default)]
struct State {
    config: Config,
    stats: Stats,
    in_flight: usize,
    seen: BTreeMap<u64, Seen>,
    first: Option<Instant>,
}

/// A body that was asked.
#[derive(Serialize)]
struct Seen {
    body: String,
    kind: &'static str,
    asked: u64,
    answered: u64,
}

/// Serves until standard input ends. Prints `listening on 127.0.0.1:PORT` first.
pub(crate) fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    say(&format!("listening on {address}\n"));
    let state = Arc::new(Mutex::new(State::default()));
    {
        let state = Arc::clone(&state);
        thread::spawn(move || {
            let begin = Instant::now();
            loop {
                thread::sleep(Duration::from_secs(1));
                if begin.elapsed().as_secs() >= lock(&state).config.life_max_s {
                    leave();
                }
            }
        });
    }
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = Arc::clone(&state);
            let worker = thread::Builder::new().stack_size(512 << 10);
            // When a connection ends, so does its thread: there is nothing to be told.
            worker.spawn(move || connection(stream, &state)).expect("a thread can be started");
        }
    });
    let mut stdin = std::io::stdin().lock();
    std::io::copy(&mut stdin, &mut std::io::sink()).expect("standard input can be read");
    leave();
}

#[expect(clippy::exit, reason = "the process of the fake is over, whoever still waits in it")]
fn leave() -> ! {
    std::process::exit(0)
}

fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()).expect("the parent reads");
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no thread of the fake panics with the lock")
}

/// Answers the requests of a connection, one after the other.
fn connection(stream: TcpStream, state: &Mutex<State>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut writer = stream;
    loop {
        let Head { path, bearer, api_key, version, body } = read_request(&mut reader)?;
        let (status, extra, body) = match path.split('?').next()?.rsplit('/').next()? {
            "completions" => {
                let api = if path.contains("/chat/") { Api::Chat } else { Api::Completions };
                call(state, &api, &body, bearer.as_deref())
            }
            "messages" => call(state, &Api::Messages { version }, &body, api_key.as_deref()),
            "stats" => (200, String::new(), json!(lock(state).stats).to_string()),
            "requests" => (200, String::new(), requests(&lock(state))),
            "reset" => {
                let mut state = lock(state);
                *state = State {
                    config: state.config.clone(),
                    in_flight: state.in_flight,
                    ..State::default()
                };
                (200, String::new(), "{}".to_owned())
            }
            "config" => configure(&mut lock(state), &body),
            "models" => (200, String::new(), r#"{"data":[{"id":"fake"}]}"#.to_owned()),
            _ => (404, String::new(), error("there is no such route")),
        };
        if status == HANGS_UP {
            return None;
        }
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{extra}content-length: {}\r\n\r\n",
            body.len()
        );
        writer.write_all((head + &body).as_bytes()).ok()?;
    }
}

/// A request, as far as it is read.
struct Head {
    path: String,
    bearer: Option<String>,
    api_key: Option<String>,
    /// The header `anthropic-version`.
    version: Option<String>,
    body: Vec<u8>,
}

/// Which interface is asked.
enum Api {
    Chat,
    Completions,
    Messages { version: Option<String> },
}

/// The next request.
fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Head> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    let (mut bearer, mut api_key, mut version) = (None, None, None);
    loop {
        line.clear();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok()?,
            "authorization" => bearer = value.trim().strip_prefix("Bearer ").map(str::to_owned),
            "x-api-key" => api_key = Some(value.trim().to_owned()),
            "anthropic-version" => version = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Head { path, bearer, api_key, version, body })
}

type Response = (u16, String, String);

/// The status of an answer that is not given: the connection ends.
const HANGS_UP: u16 = dialects::HANGS_UP;

fn error(message: &str) -> String {
    json!({ "error": { "message": message, "type": "fake" } }).to_string()
}

fn requests(state: &State) -> String {
    state.seen.values().map(|seen| json!(seen).to_string() + "\n").collect()
}

fn configure(state: &mut State, body: &[u8]) -> Response {
    let mut config = json!(state.config);
    let given: Value = serde_json::from_slice(body).unwrap_or_default();
    for (name, value) in given.as_object().into_iter().flatten() {
        match config.get_mut(name) {
            Some(field) => *field = value.clone(),
            None => return (400, String::new(), error(&format!("there is no option {name:?}"))),
        }
    }
    match serde_json::from_value(config) {
        Ok(config) => {
            state.config = config;
            (200, String::new(), json!(state.config).to_string())
        }
        Err(fault) => (400, String::new(), error(&fault.to_string())),
    }
}

/// Counts a call and answers it.
fn call(state: &Mutex<State>, api: &Api, body: &[u8], key: Option<&str>) -> Response {
    let Ok(request) = serde_json::from_slice::<Value>(body) else {
        return (400, String::new(), error("the body is no JSON"));
    };
    let canonical = canonical(&request);
    let chat = !matches!(api, Api::Completions);
    let id = model::hash(&[if chat { "chat" } else { "completions" }, &canonical]);
    let kind = kind(chat, &request);
    let (config, nth, times, over) = {
        let mut state = lock(state);
        state.first.get_or_insert_with(Instant::now);
        state.in_flight += 1;
        state.stats.calls += 1;
        state.stats.in_flight_max = state.stats.in_flight_max.max(state.in_flight);
        *state.stats.by_kind.entry(kind.to_owned()).or_default() += 1;
        let body = if state.config.keep_bodies { canonical.clone() } else { String::new() };
        let seen = Seen { body, kind, asked: 0, answered: 0 };
        let seen = state.seen.entry(id).or_insert(seen);
        seen.asked += 1;
        let times = seen.asked;
        state.stats.distinct = state.seen.len() as u64;
        let over = state.config.cap > 0 && state.in_flight > state.config.cap;
        (state.config.clone(), state.stats.calls, times, over)
    };
    let hangs = config.hang_after > 0 && nth > config.hang_after;
    let asked = Ask { request: &request, canonical: &canonical, api, id, nth, times };
    let answered = if over { None } else { Some(respond(&config, &asked, key)) };
    if config.latency_ms > 0 && !over {
        thread::sleep(Duration::from_millis(config.latency_ms));
    }
    let spoken = answered.unwrap_or_else(|| {
        let headers = format!("retry-after: {}\r\n", config.retry_after);
        Spoken { headers, ..Spoken::free(429, error("rate limit reached")) }
    });
    {
        let mut state = lock(state);
        state.in_flight -= 1;
        let status = if hangs { 0 } else { spoken.status };
        state.stats.billed += u64::from(spoken.is_billed);
        state.stats.prompt_tokens += spoken.tokens.0;
        state.stats.completion_tokens += spoken.tokens.1;
        *state.stats.by_status.entry(status).or_default() += 1;
        if status == 200 {
            state.stats.answered += 1;
            // A reset may have come between.
            if let Some(seen) = state.seen.get_mut(&id) {
                seen.answered += 1;
                let again = seen.answered > 1;
                state.stats.repeats += u64::from(again);
            }
        }
        state.stats.span_s = state.first.map_or(0.0, |first| first.elapsed().as_secs_f64());
    }
    if hangs {
        thread::sleep(Duration::from_secs(config.life_max_s));
    }
    (spoken.status, spoken.headers, spoken.body)
}

/// A request for an answer.
struct Ask<'a> {
    request: &'a Value,
    canonical: &'a str,
    api: &'a Api,
    /// The hash of the body.
    id: u64,
    /// Which call it is.
    nth: u64,
    /// How often this body was asked, with this time.
    times: u64,
}

/// The answer, unless the server is to misbehave.
fn respond(config: &Config, ask: &Ask<'_>, key: Option<&str>) -> Spoken {
    let Ask { request, canonical, id, .. } = *ask;
    let every = |n: u64| n > 0 && ask.nth.is_multiple_of(n);
    let fault = |status, message: &str| match ask.api {
        Api::Messages { .. } => messages::error(status, message),
        _ => Spoken::free(status, error(message)),
    };
    if config.api_key.as_deref().is_some_and(|wanted| Some(wanted) != key) {
        return fault(401, &format!("incorrect API key provided: {}", key.unwrap_or("none")));
    }
    if request["model"] == "missing" {
        return fault(404, "the model `missing` does not exist");
    }
    if config.permanent_every > 0 && id.is_multiple_of(config.permanent_every) {
        return fault(
            400,
            &format!("refused by the content filter; key {}", key.unwrap_or("none")),
        );
    }
    if config.context > 0 && canonical.chars().count() > config.context {
        return fault(400, "this model's maximum context length is less than that");
    }
    if let Some(field) = config.refused_fields.iter().find(|field| request.get(*field).is_some()) {
        return fault(
            400,
            &format!("'{field}' is not supported; max_tokens: max_completion_tokens"),
        );
    }
    if every(config.fail_every) {
        return fault(500, "boom");
    }
    if every(config.garbage_every) {
        return Spoken::free(200, r#"{"choices":[{"index":"#.to_owned());
    }
    answer(config, ask)
}

/// The answer by the interface that was asked, unless that refuses the request.
fn answer(config: &Config, ask: &Ask<'_>) -> Spoken {
    let Ask { request, canonical, id, .. } = *ask;
    let refused = match ask.api {
        Api::Messages { version } => messages::refuse(&config.dialect, request, version.as_deref()),
        _ => dialects::refuse(&config.dialect, request),
    };
    if let Some(refused) = refused {
        return refused;
    }
    let system = &config.system_fingerprint;
    let is_chat = !matches!(ask.api, Api::Completions);
    let as_chat = match ask.api {
        Api::Messages { .. } => &messages::chat(request),
        _ => request,
    };
    let reply = super::fake_openai_replies::reply(as_chat, canonical, is_chat, id, system);
    let counted = |name: &str| reply["usage"][name].as_u64().unwrap_or(0);
    let tokens = (counted("prompt_tokens"), counted("completion_tokens"));
    let is_faulty = config.fault_every > 0
        && is_chat
        && id.is_multiple_of(config.fault_every)
        && (ask.times == 1 || !dialects::passes(&config.fault));
    let spoken = match (ask.api, is_faulty) {
        (Api::Messages { .. }, true) => {
            messages::fault(&config.fault, messages::message(request, &reply))
        }
        (Api::Messages { .. }, false) => {
            Spoken::billed(messages::message(request, &reply).to_string())
        }
        (_, true) => dialects::fault(&config.fault, reply),
        (_, false) => Spoken::billed(dialects::speak(&config.dialect, reply)),
    };
    let tokens = if spoken.is_billed { tokens } else { (0, 0) };
    Spoken { tokens, ..spoken }
}

fn kind(chat: bool, request: &Value) -> &'static str {
    let asks =
        |name: &str| request.get(name).is_some_and(|value| !value.is_null() && *value != false);
    match () {
        () if asks("echo") => "echo",
        () if asks("prompt_logprobs") => "prompt_logprobs",
        () if asks("logprobs") => "top_logprobs",
        () if chat => "chat",
        () => "completions",
    }
}

/// The JSON with its fields sorted.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<&String, &Value> = fields.iter().collect();
            let fields =
                sorted.iter().map(|(name, value)| format!("{}:{}", json!(name), canonical(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

//! What can go wrong with one HTTP request, and what it means for the call.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::reply::{End, Reply};
use crate::model::answer::Billed;

/// Characters of a brief reason.
const BRIEF_CHARS: usize = 80;
/// Characters of a message of a server.
const MESSAGE_CHARS: usize = 500;

/// What went wrong with one HTTP request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Failure {
    /// No connection was made.
    Unreachable(String),
    /// A connection was made, and then no answer came.
    Silent(String),
    /// An answer came, and is not one: asked again, it may be.
    Garbled(String, Option<Billed>),
    /// An answer came that cannot be used, and the next would be like it.
    Unusable(String, Option<Billed>),
    /// The server said no.
    Status(Refusal),
}

/// What a server says that answers no.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// Its message, in one line.
    pub(super) message: String,
    /// The parameter that its error names.
    pub(super) param: Option<String>,
    /// How long it asks to wait.
    pub(super) wait: Option<Duration>,
    /// What it says that it counted all the same.
    pub(super) billed: Option<Billed>,
}

/// What a failure means for the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Ask again; it counts as an attempt that failed.
    Again,
    /// The server has no room: wait, send less, and ask again.
    Refused,
    /// The server is not ready yet: wait, and ask again.
    Loading,
    /// The same request will fail again.
    Permanent,
    /// The reply cannot be used; the next run may ask again.
    Unusable,
    /// Every request will fail until somebody does something.
    Outage,
}

/// Signs of a quota that is used up, and not just for a minute.
const QUOTA: &[&str] = &[
    "insufficient_quota",
    "insufficient quota",
    "insufficient balance",
    "insufficient credits",
    "insufficient funds",
    "credit balance is too low",
    "exceeded your current quota",
    "billing_hard_limit",
    "billing hard limit",
    "billing_not_active",
    "out of credits",
    "perday",
    "per day",
    "daily limit",
    "monthly limit",
    "spending limit",
    "payment required",
];

/// Signs of a server that reads its model.
const LOADING: &[&str] = &[
    "loading model",
    "model is loading",
    "is currently loading",
    "model loading",
    "still loading",
    "loading the model",
    "model is not ready",
    "not ready yet",
    "is starting",
    "starting up",
    "warming up",
    "cold start",
];

/// Signs of a server that has more to do than it can.
const OVERLOADED: &[&str] = &[
    "overloaded",
    "over capacity",
    "at capacity",
    "no capacity",
    "too busy",
    "queue is full",
    "server is busy",
];

impl Failure {
    /// Of an error of the HTTP client. Its address is dropped: it may hold a secret.
    pub(super) fn from_reqwest(error: reqwest::Error) -> Failure {
        let error = error.without_url();
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            let text = error.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = error.source();
        }
        if error.is_connect() { Failure::Unreachable(message) } else { Failure::Silent(message) }
    }

    /// Of a reply that is not a success.
    pub(super) fn from_status(status: u16, body: &[u8], wait: Option<Duration>) -> Failure {
        let json = serde_json::from_slice::<Value>(body).ok();
        let error = json.as_ref().map(error_in);
        let message = error.and_then(message_in);
        let message = message.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
        let param = error.and_then(|error| error.get("param")?.as_str()).map(str::to_owned);
        let wait = wait.or_else(|| super::pause::of_body(body));
        Failure::Status(Refusal { status, message: one_line(&message), param, wait, billed: None })
    }

    /// The body of a success as JSON.
    pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
        serde_json::from_slice(body).map_err(|error| {
            let begin = String::from_utf8_lossy(&body[..body.len().min(4 * BRIEF_CHARS)]);
            let begin: String = one_line(&begin).chars().take(BRIEF_CHARS).collect();
            let message = format!("the server's reply cannot be read ({error}): {begin:?}");
            Failure::Garbled(message, None)
        })
    }

    /// The reply, unless it holds an error or was cut by the server.
    pub(super) fn check(reply: Reply) -> Result<Reply, Failure> {
        let billed = reply.billed();
        let is_error = reply.object.get().is_some_and(|object| object == "error");
        let whole = serde_json::json!({ "message": reply.message, "code": reply.code });
        let in_choice = reply.choices().map(|choice| &choice.error).find(|error| !error.is_null());
        let error = Some(&reply.error).filter(|error| !error.is_null()).or(in_choice);
        if let Some(error) = error.or(is_error.then_some(&whole)) {
            return Err(Failure::in_success(error, billed));
        }
        if reply.choices().next().is_none() {
            let message = "the server's reply has no `choices`".to_owned();
            return Err(Failure::Garbled(message, billed));
        }
        for choice in reply.choices() {
            match choice.finish() {
                Ok(_) => {}
                Err(End::Cut(name)) => {
                    let message = format!("the server broke the answer off (\"{name}\")");
                    return Err(Failure::Garbled(message, billed));
                }
                Err(End::Unknown(message)) => return Err(Failure::Unusable(message, billed)),
            }
        }
        Ok(reply)
    }

    /// An error in a reply with status 200: its code is a status, or a word.
    fn in_success(error: &Value, billed: Option<Billed>) -> Failure {
        let code = error.get("code").or_else(|| error.get("status"));
        let number = code.and_then(|code| match code {
            Value::String(text) => text.parse().ok(),
            code => code.as_u64(),
        });
        let number = number.and_then(|code| u16::try_from(code).ok());
        let message = message_in(error).unwrap_or_else(|| error.to_string());
        let kind = error.get("type").and_then(Value::as_str).unwrap_or_default();
        let words = format!("{kind} {message}");
        let status = number.filter(|code| (300..600).contains(code)).unwrap_or({
            match () {
                () if mentions(&words, &["rate_limit", "rate limit"]) => 429,
                () if mentions(&words, OVERLOADED) => 529,
                () if mentions(&words, &["authentication_error", "invalid_api_key"]) => 401,
                () if mentions(
                    &words,
                    &["invalid_request", "invalid request", "context_length"],
                ) =>
                {
                    400
                }
                () => 500,
            }
        });
        let wait = super::pause::of_body(error.to_string().as_bytes());
        let param = error.get("param").and_then(Value::as_str).map(str::to_owned);
        Failure::Status(Refusal { status, message: one_line(&message), param, wait, billed })
    }

    /// What it means for the call.
    pub(super) fn meaning(&self) -> Meaning {
        let refusal = match self {
            Failure::Status(refusal) => refusal,
            Failure::Unusable(..) => return Meaning::Unusable,
            _ => return Meaning::Again,
        };
        let says = |signs| mentions(&refusal.message, signs);
        match refusal.status {
            // A quota for a minute says how long to wait; one that is used up does not, or for long.
            400 | 402 | 403 | 429 if says(QUOTA) && !refusal.is_for_a_minute() => Meaning::Outage,
            429 | 529 => Meaning::Refused,
            503 if says(LOADING) => Meaning::Loading,
            503 if refusal.wait.is_some() => Meaning::Refused,
            498 | 500 | 502..=504 if says(OVERLOADED) => Meaning::Refused,
            // Gateways moderate with 403: that is about this prompt, not about the key.
            403 if says(&["moderation", "flagged", "content policy", "safety"]) => {
                Meaning::Permanent
            }
            300..=399 | 401..=405 | 407 => Meaning::Outage,
            408 | 409 | 425 => Meaning::Again,
            400..=499 | 501 => Meaning::Permanent,
            _ => Meaning::Again,
        }
    }

    /// Whether the prompt is longer than the model's context.
    pub(super) fn is_too_long(&self) -> bool {
        const SIGNS: &[&str] = &[
            "context length",
            "context_length",
            "context size",
            "context window",
            "context limit",
            "maximum context",
            "too many tokens",
            "prompt is too long",
            "input is too long",
            "input tokens exceed",
            "exceeds the maximum number of tokens",
        ];
        match self {
            Failure::Status(Refusal { status: 413, .. }) => true,
            Failure::Status(Refusal { status: 400..=499, message, .. }) => mentions(message, SIGNS),
            _ => false,
        }
    }

    /// What the server charges for the attempt, where it does: what it counted, or `most` where it
    /// did not say. A refusal is free.
    pub(super) fn billed(&self, most: Billed) -> Option<Billed> {
        match self {
            Failure::Unreachable(_) => None,
            // The answer may have been on its way.
            Failure::Silent(_) => Some(most),
            Failure::Garbled(_, billed) | Failure::Unusable(_, billed) => {
                Some(billed.unwrap_or(most))
            }
            Failure::Status(refusal) => refusal.billed,
        }
    }

    /// How long the server asked to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Failure::Status(refusal) => refusal.wait,
            _ => None,
        }
    }

    /// The HTTP status, when there was one.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Failure::Status(refusal) => Some(refusal.status),
            _ => None,
        }
    }

    /// What happened, in a few words: of a chain of causes the last.
    pub(super) fn brief(&self) -> String {
        let message = self.message();
        let cause = match self {
            Failure::Unreachable(_) | Failure::Silent(_) => message.rsplit(": ").next(),
            _ => None,
        };
        let brief = cause.unwrap_or(&message);
        match brief.char_indices().nth(BRIEF_CHARS) {
            Some((end, _)) => format!("{}…", &brief[..end]),
            None => brief.to_owned(),
        }
    }

    /// What happened, in one line.
    pub(super) fn message(&self) -> String {
        match self {
            Failure::Unreachable(message)
            | Failure::Silent(message)
            | Failure::Garbled(message, _)
            | Failure::Unusable(message, _) => message.clone(),
            Failure::Status(Refusal { status, message, .. }) if message.is_empty() => {
                format!("the server answered {status}")
            }
            Failure::Status(Refusal { status, message, .. }) => {
                format!("the server answered {status}: {message}")
            }
        }
    }
}

impl Refusal {
    /// Whether the quota that it speaks of is whole again soon: Google calls a quota for a minute
    /// "your current quota" too, and says when to ask again.
    fn is_for_a_minute(&self) -> bool {
        let is_soon = self.wait.is_some_and(|wait| wait <= Duration::from_mins(5));
        let is_for_longer = mentions(&self.message, &["perday", "per day", "insufficient"]);
        is_soon && !is_for_longer
    }
}

pub(super) fn mentions(message: &str, signs: &[&str]) -> bool {
    let message = message.to_lowercase();
    signs.iter().any(|sign| message.contains(sign))
}

/// The error of a body: the whole, its `error`, or that of its only item, as Google sends.
fn error_in(body: &Value) -> &Value {
    let body = body.get(0).unwrap_or(body);
    body.get("error").unwrap_or(body)
}

/// White space made single, and what is too long cut.
fn one_line(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().collect();
    words.join(" ").chars().take(MESSAGE_CHARS).collect()
}

fn message_in(error: &Value) -> Option<String> {
    if let Some(text) = error.as_str() {
        return Some(text.to_owned());
    }
    let message = ["message", "detail", "error"].iter().find_map(|name| error.get(name))?;
    let message = message.as_str().map_or_else(|| message.to_string(), str::to_owned);
    // OpenAI's codes, such as context_length_exceeded, say more than its messages.
    match error.get("code").and_then(Value::as_str) {
        Some(code) if !message.contains(code) => Some(format!("{message} ({code})")),
        _ => Some(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_whether_to_ask_again() {
        let meaning = |status, message: &str| {
            Failure::from_status(status, message.as_bytes(), None).meaning()
        };
        for status in [408, 409, 425, 500, 502, 503] {
            assert_eq!(meaning(status, ""), Meaning::Again, "{status}");
        }
        for status in [400, 413, 422, 501] {
            assert_eq!(meaning(status, ""), Meaning::Permanent, "{status}");
        }
        for status in [301, 401, 402, 403, 404] {
            assert_eq!(meaning(status, ""), Meaning::Outage, "{status}");
        }
        for status in [429, 529] {
            assert_eq!(meaning(status, ""), Meaning::Refused, "{status}");
        }
        assert_eq!(meaning(403, r#"{"error":{"message":"input flagged"}}"#), Meaning::Permanent);
        let overloaded =
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
        assert_eq!(meaning(503, overloaded), Meaning::Refused);
        assert_eq!(meaning(500, "The server is overloaded"), Meaning::Refused);
    }

    #[test]
    fn a_server_that_is_loading_is_waited_for() {
        let meaning = |message: &str| Failure::from_status(503, message.as_bytes(), None).meaning();
        let llama =
            r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#;
        assert_eq!(meaning(llama), Meaning::Loading);
        let hub = r#"{"error":"Model m is currently loading","estimated_time":20.0}"#;
        assert_eq!(meaning(hub), Meaning::Loading);
        assert_eq!(meaning("service unavailable"), Meaning::Again);
    }

    #[test]
    fn a_quota_for_a_minute_is_waited_for_and_one_that_is_used_up_is_not() {
        let meaning = |status, message: &str| {
            Failure::from_status(status, message.as_bytes(), None).meaning()
        };
        let used_up = r#"{"error":{"message":"No credit","code":"insufficient_quota"}}"#;
        assert_eq!(meaning(429, used_up), Meaning::Outage);
        assert_eq!(
            meaning(402, r#"{"error":{"message":"Insufficient Balance"}}"#),
            Meaning::Outage
        );
        let low = r#"{"error":{"message":"Your credit balance is too low to access the API"}}"#;
        assert_eq!(meaning(400, low), Meaning::Outage);
        let google = |quota: &str, delay: &str| {
            let message = "You exceeded your current quota, please check your plan";
            format!(
                r#"[{{"error":{{"code":429,"message":"{message} {quota}","details":[{delay}]}}}}]"#
            )
        };
        let soon = r#"{"retryDelay":"37s"}"#;
        assert_eq!(meaning(429, &google("", soon)), Meaning::Refused);
        assert_eq!(meaning(429, &google("", "")), Meaning::Outage);
        assert_eq!(meaning(429, &google("RequestsPerDayPerProject", soon)), Meaning::Outage);
        let failure = Failure::from_status(429, google("", soon).as_bytes(), None);
        assert_eq!(failure.retry_after(), Some(Duration::from_secs(37)));
    }

    #[test]
    fn too_long_is_known_by_what_servers_say() {
        let check =
            |message: &str| Failure::from_status(400, message.as_bytes(), None).is_too_long();
        assert!(check("This model's maximum context length is 8192 tokens."));
        assert!(check(r#"{"error":{"message":"no","code":"context_length_exceeded"}}"#));
        assert!(check(r#"{"error":{"message":"the request exceeds the available context size"}}"#));
        assert!(!check("temperature must be at least 0"));
    }

    fn checked(text: &str) -> Failure {
        Failure::parse(text.as_bytes()).and_then(Failure::check).unwrap_err()
    }

    #[test]
    fn an_error_inside_a_success_is_an_error() {
        let check = |text: &str| {
            let failure = checked(text);
            (failure.status(), failure.meaning())
        };
        let top = r#"{"error":{"code":400,"message":"no such parameter"}}"#;
        assert_eq!(check(top), (Some(400), Meaning::Permanent));
        let word = r#"{"error":{"code":"rate_limit_exceeded","message":"slow down"},"choices":[]}"#;
        assert_eq!(check(word), (Some(429), Meaning::Refused));
        assert_eq!(check(r#"{"error":"boom"}"#), (Some(500), Meaning::Again));
        let whole = r#"{"object":"error","message":"the context_length is 10","code":40303}"#;
        assert_eq!(check(whole), (Some(400), Meaning::Permanent));
        let choice = r#"{"choices":[{"message":{"content":""},"finish_reason":"error",
            "error":{"code":502,"message":"upstream"}}]}"#;
        assert_eq!(check(choice), (Some(502), Meaning::Again));
    }

    #[test]
    fn what_is_no_whole_answer_is_a_failure_that_is_paid_for() {
        let most = Billed { requests: 1, prompt_tokens: 90, completion_tokens: 64 };
        let check = |text: &str| {
            let failure = checked(text);
            (failure.meaning(), failure.billed(most))
        };
        assert_eq!(check(r#"{"choices":[]}"#), (Meaning::Again, Some(most)));
        assert_eq!(check("{\"choices\":[{"), (Meaning::Again, Some(most)));
        let usage = r#""usage":{"prompt_tokens":3,"completion_tokens":2}"#;
        let counted = Billed { requests: 1, prompt_tokens: 3, completion_tokens: 2 };
        let cut = format!(r#"{{"choices":[{{"text":"a","finish_reason":"abort"}}],{usage}}}"#);
        assert_eq!(check(&cut), (Meaning::Again, Some(counted)));
        let odd = format!(r#"{{"choices":[{{"text":"a","finish_reason":"magic"}}],{usage}}}"#);
        assert_eq!(check(&odd), (Meaning::Unusable, Some(counted)));
        let refused = Failure::from_status(429, b"", None);
        assert_eq!(refused.billed(most), None);
    }
}

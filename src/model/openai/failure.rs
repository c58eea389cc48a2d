//! What can go wrong with one HTTP request, and what it means for the call.

use std::time::Duration;

use serde_json::Value;

use super::wire::Reply;

/// Characters of a brief reason.
const BRIEF_CHARS: usize = 80;

/// What went wrong with one HTTP request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Failure {
    /// No connection was made.
    Unreachable(String),
    /// A connection was made, and then no answer came.
    Silent(String),
    /// An answer came, and is not one.
    Garbled(String),
    /// The server said no.
    Status { status: u16, message: String, retry_after: Option<Duration> },
}

/// What a failure means for the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Ask again; it counts as an attempt that failed.
    Again,
    /// The server has no room: wait, send less, and ask again.
    Refused,
    /// The same request will fail again.
    Permanent,
    /// Every request will fail until somebody does something.
    Outage,
}

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
    pub(super) fn from_status(status: u16, body: &[u8], retry_after: Option<Duration>) -> Failure {
        Failure::Status { status, message: message_of(body), retry_after }
    }

    /// The reply, unless it is no JSON or holds an error.
    pub(super) fn check(reply: serde_json::Result<Reply>) -> Result<Reply, Failure> {
        let reply = reply.map_err(|error| {
            Failure::Garbled(format!("the server answered what is not a reply: {error}"))
        })?;
        if let Some(error) = reply.error.as_ref().filter(|error| !error.is_null()) {
            let code = error.get("code").and_then(Value::as_u64);
            let status = code.and_then(|code| u16::try_from(code).ok()).unwrap_or(500);
            let message = message_in(error).unwrap_or_else(|| error.to_string());
            return Err(Failure::Status { status, message, retry_after: None });
        }
        if reply.choices.is_empty() {
            return Err(Failure::Garbled("the server answered without choices".to_owned()));
        }
        Ok(reply)
    }

    /// What it means for the call.
    pub(super) fn meaning(&self) -> Meaning {
        let Failure::Status { status, message, retry_after } = self else { return Meaning::Again };
        match status {
            429 if mentions(message, &["insufficient_quota", "exceeded your current quota"]) => {
                Meaning::Outage
            }
            429 => Meaning::Refused,
            503 if retry_after.is_some() => Meaning::Refused,
            // Gateways moderate with 403: that is about this prompt, not about the key.
            403 if mentions(message, &["moderation", "flagged", "content policy", "safety"]) => {
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
            "maximum context",
            "too many tokens",
            "prompt is too long",
            "input is too long",
        ];
        match self {
            Failure::Status { status: 413, .. } => true,
            Failure::Status { status: 400..=499, message, .. } => mentions(message, SIGNS),
            _ => false,
        }
    }

    /// Whether the server wants `max_completion_tokens` in place of `max_tokens`.
    pub(super) fn renames_max_tokens(&self) -> bool {
        matches!(self, Failure::Status { status: 400, message, .. }
            if mentions(message, &["max_completion_tokens"]) && !self.is_too_long())
    }

    /// How long the server asked to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Failure::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The HTTP status, when there was one.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Failure::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// What happened, in a few words: of a chain of causes the last.
    pub(super) fn brief(&self) -> String {
        let message = self.message();
        let cause = match self {
            Failure::Unreachable(_) | Failure::Silent(_) => message.rsplit(": ").next(),
            Failure::Garbled(_) | Failure::Status { .. } => None,
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
            | Failure::Garbled(message) => message.clone(),
            Failure::Status { status, message, .. } if message.is_empty() => {
                format!("the server answered {status}")
            }
            Failure::Status { status, message, .. } => {
                format!("the server answered {status}: {message}")
            }
        }
    }
}

fn mentions(message: &str, signs: &[&str]) -> bool {
    let message = message.to_lowercase();
    signs.iter().any(|sign| message.contains(sign))
}

/// The message of an error's body, in whichever of the usual places; at most 500 characters.
fn message_of(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let message = serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|value| message_in(value.get("error").unwrap_or(&value)))
        .unwrap_or_else(|| text.into_owned());
    let line: Vec<&str> = message.split_whitespace().collect();
    line.join(" ").chars().take(500).collect()
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

/// The wait that a header `Retry-After` asks for: seconds, or a date, which is measured from the
/// server's own `Date` where it sent one.
pub(super) fn retry_after(value: &str, date: Option<&str>, now_s: i64) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return (0.0..1e9).contains(&seconds).then(|| Duration::from_secs_f64(seconds));
    }
    let then_s = http_date(value)?;
    let now_s = date.and_then(http_date).unwrap_or(now_s);
    Some(Duration::from_secs(then_s.saturating_sub(now_s).max(0) as u64))
}

/// Seconds since 1970 of a date such as `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7).
fn http_date(text: &str) -> Option<i64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let parts: Vec<&str> = text.split([' ', ',', ':']).filter(|part| !part.is_empty()).collect();
    let [_, day, month, year, hour, minute, second, "GMT"] = parts[..] else { return None };
    let month = MONTHS.find(month).filter(|_| month.len() == 3)? as i64 / 3 + 1;
    let number = |text: &str| text.parse::<u16>().ok().map(i64::from);
    let (day, year) = (number(day)?, number(year)?);
    // Days since 1970 of a civil date: the year begins in March, so that a leap day ends it.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + number(hour)?) * 60 + number(minute)?) * 60 + number(second)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let check = |value, date, wait: Option<f64>| {
            assert_eq!(retry_after(value, date, 784_111_770), wait.map(Duration::from_secs_f64));
        };
        check("2", None, Some(2.0));
        check("0.25", None, Some(0.25));
        check("-1", None, None);
        check("soon", None, None);
        check("Sun, 06 Nov 1994 08:49:37 GMT", None, Some(7.0));
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some("Sun, 06 Nov 1994 08:49:00 GMT"), Some(37.0));
        check("Sun, 06 Nov 1994 08:40:00 GMT", None, Some(0.0));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Thu, 29 Feb 2024 12:00:00 GMT"), Some(1_709_208_000));
    }

    #[test]
    fn a_status_says_whether_to_ask_again() {
        let meaning = |status, message: &str| {
            Failure::from_status(status, message.as_bytes(), None).meaning()
        };
        for status in [408, 409, 425, 500, 502, 503, 529] {
            assert_eq!(meaning(status, ""), Meaning::Again, "{status}");
        }
        for status in [400, 413, 422, 501] {
            assert_eq!(meaning(status, ""), Meaning::Permanent, "{status}");
        }
        for status in [301, 401, 402, 403, 404] {
            assert_eq!(meaning(status, ""), Meaning::Outage, "{status}");
        }
        assert_eq!(meaning(429, ""), Meaning::Refused);
        let quota = r#"{"error":{"message":"No credit","code":"insufficient_quota"}}"#;
        assert_eq!(meaning(429, quota), Meaning::Outage);
        assert_eq!(meaning(403, r#"{"error":{"message":"input flagged"}}"#), Meaning::Permanent);
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

    #[test]
    fn an_error_inside_a_success_is_an_error() {
        let check = |text: &str| Failure::check(serde_json::from_str(text)).unwrap_err();
        let error = check(r#"{"error":{"code":400,"message":"no such parameter"}}"#);
        assert_eq!((error.status(), error.meaning()), (Some(400), Meaning::Permanent));
        assert_eq!(check(r#"{"choices":[]}"#).meaning(), Meaning::Again);
        assert!(matches!(check("{\"choices\":[{"), Failure::Garbled(_)));
    }
}

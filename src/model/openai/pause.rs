//! Pauses: how long a server asks to wait, in a header or in the body of its refusal.

use std::sync::LazyLock;
use std::time::Duration;

use regex::Regex;
use reqwest::header::{DATE, HeaderMap, HeaderValue, RETRY_AFTER};
use serde_json::Value;

/// No server is waited for longer than this many seconds, whatever it asks.
const SECONDS_MAX: f64 = 1e9;

/// The wait that the headers of a refusal ask for.
///
/// `Retry-After` and its variants come first. `x-ratelimit-reset-*` say when each kind of quota is
/// whole again: the longest wait among those of which nothing remains.
pub(super) fn of_headers(headers: &HeaderMap, now_s: i64) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let date = headers.get(DATE).and_then(|value: &HeaderValue| value.to_str().ok());
    let ms = ["retry-after-ms", "x-ms-retry-after-ms"].into_iter().find_map(text);
    if let Some(ms) = ms.and_then(|ms| ms.trim().parse::<f64>().ok()) {
        return seconds(ms / 1e3);
    }
    if let Some(wait) = text(RETRY_AFTER.as_str()).and_then(|value| retry_after(value, date, now_s))
    {
        return Some(wait);
    }
    let now_s = date.and_then(http_date).unwrap_or(now_s);
    let mut longest = None;
    for (name, value) in headers {
        let name = name.as_str();
        let is_limit = name.contains("ratelimit") && name.contains("reset");
        let remaining = name.replace("reset", "remaining");
        let is_spent = text(&remaining).is_some_and(|left| left.trim() == "0");
        if is_limit && is_spent {
            let value = value.to_str().unwrap_or_default().trim();
            longest = longest.max(reset(value, now_s));
        }
    }
    longest
}

/// When a quota is whole again: seconds or a duration from now, or a moment.
fn reset(value: &str, now_s: i64) -> Option<Duration> {
    if let Ok(number) = value.parse::<f64>() {
        // A number of this size is a moment: seconds since 1970, or milliseconds.
        return match number {
            number if number > 1e12 => seconds(number / 1e3 - now_s as f64),
            number if number > 1e9 => seconds(number - now_s as f64),
            number => seconds(number),
        };
    }
    duration(value).or_else(|| {
        let then_s = internet_date(value)?;
        seconds((then_s - now_s) as f64)
    })
}

/// The wait that the body of a refusal asks for: Google's `retryDelay`, a field `retry_after`, or
/// words such as "try again in 1m12s".
pub(super) fn of_body(body: &[u8]) -> Option<Duration> {
    let json = serde_json::from_slice::<Value>(body).ok();
    json.as_ref()
        .and_then(|json| in_json(json, 0))
        .or_else(|| in_words(&String::from_utf8_lossy(&body[..body.len().min(16 << 10)])))
}

fn in_json(value: &Value, depth: usize) -> Option<Duration> {
    if depth > 8 {
        return None;
    }
    match value {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| match name.as_str() {
            "retryDelay" | "retry_after" | "retryAfter" | "retry_after_seconds" => {
                let text = value.as_str().and_then(|text| reset(text.trim(), i64::MAX));
                value.as_f64().and_then(seconds).or(text)
            }
            "retry_after_ms" => value.as_f64().and_then(|ms| seconds(ms / 1e3)),
            _ => in_json(value, depth + 1),
        }),
        Value::Array(items) => items.iter().find_map(|item| in_json(item, depth + 1)),
        _ => None,
    }
}

fn in_words(text: &str) -> Option<Duration> {
    static WORDS: LazyLock<Regex> = LazyLock::new(|| {
        let words = r"(?i)(?:try again|retry|wait|available|resets?)(?: again)?(?: after| in| for| at least)?[:\s]+(?:about |approximately )?((?:\d+(?:\.\d+)?\s*(?:ms|milliseconds?|h(?:ours?)?|m(?:in(?:ute)?s?)?|s(?:ec(?:ond)?s?)?)\b\s*)+|(?:\d+(?:\.\d+)?(?:ms|h|m|s))+)";
        Regex::new(words).expect("the pattern is right")
    });
    let found = WORDS.captures(text)?;
    duration(found.get(1)?.as_str())
}

/// A duration such as `37s`, `1m12s`, `6m0s`, `350ms` or `20 seconds`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut sum = None;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit_and_rest = rest[end..].trim_start();
        let end = unit_and_rest.find(|c: char| !c.is_ascii_alphabetic());
        let (unit, after) = unit_and_rest.split_at(end.unwrap_or(unit_and_rest.len()));
        let unit_s = match unit.to_ascii_lowercase().as_str() {
            "ms" | "millisecond" | "milliseconds" => 1e-3,
            "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
            "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
            "h" | "hour" | "hours" => 3600.0,
            _ => return None,
        };
        sum = Some(sum.unwrap_or(0.0) + number * unit_s);
        rest = after.trim_start();
    }
    seconds(sum?)
}

fn seconds(seconds: f64) -> Option<Duration> {
    (seconds < SECONDS_MAX).then(|| Duration::from_secs_f64(seconds.max(0.0)))
}

/// The wait that a header `Retry-After` asks for: seconds, or a date, which is measured from the
/// server's own `Date` where it sent one.
fn retry_after(value: &str, date: Option<&str>, now_s: i64) -> Option<Duration> {
    let value = value.trim();
    if let Ok(number) = value.parse::<f64>() {
        return (number >= 0.0).then(|| seconds(number)).flatten();
    }
    let Some(then_s) = http_date(value) else { return duration(value) };
    let now_s = date.and_then(http_date).unwrap_or(now_s);
    Some(Duration::from_secs(then_s.saturating_sub(now_s).max(0) as u64))
}

/// Seconds since 1970 of a date such as `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7).
fn http_date(text: &str) -> Option<i64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let parts: Vec<&str> = text.split([' ', ',', ':']).filter(|part| !part.is_empty()).collect();
    let [_, day, month, year, hour, minute, second, "GMT"] = parts[..] else { return None };
    let month = MONTHS.find(month).filter(|_| month.len() == 3)? as i64 / 3 + 1;
    moment([year, day, hour, minute, second], month)
}

/// Seconds since 1970 of a date such as `2026-12-01T08:49:37Z` (RFC 3339), as Anthropic sends.
fn internet_date(text: &str) -> Option<i64> {
    let text = text.strip_suffix('Z')?;
    let (date, time) = text.split_once('T')?;
    let time = time.split('.').next()?;
    let date: Vec<&str> = date.split('-').collect();
    let time: Vec<&str> = time.split(':').collect();
    let ([year, month, day], [hour, minute, second]) = (&date[..], &time[..]) else { return None };
    moment([year, day, hour, minute, second], month.parse().ok()?)
}

/// Seconds since 1970 of a moment in UTC, given as year, day, hour, minute, second, and month.
fn moment(parts: [&str; 5], month: i64) -> Option<i64> {
    let number = |text: &str| text.parse::<u16>().ok().map(i64::from);
    let [year, day, hour, minute, second] = parts.map(number);
    let (day, year) = (day?, year?);
    // Days since 1970 of a civil date: the year begins in March, so that a leap day ends it.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + hour?) * 60 + minute?) * 60 + second?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: i64 = 784_111_770;

    fn headers(all: &[(&'static str, &'static str)]) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        of_headers(&headers, NOW_S)
    }

    fn s(seconds: f64) -> Option<Duration> {
        Duration::try_from_secs_f64(seconds).ok()
    }

    #[test]
    fn retry_after_is_seconds_a_duration_or_a_date() {
        assert_eq!(headers(&[("retry-after", "2")]), s(2.0));
        assert_eq!(headers(&[("retry-after", "0.25")]), s(0.25));
        assert_eq!(headers(&[("retry-after", "7s")]), s(7.0));
        assert_eq!(headers(&[("retry-after-ms", "250"), ("retry-after", "9")]), s(0.25));
        assert_eq!(headers(&[("retry-after", "-1")]), None);
        assert_eq!(headers(&[("retry-after", "soon")]), None);
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(headers(&[("retry-after", date)]), s(7.0));
        let own = [("retry-after", date), ("date", "Sun, 06 Nov 1994 08:49:00 GMT")];
        assert_eq!(headers(&own), s(37.0));
        assert_eq!(headers(&[("retry-after", "Sun, 06 Nov 1994 08:40:00 GMT")]), s(0.0));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Thu, 29 Feb 2024 12:00:00 GMT"), Some(1_709_208_000));
        assert_eq!(internet_date("2024-02-29T12:00:00Z"), Some(1_709_208_000));
    }

    #[test]
    fn the_quota_that_is_spent_says_when_it_is_whole_again() {
        let openai = [
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", "1m12s"),
            ("x-ratelimit-remaining-tokens", "9000"),
            ("x-ratelimit-reset-tokens", "6m0s"),
        ];
        assert_eq!(headers(&openai), s(72.0), "of tokens some remain");
        let anthropic = [
            ("anthropic-ratelimit-tokens-remaining", "0"),
            ("anthropic-ratelimit-tokens-reset", "1994-11-06T08:49:40Z"),
        ];
        assert_eq!(headers(&anthropic), s(10.0));
        let moment = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1784111775")];
        assert_eq!(headers(&moment), s(1_000_000_005.0).filter(|_| false), "too far to wait for");
        let ms = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1784111775000")];
        assert_eq!(headers(&ms), None);
        assert_eq!(
            headers(&[("x-ratelimit-reset-requests", "9s")]),
            None,
            "none is said to be spent"
        );
    }

    #[test]
    fn a_body_says_how_long_to_wait_in_a_field_or_in_words() {
        let google =
            br#"[{"error":{"code":429,"details":[{"@type":"RetryInfo","retryDelay":"37.5s"}]}}]"#;
        assert_eq!(of_body(google), s(37.5));
        assert_eq!(of_body(br#"{"error":{"message":"x","retry_after":3}}"#), s(3.0));
        let words = |text: &str| of_body(text.as_bytes());
        assert_eq!(words("Rate limit reached. Please try again in 20s. Visit"), s(20.0));
        assert_eq!(words("Please try again in 1m12.5s."), s(72.5));
        assert_eq!(words(r#"{"error":{"message":"Please try again in 350ms."}}"#), s(0.35));
        assert_eq!(words("please retry after 20 seconds"), s(20.0));
        assert_eq!(words("Please wait 2 minutes and"), s(120.0));
        assert_eq!(words("try again later"), None);
        assert_eq!(words("limit of 5 requests per 1 minute"), None);
    }
}

//! Anthropic's Messages API as the fake speaks it: what it refuses, its replies, and what goes wrong
//! with them. Written from the published reference and from reports of its users.
//!
//! | dialect | what it is like |
//! |---|---|
//! | `anthropic` | models that take all parameters of the interface |
//! | `anthropic-4.5` | models that take `temperature` or `top_p`, and not both |
//! | `anthropic-5` | models that take no `temperature` but 1, no budget of thoughts, and no begun answer |

use serde_json::{Value, json};

use super::fake_dialects::{self as dialects, Spoken};

/// All fields of a request.
const FIELDS: &[&str] = &[
    "model",
    "messages",
    "max_tokens",
    "metadata",
    "service_tier",
    "stop_sequences",
    "stream",
    "system",
    "temperature",
    "thinking",
    "output_config",
    "tool_choice",
    "tools",
    "top_k",
    "top_p",
];

/// An error as the interface says it.
pub(crate) fn error(status: u16, message: &str) -> Spoken {
    let kind = match status {
        400 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        _ => "api_error",
    };
    let error = json!({ "type": kind, "message": message });
    let body = json!({ "type": "error", "error": error, "request_id": "req_fake" });
    Spoken::free(status, body.to_string())
}

/// What is refused of a request.
pub(crate) fn refuse(dialect: &str, request: &Value, version: Option<&str>) -> Option<Spoken> {
    let no = |message: &str| Some(error(400, message));
    if version != Some("2023-06-01") {
        return no("anthropic-version: header is required");
    }
    let fields = request.as_object()?;
    if let Some(field) = fields.keys().find(|field| !FIELDS.contains(&field.as_str())) {
        return no(&format!("{field}: Extra inputs are not permitted"));
    }
    let Some(max_tokens) = request["max_tokens"].as_u64() else {
        return no("max_tokens: Field required");
    };
    let temperature = request["temperature"].as_f64();
    if temperature.is_some_and(|temperature| !(0.0..=1.0).contains(&temperature)) {
        return no("temperature: range: 0..1");
    }
    let turns = request["messages"].as_array()?;
    if turns.iter().any(|turn| turn["role"] == "system") {
        return no(
            "messages: Unexpected role \"system\". The Messages API accepts a top-level `system` parameter",
        );
    }
    if turns.iter().any(|turn| turn["content"] == "") {
        return no("messages: text content blocks must be non-empty");
    }
    let stop = request["stop_sequences"].as_array().map_or(&[][..], Vec::as_slice);
    if stop.iter().filter_map(Value::as_str).any(|text| text.trim().is_empty()) {
        return no("stop_sequences: each stop sequence must contain non-whitespace");
    }
    if begun(request).is_some_and(|text| text.ends_with([' ', '\n'])) {
        return no("messages: final assistant content cannot end with trailing whitespace");
    }
    refuse_by_model(dialect, request, max_tokens)
}

/// What the models of a generation refuse.
fn refuse_by_model(dialect: &str, request: &Value, max_tokens: u64) -> Option<Spoken> {
    let no = |message: &str| Some(error(400, message));
    let temperature = request["temperature"].as_f64();
    let begun = begun(request);
    let kind = request["thinking"]["type"].as_str();
    if matches!(kind, Some("enabled" | "adaptive")) {
        if temperature.is_some_and(|temperature| temperature < 1.0) || !request["top_k"].is_null() {
            return no(
                "`temperature` may only be set to 1 when thinking is enabled or in adaptive mode.",
            );
        }
        let budget = request["thinking"]["budget_tokens"].as_u64();
        if budget.is_some_and(|budget| budget >= max_tokens) {
            return no("`max_tokens` must be greater than `thinking.budget_tokens`.");
        }
    }
    match dialect {
        "anthropic-4.5" if temperature.is_some() && !request["top_p"].is_null() => no(
            "`temperature` and `top_p` cannot both be specified for this model. Please use only one.",
        ),
        "anthropic-4.5" if kind == Some("adaptive") => {
            no("adaptive thinking is not supported on this model")
        }
        "anthropic-5" if temperature.is_some_and(|temperature| temperature < 1.0) => {
            no("`temperature` is deprecated for this model.")
        }
        "anthropic-5" if begun.is_some() => no(
            "This model does not support assistant message prefill. The conversation must end with a user message.",
        ),
        "anthropic-5" if kind == Some("enabled") => no(
            "\"thinking.type.enabled\" is not supported for this model. Use \"thinking.type.adaptive\" and \"output_config.effort\" to control thinking behavior.",
        ),
        _ => None,
    }
}

/// The answer that is begun by a turn of the assistant at the end.
fn begun(request: &Value) -> Option<&str> {
    let last = request["messages"].as_array()?.last()?;
    (last["role"] == "assistant").then(|| last["content"].as_str())?
}

/// The request as chat would have made it.
pub(crate) fn chat(request: &Value) -> Value {
    let own = request["messages"].as_array().cloned().unwrap_or_default();
    let is_begun = begun(request).is_some();
    let system =
        request["system"].as_str().map(|text| json!({ "role": "system", "content": text }));
    let messages: Vec<Value> = system.into_iter().chain(own).collect();
    json!({
        "model": request["model"], "messages": messages, "max_tokens": request["max_tokens"],
        "temperature": request["temperature"], "stop": request["stop_sequences"],
        "continue_final_message": is_begun,
    })
}

/// A reply of chat as a message.
pub(crate) fn message(request: &Value, reply: &Value) -> Value {
    let choice = &reply["choices"][0];
    let text = json!({ "type": "text", "text": choice["message"]["content"] });
    let thinks = matches!(request["thinking"]["type"].as_str(), Some("enabled" | "adaptive"));
    let thought = json!({ "type": "thinking", "thinking": "They ask.", "signature": "c2ln" });
    let content = if thinks { vec![thought, text] } else { vec![text] };
    let reason = if choice["finish_reason"] == "length" { "max_tokens" } else { "end_turn" };
    // A part of the prompt is told apart, as what is read from a cache is.
    let read = reply["usage"]["prompt_tokens"].as_u64().unwrap_or(0);
    let cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
    json!({
        "id": reply["id"], "type": "message", "role": "assistant", "model": reply["model"],
        "content": content, "stop_reason": reason, "stop_sequence": null,
        "usage": {
            "input_tokens": read - cached, "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0, "output_tokens": reply["usage"]["completion_tokens"],
            "service_tier": "standard",
        },
    })
}

/// A message as a fault makes it; the faults are those of [`dialects::FAULTS`].
#[expect(clippy::too_many_lines, reason = "one arm a fault")]
pub(crate) fn fault(name: &str, mut message: Value) -> Spoken {
    let billed = |message: Value| Spoken::billed(message.to_string());
    let stopped = |mut message: Value, reason: Value| {
        message["stop_reason"] = reason;
        billed(message)
    };
    let text = message["content"][0]["text"].clone();
    match name {
        "500" | "400" => error(name.parse().expect("a status"), "this request cannot be served"),
        "529-overloaded" => error(529, "Overloaded"),
        "429-header" => {
            // The time has passed when it is read.
            let reset = "anthropic-ratelimit-tokens-remaining: 0\r\nanthropic-ratelimit-tokens-reset: 2023-06-01T00:00:00Z\r\n";
            let refused = error(
                429,
                "This request would exceed your organization's rate limit of 30,000 input tokens per minute",
            );
            Spoken { headers: reset.to_owned() + "retry-after: 0\r\n", ..refused }
        }
        "cut-json" => {
            let whole = message.to_string();
            Spoken::billed(whole[..whole.len() / 2].to_owned())
        }
        "no-choices" => {
            message.as_object_mut().expect("a message").remove("content");
            billed(message)
        }
        "null-choices" => {
            message["content"] = Value::Null;
            billed(message)
        }
        "error-at-top" | "error-in-choice" => {
            Spoken { status: 200, ..error(500, "Internal server error") }
        }
        "abort" => stopped(message, json!("pause_turn")),
        "error-finish" => stopped(message, json!("error")),
        "no-resource" => stopped(message, json!("insufficient_system_resource")),
        "failed" => stopped(message, json!("failed")),
        "unknown-finish" => stopped(message, json!("compaction")),
        "malformed-content" => {
            message["content"] = json!({ "value": text });
            billed(message)
        }
        "content-filter" => {
            message["content"] = json!([]);
            stopped(message, json!("refusal"))
        }
        "tool-calls" => {
            message["content"] =
                json!([{ "type": "tool_use", "id": "toolu_1", "name": "search", "input": {} }]);
            stopped(message, json!("tool_use"))
        }
        "cut-reasoning" => {
            message["content"] = json!([{ "type": "thinking", "thinking": "They want to know whether", "signature": "" }]);
            stopped(message, json!("max_tokens"))
        }
        "null-usage" => {
            message["usage"] = json!({ "input_tokens": null, "output_tokens": null });
            billed(message)
        }
        "no-usage" => {
            message.as_object_mut().expect("a message").remove("usage");
            billed(message)
        }
        "null-everywhere" => {
            for name in ["id", "type", "role", "model", "stop_sequence", "container"] {
                message[name] = Value::Null;
            }
            for name in ["cache_read_input_tokens", "cache_creation_input_tokens", "service_tier"] {
                let cached = message["usage"][name].as_u64().unwrap_or(0);
                let read = message["usage"]["input_tokens"].as_u64().unwrap_or(0);
                message["usage"]["input_tokens"] = json!(read + cached);
                message["usage"][name] = Value::Null;
            }
            billed(message)
        }
        "parts" => {
            let text = text.as_str().expect("it has a text");
            let (a, b) = text.split_at(text.find(' ').unwrap_or(text.len()));
            let part = |text: &str| json!({ "type": "text", "text": text, "citations": null });
            message["content"] = json!([part(a), part(b)]);
            billed(message)
        }
        "reasoning-beside" => {
            let thought = json!({ "type": "thinking", "thinking": "They want to know.", "signature": "c2ln" });
            let secret = json!({ "type": "redacted_thinking", "data": "x" });
            message["content"] = json!([thought, secret, { "type": "text", "text": text }]);
            billed(message)
        }
        "no-finish" => stopped(message, Value::Null),
        "eos" => stopped(message, json!("stop_sequence")),
        // Those in front of the interface speak as they do to everybody.
        other => dialects::fault(other, message),
    }
}

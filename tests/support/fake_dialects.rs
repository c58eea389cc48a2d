//! Dialects of the protocol, and faults: how servers that call themselves OpenAI-compatible differ
//! from each other, and what goes wrong with each. Written from their published references and from
//! reports of their users.

use serde_json::{Value, json};

/// The dialects: what a server refuses, and the shape of its replies.
pub(crate) const DIALECTS: &[&str] = &[
    "openai",
    "openai-reasoning",
    "azure",
    "responses",
    "gemini",
    "mistral",
    "magistral",
    "deepseek",
    "openrouter",
    "ollama",
    "llama.cpp",
    "sglang",
    "vllm",
];

/// A fault, and what becomes of the answer that it befalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The answer is given in full, in an odd shape.
    Answered,
    /// The request is sent again, and then answered.
    Again,
    /// The row is a reject.
    Rejected,
}

/// The faults.
pub(crate) const FAULTS: &[(&str, Ending)] = &[
    ("500", Ending::Again),
    ("502-html", Ending::Again),
    ("503-loading", Ending::Again),
    ("503-retry-after", Ending::Again),
    ("408", Ending::Again),
    ("429-header", Ending::Again),
    ("429-retry-delay", Ending::Again),
    ("429-words", Ending::Again),
    ("529-overloaded", Ending::Again),
    ("500-overloaded", Ending::Again),
    ("cut-json", Ending::Again),
    ("no-body", Ending::Again),
    ("html", Ending::Again),
    ("no-choices", Ending::Again),
    ("null-choices", Ending::Again),
    ("error-at-top", Ending::Again),
    ("error-in-choice", Ending::Again),
    ("error-object", Ending::Again),
    ("abort", Ending::Again),
    ("error-finish", Ending::Again),
    ("no-resource", Ending::Again),
    ("failed", Ending::Again),
    ("hangs-up", Ending::Again),
    ("unknown-finish", Ending::Rejected),
    ("malformed-content", Ending::Rejected),
    ("400", Ending::Rejected),
    ("moderated", Ending::Rejected),
    ("content-filter", Ending::Rejected),
    ("tool-calls", Ending::Rejected),
    ("cut-reasoning", Ending::Rejected),
    ("null-usage", Ending::Answered),
    ("no-usage", Ending::Answered),
    ("null-everywhere", Ending::Answered),
    ("parts", Ending::Answered),
    ("reasoning-beside", Ending::Answered),
    ("no-finish", Ending::Answered),
    ("eos", Ending::Answered),
];

/// An answer of the fake: status, headers, body; and whether the server charges for it.
pub(crate) struct Spoken {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: String,
    pub(crate) is_billed: bool,
    /// Tokens that the server counts: read and written.
    pub(crate) tokens: (u64, u64),
}

impl Spoken {
    /// An answer that costs nothing.
    pub(crate) fn free(status: u16, body: String) -> Spoken {
        Spoken { status, headers: String::new(), body, is_billed: false, tokens: (0, 0) }
    }

    /// A success that is charged for.
    pub(crate) fn billed(body: String) -> Spoken {
        Spoken { is_billed: true, ..Spoken::free(200, body) }
    }
}

/// The status of an answer that is not given: the server hangs up.
pub(crate) const HANGS_UP: u16 = 1;

/// Whether a fault passes when the request is sent again.
pub(crate) fn passes(fault: &str) -> bool {
    FAULTS.iter().any(|(name, ending)| *name == fault && *ending == Ending::Again)
}

fn refusal(status: u16, headers: &str, body: impl Into<String>) -> Spoken {
    Spoken { headers: headers.to_owned(), ..Spoken::free(status, body.into()) }
}

fn billed(body: impl Into<String>) -> Spoken {
    Spoken::billed(body.into())
}

/// What a dialect refuses of a request.
pub(crate) fn refuse(dialect: &str, request: &Value) -> Option<Spoken> {
    let has = |name: &str| request.get(name).is_some_and(|value| !value.is_null());
    let error = |message: &str, param: &str| {
        let error = json!({ "message": message, "type": "invalid_request_error", "param": param });
        Some(refusal(400, "", json!({ "error": error }).to_string()))
    };
    let hosted = ["top_k", "min_p", "repetition_penalty", "chat_template_kwargs"];
    match dialect {
        "openai" | "azure" | "responses" => {
            if request["stop"].as_array().is_some_and(|stop| stop.len() > 4) {
                let message =
                    "Invalid 'stop': array too long. Expected an array with maximum length 4.";
                return error(message, "stop");
            }
            let unknown = hosted.iter().find(|name| has(name))?;
            error(&format!("Unrecognized request argument supplied: {unknown}"), "")
        }
        "openai-reasoning" if has("max_tokens") => error(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "max_tokens",
        ),
        "openai-reasoning" if has("temperature") && request["temperature"] != json!(1.0) => error(
            "Unsupported value: 'temperature' does not support this value with this model. Only the default (1) value is supported.",
            "temperature",
        ),
        "openai-reasoning" if has("top_p") => {
            error("Unsupported parameter: 'top_p' is not supported with this model.", "top_p")
        }
        "gemini" if has("seed") => {
            let message =
                "Invalid JSON payload received. Unknown name \"seed\": Cannot find field.";
            let error = json!({ "code": 400, "message": message, "status": "INVALID_ARGUMENT" });
            Some(refusal(400, "", json!([{ "error": error }]).to_string()))
        }
        "mistral" | "magistral" if has("seed") => {
            let detail = json!([{ "type": "extra_forbidden", "loc": ["body", "seed"],
                "msg": "Extra inputs are not permitted", "input": request["seed"] }]);
            Some(refusal(422, "", json!({ "detail": detail }).to_string()))
        }
        _ => None,
    }
}

/// A reply as a dialect gives it.
pub(crate) fn speak(dialect: &str, mut reply: Value) -> String {
    let is_chat = reply["choices"][0].get("message").is_some();
    let text = reply["choices"][0]["message"]["content"].clone();
    let choice = &mut reply["choices"][0];
    match dialect {
        "azure" => {
            choice["content_filter_results"] =
                json!({ "hate": { "filtered": false, "severity": "safe" } });
            reply["prompt_filter_results"] = json!([{ "prompt_index": 0 }]);
        }
        "responses" if choice["finish_reason"] == "stop" => {
            choice["finish_reason"] = json!("completed");
        }
        "gemini" => {
            reply.as_object_mut().expect("a reply").remove("system_fingerprint");
            choice_mut(&mut reply).as_object_mut().expect("a choice").remove("logprobs");
        }
        "mistral" if choice["finish_reason"] == "length" => {
            choice["finish_reason"] = json!("model_length");
        }
        "magistral" if is_chat => {
            choice["message"]["content"] = json!([
                { "type": "thinking", "thinking": [{ "type": "text", "text": "They ask." }], "closed": true },
                { "type": "text", "text": text },
            ]);
        }
        "deepseek" if is_chat => {
            choice["message"]["reasoning_content"] = json!("They ask.");
            // Under load it keeps the connection with empty lines.
            return format!("\n\n\n{reply}");
        }
        "openrouter" if is_chat => {
            choice["message"]["reasoning"] = Value::Null;
            choice["message"]["refusal"] = Value::Null;
            choice["native_finish_reason"] = json!("STOP");
            choice["error"] = Value::Null;
            reply["provider"] = json!("Fake");
        }
        "ollama" => {
            choice["logprobs"] = Value::Null;
            reply["system_fingerprint"] = json!("fp_ollama");
        }
        "llama.cpp" => {
            reply["timings"] = json!({ "prompt_n": 1, "cache_n": null });
            reply["__verbose"] = json!({ "stop_type": "eos" });
        }
        "sglang" => {
            choice["matched_stop"] = json!(151_645);
            choice["message"]["reasoning_content"] = Value::Null;
            reply["metadata"] = json!({ "weight_version": "default" });
        }
        "vllm" => {
            choice["stop_reason"] = Value::Null;
            choice["message"]["tool_calls"] = json!([]);
            reply["service_tier"] = Value::Null;
            reply["kv_transfer_params"] = Value::Null;
        }
        _ => {}
    }
    if !is_chat {
        choice_mut(&mut reply).as_object_mut().expect("a choice").remove("message");
    }
    reply.to_string()
}

fn choice_mut(reply: &mut Value) -> &mut Value {
    &mut reply["choices"][0]
}

/// A reply as a fault makes it.
pub(crate) fn fault(name: &str, reply: Value) -> Spoken {
    refused(name).or_else(|| broken(name, &reply)).unwrap_or_else(|| odd(name, reply))
}

fn message(message: &str) -> String {
    json!({ "error": { "message": message } }).to_string()
}

fn finish(reply: &Value, reason: &str) -> Spoken {
    let mut reply = reply.clone();
    reply["choices"][0]["finish_reason"] = json!(reason);
    billed(reply.to_string())
}

/// Faults that are refusals.
fn refused(name: &str) -> Option<Spoken> {
    let error = message;
    Some(match name {
        "500" => refusal(500, "", error("boom")),
        "502-html" => refusal(502, "", "<html><body>Bad Gateway</body></html>"),
        "503-loading" => refusal(503, "", error("Loading model")),
        "503-retry-after" => refusal(503, "retry-after: 0\r\n", error("try later")),
        "408" => refusal(408, "", error("Request timed out")),
        "429-header" => refusal(429, "retry-after-ms: 5\r\n", error("Rate limit reached")),
        "429-retry-delay" => {
            let error = json!({ "code": 429, "message": "You exceeded your current quota.",
                "details": [{ "retryDelay": "0.005s" }] });
            refusal(429, "", json!([{ "error": error }]).to_string())
        }
        "429-words" => refusal(429, "", error("Rate limit reached. Please try again in 6ms.")),
        "529-overloaded" => {
            let error =
                json!({ "type": "overloaded_error", "message": "Overloaded", "retry_after": 0.01 });
            refusal(529, "", json!({ "type": "error", "error": error }).to_string())
        }
        "500-overloaded" => {
            refusal(500, "retry-after: 0\r\n", error("The server is overloaded or not ready."))
        }
        "400" => refusal(400, "", error("this request cannot be served")),
        "moderated" => refusal(403, "", error("Your input was flagged by moderation")),
        "error-at-top" => Spoken { status: 200, ..refusal(0, "", error("upstream failed")) },
        "error-object" => {
            let whole = json!({ "object": "error", "message": "engine is gone", "code": 500 });
            Spoken { status: 200, ..refusal(0, "", whole.to_string()) }
        }
        _ => return None,
    })
}

/// Faults that leave no whole answer, or one with an odd end.
fn broken(name: &str, reply: &Value) -> Option<Spoken> {
    let text = reply["choices"][0]["message"]["content"].clone();
    let mut reply = reply.clone();
    Some(match name {
        "cut-json" => {
            let whole = reply.to_string();
            billed(&whole[..whole.len() / 2])
        }
        "no-body" => billed(""),
        "html" => billed("<html>Please log in</html>"),
        "no-choices" => {
            reply["choices"] = json!([]);
            billed(reply.to_string())
        }
        "null-choices" => {
            reply["choices"] = Value::Null;
            billed(reply.to_string())
        }
        "error-in-choice" => {
            reply["choices"][0]["error"] =
                json!({ "code": 502, "message": "Provider returned error" });
            finish(&reply, "error")
        }
        "abort" => finish(&reply, "abort"),
        "error-finish" => finish(&reply, "error"),
        "no-resource" => finish(&reply, "insufficient_system_resource"),
        "failed" => finish(&reply, "failed"),
        "hangs-up" => Spoken { status: HANGS_UP, ..billed("") },
        "unknown-finish" => finish(&reply, "out_of_magic"),
        "malformed-content" => {
            reply["choices"][0]["message"]["content"] = json!({ "value": text });
            billed(reply.to_string())
        }
        "eos" => finish(&reply, "eos"),
        _ => return None,
    })
}

/// Faults in the shape of an answer.
fn odd(name: &str, mut reply: Value) -> Spoken {
    let text = reply["choices"][0]["message"]["content"].clone();
    match name {
        "content-filter" => {
            reply["choices"][0]["message"]["content"] = json!("");
            finish(&reply, "content_filter")
        }
        "tool-calls" => {
            reply["choices"][0]["message"]["content"] = Value::Null;
            reply["choices"][0]["message"]["tool_calls"] =
                json!([{ "id": "1", "type": "function" }]);
            finish(&reply, "tool_calls")
        }
        "cut-reasoning" => {
            reply["choices"][0]["message"]["content"] = Value::Null;
            reply["choices"][0]["message"]["reasoning_content"] =
                json!("They want to know whether");
            finish(&reply, "length")
        }
        "null-usage" => {
            reply["usage"] =
                json!({ "prompt_tokens": null, "completion_tokens": null, "total_tokens": 0 });
            billed(reply.to_string())
        }
        "no-usage" => {
            reply.as_object_mut().expect("a reply").remove("usage");
            billed(reply.to_string())
        }
        "null-everywhere" => {
            for name in
                ["id", "object", "created", "model", "system_fingerprint", "prompt_logprobs"]
            {
                reply[name] = Value::Null;
            }
            reply["usage"]["prompt_tokens_details"] = Value::Null;
            for name in ["index", "logprobs", "refusal"] {
                reply["choices"][0][name] = Value::Null;
            }
            billed(reply.to_string())
        }
        "parts" => {
            reply["choices"][0]["message"]["content"] = json!([{ "type": "text", "text": text }]);
            billed(reply.to_string())
        }
        "reasoning-beside" => {
            reply["choices"][0]["message"]["reasoning"] = json!("They want to know.");
            billed(reply.to_string())
        }
        "no-finish" => {
            reply["choices"][0].as_object_mut().expect("a choice").remove("finish_reason");
            billed(reply.to_string())
        }
        other => panic!("{other} is no fault"),
    }
}

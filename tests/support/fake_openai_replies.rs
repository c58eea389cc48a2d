//! The replies of the fake server, in the shapes that vLLM gives them.

use serde_json::{Value, json};

use super::fake_model as model;

/// The reply of a system to a request.
pub(crate) fn reply(request: &Value, canonical: &str, chat: bool, id: u64, system: &str) -> Value {
    let prompts = if chat { vec![conversation(request)] } else { prompts(&request["prompt"]) };
    let echo = request["echo"] == true;
    let n_listed = request["top_logprobs"].as_u64().or(request["logprobs"].as_u64());
    let limit = request["max_tokens"].as_u64().or(request["max_completion_tokens"].as_u64());
    let max_tokens = limit.unwrap_or(256) as usize;
    let (mut choices, mut read, mut written) = (Vec::new(), 0, 0);
    let mut prompt_logprobs = Value::Null;
    for (index, prompt) in prompts.iter().enumerate() {
        let text = match () {
            () if echo || request.get("prompt_logprobs").is_some() => ".".to_owned(),
            () if n_listed.is_some() => likeliest(prompt, max_tokens).concat(),
            () => model::write(prompt, canonical, max_tokens),
        };
        let (text, finish) = cut(&text, max_tokens, &request["stop"]);
        read += model::tokens(prompt).len();
        written += model::tokens(&text).len();
        let mut choice = json!({ "index": index, "finish_reason": finish, "logprobs": null });
        if chat {
            choice["message"] = json!({ "role": "assistant", "content": text });
        } else {
            choice["text"] = json!(if echo { format!("{prompt}{text}") } else { text.clone() });
        }
        if let Some(n) = n_listed {
            let tokens = model::tokens(&text);
            choice["logprobs"] = match chat {
                true => chat_logprobs(prompt, &tokens, n as usize),
                false if echo => echo_logprobs(prompt, &text),
                false => completion_logprobs(prompt, &tokens, n as usize),
            };
        }
        if request.get("prompt_logprobs").is_some() {
            let logprobs = read_logprobs(prompt);
            if chat { prompt_logprobs = logprobs } else { choice["prompt_logprobs"] = logprobs }
        }
        choices.push(choice);
    }
    let usage = json!({
        "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
        "prompt_tokens_details": { "cached_tokens": read / 16 * 8 },
    });
    json!({
        "id": format!("fake-{id:016x}"), "object": "completion", "created": 1_700_000_000,
        "model": request["model"], "system_fingerprint": system, "choices": choices,
        "usage": usage, "prompt_logprobs": prompt_logprobs,
    })
}

fn prompts(prompt: &Value) -> Vec<String> {
    match prompt {
        Value::Array(all) => {
            all.iter().map(|one| one.as_str().unwrap_or_default().to_owned()).collect()
        }
        one => vec![one.as_str().unwrap_or_default().to_owned()],
    }
}

/// The conversation as a template would render it: turns are trimmed.
fn conversation(request: &Value) -> String {
    let mut text = String::new();
    let turns = request["messages"].as_array().map_or(&[][..], Vec::as_slice);
    for (nth, turn) in turns.iter().enumerate() {
        let content = turn["content"].as_str().unwrap_or_default().trim();
        text += &["<", turn["role"].as_str().unwrap_or_default(), ">\n", content].concat();
        if nth + 1 < turns.len() || request["continue_final_message"] != true {
            text.push('\n');
        }
    }
    if request["continue_final_message"] != true {
        text.push_str("<assistant>\n");
    }
    text
}

/// The greedy path of a label: the bracket, the letter, the bracket.
fn likeliest(prompt: &str, n: usize) -> Vec<&'static str> {
    let mut text = prompt.to_owned();
    let mut path = Vec::new();
    for _ in 0..n.min(3) {
        let letter = text.ends_with(['A', 'B', 'C', 'D']) && path.last().is_some();
        let next = if letter { ")" } else { model::alternatives(&text, 1)[0].0 };
        text.push_str(next);
        path.push(next);
    }
    path
}

fn cut(text: &str, max_tokens: usize, stop: &Value) -> (String, &'static str) {
    let tokens = model::tokens(text);
    let (mut text, mut finish) = (text.to_owned(), "stop");
    if tokens.len() > max_tokens {
        (text, finish) = (tokens[..max_tokens].concat(), "length");
    }
    let stops = stop.as_array().map_or(&[][..], Vec::as_slice).iter().filter_map(Value::as_str);
    if let Some(end) = stops.filter_map(|stop| text.find(stop)).min() {
        text.truncate(end);
        finish = "stop";
    }
    (text, finish)
}

fn chat_logprobs(prompt: &str, tokens: &[&str], n: usize) -> Value {
    let mut before = prompt.to_owned();
    let place = tokens.iter().map(|token| {
        let listed = model::alternatives(&before, n);
        let of = logprob_of(&listed, &before, token);
        before.push_str(token);
        let listed: Vec<Value> =
            listed.iter().map(|(token, of)| json!({ "token": token, "logprob": of })).collect();
        json!({ "token": token, "logprob": of, "top_logprobs": listed })
    });
    json!({ "content": place.collect::<Vec<_>>() })
}

fn completion_logprobs(prompt: &str, tokens: &[&str], n: usize) -> Value {
    let mut before = prompt.to_owned();
    let (mut values, mut all) = (Vec::new(), Vec::new());
    for token in tokens {
        let listed = model::alternatives(&before, n);
        values.push(logprob_of(&listed, &before, token));
        all.push(
            listed.iter().map(|(token, of)| ((*token).to_owned(), json!(of))).collect::<Value>(),
        );
        before.push_str(token);
    }
    json!({ "tokens": tokens, "token_logprobs": values, "top_logprobs": all })
}

fn logprob_of(listed: &[(&str, f64)], before: &str, token: &str) -> f64 {
    let found = listed.iter().find(|(text, _)| *text == token);
    found.map_or_else(|| model::logprob(before, token), |(_, of)| *of)
}

/// The prompt's tokens and the one written behind them, each with its log-probability.
fn echo_logprobs(prompt: &str, text: &str) -> Value {
    let (mut tokens, mut values) = (model::tokens(prompt), read_values(prompt));
    let (mut offset, mut offsets) = (0, Vec::new());
    tokens.push(text);
    values.push(json!(-0.5));
    for token in &tokens {
        offsets.push(offset);
        offset += token.chars().count();
    }
    let listed: Vec<Value> =
        tokens.iter().zip(&values).map(|(text, of)| json!({ *text: of })).collect();
    json!({ "tokens": tokens, "token_logprobs": values, "text_offset": offsets, "top_logprobs": listed })
}

/// The log-probability of each token of a text; the first has none.
fn read_values(text: &str) -> Vec<Value> {
    let mut at = 0;
    let value = model::tokens(text).into_iter().map(|token| {
        let value = if at == 0 { Value::Null } else { json!(model::logprob(&text[..at], token)) };
        at += token.len();
        value
    });
    value.collect()
}

fn read_logprobs(prompt: &str) -> Value {
    let tokens = model::tokens(prompt).into_iter().zip(read_values(prompt)).enumerate();
    let entry = tokens.map(|(nth, (token, value))| match value {
        Value::Null => Value::Null,
        value => {
            json!({ nth.to_string(): { "logprob": value, "rank": 1, "decoded_token": token } })
        }
    });
    entry.collect()
}

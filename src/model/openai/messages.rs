//! Anthropic's Messages API: how a body and a reply are said in it.
//!
//! It differs from chat in its names and in what it takes: the system message is a field of its own,
//! there is no seed, and no log-probability is told. A turn of the assistant at the end is the
//! beginning of the answer, without being said to be.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::failure::Failure;
use super::lenient::{Field, Shape, object};
use super::options::{OpenAiOptions, Thinking};
use super::reply::{self, Content, PromptTokensDetails, Reply};
use super::wire::Body;
use crate::model::answer::CallError;
use crate::model::request::{Estimator, Prompt, Request, Sampling, Task};
use crate::record::Message;

/// The version of the interface that is spoken, sent as `anthropic-version`.
pub(super) const VERSION: &str = "2023-06-01";

/// The highest temperature.
const TEMPERATURE_MAX: f64 = 1.0;

/// The body of a request to `/messages`; what is none is not sent.
#[derive(Serialize)]
struct Asked<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<String>,
    messages: &'a [&'a Message],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop_sequences: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<Value>,
}

/// A body as it is sent to `/messages`.
pub(super) fn json(body: &Body<'_>) -> Vec<u8> {
    let all = body.messages.as_deref().unwrap_or_default();
    let n_system = all.iter().take_while(|message| message.role == "system").count();
    // One that stands further on is left where it is: the server says whether it takes that.
    let (system, messages) = all.split_at(n_system);
    let system: Vec<&str> = system.iter().map(|message| message.content.as_str()).collect();
    let (thinking, output_config) = match &body.thinking {
        None => (None, None),
        Some(Thinking::Disabled) => (Some(json!({ "type": "disabled" })), None),
        Some(Thinking::Budget(tokens)) => {
            (Some(json!({ "type": "enabled", "budget_tokens": tokens })), None)
        }
        // Newer models keep what they thought to themselves unless they are asked for it.
        Some(Thinking::Effort(effort)) => (
            Some(json!({ "type": "adaptive", "display": "summarized" })),
            Some(json!({ "effort": effort })),
        ),
    };
    let asked = Asked {
        model: body.model,
        max_tokens: body.max_tokens.or(body.max_completion_tokens),
        system: (!system.is_empty()).then(|| system.join("\n\n")),
        messages,
        // Texts of white space alone are refused. The answer is cut at them when it has come.
        stop_sequences: body
            .stop
            .iter()
            .map(String::as_str)
            .filter(|text| !text.trim().is_empty())
            .collect(),
        temperature: body.temperature,
        top_p: body.top_p,
        top_k: body.top_k.filter(|top_k| *top_k > 0),
        thinking,
        output_config,
    };
    serde_json::to_vec(&asked).expect("a body has no map with keys that are not text")
}

/// Whether a request can be asked by this interface; an error that names the setting which it does
/// not have.
pub(super) fn takes(options: &OpenAiOptions, request: &Request) -> Result<(), CallError> {
    let refuse = |what: &str, help: &str| {
        let (address, model) = (options.address(), &options.model);
        Err(CallError::Outage {
            message: format!(
                "the Messages API at {address} does not take {what} (model \"{model}\"); {help}"
            ),
        })
    };
    if matches!(request.prompt, Prompt::Text(_)) {
        return refuse("a text to continue", "use `format: chat`");
    }
    match &request.task {
        Task::Score { estimator: Estimator::Votes, .. } => Ok(()),
        Task::Score { estimator, .. } => {
            let what = format!("`scoring: {}`", estimator.name());
            refuse(&what, "use `scoring: votes`, or leave it out")
        }
        Task::Generate(sampling) => match unknown_setting(sampling) {
            Some(setting) => refuse(&format!("the setting `{setting}`"), "leave it out"),
            None if sampling.temperature > TEMPERATURE_MAX => {
                refuse("a `temperature` above 1", "use one from 0 to 1")
            }
            None => Ok(()),
        },
    }
}

/// A setting of a sampling that this interface does not have.
fn unknown_setting(sampling: &Sampling) -> Option<&'static str> {
    if sampling.min_p > 0.0 {
        Some("min_p")
    } else if sampling.is_penalised() {
        Some("repetition_penalty")
    } else {
        None
    }
}

/// A reply of `/messages`, as far as it is read.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    model: Field<String>,
    content: Field<Content>,
    stop_reason: Field<String>,
    usage: Field<Usage>,
    error: Value,
    /// What gateways in front say where the whole reply is an error, as in [`Reply`].
    object: Field<String>,
    message: Value,
    code: Value,
}

/// What was counted. The tokens of a prompt that were cached, and those that were put into the
/// cache, are not among `input_tokens`.
#[derive(Default, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_field_names, reason = "the names are the protocol's")]
struct Usage {
    input_tokens: Field<u32>,
    output_tokens: Field<u32>,
    cache_read_input_tokens: Field<u32>,
    cache_creation_input_tokens: Field<u32>,
}

object! { Usage: "an object of counts" }

/// The reply of `/messages` that some bytes are, as chat would have said it.
pub(super) fn read(bytes: &[u8]) -> Result<Reply, Failure> {
    let said: Said = Failure::parse(bytes)?;
    let is_error = said.object.get().is_some_and(|object| object == "error");
    let has_error = is_error || !said.error.is_null();
    let mut reply = Reply {
        model: said.model,
        error: said.error,
        object: said.object,
        message: said.message,
        code: said.code,
        usage: count(said.usage),
        ..Reply::default()
    };
    if has_error {
        return Failure::check(reply);
    }
    let billed = reply.billed();
    let mut content = match said.content {
        Field::Is(content) => content,
        Field::Absent => {
            let message = "the server's reply has no `content`".to_owned();
            return Err(Failure::Garbled(message, billed));
        }
        Field::Other(kind) => {
            let message =
                format!("`content` of the reply is {kind}, and should be a list of blocks");
            return Err(Failure::Unusable(message, billed));
        }
    };
    // A call of a tool is no text; the reason for the stop says that there is one.
    if said.stop_reason.get().is_some_and(|reason| reason == "tool_use") {
        content.unknown = None;
    }
    if let Some(kind) = &content.unknown {
        let message = format!("`content` of the reply has a block of type {kind:?}");
        return Err(Failure::Unusable(message, billed));
    }
    let message = reply::Message { content: Field::Is(content), ..reply::Message::default() };
    let choice = reply::Choice {
        message: Field::Is(message),
        finish_reason: said.stop_reason,
        ..reply::Choice::default()
    };
    reply.choices = Field::Is(vec![Field::Is(choice)]);
    Failure::check(reply)
}

/// The counts in chat's names: all of the prompt, and what of it was cached.
fn count(usage: Field<Usage>) -> Field<reply::Usage> {
    let Some(usage) = usage.take() else { return Field::Absent };
    let of = |field: &Field<u32>| field.get().copied().unwrap_or(0);
    let cached = of(&usage.cache_read_input_tokens);
    let beside = cached.saturating_add(of(&usage.cache_creation_input_tokens));
    let read = match usage.input_tokens {
        Field::Is(read) => Field::Is(read.saturating_add(beside)),
        other => other,
    };
    Field::Is(reply::Usage {
        prompt_tokens: read,
        completion_tokens: usage.output_tokens,
        prompt_tokens_details: Field::Is(PromptTokensDetails { cached_tokens: Field::Is(cached) }),
        ..reply::Usage::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::answer::{Billed, Finish};
    use crate::model::openai::failure::Meaning;

    fn sent(body: &Body<'_>) -> Value {
        serde_json::from_slice(&json(body)).unwrap()
    }

    #[test]
    fn a_conversation_is_sent_with_its_system_message_apart() {
        let messages = [
            Message::system("Be brief."),
            Message::system("Be kind."),
            Message::user("hi"),
            Message::assistant("Well,"),
        ];
        let stop = ["\n\n", "###", ""].map(str::to_owned);
        let body = Body {
            model: "m",
            messages: Some(messages.iter().collect()),
            max_tokens: Some(64),
            temperature: Some(0.5),
            top_p: Some(0.9),
            top_k: Some(40),
            stop: &stop,
            ..Body::default()
        };
        let expected = json!({
            "model": "m", "max_tokens": 64, "system": "Be brief.\n\nBe kind.",
            "messages": [{ "role": "user", "content": "hi" }, { "role": "assistant", "content": "Well," }],
            "stop_sequences": ["###"], "temperature": 0.5, "top_p": 0.9, "top_k": 40,
        });
        assert_eq!(sent(&body), expected);
    }

    #[test]
    fn what_the_interface_does_not_have_is_not_sent() {
        let messages = [Message::user("hi")];
        let body = Body {
            model: "m",
            messages: Some(messages.iter().collect()),
            max_tokens: Some(8),
            seed: Some(7),
            top_k: Some(-1),
            min_p: Some(0.0),
            continue_final_message: Some(true),
            add_generation_prompt: Some(false),
            ..Body::default()
        };
        let expected = json!({ "model": "m", "max_tokens": 8, "messages": [{ "role": "user", "content": "hi" }] });
        assert_eq!(sent(&body), expected);
    }

    #[test]
    fn thinking_is_said_as_models_of_each_age_read_it() {
        let check = |thinking, expected: Value| {
            let body = sent(&Body { thinking: Some(thinking), ..Body::default() });
            let own =
                json!({ "thinking": body["thinking"], "output_config": body["output_config"] });
            assert_eq!(own, expected);
        };
        check(
            Thinking::Disabled,
            json!({ "thinking": { "type": "disabled" }, "output_config": null }),
        );
        check(
            Thinking::Budget(2048),
            json!({ "thinking": { "type": "enabled", "budget_tokens": 2048 }, "output_config": null }),
        );
        check(
            Thinking::Effort("low"),
            json!({ "thinking": { "type": "adaptive", "display": "summarized" }, "output_config": { "effort": "low" } }),
        );
    }

    #[test]
    fn a_reply_is_its_texts_with_what_was_thought_apart_and_all_tokens_counted() {
        let reply = read(
            br#"{"id":"msg_1","type":"message","role":"assistant","model":"m","stop_sequence":null,
            "content":[{"type":"thinking","thinking":"They ask.","signature":"c2ln"},
                {"type":"redacted_thinking","data":"x"},
                {"type":"text","text":"Hello","citations":null},{"type":"text","text":" you."}],
            "stop_reason":"end_turn",
            "usage":{"input_tokens":3,"cache_creation_input_tokens":5,"cache_read_input_tokens":7,
                "output_tokens":9,"server_tool_use":null}}"#,
        )
        .unwrap();
        let text = reply.choice().text().unwrap();
        assert_eq!(
            (text.text.as_str(), text.reasoning.as_deref()),
            ("Hello you.", Some("They ask."))
        );
        assert_eq!(reply.choice().finish(), Ok(Finish::Stop));
        let billed = Billed { requests: 1, prompt_tokens: 15, completion_tokens: 9 };
        assert_eq!((reply.billed(), reply.model.take().as_deref()), (Some(billed), Some("m")));
        let details = reply.usage.take().unwrap().prompt_tokens_details.take().unwrap();
        assert_eq!(details.cached_tokens.take(), Some(7));
    }

    #[test]
    fn each_stop_reason_is_known_and_an_unknown_one_is_no_stop() {
        let of = |reason: &str| {
            let text =
                format!(r#"{{"content":[{{"type":"text","text":"a"}}],"stop_reason":"{reason}"}}"#);
            read(text.as_bytes()).map(|reply| reply.choice().finish().unwrap())
        };
        for (reason, finish) in [
            ("end_turn", Finish::Stop),
            ("stop_sequence", Finish::Stop),
            ("max_tokens", Finish::Length),
            ("model_context_window_exceeded", Finish::Length),
            ("refusal", Finish::ContentFilter),
            ("tool_use", Finish::ToolCalls),
        ] {
            assert_eq!(of(reason), Ok(finish), "{reason}");
        }
        let meaning = |reason| of(reason).unwrap_err().meaning();
        assert_eq!(meaning("pause_turn"), Meaning::Again, "the turn is not over");
        assert_eq!(meaning("compaction"), Meaning::Unusable);
        assert!(of("compaction").unwrap_err().message().contains("compaction"));
        let tool = br#"{"content":[{"type":"tool_use","id":"1","name":"t","input":{}}],"stop_reason":"tool_use"}"#;
        let reply = read(tool).unwrap();
        assert_eq!(
            (reply.choice().finish(), reply.choice().text().unwrap().text.as_str()),
            (Ok(Finish::ToolCalls), "")
        );
    }

    #[test]
    fn what_is_no_message_is_a_failure_that_says_why() {
        let check = |text: &str, said: &str, meaning: Meaning| {
            let failure = read(text.as_bytes()).unwrap_err();
            assert_eq!(failure.meaning(), meaning, "{text}");
            assert!(failure.message().contains(said), "{}", failure.message());
        };
        check("<html>", "cannot be read", Meaning::Again);
        check("{}", "no `content`", Meaning::Again);
        check(r#"{"content":null,"stop_reason":"end_turn"}"#, "no `content`", Meaning::Again);
        check(r#"{"content":7}"#, "`content` of the reply is a number", Meaning::Unusable);
        let image = r#"{"content":[{"type":"image","source":{}}],"stop_reason":"end_turn"}"#;
        check(image, "a block of type \"image\"", Meaning::Unusable);
        let error = |kind: &str| {
            format!(r#"{{"type":"error","error":{{"type":"{kind}","message":"Sorry"}}}}"#)
        };
        check(&error("overloaded_error"), "529", Meaning::Refused);
        check(&error("rate_limit_error"), "429", Meaning::Refused);
        check(&error("authentication_error"), "401", Meaning::Outage);
        check(&error("invalid_request_error"), "400", Meaning::Permanent);
        check(&error("api_error"), "500", Meaning::Again);
    }

    #[test]
    fn a_reply_without_counts_has_none() {
        for usage in ["null", "{}", r#"{"input_tokens":null,"output_tokens":4}"#, "7"] {
            let text = format!(r#"{{"content":[{{"type":"text","text":"a"}}],"usage":{usage}}}"#);
            assert_eq!(read(text.as_bytes()).unwrap().billed(), None, "{usage}");
        }
    }
}

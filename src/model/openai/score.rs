//! `score`: the log-probability of each of some continuations, by the estimator that the request
//! names.
//!
//! | estimator | route | HTTP requests | what is exact |
//! |---|---|---|---|
//! | `echo` | completions | 1, all choices in it | the sum over a choice's tokens |
//! | `prompt_logprobs` | completions | 1, all choices in it | the same |
//! | `prompt_logprobs` | chat | one a choice | the same, for the choice as the chat template renders it |
//! | `top_logprobs` | either | 1 | the choices that are listed; see [`labels::listed`] |
//! | `votes` | either | one a sample | nothing: shares of samples, with one vote added to each choice |
//!
//! The tokens that close a turn are part of no choice.

use std::sync::Arc;

use super::exchange::{Exchange, Heard};
use super::generate::{begin, text_of};
use super::http::Route;
use super::labels::{self, Position};
use super::wire::{Alternatives, Body, Choice, Logprobs, PromptLogprobs, Texts};
use crate::model::answer::{Answer, CallError};
use crate::model::request::{Estimator, Prompt};
use crate::record::Message;

/// Tokens that a vote may take: enough for ` (A)` and a word before it.
const VOTE_TOKENS: u32 = 8;

/// The log-probability of each choice after the prompt.
pub(super) async fn score(
    exchange: &Arc<Exchange>,
    prompt: &Prompt,
    choices: &[String],
    estimator: Estimator,
) -> Result<Answer, CallError> {
    assert!(!choices.is_empty(), "there is something to score");
    match (estimator, prompt) {
        (Estimator::Echo, Prompt::Messages(_)) => Err(permanent(
            "a conversation cannot be scored by `echo`: use `scoring: prompt_logprobs`, \
             `top_logprobs` or `votes`, or `api: completions`",
        )),
        (Estimator::Echo | Estimator::PromptLogprobs, Prompt::Text(text)) => {
            continuations(exchange, text, choices, estimator).await
        }
        (Estimator::PromptLogprobs, Prompt::Messages(messages)) => {
            turns(exchange, messages, choices).await
        }
        (Estimator::TopLogprobs, _) => alternatives(exchange, prompt, choices).await,
        (Estimator::Votes, _) => votes(exchange, prompt, choices).await,
    }
}

fn permanent(message: &str) -> CallError {
    CallError::Permanent { status: None, message: message.to_owned(), too_long: false }
}

/// The server reads `text` with each choice behind it, and says how likely each token was.
async fn continuations(
    exchange: &Exchange,
    text: &str,
    choices: &[String],
    estimator: Estimator,
) -> Result<Answer, CallError> {
    let whole: Vec<String> = choices.iter().map(|choice| format!("{text}{choice}")).collect();
    let echo = estimator == Estimator::Echo;
    let body = Body {
        model: &exchange.options.model,
        prompt: Some(Texts::Many(whole)),
        // Some servers take 0 for no limit. What is written is cut off again.
        max_tokens: Some(1),
        temperature: Some(0.0),
        echo: echo.then_some(true),
        logprobs: echo.then_some(Alternatives::Number(1)),
        prompt_logprobs: (!echo).then_some(0),
        ..Body::default()
    };
    let mut heard = exchange.ask(Route::Completions, body).await?;
    heard.reply.choices.sort_by_key(|choice| choice.index);
    let replies = &heard.reply.choices;
    // The server counts what it wrote over all choices; each wrote at most one token.
    let written = heard
        .reply
        .usage
        .as_ref()
        .map_or(choices.len(), |usage| usage.completion_tokens.max(0) as usize);
    let is_written = written >= choices.len();
    let scored: Option<Vec<f64>> = (choices.len() == replies.len())
        .then(|| {
            let scored = choices.iter().zip(replies).map(|(choice, reply)| {
                if echo {
                    echoed(reply, choice, is_written)
                } else {
                    labels::sum_of_last(&read_tokens(reply.prompt_logprobs.as_ref()?), choice)
                }
            });
            scored.collect()
        })
        .flatten();
    let scored = scored.ok_or_else(|| missing(estimator))?;
    Ok(Answer { choice_logprobs: Some(scored), ..Heard::answer(std::slice::from_ref(&heard)) })
}

fn missing(estimator: Estimator) -> CallError {
    permanent(&format!(
        "the server's reply does not hold the log-probabilities that `scoring: {}` needs: choose \
         another `scoring` for this model",
        estimator.name()
    ))
}

/// The log-probability of an echoed choice. The token written behind it is left out; whether there
/// is one is what the server counted, and the other is tried when the choice is not found there.
fn echoed(reply: &Choice, choice: &str, is_written: bool) -> Option<f64> {
    let tokens = echoed_tokens(reply.logprobs.as_ref()?)?;
    let without = &tokens[..tokens.len().saturating_sub(1)];
    let (first, second) =
        if is_written { (without, tokens.as_slice()) } else { (tokens.as_slice(), without) };
    labels::sum_of_last(first, choice).or_else(|| labels::sum_of_last(second, choice))
}

fn echoed_tokens(logprobs: &Logprobs) -> Option<Vec<(&str, Option<f64>)>> {
    let (tokens, values) = (logprobs.tokens.as_ref()?, logprobs.token_logprobs.as_ref()?);
    Some(tokens.iter().map(String::as_str).zip(values.iter().copied()).collect())
}

/// The prompt's tokens, each the first of its entry; the first token of a prompt has none.
fn read_tokens(logprobs: &PromptLogprobs) -> Vec<(&str, Option<f64>)> {
    let own = logprobs.iter().map(|entry| entry.as_ref()?.values().next());
    let token = own.map(|own| match own {
        Some(token) => (token.decoded_token.as_deref().unwrap_or(""), Some(token.logprob)),
        None => ("", None),
    });
    token.collect()
}

/// Each choice as the assistant's turn, unfinished, as vLLM renders and reads it.
async fn turns(
    exchange: &Arc<Exchange>,
    messages: &[Message],
    choices: &[String],
) -> Result<Answer, CallError> {
    let mut asked = Vec::with_capacity(choices.len());
    for choice in choices {
        let (exchange, mut messages) = (Arc::clone(exchange), messages.to_vec());
        match messages.last_mut().filter(|last| last.role == "assistant") {
            Some(begun) => begun.content.push_str(choice),
            None => messages.push(Message::assistant(choice.clone())),
        }
        asked.push(super::http::runtime().spawn(async move {
            let prompt = Prompt::Messages(messages);
            let (route, mut body) = begin(&exchange, &prompt);
            body.max_tokens = Some(1);
            body.temperature = Some(0.0);
            body.prompt_logprobs = Some(0);
            exchange.ask(route, body).await
        }));
    }
    let heard = all(asked).await?;
    let scored: Option<Vec<f64>> = choices
        .iter()
        .zip(&heard)
        .map(|(choice, heard)| {
            let of_choice = || heard.reply.choices[0].prompt_logprobs.as_ref();
            let logprobs = heard.reply.prompt_logprobs.as_ref().or_else(of_choice)?;
            labels::sum_of_last(&read_tokens(logprobs), choice)
        })
        .collect();
    let scored = scored.ok_or_else(|| missing(Estimator::PromptLogprobs))?;
    Ok(Answer { choice_logprobs: Some(scored), ..Heard::answer(&heard) })
}

/// All replies in the order in which they were asked for, or the first error in that order.
async fn all(
    asked: Vec<tokio::task::JoinHandle<Result<Heard, CallError>>>,
) -> Result<Vec<Heard>, CallError> {
    let mut heard = Vec::with_capacity(asked.len());
    for one in asked {
        heard.push(one.await.expect("asking does not panic, and nobody aborts it")?);
    }
    Ok(heard)
}

/// The server writes a token or a few, and lists what else could have stood there.
async fn alternatives(
    exchange: &Exchange,
    prompt: &Prompt,
    choices: &[String],
) -> Result<Answer, CallError> {
    let shared = labels::shared_prefix(choices);
    let n_alternatives = exchange.options.alternatives;
    let (route, mut body) = begin(exchange, prompt);
    let (extended, skip);
    body.temperature = Some(0.0);
    match prompt {
        Prompt::Text(text) => {
            // What all choices begin with is read, so that the first token tells them apart.
            extended = format!("{text}{shared}");
            skip = shared.len();
            body.prompt = Some(Texts::One(&extended));
            body.max_tokens = Some(1);
            body.logprobs = Some(Alternatives::Number(n_alternatives));
        }
        Prompt::Messages(_) => {
            skip = 0;
            // At most a token a character of what all choices begin with, and one to tell them
            // apart, and one for a line end or a space before.
            body.max_tokens = Some(shared.trim().chars().count() as u32 + 2);
            body.logprobs = Some(Alternatives::Switch(true));
            body.top_logprobs = Some(n_alternatives);
        }
    }
    let heard = exchange.ask(route, body).await?;
    let logprobs = heard.reply.choices[0].logprobs.as_ref();
    let positions = logprobs.map(positions).unwrap_or_default();
    let rests: Vec<&str> = choices.iter().map(|choice| &choice[skip..]).collect();
    let scored =
        labels::listed(&rests, &positions).ok_or_else(|| missing(Estimator::TopLogprobs))?;
    Ok(Answer { choice_logprobs: Some(scored), ..Heard::answer(std::slice::from_ref(&heard)) })
}

fn positions(logprobs: &Logprobs) -> Vec<Position<'_>> {
    if let Some(content) = &logprobs.content {
        let position = content.iter().map(|token| Position {
            written: (token.token.as_str(), token.logprob),
            listed: token.top_logprobs.iter().map(|of| (of.token.as_str(), of.logprob)).collect(),
        });
        return position.collect();
    }
    let (Some(tokens), Some(values), Some(listed)) =
        (&logprobs.tokens, &logprobs.token_logprobs, &logprobs.top_logprobs)
    else {
        return Vec::new();
    };
    let all = tokens.iter().zip(values).zip(listed);
    let position = all.map_while(|((token, value), listed)| {
        let listed = listed.as_ref()?.iter();
        let listed = listed.filter_map(|(token, value)| Some((token.as_str(), (*value)?)));
        Some(Position { written: (token, (*value)?), listed: listed.collect() })
    });
    position.collect()
}

/// The server answers several times, and the answers are counted.
async fn votes(
    exchange: &Arc<Exchange>,
    prompt: &Prompt,
    choices: &[String],
) -> Result<Answer, CallError> {
    let n_votes = exchange.options.votes.max(1);
    let asked = (0..n_votes).map(|vote| {
        let (exchange, prompt) = (Arc::clone(exchange), prompt.clone());
        super::http::runtime().spawn(async move {
            let (route, mut body) = begin(&exchange, &prompt);
            body.max_tokens = Some(VOTE_TOKENS);
            body.temperature = Some(1.0);
            body.top_p = Some(1.0);
            body.seed = Some(u64::from(vote));
            exchange.ask(route, body).await
        })
    });
    let heard = all(asked.collect()).await?;
    let mut counts = vec![0; choices.len()];
    for reply in &heard {
        if let Some(choice) = labels::voted(choices, text_of(&reply.reply.choices[0])) {
            counts[choice] += 1;
        }
    }
    let all = f64::from(n_votes) + choices.len() as f64;
    let scored = counts.iter().map(|count| ((f64::from(*count) + 1.0) / all).ln()).collect();
    Ok(Answer {
        choice_logprobs: Some(scored),
        votes: Some(n_votes as i32),
        ..Heard::answer(&heard)
    })
}

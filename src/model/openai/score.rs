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

use super::exchange::{Caller, Heard};
use super::generate::begin;
use super::http::Route;
use super::labels::{self, Position};
use super::lenient::Field;
use super::options::Thinking;
use super::reply::{Choice, Logprobs, PromptToken, Reply};
use super::wire::{Body, Switch, Texts};
use crate::model::answer::{Answer, Billed, CallError, Finish};
use crate::model::request::{Estimator, Prompt};
use crate::record::Message;

/// Tokens that a vote may take: enough for ` (A)` and a word before it.
const VOTE_TOKENS: u32 = 8;

/// The log-probability of each choice after the prompt.
pub(super) async fn score(
    caller: &Caller,
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
            continuations(caller, text, choices, estimator).await
        }
        (Estimator::PromptLogprobs, Prompt::Messages(messages)) => {
            turns(caller, messages, choices).await
        }
        (Estimator::TopLogprobs, _) => alternatives(caller, prompt, choices).await,
        (Estimator::Votes, _) => votes(caller, prompt, choices).await,
    }
}

/// The most that a score can take: no text has more tokens than bytes.
pub(super) fn most(
    bytes: u32,
    is_chat: bool,
    choices: &[String],
    estimator: Estimator,
    n_votes: u32,
) -> Billed {
    let n = u32::try_from(choices.len()).unwrap_or(u32::MAX);
    let own: usize = choices.iter().map(String::len).sum();
    let own = u32::try_from(own).unwrap_or(u32::MAX);
    let of = |requests: u32, read: u32, written: u32| Billed {
        requests,
        prompt_tokens: read,
        completion_tokens: written,
    };
    match (estimator, is_chat) {
        (Estimator::Echo | Estimator::PromptLogprobs, false) => {
            of(1, bytes.saturating_mul(n).saturating_add(own), n)
        }
        (Estimator::Echo | Estimator::PromptLogprobs, true) => {
            of(n, bytes.saturating_mul(n).saturating_add(own), n)
        }
        (Estimator::TopLogprobs, false) => of(1, bytes.saturating_add(own), 1),
        (Estimator::TopLogprobs, true) => of(1, bytes, tokens_to_tell(choices)),
        (Estimator::Votes, _) => {
            of(n_votes, bytes.saturating_mul(n_votes), VOTE_TOKENS.saturating_mul(n_votes))
        }
    }
}

/// Tokens until a chat's answer tells the choices apart: at most a token a character of what all
/// begin with, one to tell them apart, and one for a line end or a space before.
fn tokens_to_tell(choices: &[String]) -> u32 {
    labels::shared_prefix(choices).trim().chars().count() as u32 + 2
}

fn permanent(message: &str) -> CallError {
    CallError::Permanent { status: None, message: message.to_owned(), too_long: false }
}

/// The server reads `text` with each choice behind it, and says how likely each token was.
async fn continuations(
    caller: &Caller,
    text: &str,
    choices: &[String],
    estimator: Estimator,
) -> Result<Answer, CallError> {
    let whole: Vec<String> = choices.iter().map(|choice| format!("{text}{choice}")).collect();
    let echo = estimator == Estimator::Echo;
    let body = Body {
        model: &caller.exchange.options.model,
        prompt: Some(Texts::Many(whole)),
        // Some servers take 0 for no limit. What is written is cut off again.
        max_tokens: Some(1),
        temperature: Some(0.0),
        echo: echo.then_some(true),
        logprobs: echo.then_some(Switch::Number(1)),
        prompt_logprobs: (!echo).then_some(0),
        ..Body::default()
    };
    let read = |reply: &Reply| {
        let replies = reply.in_order();
        // The server counts what it wrote over all choices; each wrote at most one token.
        let written = reply.billed().map(|billed| billed.completion_tokens as usize);
        let is_written = written.is_none_or(|written| written >= choices.len());
        if choices.len() != replies.len() {
            return Ok(None);
        }
        let scored = choices.iter().zip(replies).map(|(choice, reply)| {
            if echo {
                echoed(reply, choice, is_written)
            } else {
                labels::sum_of_last(&read_tokens(reply.prompt_logprobs.get()?), choice)
            }
        });
        Ok(scored.collect::<Option<Vec<f64>>>())
    };
    let heard = caller.ask(Route::Completions, body, read).await?;
    let (answer, mut scored) = Heard::answer(vec![heard]);
    let scored = scored.pop().flatten().ok_or_else(|| missing(estimator))?;
    Ok(Answer { choice_logprobs: Some(scored), ..answer })
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
    let tokens = echoed_tokens(reply.logprobs.get()?)?;
    let without = &tokens[..tokens.len().saturating_sub(1)];
    let (first, second) =
        if is_written { (without, tokens.as_slice()) } else { (tokens.as_slice(), without) };
    labels::sum_of_last(first, choice).or_else(|| labels::sum_of_last(second, choice))
}

fn echoed_tokens(logprobs: &Logprobs) -> Option<Vec<(&str, Option<f64>)>> {
    let (tokens, values) = (logprobs.tokens.get()?, logprobs.token_logprobs.get()?);
    let pairs = tokens
        .iter()
        .zip(values)
        .map(|(token, value)| (token.get().map_or("", String::as_str), value.get().copied()));
    Some(pairs.collect())
}

/// The prompt's tokens; the first token of a prompt has no log-probability.
fn read_tokens(logprobs: &[Field<PromptToken>]) -> Vec<(&str, Option<f64>)> {
    let tokens = logprobs.iter().map(|token| match token.get() {
        Some(token) => (token.text.as_str(), Some(token.logprob)),
        None => ("", None),
    });
    tokens.collect()
}

/// Each choice as the assistant's turn, unfinished, as vLLM renders and reads it.
async fn turns(
    caller: &Caller,
    messages: &[Message],
    choices: &[String],
) -> Result<Answer, CallError> {
    let mut asked = Vec::with_capacity(choices.len());
    for choice in choices {
        let (caller, mut messages) = (caller.clone(), messages.to_vec());
        match messages.last_mut().filter(|last| last.role == "assistant") {
            Some(begun) => begun.content.push_str(choice),
            None => messages.push(Message::assistant(choice.clone())),
        }
        let choice = choice.clone();
        asked.push(super::http::runtime().spawn(async move {
            let prompt = Prompt::Messages(messages);
            let (route, mut body) = begin(&caller.exchange, &prompt);
            body.max_tokens = Some(1);
            body.temperature = Some(0.0);
            body.prompt_logprobs = Some(0);
            let read = |reply: &Reply| {
                let own = reply.prompt_logprobs.get();
                let logprobs = own.or_else(|| reply.choice().prompt_logprobs.get());
                Ok(logprobs.and_then(|all| labels::sum_of_last(&read_tokens(all), &choice)))
            };
            caller.ask(route, body, read).await
        }));
    }
    let (answer, scored) = Heard::answer(all(caller, asked).await?);
    let scored: Option<Vec<f64>> = scored.into_iter().collect();
    let scored = scored.ok_or_else(|| missing(Estimator::PromptLogprobs))?;
    Ok(Answer { choice_logprobs: Some(scored), ..answer })
}

/// All replies in the order in which they were asked for, or the first error in that order.
async fn all<T>(
    caller: &Caller,
    asked: Vec<tokio::task::JoinHandle<Result<Heard<T>, CallError>>>,
) -> Result<Vec<Heard<T>>, CallError> {
    let mut heard = Vec::with_capacity(asked.len());
    let mut error = None;
    // Each is waited for, also after an error: what it takes is counted before the call is over.
    for one in asked {
        match one.await {
            Ok(Ok(one)) => heard.push(one),
            Ok(Err(failed)) => error = error.or(Some(failed)),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
    let Some(error) = error else { return Ok(heard) };
    // Those that were answered are paid for, though nothing comes of them.
    for heard in &heard {
        caller.meter.failed(heard.billed());
    }
    Err(error)
}

/// The server writes a token or a few, and lists what else could have stood there.
async fn alternatives(
    caller: &Caller,
    prompt: &Prompt,
    choices: &[String],
) -> Result<Answer, CallError> {
    let shared = labels::shared_prefix(choices);
    let n_alternatives = caller.exchange.options.alternatives;
    let (route, mut body) = begin(&caller.exchange, prompt);
    let (extended, skip);
    body.temperature = Some(0.0);
    match prompt {
        Prompt::Text(text) => {
            // What all choices begin with is read, so that the first token tells them apart.
            extended = format!("{text}{shared}");
            skip = shared.len();
            body.prompt = Some(Texts::One(&extended));
            body.max_tokens = Some(1);
            body.logprobs = Some(Switch::Number(n_alternatives));
        }
        Prompt::Messages(_) => {
            skip = 0;
            body.max_tokens = Some(tokens_to_tell(choices));
            body.logprobs = Some(Switch::On(true));
            body.top_logprobs = Some(n_alternatives);
        }
    }
    let rests: Vec<&str> = choices.iter().map(|choice| &choice[skip..]).collect();
    let read = |reply: &Reply| {
        let positions = reply.choice().logprobs.get().map(positions).unwrap_or_default();
        Ok(labels::listed(&rests, &positions))
    };
    let heard = caller.ask(route, body, read).await?;
    let (answer, mut scored) = Heard::answer(vec![heard]);
    let scored = scored.pop().flatten().ok_or_else(|| missing(Estimator::TopLogprobs))?;
    Ok(Answer { choice_logprobs: Some(scored), ..answer })
}

fn positions(logprobs: &Logprobs) -> Vec<Position<'_>> {
    if let Some(content) = logprobs.content.get() {
        let position = content.iter().map_while(|token| {
            let token = token.get()?;
            let listed = token.top_logprobs.get().into_iter().flatten();
            let listed = listed.filter_map(|of| of.get()?.pair()).collect();
            Some(Position { written: token.pair()?, listed })
        });
        return position.collect();
    }
    let (Some(tokens), Some(values), Some(listed)) =
        (logprobs.tokens.get(), logprobs.token_logprobs.get(), logprobs.top_logprobs.get())
    else {
        return Vec::new();
    };
    let all = tokens.iter().zip(values).zip(&listed.0);
    let position = all.map_while(|((token, value), listed)| {
        let listed = listed.get()?.0.iter();
        let listed = listed.filter_map(|(token, value)| Some((token.as_str(), *value.get()?)));
        Some(Position { written: (token.get()?, *value.get()?), listed: listed.collect() })
    });
    position.collect()
}

/// The choice that a vote is for; none where it is for neither. A model that thought until it had to
/// stop did not vote.
fn vote_in(choice: &Choice, choices: &[String]) -> Result<Option<usize>, String> {
    let text = choice.text()?;
    if text.text.trim().is_empty() && choice.finish() == Ok(Finish::Length) {
        return Err(format!(
            "the model wrote no text in the {VOTE_TOKENS} tokens of a vote: it thinks before it \
             answers; turn that off for the model: `thinking: disabled` with `api: messages`, \
             `template_args: {{ enable_thinking: false }}` with many chat templates"
        ));
    }
    Ok(labels::voted(choices, &text.text))
}

/// The server answers several times, and the answers are counted.
async fn votes(caller: &Caller, prompt: &Prompt, choices: &[String]) -> Result<Answer, CallError> {
    let n_votes = caller.exchange.options.votes.max(1);
    let asked = (0..n_votes).map(|vote| {
        let (caller, prompt, choices) = (caller.clone(), prompt.clone(), choices.to_vec());
        super::http::runtime().spawn(async move {
            let (route, mut body) = begin(&caller.exchange, &prompt);
            body.max_tokens = Some(VOTE_TOKENS);
            body.temperature = Some(1.0);
            body.top_p = Some(1.0);
            body.seed = Some(u64::from(vote));
            // A vote is a word, and no place to think in.
            body.thinking = caller.exchange.options.thinking.map(|_| Thinking::Disabled);
            let read = |reply: &Reply| vote_in(reply.choice(), &choices);
            caller.ask(route, body, read).await
        })
    });
    let (answer, voted) = Heard::answer(all(caller, asked.collect()).await?);
    let mut counts = vec![0; choices.len()];
    for choice in voted.into_iter().flatten() {
        counts[choice] += 1;
    }
    let all = f64::from(n_votes) + choices.len() as f64;
    let scored = counts.iter().map(|count| ((f64::from(*count) + 1.0) / all).ln()).collect();
    Ok(Answer { choice_logprobs: Some(scored), votes: Some(n_votes as i32), ..answer })
}

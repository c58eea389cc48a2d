//! `generate`: one answer written by the server.

use super::exchange::{Caller, Exchange, Heard};
use super::http::Route;
use super::options::Dialect;
use super::reply::{Choice, Text};
use super::wire::{Body, Texts};
use crate::model::answer::{Answer, CallError, Finish};
use crate::model::request::{Prompt, Sampling};

/// What is read of a reply.
struct Written {
    text: Text,
    finish: Finish,
    has_finish: bool,
    token_logprobs: Option<Vec<f32>>,
}

/// Asks for one answer.
pub(super) async fn generate(
    caller: &Caller,
    prompt: &Prompt,
    sampling: &Sampling,
) -> Result<Answer, CallError> {
    let (route, mut body) = begin(&caller.exchange, prompt);
    let explicit = caller.exchange.options.explicit_sampling;
    body.max_tokens = Some(sampling.max_tokens);
    // Always sent: the default of the field is 1, that of llama.cpp is 0.8, and vLLM takes the
    // model's own.
    body.temperature = Some(sampling.temperature);
    body.top_p =
        (explicit || sampling.top_p < 1.0 || !sampling.is_greedy()).then_some(sampling.top_p);
    body.top_k = match sampling.top_k {
        // The one number that vLLM, SGLang and llama.cpp all read as "all".
        0 => explicit.then_some(-1),
        top_k => Some(i64::from(top_k)),
    };
    body.min_p = (explicit || sampling.min_p > 0.0).then_some(sampling.min_p);
    body.repetition_penalty = sampling.is_penalised().then_some(sampling.repetition_penalty);
    body.stop = &sampling.stop;
    body.seed = sampling.seed.map(seed_sent);
    body.thinking = caller.exchange.options.thinking;
    let heard = caller.ask(route, body, |reply| written(reply.choice())).await?;
    let (mut answer, mut written) = Heard::answer(vec![heard]);
    let written = written.pop().expect("one was heard");
    answer.text = written.text.text;
    answer.reasoning = written.text.reasoning;
    answer.token_logprobs = written.token_logprobs;
    answer.finish = written.finish;
    // A server that does not say why it ended and wrote as much as it may was cut.
    let is_full = i64::from(answer.completion_tokens) >= i64::from(sampling.max_tokens);
    if !written.has_finish && is_full && !answer.estimated_usage {
        answer.finish = Finish::Length;
    }
    cut(&mut answer, &sampling.stop);
    Ok(answer)
}

fn written(choice: &Choice) -> Result<Written, String> {
    let logprobs = choice.logprobs.get();
    let token_logprobs = logprobs.and_then(|logprobs| {
        let tokens = logprobs.content.get().into_iter().flatten();
        let chat = tokens.filter_map(|token| token.get()?.logprob.get().copied());
        let listed = logprobs.token_logprobs.get().into_iter().flatten();
        let listed = listed.filter_map(|logprob| logprob.get().copied());
        let all: Vec<f32> = chat.chain(listed).map(|logprob| logprob as f32).collect();
        (!all.is_empty()).then_some(all)
    });
    let finish = choice.finish().expect("a checked reply has an end that is known");
    let has_finish = choice.finish_reason.get().is_some_and(|name| !name.is_empty());
    Ok(Written { text: choice.text()?, finish, has_finish, token_logprobs })
}

/// Cuts an answer at the first stop text, for servers that take fewer than were asked for.
fn cut(answer: &mut Answer, stop: &[String]) {
    let texts = stop.iter().filter(|text| !text.is_empty());
    if let Some(at) = texts.filter_map(|text| answer.text.find(text.as_str())).min() {
        answer.text.truncate(at);
        answer.finish = Finish::Stop;
    }
}

/// The route of a prompt, and a body with the model and the prompt.
pub(super) fn begin<'a>(exchange: &'a Exchange, prompt: &'a Prompt) -> (Route, Body<'a>) {
    let options = &exchange.options;
    let model = options.model.as_str();
    match prompt {
        Prompt::Text(text) => {
            (Route::Completions, Body { model, prompt: Some(Texts::One(text)), ..Body::default() })
        }
        Prompt::Messages(messages) => {
            let mut body =
                Body { model, messages: Some(messages.iter().collect()), ..Body::default() };
            if options.dialect == Dialect::Messages {
                // A turn of the assistant at the end is continued without being told.
                return (Route::Messages, body);
            }
            // A turn of the assistant at the end is the beginning of the answer. Servers that
            // render a template must be told; others refuse the parameters, rather than answer
            // something else.
            if messages.last().is_some_and(|last| last.role == "assistant") {
                body.add_generation_prompt = Some(false);
                body.continue_final_message = Some(true);
            }
            body.chat_template_kwargs =
                (!options.template_args.is_empty()).then_some(&options.template_args);
            body.chat_template = options.chat_template.as_deref();
            (Route::Chat, body)
        }
    }
}

/// The seed as it is sent: its low 31 bits, the most that every server reads.
pub(super) fn seed_sent(seed: u64) -> u64 {
    seed & 0x7fff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_at_the_first_stop_text_whoever_cuts_it() {
        let check = |text: &str, expected: &str, finish: Finish| {
            let finish_before = Finish::Length;
            let mut answer =
                Answer { text: text.to_owned(), finish: finish_before, ..Answer::default() };
            cut(&mut answer, &["END".to_owned(), "\n\n".to_owned(), String::new()]);
            assert_eq!((answer.text.as_str(), answer.finish), (expected, finish));
        };
        check("a\n\nb END", "a", Finish::Stop);
        check("a END", "a ", Finish::Stop);
        check("a", "a", Finish::Length);
    }
}

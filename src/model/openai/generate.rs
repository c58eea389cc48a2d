//! `generate`: one answer written by the server.

use super::exchange::{Exchange, Heard};
use super::http::Route;
use super::wire::{Body, Choice, Texts};
use crate::model::answer::{Answer, CallError, Finish};
use crate::model::request::{Prompt, Sampling};

/// Asks for one answer.
pub(super) async fn generate(
    exchange: &Exchange,
    prompt: &Prompt,
    sampling: &Sampling,
) -> Result<Answer, CallError> {
    let (route, mut body) = begin(exchange, prompt);
    let explicit = exchange.options.explicit_sampling;
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
    let mut heard = exchange.ask(route, body).await?;
    let choice = heard.reply.choices.swap_remove(0);
    Ok(answer(choice, heard))
}

/// The route of a prompt, and a body with the model and the prompt.
pub(super) fn begin<'a>(exchange: &'a Exchange, prompt: &'a Prompt) -> (Route, Body<'a>) {
    let model = exchange.options.model.as_str();
    match prompt {
        Prompt::Text(text) => {
            (Route::Completions, Body { model, prompt: Some(Texts::One(text)), ..Body::default() })
        }
        Prompt::Messages(messages) => {
            let mut body =
                Body { model, messages: Some(messages.iter().collect()), ..Body::default() };
            // A turn of the assistant at the end is the beginning of the answer. Servers that
            // render a template must be told; others refuse the parameters, rather than answer
            // something else.
            if messages.last().is_some_and(|last| last.role == "assistant") {
                body.add_generation_prompt = Some(false);
                body.continue_final_message = Some(true);
            }
            (Route::Chat, body)
        }
    }
}

/// The seed as it is sent: its low 31 bits, the most that every server reads.
pub(super) fn seed_sent(seed: u64) -> u64 {
    seed & 0x7fff_ffff
}

/// The text of a choice.
pub(super) fn text_of(choice: &Choice) -> &str {
    let written = choice.message.as_ref();
    let said = written.and_then(|message| message.content.as_ref().or(message.refusal.as_ref()));
    said.or(choice.text.as_ref()).map_or("", String::as_str)
}

fn answer(choice: Choice, heard: Heard) -> Answer {
    let token_logprobs = choice.logprobs.as_ref().and_then(|logprobs| {
        let tokens = logprobs.content.as_ref();
        let chat = tokens.map(|all| all.iter().map(|token| token.logprob as f32).collect());
        let listed = logprobs.token_logprobs.as_ref();
        chat.or_else(|| listed.map(|all| all.iter().flatten().map(|one| *one as f32).collect()))
    });
    let finish = choice.finish_reason.as_deref().map_or(Finish::Stop, Finish::from_name);
    Answer {
        text: text_of(&choice).to_owned(),
        finish,
        token_logprobs,
        ..Heard::answer(std::slice::from_ref(&heard))
    }
}

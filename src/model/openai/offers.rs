//! Offers: which estimators of label log-probabilities a server has, tried out before rows depend on
//! them.

use super::exchange::Caller;
use super::score;
use crate::model::answer::{Answer, CallError};
use crate::model::request::{Estimator, Prompt};
use crate::record::Message;

/// The name of a route in a profile.
pub(super) fn route(chat: bool) -> &'static str {
    if chat { "chat" } else { "completions" }
}

/// Scores a question of a few tokens.
pub(super) async fn try_out(
    caller: &Caller,
    chat: bool,
    estimator: Estimator,
) -> Result<(), CallError> {
    let question = "1+1=";
    let prompt = match chat {
        true => Prompt::Messages(vec![Message::user(question)]),
        false => Prompt::Text(question.to_owned()),
    };
    let choices = ["2", "3"].map(str::to_owned);
    score::score(caller, &prompt, &choices, estimator).await.map(drop)
}

/// Scores choices. The first request of an estimator goes alone: where the server turns out not to
/// offer it, that is said before anything is spent on other rows.
pub(super) async fn score(
    caller: &Caller,
    prompt: &Prompt,
    choices: &[String],
    estimator: Estimator,
) -> Result<Answer, CallError> {
    let exchange = &caller.exchange;
    let chat = matches!(prompt, Prompt::Messages(_));
    let name = format!("{} {}", route(chat), estimator.name());
    let is_known = || {
        let best = exchange.profile.estimator(route(chat));
        best == Some(estimator) || exchange.profile.estimator(&name).is_some()
    };
    if estimator == Estimator::Votes || is_known() {
        return score::score(caller, prompt, choices, estimator).await;
    }
    let alone = exchange.trying_out.lock().await;
    if is_known() {
        drop(alone);
        return score::score(caller, prompt, choices, estimator).await;
    }
    let first = score::score(caller, prompt, choices, estimator).await;
    let refused = match &first {
        Ok(_) => Ok(()),
        // It may be this row's own: a question that is nobody's tells.
        Err(CallError::Permanent { .. }) => try_out(caller, chat, estimator).await,
        Err(_) => return first,
    };
    let outcome = match refused {
        Ok(()) => {
            exchange.profile.offers(&name, estimator);
            first
        }
        Err(CallError::Permanent { message, .. }) => Err(CallError::Outage {
            message: format!(
                "{} does not offer `scoring: {}` for the model \"{}\": {message}; `scoring: auto` takes \
                 the best that it offers",
                exchange.options.address(),
                estimator.name(),
                exchange.options.model,
            ),
        }),
        Err(error) => Err(error),
    };
    drop(alone);
    outcome
}

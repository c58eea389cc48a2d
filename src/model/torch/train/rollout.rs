//! Rollouts: the policy as it now is answers a batch of prompts.

use super::learner::Learner;
use super::rows::Row;
use crate::model::torch::generate::{Continuation, Generated, generate};
use crate::model::train::{PpoSettings, TrainError};
use crate::model::{Finish, Sampling};
use crate::record::{Id, KeyHasher, Message};

/// The most answers written at once.
const SLOTS_MAX: usize = 256;

/// The prompts of a training.
#[derive(Default)]
pub(super) struct Prompts<'a> {
    /// The rows' ids.
    pub(super) ids: Vec<Id>,
    /// Their texts.
    pub(super) texts: Vec<&'a str>,
    /// The same as messages.
    pub(super) messages: Vec<&'a [Message]>,
    /// Their tokens in the policy's tokenizer.
    pub(super) tokens: Vec<Vec<i64>>,
}

/// One answer to one prompt.
#[derive(Clone, Debug)]
pub(super) struct Episode {
    /// The prompt's place in the list.
    pub(super) prompt: usize,
    /// Prompt and answer in tokens, end token included.
    pub(super) row: Row,
    /// The answer as text, without end token and stop text.
    pub(super) text: String,
    /// Why it stopped.
    pub(super) finish: Finish,
    /// Whether it stopped by itself: at an end token or a stop text.
    pub(super) ended: bool,
    /// The tokens' log-probabilities as the sampler had them, at temperature 1.
    pub(super) sampled: Vec<f32>,
}

/// Samples an answer to each prompt asked. The seed of an answer is a function of the training's
/// seed, the prompt's row and the number of the episode.
///
/// The whole distribution is sampled: what is cut off at sampling (top-p) would be missing from
/// the ratio of the update.
pub(super) fn sample(
    policy: &Learner,
    prompts: &Prompts<'_>,
    asked: &[usize],
    settings: &PpoSettings,
    n_episodes: usize,
) -> Result<Vec<Episode>, TrainError> {
    if settings.temperature <= 0.0 {
        return Err(TrainError::Data(
            "a policy that explores has a temperature above 0".to_owned(),
        ));
    }
    let continuation = |(place, &prompt): (usize, &usize)| {
        let seed = KeyHasher::new("amend/rollout/1")
            .u64(settings.optim.seed)
            .with(prompts.ids[prompt])
            .u64((n_episodes + place) as u64);
        let sampling = Sampling {
            temperature: settings.temperature,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_tokens: settings.response_length as u32,
            stop: settings.stop.clone(),
            seed: Some(seed.id().low()),
        };
        Continuation { prompt: prompts.tokens[prompt].clone(), sampling }
    };
    let rows = asked.iter().enumerate().map(continuation).collect();
    let generated = generate(&policy.sampler()?, policy.tokenizer(), rows, SLOTS_MAX);
    assert_eq!(generated.len(), asked.len(), "an answer for each prompt");
    let episode = |(&prompt, answer): (&usize, Generated)| Episode {
        prompt,
        row: Row::new(&prompts.tokens[prompt], &answer.tokens),
        text: answer.text,
        ended: answer.finish == Finish::Stop,
        finish: answer.finish,
        sampled: answer.logprobs,
    };
    Ok(asked.iter().zip(generated).map(episode).collect())
}

//! `ppo-update`: reinforcement learning of a policy against a preference model (arXiv 1707.06347;
//! the details are those of arXiv 2403.17031).
//!
//! Each step samples answers to a batch of prompts, has them scored, and learns from them for a
//! few epochs. The critic is a model of its own that begins at the preference model, score head
//! included.

use std::path::Path;

use super::advantage::moments;
use super::experience::{Actors, Experience, Judge};
use super::learner::Learner;
use super::log::Log;
use super::optimizer::{AdamW, Schedule};
use super::order::epoch_order;
use super::rollout::{Episode, Prompts, sample};
use super::update::{Students, Sums, update};
use crate::model::torch::config::Head;
use crate::model::train::{Example, Init, PpoSettings, Rollout, TrainError, TrainJob, Trained};
use crate::record::Id;

/// The models of a training.
struct Cast {
    policy: Learner,
    reference: Learner,
    critic: Judge,
    judge: Judge,
    /// A second judge, from which nothing is learnt.
    second: Option<Judge>,
}

impl Cast {
    fn read(init: &Init, settings: &PpoSettings) -> Result<Cast, TrainError> {
        let Init::Checkpoint(init) = init else {
            return Err(TrainError::Data(
                "a policy begins at a model, not from nothing".to_owned(),
            ));
        };
        let judge_at = |dir: &Path| -> Result<Judge, TrainError> {
            Ok(Judge::new(Learner::read(dir, Head::Score)?, settings.normalize_reward))
        };
        let cast = Cast {
            policy: Learner::read(init, Head::Lm)?,
            reference: Learner::read(init, Head::Lm)?,
            critic: judge_at(&settings.reward)?,
            judge: judge_at(&settings.reward)?,
            second: settings.test_reward.as_deref().map(judge_at).transpose()?,
        };
        if !cast.critic.model.has_tokenizer_of(&cast.policy) {
            return Err(TrainError::Data(
                "the reward's tokenizer is not the policy's: the critic begins at the reward model \
                 and reads the policy's tokens"
                    .to_owned(),
            ));
        }
        Ok(cast)
    }
}

/// Does the training.
pub(super) fn train(job: &TrainJob, settings: &PpoSettings) -> Result<Trained, TrainError> {
    let Cast { policy, reference, critic, judge, second } = Cast::read(&job.init, settings)?;
    let mut trained = Trained { kind: "lm".to_owned(), ..Trained::default() };
    let prompts = read(&policy, &job.examples, settings, &mut trained)?;

    let n_batches = settings.total_episodes.div_ceil(settings.batch_size.max(1)) as u64;
    let per_batch = (settings.num_ppo_epochs.max(1) * settings.num_mini_batches.max(1)) as u64;
    let mut students = Students {
        policy: &policy,
        critic: &critic,
        policy_optimizer: AdamW::new(policy.weights(), &settings.optim),
        critic_optimizer: AdamW::new(critic.model.weights(), &settings.optim),
        schedule: Schedule::new(&settings.optim, n_batches * per_batch)?,
    };
    let mut order = cycled(settings.optim.seed, &prompts.ids);
    let mut log = Log::default();
    let mut n_episodes = 0;
    for step in 0..n_batches {
        let size = settings.batch_size.max(1).min(settings.total_episodes - n_episodes);
        let asked: Vec<usize> = order.by_ref().take(size).collect();
        let episodes = sample(&policy, &prompts, &asked, settings, n_episodes)?;
        let actors =
            Actors { policy: &policy, reference: &reference, critic: &critic, judge: &judge };
        let experience = Experience::of(&actors, &prompts.texts, &episodes, settings)?;
        let second =
            second.as_ref().map(|judge| judge.scores(&prompts.texts, &episodes)).transpose()?;
        let sums = update(&mut students, &experience, settings, step)?;

        n_episodes += size;
        let batch = Batch {
            step: step + 1,
            n_episodes,
            episodes: &episodes,
            experience: &experience,
            judge: &judge,
            second: second.as_deref(),
        };
        batch.log(&mut log, settings, &sums);
        let done = step + 1;
        if done % settings.optim.logging_steps.max(1) == 0 || done == n_batches {
            let epoch = n_episodes as f64 / prompts.ids.len() as f64;
            let means = log.flush(done, epoch, "train");
            let last = students.schedule.rate(done * per_batch - 1);
            log.push(done, epoch, "train", "lr", last);
            log.push(done, epoch, "train", "episode", n_episodes as f64);
            let line = format!(
                "step {done}/{n_batches} score {:.3} kl {:.3}",
                means["objective/scores"], means["objective/kl"]
            );
            (job.progress)(&line, done, n_batches);
        }
        trained.rollouts.extend(batch.rollouts(&prompts, settings));
    }
    drop(students);
    trained.steps = n_batches;
    trained.metrics = log.into_metrics();
    trained.weights = policy.save(&job.out, "ppo-update")?;
    Ok(trained)
}

/// The prompts in tokens; what leaves no room for an answer is rejected.
fn read<'a>(
    policy: &Learner,
    examples: &'a [Example],
    settings: &PpoSettings,
    trained: &mut Trained,
) -> Result<Prompts<'a>, TrainError> {
    if settings.response_length == 0 || settings.total_episodes == 0 {
        return Err(TrainError::Data(
            "response_length and total_episodes are at least 1".to_owned(),
        ));
    }
    let mut prompts = Prompts::default();
    let room = policy.length_max().saturating_sub(settings.response_length);
    for example in examples {
        let Example::Prompt { row_id, prompt, messages } = example else {
            return Err(TrainError::Data("ppo-update learns from prompts only".to_owned()));
        };
        let tokens = policy.prompt(prompt)?;
        let (reason, detail) = match tokens.len() {
            0 => ("empty", "the prompt is empty".to_owned()),
            n if n > room => ("too_long", format!("{n} tokens, of at most {room}")),
            _ => {
                prompts.ids.push(*row_id);
                prompts.texts.push(prompt);
                prompts.messages.push(messages);
                prompts.tokens.push(tokens);
                continue;
            }
        };
        trained.rejected.push((*row_id, reason.to_owned(), detail));
    }
    if prompts.ids.is_empty() {
        return Err(TrainError::Data(format!(
            "no prompt is left to train on: {} of {} are empty or longer than {room} tokens",
            trained.rejected.len(),
            examples.len()
        )));
    }
    Ok(prompts)
}

/// The prompts over and over: in the order given at first, by hash in later rounds.
fn cycled(seed: u64, ids: &[Id]) -> impl Iterator<Item = usize> {
    (0_u64..).flat_map(move |round| epoch_order(seed, round, ids))
}

/// A batch that was learnt from.
struct Batch<'a> {
    step: u64,
    /// Episodes so far, this batch's included.
    n_episodes: usize,
    episodes: &'a [Episode],
    experience: &'a Experience,
    judge: &'a Judge,
    second: Option<&'a [f64]>,
}

impl Batch<'_> {
    fn log(&self, log: &mut Log, settings: &PpoSettings, sums: &Sums) {
        let experience = self.experience;
        let n = self.episodes.len() as f64;
        let rows = || 0..self.episodes.len();
        let mean = |of: &dyn Fn(usize) -> f64| rows().map(of).sum::<f64>() / n;
        let kl = mean(&|row| experience.kl_of(row));
        let scores = mean(&|row| experience.rewarded[row]);
        let tokens = |of: &dyn Fn(usize) -> f64| rows().map(of).sum::<f64>();
        let n_tokens = tokens(&|row| experience.old[row].len() as f64);
        let sum = |numbers: &[f32]| numbers.iter().map(|&x| f64::from(x)).sum::<f64>();
        let (_, variance) = moments(experience.rewarded.iter().copied());
        let numbers = [
            ("objective/kl", kl),
            ("objective/entropy", mean(&|row| -sum(&experience.old[row]))),
            ("objective/non_score_reward", -settings.kl_coef * kl),
            ("objective/rlhf_reward", scores - settings.kl_coef * kl),
            ("objective/scores", scores),
            ("objective/scores_std", variance.sqrt()),
            ("objective/scores_raw", mean(&|row| experience.scores[row])),
            ("policy/approxkl_avg", sums.approx_kl()),
            ("policy/clipfrac_avg", sums.policy_clipped / sums.n),
            ("policy/entropy_avg", tokens(&|row| sum(&experience.entropies[row])) / n_tokens),
            ("policy/grad_norm", sums.norms.0 / sums.n_minibatches),
            ("critic/grad_norm", sums.norms.1 / sums.n_minibatches),
            ("loss/policy_avg", sums.policy / sums.n),
            ("loss/value_avg", sums.value / sums.n),
            ("val/clipfrac_avg", sums.value_clipped / sums.n),
            ("val/ratio", sums.ratio / sums.n),
            ("val/ratio_var", sums.ratio_squared / sums.n - (sums.ratio / sums.n).powi(2)),
            ("val/num_eos_tokens", rows().filter(|&row| self.episodes[row].ended).count() as f64),
            ("val/explained_variance", self.explained_variance()),
            ("val/first_difference", sums.first_difference),
            ("rollout/max_difference", self.rollout_difference(settings)),
            ("response/len_mean", n_tokens / n),
            (
                "response/truncated_frac",
                mean(&|row| f64::from(u8::from(!self.episodes[row].ended))),
            ),
        ];
        for (name, value) in numbers {
            log.add(name, value, 1.0);
        }
        if let Some(second) = self.second {
            log.add("objective/scores_test_pm", second.iter().sum::<f64>() / n, 1.0);
        }
    }

    /// The largest difference between the sampler's log-probabilities and the trainer's; not known
    /// when the sampler's are at another temperature.
    fn rollout_difference(&self, settings: &PpoSettings) -> f64 {
        if (settings.temperature - 1.0).abs() > f64::EPSILON {
            return f64::NAN;
        }
        let tokens = self.episodes.iter().zip(&self.experience.old);
        tokens
            .flat_map(|(episode, old)| episode.sampled.iter().zip(old))
            .map(|(sampled, old)| f64::from((sampled - old).abs()))
            .fold(0.0, f64::max)
    }

    /// `1 − Var(R − V) / Var(R)` over the tokens.
    fn explained_variance(&self) -> f64 {
        let flat = |of: &[Vec<f32>]| of.iter().flatten().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let (returns, values) = (flat(&self.experience.returns), flat(&self.experience.values));
        let (_, all) = moments(returns.iter().copied());
        let (_, rest) = moments(returns.iter().zip(&values).map(|(r, v)| r - v));
        if all > 0.0 { 1.0 - rest / all } else { 0.0 }
    }

    fn rollouts(&self, prompts: &Prompts<'_>, settings: &PpoSettings) -> Vec<Rollout> {
        let first = self.n_episodes - self.episodes.len();
        let of = |(row, episode): (usize, &Episode)| {
            let experience = self.experience;
            let kl = experience.kl_of(row);
            let kept = |numbers: &[Vec<f32>]| {
                if settings.keep_tokens { numbers[row].clone() } else { Vec::new() }
            };
            let tokens = &episode.row.tokens[episode.row.prompt_len..];
            let ids = tokens.iter().map(|&id| id as i32);
            Rollout {
                prompt_row: prompts.ids[episode.prompt],
                prompt: prompts.messages[episode.prompt].to_vec(),
                completion: episode.text.clone(),
                step: self.step as i64,
                episode: (first + row + 1) as i64,
                token_ids: if settings.keep_tokens { ids.collect() } else { Vec::new() },
                logprobs: kept(&experience.old),
                ref_logprobs: kept(&experience.reference),
                values: kept(&experience.values),
                advantages: kept(&experience.advantages),
                returns: kept(&experience.returns),
                score: experience.scores[row],
                score_normalized: self.judge.normalized(experience.scores[row]),
                score_test_pm: self.second.map(|second| second[row]),
                kl,
                reward: experience.rewarded[row] - settings.kl_coef * kl,
                finish_reason: episode.finish.name().to_owned(),
                completion_tokens: tokens.len() as i32,
            }
        };
        self.episodes.iter().enumerate().map(of).collect()
    }
}

//! What a batch of `ppo-update` says of itself: metrics under TRL's names, and its episodes as rows.

use super::advantage::moments;
use super::experience::{Experience, Judge};
use super::log::Log;
use super::reward::Reward;
use super::rollout::{Episode, Prompts};
use super::update::Sums;
use crate::model::train::{PpoSettings, Rollout};

/// A batch that was learnt from.
pub(super) struct Batch<'a> {
    /// Its number, from 1.
    pub(super) step: u64,
    /// Episodes so far, this batch's included.
    pub(super) n_episodes: usize,
    /// Its episodes.
    pub(super) episodes: &'a [Episode],
    /// What they are worth.
    pub(super) experience: &'a Experience,
    /// What gave the scores.
    pub(super) reward: &'a Reward<'a>,
    /// A second judge, and what it says of the same episodes.
    pub(super) second: Option<(&'a Judge, &'a [f64])>,
}

impl Batch<'_> {
    /// Adds its numbers to the log.
    pub(super) fn log(&self, log: &mut Log, settings: &PpoSettings, sums: &Sums) {
        let experience = self.experience;
        let n = self.episodes.len() as f64;
        let rows = || 0..self.episodes.len();
        let mean = |of: &dyn Fn(usize) -> f64| rows().map(of).sum::<f64>() / n;
        let kl = experience.mean_kl();
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
            ("objective/kl_coef", settings.kl_coef),
            ("objective/scores", scores),
            ("objective/scores_std", variance.sqrt()),
            ("objective/scores_raw", mean(&|row| experience.scores[row])),
            ("policy/approxkl_avg", sums.approx_kl()),
            ("policy/clipfrac_avg", sums.policy_clipped / sums.n),
            ("policy/logratio_max", sums.difference),
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
        if let Some((judge, second)) = self.second {
            let mean = second.iter().sum::<f64>() / n;
            log.add("objective/scores_test_pm", mean, 1.0);
            // Beside `objective/scores`: two models are compared at the same scale.
            log.add("objective/scores_test_pm_normalized", judge.normalized(mean), 1.0);
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

    /// Its episodes as rows.
    pub(super) fn rollouts(&self, prompts: &Prompts<'_>, settings: &PpoSettings) -> Vec<Rollout> {
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
                sample_index: (row % settings.num_generations) as i64,
                token_ids: if settings.keep_tokens { ids.collect() } else { Vec::new() },
                logprobs: kept(&experience.old),
                ref_logprobs: kept(&experience.reference),
                values: kept(&experience.values),
                advantages: kept(&experience.advantages),
                returns: kept(&experience.returns),
                score: experience.scores[row],
                score_normalized: self.reward.normalized(experience.scores[row]),
                score_test_pm: self.second.map(|(_, second)| second[row]),
                kl,
                reward: experience.rewarded[row] - settings.kl_coef * kl,
                finish_reason: episode.finish.name().to_owned(),
                completion_tokens: tokens.len() as i32,
            }
        };
        self.episodes.iter().enumerate().map(of).collect()
    }
}

//! Advantages: from the rewards and values of an episode's tokens to what PPO learns from.
//!
//! Plain numbers of one episode at a time, without padding: there is nothing to mask.

/// The estimator of the KL to the reference, of one token (joschu.net/blog/kl-approx).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KlEstimator {
    /// `log π − log π_ref`: unbiased, may be negative.
    K1,
    /// `½ (log π − log π_ref)²`: biased, never negative.
    K2,
    /// `(π_ref/π − 1) − log(π_ref/π)`: unbiased, never negative.
    K3,
}

impl KlEstimator {
    /// The estimator of that name.
    pub(crate) fn named(name: &str) -> Option<KlEstimator> {
        match name {
            "k1" => Some(KlEstimator::K1),
            "k2" => Some(KlEstimator::K2),
            "k3" => Some(KlEstimator::K3),
            _ => None,
        }
    }

    /// The estimate at one token.
    pub(crate) fn at(self, log_prob: f32, reference: f32) -> f32 {
        let ratio = log_prob - reference;
        match self {
            KlEstimator::K1 => ratio,
            KlEstimator::K2 => 0.5 * ratio * ratio,
            KlEstimator::K3 => (-ratio).exp_m1() + ratio,
        }
    }
}

/// Generalised advantage estimation (arXiv 1506.02438, equation 16) and the returns `A + V`.
///
/// `rewards[t]` and `values[t]` are those of the t-th written token; after the last nothing comes.
pub(crate) fn gae(rewards: &[f32], values: &[f32], gamma: f64, lam: f64) -> (Vec<f32>, Vec<f32>) {
    assert_eq!(rewards.len(), values.len(), "a reward and a value for each token");
    let mut advantages = vec![0.0; rewards.len()];
    let (mut advantage, mut value_next) = (0.0_f64, 0.0_f64);
    for t in (0..rewards.len()).rev() {
        let value = f64::from(values[t]);
        let delta = f64::from(rewards[t]) + gamma * value_next - value;
        advantage = delta + gamma * lam * advantage;
        advantages[t] = advantage as f32;
        value_next = value;
    }
    let returns = advantages.iter().zip(values).map(|(a, v)| a + v).collect();
    (advantages, returns)
}

/// The reward of each rollout less the mean of the others of its prompt (RLOO, arXiv 2402.14740,
/// section 3): `group` rollouts in a row are of one prompt.
pub(crate) fn leave_one_out(rewards: &[f64], group: usize) -> Vec<f64> {
    let of_group = |rewards: &[f64]| {
        let (sum, others) = (rewards.iter().sum::<f64>(), rewards.len() as f64 - 1.0);
        let own = |&reward: &f64| reward - (sum - reward) / others;
        rewards.iter().map(own).collect::<Vec<f64>>()
    };
    rewards.chunks(group).flat_map(of_group).collect()
}

/// The score of each rollout, standardised among those of its prompt, `(R − mean) / (std + 1e-4)`
/// (GRPO, arXiv 2402.03300, section 4.1.2; the constant is TRL's).
pub(crate) fn standardised(scores: &[f64], group: usize) -> Vec<f64> {
    let of_group = |scores: &[f64]| {
        let (mean, variance) = moments(scores.iter().copied());
        let scale = 1.0 / (variance.sqrt() + 1e-4);
        scores.iter().map(|score| (score - mean) * scale).collect::<Vec<f64>>()
    };
    scores.chunks(group).flat_map(of_group).collect()
}

/// Mean and variance, the latter with Bessel's correction (0 for a single number).
pub(crate) fn moments(numbers: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = numbers.clone().count() as f64;
    if n < 1.0 {
        return (0.0, 0.0);
    }
    let mean = numbers.clone().sum::<f64>() / n;
    let squares = numbers.map(|x| (x - mean) * (x - mean)).sum::<f64>();
    (mean, squares / (n - 1.0).max(1.0))
}

/// Whitens the advantages of a whole batch, `(A − mean) / √(var + 1e-8)` over its tokens.
pub(crate) fn whiten(batch: &mut [Vec<f32>]) {
    rescale(batch, false);
}

/// Gives the rewards of a whole batch a deviation of 1 over its tokens and leaves their mean:
/// TRL's `whiten_rewards`.
pub(crate) fn whiten_around_mean(batch: &mut [Vec<f32>]) {
    rescale(batch, true);
}

fn rescale(batch: &mut [Vec<f32>], keep_mean: bool) {
    let (mean, variance) = moments(batch.iter().flatten().map(|&x| f64::from(x)));
    let scale = 1.0 / (variance + 1e-8).sqrt();
    let center = if keep_mean { mean } else { 0.0 };
    for number in batch.iter_mut().flatten() {
        *number = ((f64::from(*number) - mean) * scale + center) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REWARDS: [f32; 5] = [0.1, -0.2, 0.0, 0.3, 1.5];
    const VALUES: [f32; 5] = [0.5, 0.4, -0.3, 0.8, 0.9];

    /// The definition: `A_t = Σ_l (γλ)^l δ_{t+l}`, in O(n²).
    fn by_definition(gamma: f64, lam: f64) -> Vec<f64> {
        let n = REWARDS.len();
        let value = |t: usize| if t < n { f64::from(VALUES[t]) } else { 0.0 };
        let delta = |t: usize| f64::from(REWARDS[t]) + gamma * value(t + 1) - value(t);
        (0..n)
            .map(|t| (t..n).map(|s| (gamma * lam).powi((s - t) as i32) * delta(s)).sum())
            .collect()
    }

    fn check(gamma: f64, lam: f64, expected: &[f64]) {
        let (advantages, returns) = gae(&REWARDS, &VALUES, gamma, lam);
        for t in 0..REWARDS.len() {
            assert!((f64::from(advantages[t]) - expected[t]).abs() < 1e-6, "token {t}");
            assert!((returns[t] - advantages[t] - VALUES[t]).abs() < 1e-6, "token {t}");
        }
    }

    #[test]
    fn the_recursion_is_the_definition() {
        check(1.0, 0.95, &by_definition(1.0, 0.95));
        check(0.9, 0.5, &by_definition(0.9, 0.5));
    }

    #[test]
    fn at_lambda_one_it_is_monte_carlo_and_at_zero_the_one_step_error() {
        let n = REWARDS.len();
        let sum = |t: usize| REWARDS[t..].iter().map(|&r| f64::from(r)).sum::<f64>();
        let rest: Vec<f64> = (0..n).map(|t| sum(t) - f64::from(VALUES[t])).collect();
        check(1.0, 1.0, &rest);
        let next = |t: usize| if t + 1 < n { f64::from(VALUES[t + 1]) } else { 0.0 };
        let one: Vec<f64> =
            (0..n).map(|t| f64::from(REWARDS[t]) + next(t) - f64::from(VALUES[t])).collect();
        check(1.0, 0.0, &one);
    }

    #[test]
    fn whitening_is_over_all_tokens_of_the_batch() {
        let mut batch = vec![vec![1.0, 2.0, 3.0], vec![10.0], vec![]];
        whiten(&mut batch);
        let (mean, variance) = moments(batch.iter().flatten().map(|&a| f64::from(a)));
        assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-5);
        assert!(batch[1][0] > 1.0, "rows are not whitened one by one");
        let mut rewards = vec![vec![1.0, 2.0, 3.0], vec![10.0], vec![]];
        whiten_around_mean(&mut rewards);
        let (mean, variance) = moments(rewards.iter().flatten().map(|&r| f64::from(r)));
        assert!((mean - 4.0).abs() < 1e-5 && (variance - 1.0).abs() < 1e-5);
    }

    #[test]
    fn every_estimator_is_zero_at_the_reference_and_k3_is_never_negative() {
        for name in ["k1", "k2", "k3"] {
            let estimator = KlEstimator::named(name).unwrap();
            assert!(estimator.at(-1.5, -1.5).abs() < 1e-9, "{name}");
        }
        assert!(KlEstimator::K1.at(-2.0, -1.0) < 0.0);
        assert!(KlEstimator::K3.at(-2.0, -1.0) > 0.0 && KlEstimator::K3.at(-1.0, -2.0) > 0.0);
        assert_eq!(KlEstimator::named("k4"), None);
    }
}

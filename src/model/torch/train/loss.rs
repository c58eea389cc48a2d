//! Losses: pure functions of tensors, each beside the equation that it is.
//!
//! Tokens come flat, one after the other, and only those that count: there is no padding here, so
//! no mask can be forgotten. Every loss is a *sum*; the caller divides by the number of tokens of
//! the whole optimizer step, so that cutting a step into micro-batches changes nothing.

use tch::{Kind, Tensor};

/// The summed cross-entropy `Σ wₙ · −log softmax(logitsₙ)[targetₙ]`.
pub(crate) fn cross_entropy(logits: &Tensor, targets: &Tensor, weights: &Tensor) -> Tensor {
    assert_eq!(logits.size()[0], targets.size()[0], "a target for each row of logits");
    -(log_probs(logits, targets, 1.0) * weights).sum(Kind::Float) // (N, V), (N), (N) -> ()
}

/// The log-probability of each target, `log softmax(logits / T)[target]`.
pub(crate) fn log_probs(logits: &Tensor, targets: &Tensor, temperature: f64) -> Tensor {
    let logits = scaled(logits, temperature); // (N, V)
    let all = logits.log_softmax(-1, Kind::Float); // (N, V)
    all.gather(-1, &targets.unsqueeze(-1), false).squeeze_dim(-1) // (N)
}

/// The entropy of each row's distribution, `logsumexp(l) − Σ softmax(l) · l`, with `l = logits / T`.
pub(crate) fn entropies(logits: &Tensor, temperature: f64) -> Tensor {
    let logits = scaled(logits, temperature); // (N, V)
    let mean = (logits.softmax(-1, Kind::Float) * &logits).sum_dim_intlist(-1, false, Kind::Float);
    logits.logsumexp(-1, false) - mean // (N)
}

fn scaled(logits: &Tensor, temperature: f64) -> Tensor {
    // A new tensor: dividing in place would change what autograd has kept.
    let logits = logits.to_kind(Kind::Float);
    if (temperature - 1.0).abs() < f64::EPSILON { logits } else { logits / temperature }
}

/// The summed Bradley-Terry loss with soft targets, `Σ w · [p·softplus(−z) + (1−p)·softplus(z)]`
/// with `z = r_A − r_B`: the cross-entropy to a coin of bias p, so its least value is p's entropy.
///
/// With hard labels it is the paper's (arXiv 2204.05862, section 2), and TRL's `RewardTrainer`'s.
pub(crate) fn bradley_terry(z: &Tensor, p: &Tensor, weights: &Tensor) -> Tensor {
    let loss: Tensor = p * (-z).softplus() + (1.0 - p) * z.softplus(); // (N)
    (loss * weights).sum(Kind::Float)
}

/// The summed centring term `Σ w · (r_A + r_B)²` (arXiv 2312.09244, section 3;
/// TRL's `center_rewards_coefficient`).
pub(crate) fn centring(a: &Tensor, b: &Tensor, weights: &Tensor) -> Tensor {
    ((a + b).square() * weights).sum(Kind::Float)
}

/// The summed loss of DPO with soft labels, `Σ w · [p·softplus(−z) + (1−p)·softplus(z)]` with
/// `z = β[(log π_A − log π_B) − (log ref_A − log ref_B)]` (arXiv 2305.18290, equation 7; with
/// p = 1 − ε, TRL's `label_smoothing`).
pub(crate) fn dpo(
    policy: &Tensor,
    reference: &Tensor,
    beta: f64,
    p: &Tensor,
    weights: &Tensor,
) -> Tensor {
    let rewards = (policy - reference) * beta; // (n, 2)
    let z = rewards.select(1, 0) - rewards.select(1, 1); // (n)
    bradley_terry(&z, p, weights)
}

/// What the clipped policy loss gives.
pub(crate) struct PolicyLoss {
    /// `Σ max(−A·ρ, −A·clip(ρ, 1−ε, 1+ε))`.
    pub(crate) sum: Tensor, // ()
    /// ρ, each token's ratio to the policy that wrote it.
    pub(crate) ratio: Tensor, // (N)
    /// How many tokens' loss is the clipped one.
    pub(crate) n_clipped: Tensor, // ()
    /// `Σ (lp − lp_old)²`: twice the approximate KL (k2) of the update.
    pub(crate) squares: Tensor, // ()
}

/// The clipped policy loss of PPO (arXiv 1707.06347, equation 7), summed.
pub(crate) fn clipped_policy(
    log_probs: &Tensor,
    old: &Tensor,
    advantages: &Tensor,
    cliprange: f64,
) -> PolicyLoss {
    let difference = log_probs - old; // (N)
    let ratio = difference.clamp(-20.0, 20.0).exp(); // (N)
    let free = -advantages * &ratio; // (N)
    let clipped = -advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange); // (N)
    PolicyLoss {
        n_clipped: clipped.detach().gt_tensor(&free.detach()).sum(Kind::Float),
        sum: free.maximum(&clipped).sum(Kind::Float),
        squares: difference.detach().square().sum(Kind::Float),
        ratio: ratio.detach(),
    }
}

/// The KL to the reference as a loss, `Σ exp(d) − 1 − d` with `d = log π_ref − log π` (k3,
/// joschu.net/blog/kl-approx; GRPO, arXiv 2402.03300, equation 4), whose gradient is the KL's where
/// the tokens are the policy's own.
pub(crate) fn kl_to_reference(log_probs: &Tensor, reference: &Tensor) -> Tensor {
    let difference = reference - log_probs; // (N)
    (difference.expm1() - difference).sum(Kind::Float)
}

/// The clipped value loss `½ Σ max((v − R)², (clip(v, v_old ± ε) − R)²)`, and how many tokens' loss
/// is the clipped one (OpenAI's baselines; TRL's `PPOTrainer`).
pub(crate) fn clipped_value(
    values: &Tensor,
    old: &Tensor,
    returns: &Tensor,
    cliprange: f64,
) -> (Tensor, Tensor) {
    let near = old + (values - old).clamp(-cliprange, cliprange); // (N)
    let free = (values - returns).square(); // (N)
    let clipped = (near - returns).square(); // (N)
    let n_clipped = clipped.detach().gt_tensor(&free.detach()).sum(Kind::Float);
    (0.5 * free.maximum(&clipped).sum(Kind::Float), n_clipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(values: &[f32]) -> Tensor {
        Tensor::from_slice(values)
    }

    #[test]
    fn the_soft_loss_is_least_at_the_target_and_its_least_value_is_the_entropy() {
        let p = 0.8_f64;
        let z = numbers(&[(p / (1.0 - p)).ln() as f32]).set_requires_grad(true);
        let loss = bradley_terry(&z, &numbers(&[0.8]), &numbers(&[1.0]));
        loss.backward();
        let entropy = -(p * p.ln() + (1.0 - p) * (1.0 - p).ln());
        assert!((loss.double_value(&[]) - entropy).abs() < 1e-6);
        assert!(z.grad().double_value(&[0]).abs() < 1e-6);
    }

    #[test]
    fn a_sum_over_parts_is_the_sum_over_the_whole() {
        let logits = Tensor::arange(12, (Kind::Float, tch::Device::Cpu)).sin().view([4, 3]);
        let targets = Tensor::from_slice(&[0_i64, 2, 1, 1]);
        let weights = numbers(&[1.0, 0.5, 2.0, 1.0]);
        let whole = cross_entropy(&logits, &targets, &weights).double_value(&[]);
        let part = |from| {
            let cut = |t: &Tensor| t.narrow(0, from, 2);
            cross_entropy(&cut(&logits), &cut(&targets), &cut(&weights)).double_value(&[])
        };
        assert!((whole - part(0) - part(2)).abs() < 1e-6);
    }

    #[test]
    fn the_temperature_divides_the_logits_and_leaves_them_as_they_were() {
        let logits = numbers(&[1.0, 2.0, 4.0]).view([1, 3]);
        let targets = Tensor::from_slice(&[2_i64]);
        let cold = log_probs(&logits, &targets, 0.5).double_value(&[0]);
        let doubled = log_probs(&(&logits * 2.0), &targets, 1.0).double_value(&[0]);
        assert!((cold - doubled).abs() < 1e-7);
        assert!((logits.double_value(&[0, 2]) - 4.0).abs() < 1e-9);
    }

    #[test]
    fn at_the_old_policy_the_ratio_is_one_and_nothing_is_clipped() {
        let lp = numbers(&[-1.0, -2.0]);
        let loss = clipped_policy(&lp, &lp, &numbers(&[3.0, -1.0]), 0.2);
        assert!((loss.sum.double_value(&[]) + 2.0).abs() < 1e-6);
        assert!((loss.ratio - 1.0).abs().max().double_value(&[]) < 1e-9);
        assert!(loss.n_clipped.double_value(&[]).abs() < 1e-9);
    }

    #[test]
    fn a_uniform_distribution_has_the_entropy_of_its_size() {
        let entropy = entropies(&Tensor::zeros([1, 8], (Kind::Float, tch::Device::Cpu)), 1.0);
        assert!((entropy.double_value(&[0]) - 8_f64.ln()).abs() < 1e-6);
    }
}

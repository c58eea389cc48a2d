//! One token is drawn: from a row's probabilities and its own stream of random numbers.
//!
//! Plain Rust on plain numbers. A draw is a function of (probabilities, seed, step) alone, and
//! each step takes one number, so that what neighbours do cannot matter.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::model::Sampling;

/// How a row draws its tokens.
pub(super) struct Draws {
    random: ChaCha8Rng,
    /// 0 is greedy.
    pub(super) temperature: f64,
    top_k: usize,
    top_p: f64,
    min_p: f64,
    pub(super) repetition_penalty: f64,
}

impl Draws {
    pub(super) fn new(sampling: &Sampling) -> Draws {
        Draws {
            random: ChaCha8Rng::seed_from_u64(sampling.seed.unwrap_or(0)),
            temperature: sampling.temperature.max(0.0),
            top_k: sampling.top_k as usize,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
        }
    }

    pub(super) fn is_penalised(&self) -> bool {
        (self.repetition_penalty - 1.0).abs() > 0.0
    }

    pub(super) fn is_greedy(&self) -> bool {
        self.temperature <= 0.0
    }

    /// Draws a token from probabilities that are already at the row's temperature.
    pub(super) fn draw(&mut self, probabilities: &[f32]) -> usize {
        let uniform = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64; // [0, 1)
        let is_cut =
            (1..probabilities.len()).contains(&self.top_k) || self.top_p < 1.0 || self.min_p > 0.0;
        if !is_cut {
            return pick(uniform, probabilities.iter().copied().enumerate());
        }
        let kept = self.kept(probabilities);
        let mass: f64 = kept.iter().map(|&(_, p)| f64::from(p)).sum();
        pick(uniform * mass, kept.into_iter())
    }

    /// The tokens left by top-k, then top-p, then min-p, likeliest first.
    fn kept(&self, probabilities: &[f32]) -> Vec<(usize, f32)> {
        let mut kept: Vec<(usize, f32)> = probabilities.iter().copied().enumerate().collect();
        let likeliest =
            |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if (1..kept.len()).contains(&self.top_k) {
            kept.select_nth_unstable_by(self.top_k - 1, likeliest);
            kept.truncate(self.top_k);
        }
        kept.sort_unstable_by(likeliest);
        let mass: f64 = kept.iter().map(|&(_, p)| f64::from(p)).sum();
        let mut before = 0.0;
        let nucleus = kept.iter().take_while(|&&(_, p)| {
            let is_kept = before < self.top_p * mass;
            before += f64::from(p);
            is_kept
        });
        let count = nucleus.count().max(1);
        let floor = self.min_p * f64::from(kept[0].1);
        kept.truncate(count);
        let count = kept.iter().take_while(|&&(_, p)| f64::from(p) >= floor).count();
        kept.truncate(count.max(1));
        kept
    }
}

/// The token at which the running sum passes the threshold; the last possible one if rounding
/// kept the sum below it.
fn pick(threshold: f64, candidates: impl Iterator<Item = (usize, f32)>) -> usize {
    let (mut sum, mut last) = (0.0, 0);
    for (token, probability) in candidates {
        if probability > 0.0 {
            last = token;
            sum += f64::from(probability);
            if sum > threshold {
                break;
            }
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(change: impl FnOnce(&mut Sampling)) -> Sampling {
        let mut sampling = Sampling {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_tokens: 8,
            stop: vec![],
            seed: Some(17),
        };
        change(&mut sampling);
        sampling
    }

    fn shares(sampling: &Sampling, probabilities: &[f32]) -> Vec<f64> {
        let mut draws = Draws::new(sampling);
        let mut counts = vec![0.0; probabilities.len()];
        for _ in 0..20_000 {
            counts[draws.draw(probabilities)] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn tokens_come_as_often_as_their_probability_says() {
        let probabilities = [0.5, 0.0, 0.3, 0.2];
        let shares = shares(&sampling(|_| {}), &probabilities);
        for (share, p) in shares.iter().zip(probabilities) {
            assert!((share - f64::from(p)).abs() < 0.015, "{shares:?}");
        }
        assert!(shares[1] == 0.0, "an impossible token is never drawn");
    }

    #[test]
    fn top_k_top_p_and_min_p_keep_the_likeliest_in_their_proportion() {
        let probabilities = [0.1, 0.4, 0.2, 0.3];
        for cut in
            [sampling(|s| s.top_k = 2), sampling(|s| s.top_p = 0.6), sampling(|s| s.min_p = 0.7)]
        {
            let shares = shares(&cut, &probabilities);
            assert!(shares[0] == 0.0 && shares[2] == 0.0, "{shares:?}");
            assert!((shares[1] - 4.0 / 7.0).abs() < 0.015, "{shares:?}");
        }
        let one = shares(&sampling(|s| s.top_p = 0.0), &probabilities);
        assert!((one[1] - 1.0).abs() < 1e-9, "the likeliest is always left: {one:?}");
    }

    #[test]
    fn a_draw_is_a_function_of_seed_and_step() {
        let mut flat = Draws::new(&sampling(|_| {}));
        let mut cut = Draws::new(&sampling(|s| s.top_k = 3));
        let probabilities = [0.25; 4];
        let first: Vec<usize> = (0..5).map(|_| flat.draw(&probabilities)).collect();
        // One draw of another kind takes one number as well.
        cut.draw(&[0.1, 0.2, 0.3, 0.4]);
        let mut again = Draws::new(&sampling(|_| {}));
        assert_eq!(first, (0..5).map(|_| again.draw(&probabilities)).collect::<Vec<_>>());
        again.random = ChaCha8Rng::seed_from_u64(17);
        again.draw(&probabilities);
        assert_eq!(cut.random.get_word_pos(), again.random.get_word_pos());
    }
}

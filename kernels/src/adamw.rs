//! A step of AdamW in one pass over memory: weights and moments are read and written once, gradients read.

use crate::lanes::{Lanes, Work, dispatch};
use crate::threads::each;

/// From how many numbers for each thread work is divided.
const NUMBERS_PER_THREAD: usize = 1 << 15;

/// What a step of AdamW does with each number (Loshchilov and Hutter 2019, algorithm 2), in the order
/// of operations of `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// What gradients are multiplied with first.
    pub clip: f32,
    /// What weights are multiplied with: 1 less learning rate times weight decay.
    pub keep: f32,
    /// β₁ and β₂.
    pub betas: (f32, f32),
    /// The learning rate, divided by `1 − β₁ᵗ`.
    pub step_size: f32,
    /// `√(1 − β₂ᵗ)`.
    pub second_scale: f32,
    /// ε.
    pub epsilon: f32,
}

impl AdamW {
    /// Makes the step with weights and both their moments, by the gradients.
    ///
    /// # Panics
    /// When the four are not of one length.
    pub fn step(&self, numbers: [&mut [f32]; 3], gradients: &[f32], threads: usize) {
        let len = gradients.len();
        assert!(numbers.iter().all(|numbers| numbers.len() == len), "each weight has its numbers");
        let share = len.div_ceil(threads).max(NUMBERS_PER_THREAD);
        let [weights, firsts, seconds] = numbers.map(|all| all.chunks_mut(share));
        let parts = weights.zip(firsts).zip(seconds).zip(gradients.chunks(share));
        each(parts.collect(), |(((weights, firsts), seconds), gradients)| {
            dispatch(Step { adamw: *self, weights, firsts, seconds, gradients });
        });
    }
}

struct Step<'a> {
    adamw: AdamW,
    weights: &'a mut [f32],
    firsts: &'a mut [f32],
    seconds: &'a mut [f32],
    gradients: &'a [f32],
}

impl Work for Step<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let AdamW { clip, keep, betas: (beta1, beta2), step_size, second_scale, epsilon } =
            self.adamw;
        let moments = self.firsts.iter_mut().zip(self.seconds);
        for ((weight, gradient), (first, second)) in
            self.weights.iter_mut().zip(self.gradients).zip(moments)
        {
            let clipped = *gradient * clip;
            *first += (clipped - *first) * (1.0 - beta1);
            *second = *second * beta2 + clipped * clipped * (1.0 - beta2);
            let scale = second.sqrt() / second_scale + epsilon;
            *weight = *weight * keep - step_size * *first / scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::tests::every_way;
    use crate::numbers;

    const ADAMW: AdamW = AdamW {
        clip: 0.5,
        keep: 0.999,
        betas: (0.9, 0.99),
        step_size: 0.01,
        second_scale: 0.1,
        epsilon: 1e-8,
    };

    fn four(len: usize) -> [Vec<f32>; 4] {
        let mut four = [1, 2, 3, 4].map(|seed| numbers(seed, len));
        four[2].iter_mut().for_each(|second| *second = second.abs());
        four
    }

    /// The same after a step.
    fn stepped(before: &[Vec<f32>; 4], threads: usize) -> [Vec<f32>; 4] {
        let mut after = before.clone();
        let [weights, firsts, seconds, gradients] = after.each_mut();
        ADAMW.step([weights, firsts, seconds], gradients, threads);
        after
    }

    #[test]
    fn a_step_is_that_of_the_formula() {
        for (len, threads) in [(1, 1), (37, 2), (100_003, 1), (100_003, 3)] {
            let before = four(len);
            let after = stepped(&before, threads);
            assert_eq!(after[3], before[3], "gradients are read");
            for at in 0..len {
                let [weight, first, second, gradient] =
                    [0, 1, 2, 3].map(|which| f64::from(before[which][at]));
                let gradient = 0.5 * gradient;
                let first = 0.9 * first + 0.1 * gradient;
                let second = 0.99 * second + 0.01 * gradient * gradient;
                let weight = weight * 0.999 - 0.01 * first / (second.sqrt() / 0.1 + 1e-8);
                for (expected, found) in [weight, first, second].into_iter().zip(&after) {
                    assert!((expected - f64::from(found[at])).abs() < 1e-6, "{at} of {len}");
                }
            }
        }
    }

    #[test]
    fn its_bits_are_those_of_every_processor_and_number_of_threads() {
        let bits = |four: &[Vec<f32>; 4]| -> Vec<u32> {
            four.iter().flatten().map(|number| number.to_bits()).collect()
        };
        let expected = stepped(&four(70_001), 1);
        for threads in 2..4 {
            let found = stepped(&four(70_001), threads);
            assert!(bits(&found) == bits(&expected), "{threads} threads");
        }
        let mut ways: Vec<[Vec<f32>; 4]> = (0..3).map(|_| four(70_001)).collect();
        let mut left = ways.iter_mut();
        every_way(|| {
            let [weights, firsts, seconds, gradients] =
                left.next().expect("there are three ways").each_mut().map(Vec::as_mut_slice);
            Step { adamw: ADAMW, weights, firsts, seconds, gradients }
        });
        assert!(
            ways.iter().all(|way| bits(way) == bits(&expected) || bits(way) == bits(&four(70_001)))
        );
        assert!(bits(&ways[0]) == bits(&expected), "the plain way");
    }
}

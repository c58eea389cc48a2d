//! What is done number by number between products, in one pass over memory: norms, rotations,
//! gates.

use crate::exp::exp;
use crate::lanes::{Lanes, Work, dispatch};
use crate::threads::each;

/// From how many numbers for each thread work is divided.
const NUMBERS_PER_THREAD: usize = 1 << 15;

/// `y = x / √(mean(x²) + ε) · w` of each row (Zhang and Sennrich 2019).
///
/// # Panics
/// When the lengths are not those of rows as long as the weight.
pub fn normalise(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32], threads: usize) {
    let width = weight.len();
    assert!(x.len() == y.len() && x.len().is_multiple_of(width), "rows are as long as the weight");
    divided(x, y, width, width, threads, |x, y| dispatch(Normalise { x, weight, eps, y }));
}

/// Rotates heads by the angles of their tokens: `x · cos + roll(x) · sin` of the first numbers of
/// each head (Su et al. 2021), where `roll` swaps the halves of what is rotated.
///
/// `x` and `y` are (tokens, heads, dim), `cos` and `sin` (tokens, rotated), the first half of `sin`
/// negated.
///
/// # Panics
/// When the lengths do not belong together.
pub fn rotate(x: &[f32], cos: &[f32], sin: &[f32], tokens: usize, dim: usize, y: &mut [f32]) {
    let rotated = cos.len() / tokens;
    assert!(x.len() == y.len() && x.len().is_multiple_of(tokens * dim), "each token has its heads");
    assert!(
        cos.len() == sin.len() && cos.len() == rotated * tokens && rotated <= dim,
        "each token has its angles"
    );
    dispatch(Rotate { x, cos, sin, width: x.len() / tokens, dim, rotated, y });
}

/// `silu(gate) · up` of rows (gate, up): what a gated feed-forward layer lets through
/// (Shazeer 2020).
///
/// # Panics
/// When rows do not become half as long.
pub fn gate(x: &[f32], width: usize, y: &mut [f32], threads: usize) {
    assert!(x.len() == y.len() * 2 && y.len().is_multiple_of(width), "a row becomes half as long");
    divided(x, y, width * 2, width, threads, |x, y| dispatch(Gate { x, width, y }));
}

/// Does something with rows of `x` and of `y`, by as many threads as pays.
fn divided(
    x: &[f32],
    y: &mut [f32],
    wide: usize,
    width: usize,
    threads: usize,
    work: impl Fn(&[f32], &mut [f32]) + Sync,
) {
    let rows = y.len() / width;
    let share = rows.div_ceil(threads).max(NUMBERS_PER_THREAD / width).max(1);
    each(x.chunks(share * wide).zip(y.chunks_mut(share * width)).collect(), |(x, y)| work(x, y));
}

struct Normalise<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    y: &'a mut [f32],
}

impl Work for Normalise<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let width = self.weight.len();
        for (x, y) in self.x.chunks_exact(width).zip(self.y.chunks_exact_mut(width)) {
            let mut sums = [0.0f32; 16];
            let (sixteens, rest) = x.as_chunks::<16>();
            for numbers in sixteens {
                for lane in 0..16 {
                    sums[lane] = numbers[lane].mul_add(numbers[lane], sums[lane]);
                }
            }
            for (sum, number) in sums.iter_mut().zip(rest) {
                *sum = number.mul_add(*number, *sum);
            }
            let mean = sums.iter().sum::<f32>() / width as f32;
            let scale = 1.0 / (mean + self.eps).sqrt();
            for ((y, x), weight) in y.iter_mut().zip(x).zip(self.weight) {
                *y = x * scale * weight;
            }
        }
    }
}

struct Rotate<'a> {
    x: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    /// Numbers of a token.
    width: usize,
    dim: usize,
    rotated: usize,
    y: &'a mut [f32],
}

impl Work for Rotate<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let Rotate { x, cos, sin, width, dim, rotated, y } = self;
        let tokens = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
        let angles = cos.chunks_exact(rotated).zip(sin.chunks_exact(rotated));
        for ((x, y), (cos, sin)) in tokens.zip(angles) {
            let (cos, other_cos) = cos.split_at(rotated / 2);
            let (sin, other_sin) = sin.split_at(rotated / 2);
            for (x, y) in x.chunks_exact(dim).zip(y.chunks_exact_mut(dim)) {
                y[rotated..].copy_from_slice(&x[rotated..]);
                let (first, second) = x[..rotated].split_at(rotated / 2);
                let (to_first, to_second) = y[..rotated].split_at_mut(rotated / 2);
                for at in 0..rotated / 2 {
                    to_first[at] = first[at] * cos[at] + second[at] * sin[at];
                    to_second[at] = second[at] * other_cos[at] + first[at] * other_sin[at];
                }
            }
        }
    }
}

struct Gate<'a> {
    x: &'a [f32], // (rows, 2 · width)
    width: usize,
    y: &'a mut [f32], // (rows, width)
}

impl Work for Gate<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        for (x, y) in self.x.chunks_exact(self.width * 2).zip(self.y.chunks_exact_mut(self.width)) {
            let (gate, up) = x.split_at(self.width);
            for ((y, &gate), up) in y.iter_mut().zip(gate).zip(up) {
                // σ by the exponential of what is not positive.
                let small = exp(-gate.abs());
                let sigmoid = if gate < 0.0 { small } else { 1.0 } / (1.0 + small);
                *y = gate * sigmoid * up;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers;

    fn assert_near(found: &[f32], exact: impl Iterator<Item = f64>) {
        for (found, exact) in found.iter().zip(exact) {
            assert!((f64::from(*found) - exact).abs() < 1e-6, "{found} and not {exact}");
        }
    }

    #[test]
    fn a_norm_is_by_the_root_mean_square() {
        let (x, weight) = (numbers(1, 3 * 45), numbers(2, 45));
        let mut y = vec![0.0; x.len()];
        normalise(&x, &weight, 1e-5, &mut y, 2);
        let of_row = |x: &[f32]| {
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 45.0;
            let scaled =
                |(x, w): (&f32, &f32)| f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*w);
            x.iter().zip(&weight).map(scaled).collect::<Vec<_>>()
        };
        assert_near(&y, x.chunks(45).flat_map(of_row));
    }

    #[test]
    fn a_gate_is_a_number_times_its_sigmoid() {
        let x: Vec<f32> = numbers(3, 4 * 60).iter().map(|x| 30.0 * x).collect();
        let mut y = vec![0.0; 4 * 30];
        gate(&x, 30, &mut y, 1);
        let of_row = |x: &[f32]| {
            let (gate, up) = x.split_at(30);
            let one = |(g, u): (&f32, &f32)| {
                f64::from(*g) / (1.0 + (-f64::from(*g)).exp()) * f64::from(*u)
            };
            gate.iter().zip(up).map(one).collect::<Vec<_>>()
        };
        for (found, exact) in y.iter().zip(x.chunks(60).flat_map(of_row)) {
            assert!(
                (f64::from(*found) - exact).abs() < 1e-6 * exact.abs() + 1e-30,
                "{found}, {exact}"
            );
        }
    }

    #[test]
    fn what_is_rotated_turns_by_its_angle_and_the_rest_stays() {
        // Two tokens of one head of six numbers, of which four are rotated.
        let x = numbers(4, 12);
        let angles = [0.3f32, 1.1, 2.0, -0.7];
        let table = |of: fn(f32) -> f32, sign: f32| {
            let of_token = |a: &[f32]| [sign * of(a[0]), sign * of(a[1]), of(a[0]), of(a[1])];
            angles.chunks(2).flat_map(of_token).collect::<Vec<_>>()
        };
        let mut y = vec![0.0; 12];
        rotate(&x, &table(f32::cos, 1.0), &table(f32::sin, -1.0), 2, 6, &mut y);
        for (token, (x, y)) in x.chunks(6).zip(y.chunks(6)).enumerate() {
            for pair in 0..2 {
                let (sin, cos) = f64::from(angles[token * 2 + pair]).sin_cos();
                let (a, b) = (f64::from(x[pair]), f64::from(x[pair + 2]));
                assert_near(&[y[pair]], std::iter::once(a * cos - b * sin));
                assert_near(&[y[pair + 2]], std::iter::once(b * cos + a * sin));
            }
            assert_eq!(x[4..], y[4..]);
        }
    }
}

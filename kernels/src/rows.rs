//! What is done number by number between products, in one pass over memory: norms, rotations,
//! gates.

use crate::exp::exp;
use crate::lanes::{Lanes, Work, dispatch};
use crate::number::Number;
use crate::threads::each;

/// From how many numbers for each thread work is divided.
const NUMBERS_PER_THREAD: usize = 1 << 15;

/// `y = x / √(mean(x²) + ε) · w` of each row (Zhang and Sennrich 2019).
///
/// # Panics
/// When the lengths are not those of rows as long as the weight.
pub(crate) fn normalise<T: Number>(x: &[T], weight: &[T], eps: f32, y: &mut [T], threads: usize) {
    let width = weight.len();
    assert!(x.len() == y.len() && x.len().is_multiple_of(width), "rows are as long as the weight");
    let rows = rows_of_a_thread(x.len() / width, width, threads);
    let parts = x.chunks(rows * width).zip(y.chunks_mut(rows * width));
    each(parts.collect(), |(x, y)| dispatch(Normalise { x, weight, eps, y }));
}

/// Which way a rotation turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// By the angles.
    Forward,
    /// Back: what gradients do.
    Back,
}

/// The angles of tokens, as their cosines and sines.
#[derive(Clone, Copy, Debug)]
pub struct Angles<'a, T> {
    /// (angles, rotated)
    pub cos: &'a [T],
    /// (angles, rotated), the first half of each negated.
    pub sin: &'a [T],
    /// How many numbers of a head are rotated.
    pub rotated: usize,
}

/// Rotates heads by the angles of their tokens: `x · cos + roll(x) · sin` of the first numbers of
/// each head (Su et al. 2021), where `roll` swaps the halves of what is rotated.
///
/// `x` and `y` are (tokens, heads, dim), given how many numbers a token has, and a head. The angles
/// are those of the first tokens, and of the next as many, and so on.
///
/// # Panics
/// When the lengths do not belong together.
pub(crate) fn rotate<T: Number>(
    x: &[T],
    [width, dim]: [usize; 2],
    angles: Angles<'_, T>,
    turn: Turn,
    y: &mut [T],
    threads: usize,
) {
    let Angles { cos, sin, rotated } = angles;
    assert!(x.len() == y.len() && x.len().is_multiple_of(width), "tokens are as long");
    assert!(width.is_multiple_of(dim) && rotated <= dim, "a token has its heads");
    assert!(cos.len() == sin.len() && cos.len().is_multiple_of(rotated), "angles have both");
    let (tokens, period) = (x.len() / width, cos.len() / rotated);
    assert!(tokens.is_multiple_of(period), "each token has its angles");
    let share = rows_of_a_thread(tokens, width, threads);
    let firsts = (0..tokens).step_by(share);
    let parts = x.chunks(share * width).zip(y.chunks_mut(share * width)).zip(firsts);
    each(parts.collect(), |((x, y), first)| {
        dispatch(Rotate { x, angles, first: first % period, width, dim, turn, y });
    });
}

/// `silu(gate) · up` of rows (gate, up): what a gated feed-forward layer lets through
/// (Shazeer 2020).
///
/// # Panics
/// When rows do not become half as long.
pub fn gate(x: &[f32], width: usize, y: &mut [f32], threads: usize) {
    assert!(x.len() == y.len() * 2 && y.len().is_multiple_of(width), "a row becomes half as long");
    let rows = rows_of_a_thread(y.len() / width, width, threads);
    let parts = x.chunks(rows * width * 2).zip(y.chunks_mut(rows * width));
    each(parts.collect(), |(x, y)| dispatch(Gate { x, width, y }));
}

/// The same of gates and of what they let through apart.
///
/// # Panics
/// When they are not of one length.
pub(crate) fn gate_apart<T: Number>(gates: &[T], ups: &[T], y: &mut [T], threads: usize) {
    assert!(gates.len() == y.len() && ups.len() == y.len(), "each number has its gate");
    let share = rows_of_a_thread(y.len(), 1, threads);
    let parts = gates.chunks(share).zip(ups.chunks(share)).zip(y.chunks_mut(share));
    each(parts.collect(), |((gates, ups), y)| dispatch(GateApart { gates, ups, y }));
}

/// How many rows one of so many threads takes: no fewer than pays.
pub(crate) fn rows_of_a_thread(rows: usize, width: usize, threads: usize) -> usize {
    rows.div_ceil(threads).max(NUMBERS_PER_THREAD / width).max(1)
}

struct Normalise<'a, T> {
    x: &'a [T],
    weight: &'a [T],
    eps: f32,
    y: &'a mut [T],
}

impl<T: Number> Work for Normalise<'_, T> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let width = self.weight.len();
        for (x, y) in self.x.chunks_exact(width).zip(self.y.chunks_exact_mut(width)) {
            let scale = scale(squares(x), width, self.eps);
            for ((y, x), weight) in y.iter_mut().zip(x).zip(self.weight) {
                *y = T::nearest(x.wide() * scale * weight.wide());
            }
        }
    }
}

/// What a row with that sum of squares is multiplied with.
#[inline(always)]
pub(crate) fn scale(squares: f32, width: usize, eps: f32) -> f32 {
    1.0 / (squares / width as f32 + eps).sqrt()
}

/// The sum of `x²`, sixteen sums beside each other.
#[inline(always)]
fn squares<T: Number>(x: &[T]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (sixteens, rest) = x.as_chunks::<16>();
    for numbers in sixteens {
        for lane in 0..16 {
            sums[lane] = numbers[lane].wide().mul_add(numbers[lane].wide(), sums[lane]);
        }
    }
    for (sum, number) in sums.iter_mut().zip(rest) {
        *sum = number.wide().mul_add(number.wide(), *sum);
    }
    sums.iter().sum()
}

struct Rotate<'a, T> {
    x: &'a [T],
    angles: Angles<'a, T>,
    /// Whose angles the first token has.
    first: usize,
    /// Numbers of a token.
    width: usize,
    dim: usize,
    turn: Turn,
    y: &'a mut [T],
}

impl<T: Number> Work for Rotate<'_, T> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let Rotate { x, angles: Angles { cos, sin, rotated }, first, width, dim, turn, y } = self;
        let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
        let half = rotated / 2;
        let angles = cos.chunks_exact(rotated).zip(sin.chunks_exact(rotated)).cycle().skip(first);
        let tokens = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
        for ((x, y), (cos, sin)) in tokens.zip(angles) {
            let ((cos, other_cos), (sin, other_sin)) = (cos.split_at(half), sin.split_at(half));
            for (x, y) in x.chunks_exact(dim).zip(y.chunks_exact_mut(dim)) {
                y[rotated..].copy_from_slice(&x[rotated..]);
                let (first, second) = x[..rotated].split_at(half);
                let (to_first, to_second) = y[..rotated].split_at_mut(half);
                for at in 0..half {
                    let (a, b) = (first[at].wide(), second[at].wide());
                    let (sin, other_sin) = (sign * sin[at].wide(), sign * other_sin[at].wide());
                    to_first[at] = T::nearest(a * cos[at].wide() + b * sin);
                    to_second[at] = T::nearest(b * other_cos[at].wide() + a * other_sin);
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
    fn run<L: Lanes>(self, lanes: L) {
        for (x, y) in self.x.chunks_exact(self.width * 2).zip(self.y.chunks_exact_mut(self.width)) {
            let (gates, ups) = x.split_at(self.width);
            GateApart { gates, ups, y }.run(lanes);
        }
    }
}

struct GateApart<'a, T> {
    gates: &'a [T],
    ups: &'a [T],
    y: &'a mut [T],
}

impl<T: Number> Work for GateApart<'_, T> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        for ((y, gate), up) in self.y.iter_mut().zip(self.gates).zip(self.ups) {
            let gate = gate.wide();
            *y = T::nearest(gate * sigmoid(gate) * up.wide());
        }
    }
}

/// `σ(x)`, by the exponential of what is not positive.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    let small = exp(-x.abs());
    let part = if x < 0.0 { small } else { 1.0 };
    part / (1.0 + small)
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
        let (cos, sin) = (table(f32::cos, 1.0), table(f32::sin, -1.0));
        let of_tokens = Angles { cos: &cos, sin: &sin, rotated: 4 };
        rotate(&x, [6, 6], of_tokens, Turn::Forward, &mut y, 1);
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

    #[test]
    fn what_turns_back_is_where_it_was_and_sequences_share_their_angles() {
        // Three sequences of 40 tokens, of 6 heads of 64 numbers: many enough for several threads.
        let (width, tokens) = (6 * 64, 40);
        let x = numbers(5, 3 * tokens * width);
        let turns: Vec<f32> = numbers(6, tokens * 32).iter().map(|turn| 3.0 * turn).collect();
        let table = |of: fn(f32) -> f32, sign: f32| -> Vec<f32> {
            let of_token = |turns: &[f32]| {
                let half = |sign: f32| turns.iter().map(move |&turn| sign * of(turn));
                half(sign).chain(half(1.0)).collect::<Vec<_>>()
            };
            turns.chunks(32).flat_map(of_token).collect()
        };
        let (cos, sin) = (table(f32::cos, 1.0), table(f32::sin, -1.0));
        let angles = Angles { cos: &cos, sin: &sin, rotated: 64 };
        let turned = |x: &[f32], turn: Turn, threads: usize| {
            let mut y = vec![0.0; x.len()];
            rotate(x, [width, 64], angles, turn, &mut y, threads);
            y
        };
        let forward = turned(&x, Turn::Forward, 1);
        for threads in [2, 3] {
            assert!(turned(&x, Turn::Forward, threads) == forward, "{threads} threads");
        }
        let one = &x[tokens * width..2 * tokens * width];
        assert!(turned(one, Turn::Forward, 1) == forward[tokens * width..2 * tokens * width]);
        assert_near(&turned(&forward, Turn::Back, 1), x.iter().map(|&x| f64::from(x)));
    }
}

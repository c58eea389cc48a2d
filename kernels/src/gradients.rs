//! How gradients go back through what is done number by number, in one pass over memory. (Through a
//! rotation they go by turning back.)

use crate::lanes::{Lanes, Work, dispatch};
use crate::number::Number;
use crate::rows::{rows_of_a_thread, scale, sigmoid};
use crate::threads::each;

/// The weight's gradient is summed over pieces of about so many numbers, and then over these: in an
/// order that does not depend on the threads.
const NUMBERS_OF_A_PIECE: usize = 1 << 16;

/// The gradients of x and of the weight, by that of y, for `y = x · s · w` with
/// `s = 1 / √(mean(x²) + ε)`: of x, `s · g·w − x · s³ · mean(g·w·x)`, and of w, `Σ g · x · s` over the rows.
///
/// # Panics
/// When the lengths are not those of rows as long as the weight.
pub(crate) fn normalise_gradients<T: Number>(
    [x, weight]: [&[T]; 2],
    eps: f32,
    of_y: &[T],
    [of_x, of_weight]: [&mut [T]; 2],
    threads: usize,
) {
    let width = weight.len();
    assert!(x.len() == of_y.len() && x.len() == of_x.len(), "each number has its gradient");
    assert!(x.len().is_multiple_of(width) && of_weight.len() == width, "rows are as the weight");
    let piece = (NUMBERS_OF_A_PIECE / width).max(1) * width;
    let pieces = x.len().div_ceil(piece).max(1);
    let mut sums = vec![0.0; pieces * width];
    let share = pieces.div_ceil(threads).max(1);
    let numbers = x.chunks(share * piece).zip(of_y.chunks(share * piece));
    let parts = numbers.zip(of_x.chunks_mut(share * piece)).zip(sums.chunks_mut(share * width));
    each(parts.collect(), |(((x, of_y), of_x), sums)| {
        let pieces = x.chunks(piece).zip(of_y.chunks(piece)).zip(of_x.chunks_mut(piece));
        for (((x, of_y), of_x), of_weight) in pieces.zip(sums.chunks_exact_mut(width)) {
            dispatch(NormaliseGradients { x, weight, eps, of_y, of_x, of_weight });
        }
    });
    for (at, of_weight) in of_weight.iter_mut().enumerate() {
        *of_weight = T::nearest(sums[at..].iter().step_by(width).sum());
    }
}

/// The gradients of the gate and of what it lets through, by that of y, for `y = silu(gate) · up`:
/// `g · up · σ · (1 + gate · (1 − σ))`, and `g · gate · σ`.
///
/// # Panics
/// When they are not of one length.
pub(crate) fn gate_gradients<T: Number>(
    [gates, ups]: [&[T]; 2],
    of_y: &[T],
    [of_gates, of_ups]: [&mut [T]; 2],
    threads: usize,
) {
    let lengths = [gates.len(), ups.len(), of_gates.len(), of_ups.len()];
    assert!(lengths.iter().all(|&len| len == of_y.len()), "each number has its gradient");
    let share = rows_of_a_thread(of_y.len(), 1, threads);
    let numbers = gates.chunks(share).zip(ups.chunks(share)).zip(of_y.chunks(share));
    let parts = numbers.zip(of_gates.chunks_mut(share)).zip(of_ups.chunks_mut(share));
    each(parts.collect(), |((((gates, ups), of_y), of_gates), of_ups)| {
        dispatch(GateGradients { gates, ups, of_y, of_gates, of_ups });
    });
}

struct NormaliseGradients<'a, T> {
    x: &'a [T],
    weight: &'a [T],
    eps: f32,
    of_y: &'a [T],
    of_x: &'a mut [T],
    of_weight: &'a mut [f32],
}

impl<T: Number> Work for NormaliseGradients<'_, T> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let NormaliseGradients { x, weight, eps, of_y, of_x, of_weight } = self;
        let width = weight.len();
        let rows = x.chunks_exact(width).zip(of_y.chunks_exact(width));
        for ((x, of_y), of_x) in rows.zip(of_x.chunks_exact_mut(width)) {
            let (squares, through) = sums(x, weight, of_y);
            let scale = scale(squares, width, eps);
            let mean = through * scale * scale * scale / width as f32;
            let numbers = x.iter().zip(weight).zip(of_y);
            let gradients = of_x.iter_mut().zip(of_weight.iter_mut());
            for (((x, weight), of_y), (of_x, of_weight)) in numbers.zip(gradients) {
                let (x, of_y) = (x.wide(), of_y.wide());
                *of_x = T::nearest(scale * of_y * weight.wide() - x * mean);
                *of_weight += of_y * x * scale;
            }
        }
    }
}

/// The sums of `x²` and of `g · w · x`, sixteen of each beside each other.
#[inline(always)]
fn sums<T: Number>(x: &[T], weight: &[T], of_y: &[T]) -> (f32, f32) {
    let (mut squares, mut through) = ([0.0f32; 16], [0.0f32; 16]);
    let rest = x.len() / 16 * 16;
    for at in (0..rest).step_by(16) {
        let of = |numbers: &[T]| -> [f32; 16] {
            std::array::from_fn(|lane| numbers[at..at + 16][lane].wide())
        };
        let (x, weight, of_y) = (of(x), of(weight), of(of_y));
        for lane in 0..16 {
            squares[lane] = x[lane].mul_add(x[lane], squares[lane]);
            through[lane] = (of_y[lane] * weight[lane]).mul_add(x[lane], through[lane]);
        }
    }
    for at in rest..x.len() {
        let (x, weight, of_y) = (x[at].wide(), weight[at].wide(), of_y[at].wide());
        squares[at - rest] = x.mul_add(x, squares[at - rest]);
        through[at - rest] = (of_y * weight).mul_add(x, through[at - rest]);
    }
    (squares.iter().sum(), through.iter().sum())
}

struct GateGradients<'a, T> {
    gates: &'a [T],
    ups: &'a [T],
    of_y: &'a [T],
    of_gates: &'a mut [T],
    of_ups: &'a mut [T],
}

impl<T: Number> Work for GateGradients<'_, T> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let numbers = self.gates.iter().zip(self.ups).zip(self.of_y);
        let gradients = self.of_gates.iter_mut().zip(self.of_ups);
        for (((gate, up), of_y), (of_gate, of_up)) in numbers.zip(gradients) {
            let (gate, of_y) = (gate.wide(), of_y.wide());
            let sigmoid = sigmoid(gate);
            *of_up = T::nearest(of_y * gate * sigmoid);
            let slope = sigmoid * (1.0 + gate * (1.0 - sigmoid));
            *of_gate = T::nearest(of_y * up.wide() * slope);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::number::Bf16;
    use crate::numbers;
    use crate::rows::{gate_apart, normalise};

    /// The slope of `Σ y · g` in each number of an input, by differences.
    fn slopes(of: impl Fn(&[f32]) -> Vec<f32>, at: &[f32], of_y: &[f32]) -> Vec<f64> {
        let sum = |x: &[f32]| -> f64 {
            let products = of(x).into_iter().zip(of_y).map(|(y, g)| f64::from(y) * f64::from(*g));
            products.sum()
        };
        let step = 1.0 / 64.0;
        let slope = |place: usize| {
            let moved = |by: f32| {
                let mut x = at.to_vec();
                x[place] += by;
                sum(&x)
            };
            (8.0 * (moved(step) - moved(-step)) - (moved(2.0 * step) - moved(-2.0 * step)))
                / (12.0 * f64::from(step))
        };
        (0..at.len()).map(slope).collect()
    }

    fn assert_near(found: &[f32], expected: &[f64], tolerance: f64) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < tolerance, "{found}, not {expected}");
        }
        assert!(expected.iter().any(|slope| slope.abs() > 0.1), "there is a slope");
    }

    #[test]
    fn gradients_of_a_norm_are_its_slopes() {
        let (x, weight, of_y) = (numbers(1, 3 * 37), numbers(2, 37), numbers(3, 3 * 37));
        let normed = |x: &[f32], weight: &[f32]| {
            let mut y = vec![0.0; x.len()];
            normalise(x, weight, 1e-5, &mut y, 1);
            y
        };
        let (mut of_x, mut of_weight) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
        normalise_gradients([&x, &weight], 1e-5, &of_y, [&mut of_x, &mut of_weight], 1);
        assert_near(&of_x, &slopes(|x| normed(x, &weight), &x, &of_y), 1e-3);
        assert_near(&of_weight, &slopes(|weight| normed(&x, weight), &weight, &of_y), 1e-3);
    }

    #[test]
    fn gradients_of_a_gate_are_its_slopes() {
        let gates: Vec<f32> = numbers(1, 90).iter().map(|gate| 5.0 * gate).collect();
        let (ups, of_y) = (numbers(2, 90), numbers(3, 90));
        let gated = |gates: &[f32], ups: &[f32]| {
            let mut y = vec![0.0; gates.len()];
            gate_apart(gates, ups, &mut y, 1);
            y
        };
        let (mut of_gates, mut of_ups) = (vec![0.0; 90], vec![0.0; 90]);
        gate_gradients([&gates, &ups], &of_y, [&mut of_gates, &mut of_ups], 1);
        assert_near(&of_gates, &slopes(|gates| gated(gates, &ups), &gates, &of_y), 1e-3);
        assert_near(&of_ups, &slopes(|ups| gated(&gates, ups), &ups, &of_y), 1e-3);
    }

    #[test]
    fn their_bits_do_not_depend_on_the_threads() {
        let (rows, width) = (700, 300);
        let (x, weight) = (numbers(1, rows * width), numbers(2, width));
        let of_y = numbers(3, rows * width);
        let by = |threads: usize| {
            let (mut of_x, mut of_weight) = (vec![0.0; x.len()], vec![0.0; width]);
            let gradients = [of_x.as_mut_slice(), &mut of_weight];
            normalise_gradients([&x, &weight], 1e-5, &of_y, gradients, threads);
            let (mut of_gates, mut of_ups) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            gate_gradients([&x, &of_y], &of_y, [&mut of_gates, &mut of_ups], threads);
            [of_x, of_weight, of_gates, of_ups].concat().into_iter().map(f32::to_bits)
        };
        for threads in [2, 3, 8] {
            assert!(by(threads).eq(by(1)), "{threads} threads");
        }
    }

    #[test]
    fn in_bf16_they_are_the_nearest_to_those_of_the_same_numbers_in_f32() {
        let (rows, width) = (5, 48);
        let narrow = |seed, count| -> Vec<Bf16> {
            numbers(seed, count).into_iter().map(Bf16::nearest).collect()
        };
        let wide =
            |numbers: &[Bf16]| -> Vec<f32> { numbers.iter().map(|number| number.wide()).collect() };
        let (x, weight) = (narrow(1, rows * width), narrow(2, width));
        let of_y = narrow(3, rows * width);
        let (mut of_x, mut of_weight) = (x.clone(), weight.clone());
        normalise_gradients([&x, &weight], 1e-5, &of_y, [&mut of_x, &mut of_weight], 1);
        let (mut exact_x, mut exact_weight) = (wide(&x), wide(&weight));
        let exact = [exact_x.as_mut_slice(), &mut exact_weight];
        normalise_gradients([&wide(&x), &wide(&weight)], 1e-5, &wide(&of_y), exact, 1);
        let nearest =
            |exact: &[f32]| -> Vec<Bf16> { exact.iter().map(|&x| Bf16::nearest(x)).collect() };
        assert_eq!(of_x, nearest(&exact_x));
        assert_eq!(of_weight, nearest(&exact_weight));
    }
}

//! The product with a matrix that is used again and again: `y = x Wᵀ + b`.
//!
//! Its weights are stored in the order in which they are read: panels of 32 outputs, each input by
//! input. A library's product stores them so at every call, which for few rows costs more than
//! the product.
//!
//! Every sum runs over the inputs from first to last, fused, whatever the number of rows, their
//! place and the number of threads. So a row's bits are a function of the row.
//!
//! Weights in bf16 stay so in memory, which is what few rows wait for, and become f32 in registers.
//! That is exact: the product is the one with the same weights in f32, bit for bit.

use crate::lanes::{Lanes, Work, dispatch};
use crate::number::Bf16;
use crate::threads::each;

/// Outputs of a panel.
const PANEL: usize = 32;

/// From how many rows for each thread the rows are divided, and not the panels.
const ROWS_PER_THREAD: usize = 16;

/// A matrix (outputs, inputs) with an optional bias (outputs), ready to be multiplied with.
pub struct Packed {
    inputs: usize,
    outputs: usize,
    panels: Panels,
    bias: Option<Vec<f32>>,
}

/// Weights panel by panel, input by input; what is beyond the outputs is 0.
enum Panels {
    F32(Vec<[f32; PANEL]>),
    Bf16(Vec<Halves>),
}

/// The weights of one input for the outputs of a panel, as they are stored.
trait Stored: Copy {
    /// A weight as it is given.
    type Number: Copy;

    const ZERO: Self;

    /// Sets the weight of one output, which is 0 so far.
    fn set(&mut self, output: usize, weight: Self::Number);

    /// The weights of the panel's first sixteen outputs, and of its last.
    fn read<L: Lanes>(&self, lanes: L) -> [L::Sixteen; 2];
}

impl Stored for [f32; PANEL] {
    type Number = f32;

    const ZERO: Self = [0.0; PANEL];

    fn set(&mut self, output: usize, weight: f32) {
        self[output] = weight;
    }

    #[inline(always)]
    fn read<L: Lanes>(&self, lanes: L) -> [L::Sixteen; 2] {
        let (sixteens, _) = self.as_chunks::<16>();
        [lanes.load(&sixteens[0]), lanes.load(&sixteens[1])]
    }
}

/// Weights in bf16, two in each number: an output's in the low half, that of the sixteenth after it
/// in the high one.
type Halves = [u32; PANEL / 2];

impl Stored for Halves {
    type Number = Bf16;

    const ZERO: Self = [0; PANEL / 2];

    fn set(&mut self, output: usize, weight: Bf16) {
        self[output % 16] |= u32::from(weight.0) << (output / 16 * 16);
    }

    #[inline(always)]
    fn read<L: Lanes>(&self, lanes: L) -> [L::Sixteen; 2] {
        lanes.widen(self)
    }
}

impl Packed {
    /// Packs weights (outputs, inputs).
    ///
    /// # Panics
    /// When a length is not that of its shape.
    #[must_use]
    pub fn new(weights: &[f32], outputs: usize, bias: Option<&[f32]>) -> Packed {
        Packed::of(weights, outputs, bias, Panels::F32)
    }

    /// Packs weights (outputs, inputs) in bf16; they stay in bf16.
    ///
    /// # Panics
    /// When a length is not that of its shape.
    #[must_use]
    pub fn of_bf16(weights: &[Bf16], outputs: usize, bias: Option<&[f32]>) -> Packed {
        Packed::of(weights, outputs, bias, Panels::Bf16)
    }

    fn of<W: Stored>(
        weights: &[W::Number],
        outputs: usize,
        bias: Option<&[f32]>,
        panels: fn(Vec<W>) -> Panels,
    ) -> Packed {
        let inputs = weights.len().checked_div(outputs).unwrap_or(0);
        assert!(inputs > 0 && inputs * outputs == weights.len(), "weights are a matrix");
        assert!(bias.is_none_or(|bias| bias.len() == outputs), "a bias has a number an output");
        let mut packed = vec![W::ZERO; outputs.div_ceil(PANEL) * inputs];
        for (of_panel, panel) in weights.chunks(PANEL * inputs).zip(packed.chunks_exact_mut(inputs))
        {
            for (output, weights) in of_panel.chunks_exact(inputs).enumerate() {
                for (of_input, &weight) in panel.iter_mut().zip(weights) {
                    of_input.set(output, weight);
                }
            }
        }
        Packed { inputs, outputs, panels: panels(packed), bias: bias.map(<[f32]>::to_vec) }
    }

    /// How many numbers a row has.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// How many numbers a row becomes.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// `y = x Wᵀ + b` of rows `x` (rows, inputs), into `y` (rows, outputs), with so many threads.
    ///
    /// # Panics
    /// When the lengths do not belong together.
    pub fn product(&self, x: &[f32], y: &mut [f32], threads: usize) {
        let rows = x.len() / self.inputs;
        assert!(rows * self.inputs == x.len(), "rows have as many numbers as the matrix inputs");
        assert_eq!(y.len(), rows * self.outputs, "there is room for the product");
        let panels = self.outputs.div_ceil(PANEL);
        if rows == 0 {
            return;
        }
        if threads == 1 {
            let part = Part { packed: self, x, panels: 0..panels, stride: self.outputs, y };
            return dispatch(part);
        }
        if rows >= ROWS_PER_THREAD * threads {
            let step = rows.div_ceil(threads);
            let parts = x.chunks(step * self.inputs).zip(y.chunks_mut(step * self.outputs));
            return each(parts.collect(), |(x, y)| {
                dispatch(Part { packed: self, x, panels: 0..panels, stride: self.outputs, y });
            });
        }
        // A thread's panels are columns of `y`: each writes to a piece of its own first.
        let step = panels.div_ceil(threads);
        let mut apart = vec![0.0; rows * panels * PANEL];
        let parts = apart.chunks_mut(rows * step * PANEL).enumerate();
        each(parts.collect(), |(part, y)| {
            let panels = part * step..panels.min((part + 1) * step);
            dispatch(Part { packed: self, x, stride: panels.len() * PANEL, panels, y });
        });
        for (part, apart) in apart.chunks(rows * step * PANEL).enumerate() {
            let first = part * step * PANEL;
            let width = apart.len() / rows;
            let kept = width.min(self.outputs - first);
            for (from, to) in apart.chunks_exact(width).zip(y.chunks_exact_mut(self.outputs)) {
                to[first..first + kept].copy_from_slice(&from[..kept]);
            }
        }
    }
}

/// What one thread computes of a product: some rows, some panels.
struct Part<'a> {
    packed: &'a Packed,
    x: &'a [f32], // (rows, inputs)
    panels: std::ops::Range<usize>,
    /// How far apart the rows of `y` are.
    stride: usize,
    y: &'a mut [f32], // (rows, stride)
}

impl Work for Part<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        match &self.packed.panels {
            Panels::F32(weights) => self.with(lanes, weights),
            Panels::Bf16(weights) => self.with(lanes, weights),
        }
    }
}

impl Part<'_> {
    #[inline(always)]
    fn with<L: Lanes, W: Stored>(self, lanes: L, weights: &[W]) {
        let Part { packed, x, panels, stride, y } = self;
        for (at, panel) in panels.enumerate() {
            let weights = &weights[panel * packed.inputs..(panel + 1) * packed.inputs];
            let bias = packed.bias_of(panel);
            let width = PANEL.min(stride - at * PANEL);
            let tiles = x.chunks(L::ROWS * packed.inputs).zip(y.chunks_mut(L::ROWS * stride));
            for (x, y) in tiles {
                let mut sums = [[0.0; PANEL]; 8];
                sum(lanes, x, packed.inputs, weights, &mut sums);
                for (sums, y) in sums.iter().zip(y.chunks_mut(stride)) {
                    let y = &mut y[at * PANEL..at * PANEL + width];
                    for ((y, sum), bias) in y.iter_mut().zip(sums).zip(&bias) {
                        *y = sum + bias;
                    }
                }
            }
        }
    }
}

impl Packed {
    fn bias_of(&self, panel: usize) -> [f32; PANEL] {
        let mut of_panel = [0.0; PANEL];
        if let Some(bias) = &self.bias {
            let bias = &bias[panel * PANEL..bias.len().min((panel + 1) * PANEL)];
            of_panel[..bias.len()].copy_from_slice(bias);
        }
        of_panel
    }
}

/// The sums of up to eight rows with a panel.
#[inline(always)]
fn sum<L: Lanes, W: Stored>(
    lanes: L,
    x: &[f32],
    inputs: usize,
    weights: &[W],
    sums: &mut [[f32; PANEL]; 8],
) {
    match x.len() / inputs {
        1 => tile::<L, W, 1>(lanes, x, inputs, weights, sums),
        2 => tile::<L, W, 2>(lanes, x, inputs, weights, sums),
        3 => tile::<L, W, 3>(lanes, x, inputs, weights, sums),
        4 => tile::<L, W, 4>(lanes, x, inputs, weights, sums),
        5 => tile::<L, W, 5>(lanes, x, inputs, weights, sums),
        6 => tile::<L, W, 6>(lanes, x, inputs, weights, sums),
        7 => tile::<L, W, 7>(lanes, x, inputs, weights, sums),
        _ => tile::<L, W, 8>(lanes, x, inputs, weights, sums),
    }
}

#[inline(always)]
fn tile<L: Lanes, W: Stored, const M: usize>(
    lanes: L,
    x: &[f32], // (M, inputs)
    inputs: usize,
    weights: &[W], // (inputs)
    sums: &mut [[f32; PANEL]; 8],
) {
    if L::IS_WIDE {
        columns::<L, W, M, 2>(lanes, x, inputs, weights, 0, sums);
    } else {
        columns::<L, W, M, 1>(lanes, x, inputs, weights, 0, sums);
        columns::<L, W, M, 1>(lanes, x, inputs, weights, 1, sums);
    }
}

/// The same of B times sixteen columns of the panel.
#[inline(always)]
fn columns<L: Lanes, W: Stored, const M: usize, const B: usize>(
    lanes: L,
    x: &[f32],
    inputs: usize,
    weights: &[W],
    first: usize,
    sums: &mut [[f32; PANEL]; 8],
) {
    let rows: [&[f32]; M] = std::array::from_fn(|row| &x[row * inputs..(row + 1) * inputs]);
    let mut of_tile = [[lanes.splat(0.0); B]; M];
    for (input, weights) in weights.iter().enumerate().take(inputs) {
        let both = weights.read(lanes);
        let weights: [L::Sixteen; B] = std::array::from_fn(|at| both[first + at]);
        for row in 0..M {
            let number = lanes.splat(rows[row][input]);
            for at in 0..B {
                of_tile[row][at] = lanes.mul_add(number, weights[at], of_tile[row][at]);
            }
        }
    }
    for (of_tile, sums) in of_tile.iter().zip(sums) {
        let (sums, _) = sums.as_chunks_mut::<16>();
        for at in 0..B {
            lanes.store(of_tile[at], &mut sums[first + at]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::tests::every_way;
    use crate::number::Number;
    use crate::numbers;

    /// The product as it is written: each sum from the first input to the last.
    fn plain(x: &[f32], weights: &[f32], bias: &[f32], inputs: usize) -> Vec<u32> {
        let of_row = |x: &[f32]| {
            let outputs = weights.chunks(inputs).zip(bias);
            let output = |(weights, bias): (&[f32], &f32)| {
                let sum = x.iter().zip(weights).fold(0.0f32, |sum, (x, w)| x.mul_add(*w, sum));
                (sum + bias).to_bits()
            };
            outputs.map(output).collect::<Vec<_>>()
        };
        x.chunks(inputs).flat_map(of_row).collect()
    }

    fn bits(numbers: &[f32]) -> Vec<u32> {
        numbers.iter().map(|number| number.to_bits()).collect()
    }

    #[test]
    fn a_product_has_the_bits_of_its_plain_form_for_any_shape_and_number_of_threads() {
        for (rows, inputs, outputs) in [(1, 5, 7), (8, 33, 64), (13, 40, 50), (70, 64, 97)] {
            let (x, weights) = (numbers(1, rows * inputs), numbers(2, outputs * inputs));
            let bias = numbers(3, outputs);
            let packed = Packed::new(&weights, outputs, Some(&bias));
            let expected = plain(&x, &weights, &bias, inputs);
            for threads in 1..4 {
                let mut y = vec![f32::NAN; rows * outputs];
                packed.product(&x, &mut y, threads);
                assert_eq!(bits(&y), expected, "{rows} rows, {threads} threads");
            }
        }
    }

    #[test]
    fn a_product_with_bf16_has_the_bits_of_one_with_the_same_weights_in_f32() {
        for (rows, inputs, outputs) in [(1, 5, 7), (8, 33, 64), (13, 40, 50), (70, 64, 97)] {
            let (x, bias) = (numbers(1, rows * inputs), numbers(3, outputs));
            let halves = halves(&numbers(2, outputs * inputs));
            let weights: Vec<f32> = halves.iter().map(|half| half.wide()).collect();
            let packed = Packed::of_bf16(&halves, outputs, Some(&bias));
            let expected = plain(&x, &weights, &bias, inputs);
            for threads in 1..4 {
                let mut y = vec![f32::NAN; rows * outputs];
                packed.product(&x, &mut y, threads);
                assert_eq!(bits(&y), expected, "{rows} rows, {threads} threads");
            }
        }
    }

    /// Numbers in bf16.
    fn halves(numbers: &[f32]) -> Vec<Bf16> {
        numbers.iter().map(|&number| Bf16::nearest(number)).collect()
    }

    #[test]
    fn every_processor_gives_the_same_bits() {
        let (inputs, outputs) = (37, 70);
        let weights = numbers(4, inputs * outputs);
        let kinds = [
            Packed::new(&weights, outputs, None),
            Packed::of_bf16(&halves(&weights), outputs, None),
        ];
        for (rows, packed) in (1..20).flat_map(|rows| kinds.iter().map(move |kind| (rows, kind))) {
            let x = numbers(5, rows * inputs);
            let mut found: Vec<Vec<f32>> = vec![vec![f32::NAN; rows * outputs]; 3];
            let mut room = found.iter_mut();
            every_way(|| Part {
                packed,
                x: &x,
                panels: 0..outputs.div_ceil(PANEL),
                stride: outputs,
                y: room.next().expect("there are three ways"),
            });
            found.retain(|found| !found[0].is_nan());
            assert!(found.windows(2).all(|pair| bits(&pair[0]) == bits(&pair[1])), "{rows} rows");
        }
    }
}

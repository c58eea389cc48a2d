//! What is done number by number, compiled here for each kind of number.
//!
//! A function over any kind would be compiled by whoever calls it, and be as slow as that crate is in a
//! dev build.

use crate::gradients;
use crate::number::{Bf16, Number};
use crate::rows::{self, Angles, Turn};

/// Numbers that norms, gates and rotations are there for, with their gradients. Each is one pass over
/// memory.
pub trait Elementwise: Number {
    /// `y = x / √(mean(x²) + ε) · w` of each row (Zhang and Sennrich 2019).
    ///
    /// # Panics
    /// When the lengths are not those of rows as long as the weight.
    fn normalise(x: &[Self], weight: &[Self], eps: f32, y: &mut [Self], threads: usize);

    /// The gradients of x and of the weight, by that of y.
    ///
    /// # Panics
    /// As [`Elementwise::normalise`] does.
    fn normalise_gradients(
        x_and_weight: [&[Self]; 2],
        eps: f32,
        of_y: &[Self],
        gradients: [&mut [Self]; 2],
        threads: usize,
    );

    /// Rotates heads by the angles of their tokens: `x · cos + roll(x) · sin` of the first numbers of
    /// each head (Su et al. 2021), where `roll` swaps the halves of what is rotated.
    ///
    /// `x` and `y` are (tokens, heads, dim), given how many numbers a token has, and a head. The angles
    /// are those of the first tokens, and of the next as many, and so on.
    ///
    /// # Panics
    /// When the lengths do not belong together.
    fn rotate(
        x: &[Self],
        width_and_dim: [usize; 2],
        angles: Angles<'_, Self>,
        turn: Turn,
        y: &mut [Self],
        threads: usize,
    );

    /// `y = silu(gate) · up`: what a gated feed-forward layer lets through (Shazeer 2020).
    ///
    /// # Panics
    /// When they are not of one length.
    fn gate_apart(gates: &[Self], ups: &[Self], y: &mut [Self], threads: usize);

    /// The gradients of the gates and of what they let through, by that of y.
    ///
    /// # Panics
    /// When they are not of one length.
    fn gate_gradients(
        gates_and_ups: [&[Self]; 2],
        of_y: &[Self],
        gradients: [&mut [Self]; 2],
        threads: usize,
    );
}

macro_rules! compiled_for {
    ($($number:ty),*) => {$(
        impl Elementwise for $number {
            fn normalise(x: &[Self], weight: &[Self], eps: f32, y: &mut [Self], threads: usize) {
                rows::normalise(x, weight, eps, y, threads);
            }

            fn normalise_gradients(
                x_and_weight: [&[Self]; 2],
                eps: f32,
                of_y: &[Self],
                gradients: [&mut [Self]; 2],
                threads: usize,
            ) {
                gradients::normalise_gradients(x_and_weight, eps, of_y, gradients, threads);
            }

            fn rotate(
                x: &[Self],
                width_and_dim: [usize; 2],
                angles: Angles<'_, Self>,
                turn: Turn,
                y: &mut [Self],
                threads: usize,
            ) {
                rows::rotate(x, width_and_dim, angles, turn, y, threads);
            }

            fn gate_apart(gates: &[Self], ups: &[Self], y: &mut [Self], threads: usize) {
                rows::gate_apart(gates, ups, y, threads);
            }

            fn gate_gradients(
                gates_and_ups: [&[Self]; 2],
                of_y: &[Self],
                gradients: [&mut [Self]; 2],
                threads: usize,
            ) {
                gradients::gate_gradients(gates_and_ups, of_y, gradients, threads);
            }
        }
    )*};
}

compiled_for!(f32, Bf16);

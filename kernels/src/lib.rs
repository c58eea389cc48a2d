//! What a language model does with its weights on a processor: products with packed matrices,
//! attention over pages of keys and values, what is done number by number between them, and the step
//! of an optimizer.
//!
//! Two things hold of everything here, and are tested beside the plain form of each:
//!
//! - **A row's bits are a function of the row.** Sums run in an order that does not depend on how
//!   many rows there are, which they are, where a text is cut, or how many threads compute. A
//!   library's products choose their order by shape.
//! - **They are as fast as the machine allows**, from one row to thousands: weights are read once,
//!   in order, in f32 or in bf16, and every sum stays in a register.
//!
//! It is a crate of its own so that it is optimised in every profile.

#![allow(clippy::inline_always, reason = "what is not inlined is not compiled for the processor")]
#![allow(clippy::needless_range_loop, reason = "a closure is not compiled for the processor")]

mod adamw;
mod attention;
mod elementwise;
mod exp;
mod gradients;
mod lanes;
mod number;
mod pages;
mod product;
mod rows;
mod threads;

pub use adamw::AdamW;
pub use attention::{Pass, Sight};
pub use elementwise::Elementwise;
pub use number::{Bf16, Number};
pub use pages::{Heads, PAGE, Page, Text};
pub use product::Packed;
pub use rows::{Angles, Turn, gate};

/// Numbers from -1 to 1 that a seed gives.
#[cfg(test)]
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

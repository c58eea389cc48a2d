//! Gradient checkpointing (arXiv 1604.06174): of each block its input alone is kept, and what is
//! inside it is computed again when gradients flow back. A forward pass more, and memory for one
//! block's insides in place of all.
//!
//! tch has no hook for it, so the pass is cut: the states before the last norm are a leaf, whose
//! gradient is carried on by hand, block by block, to the embeddings.

use tch::{Kind, Tensor, no_grad_guard};

use super::super::block::{Mask, View};
use super::{Positions, Transformer};

/// What is kept of a forward pass, to carry gradients back through it.
pub(in crate::model::torch) struct Tape {
    /// The embeddings, with their graph.
    embedded: Tensor, // (B, T, C)
    /// What each block read.
    inputs: Vec<Tensor>, // (B, T, C) each
    /// What the last block wrote: a leaf that gathers its gradient.
    last: Tensor, // (B, T, C)
    positions: Positions,
    mask: Option<Mask>,
}

impl Transformer {
    /// As [`Transformer::hidden_fused`], or [`Transformer::hidden_shared`] with positions (B, T) and a mask
    /// (B, 1, T, T), without what the blocks have inside. Where no gradients are gathered there is
    /// nothing to keep.
    pub(in crate::model::torch) fn hidden_taped(
        &self,
        ids: &Tensor,
        shared: Option<(&Tensor, &Tensor)>,
    ) -> (Tensor, Option<Tape>) {
        let (positions, mask) = match shared {
            None => {
                let tokens = ids.size()[1];
                let is_seen_whole =
                    self.config.sliding_window.is_none_or(|window| tokens <= window);
                let mask =
                    (self.has_windows() && !is_seen_whole).then(|| self.mask_after(0, tokens));
                (self.positions_from(0, tokens), mask)
            }
            Some((positions, mask)) => {
                let end = positions.max().int64_value(&[]) as usize + 1;
                let mask = self.mask(&mask.squeeze_dim(1), positions, positions);
                (self.positions_at(positions, end), Some(mask))
            }
        };
        let embedded = self.embed(ids, &positions); // (B, T, C)
        let gathers = embedded.requires_grad();
        let mut inputs = Vec::new();
        let last = {
            let _guard = no_grad_guard();
            let mut x = embedded.detach();
            for block in &self.blocks {
                let view = View::Fused { mask: mask.as_ref() };
                let y = block.forward(&x, positions.rotation.as_ref(), view);
                if gathers {
                    inputs.push(x);
                }
                x = y;
            }
            x
        };
        if !gathers {
            return (self.finish(&last), None);
        }
        let last = last.set_requires_grad(true);
        let hidden = self.finish(&last); // (B, T, C)
        (hidden, Some(Tape { embedded, inputs, last, positions, mask }))
    }

    /// Carries gradients back through the blocks, after a loss of [`Transformer::hidden_taped`] has gone
    /// backward.
    pub(in crate::model::torch) fn backward(&self, tape: &Tape) {
        let mut grad = tape.last.grad(); // (B, T, C)
        if !grad.defined() {
            return;
        }
        // The gradient of Σ y·g is that of y, times g.
        let carry = |y: &Tensor, grad: &Tensor| (y * grad).sum(Kind::Float).backward();
        for (block, input) in self.blocks.iter().zip(&tape.inputs).rev() {
            let x = input.detach().set_requires_grad(true);
            let view = View::Fused { mask: tape.mask.as_ref() };
            let y = block.forward(&x, tape.positions.rotation.as_ref(), view);
            carry(&y, &grad);
            grad = x.grad();
        }
        carry(&tape.embedded, &grad);
    }
}

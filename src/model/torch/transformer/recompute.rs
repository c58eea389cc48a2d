//! Gradient checkpointing (arXiv 1604.06174): of each block its input alone is kept, and what is
//! inside it is computed again when gradients flow back. A forward pass more, and memory for one
//! block's insides in place of all.
//!
//! tch has no hook for it, so the pass is cut: the states before the last norm are a leaf, whose
//! gradient is carried on by hand, block by block, to the embeddings.

use tch::{Device, Kind, Tensor, no_grad_guard};

use super::super::block::{Mask, View};
use super::{Positions, Transformer};

/// What is kept of a forward pass, to carry gradients back through it.
pub(in crate::model::torch) struct Tape {
    /// The embeddings, with their graph.
    embedded: Tensor, // (B, T, C)
    /// What each block read.
    inputs: Vec<Tensor>, // (B, T, C) each
    /// What the last block wrote: a leaf that gathers its gradient.
    last: Tensor, // (1, N, C)
    positions: Positions,
    mask: Option<Mask>,
    /// Of which tokens the last block's result is wanted.
    wanted: Tensor, // (N)
}

impl Transformer {
    /// As [`Transformer::hidden_wanted`], without what the blocks have inside. `learns` says whether some
    /// weight does: which one is not known here, and it need not be that of the embeddings. Where no
    /// gradients are gathered there is nothing to keep.
    pub(in crate::model::torch) fn hidden_taped(
        &self,
        ids: &Tensor,
        shared: Option<(&Tensor, &Tensor)>,
        wanted: &Tensor, // (N)
        learns: bool,
    ) -> (Tensor, Option<Tape>) {
        let (positions, mask) = self.laid_out(ids, shared);
        let embedded = self.embed(ids, &positions); // (B, T, C)
        let gathers = learns && is_recording();
        let mut inputs = Vec::new();
        let last = {
            let _guard = no_grad_guard();
            let mut x = embedded.detach();
            for (layer, block) in self.blocks.iter().enumerate() {
                let wanted = Some(wanted).filter(|_| self.is_last(layer));
                let view = View::Fused { mask: mask.as_ref(), wanted };
                let y = block.forward(&x, positions.rotation.as_ref(), view);
                if gathers {
                    inputs.push(x);
                }
                x = y;
            }
            x
        };
        if !gathers {
            return (self.finish(&last).squeeze_dim(0), None);
        }
        let last = last.set_requires_grad(true);
        let hidden = self.finish(&last).squeeze_dim(0); // (N, C)
        let wanted = wanted.shallow_clone();
        (hidden, Some(Tape { embedded, inputs, last, positions, mask, wanted }))
    }

    /// Carries gradients back through the blocks, after a loss of [`Transformer::hidden_taped`] has gone
    /// backward.
    pub(in crate::model::torch) fn backward(&self, tape: &Tape) {
        let mut grad = tape.last.grad(); // (1, N, C), then (B, T, C)
        if !grad.defined() {
            return;
        }
        // The gradient of Σ y·g is that of y, times g.
        let carry = |y: &Tensor, grad: &Tensor| (y * grad).sum(Kind::Float).backward();
        for (layer, (block, input)) in self.blocks.iter().zip(&tape.inputs).enumerate().rev() {
            let x = input.detach().set_requires_grad(true);
            let wanted = Some(&tape.wanted).filter(|_| self.is_last(layer));
            let view = View::Fused { mask: tape.mask.as_ref(), wanted };
            let y = block.forward(&x, tape.positions.rotation.as_ref(), view);
            carry(&y, &grad);
            grad = x.grad();
        }
        // Under a low-rank change of what is in the blocks the embeddings stay as they are.
        if tape.embedded.requires_grad() {
            carry(&tape.embedded, &grad);
        }
    }
}

/// Whether operations are recorded for gradients in this thread now: tch does not tell.
fn is_recording() -> bool {
    let leaf = Tensor::zeros([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    (leaf * 1.0).requires_grad()
}

//! Linear layers: a weight and perhaps a bias, alone or several over the same input.
//!
//! Where a model is trained its weights are tensors that gradients flow into. Where it is only
//! run, on a processor, they are packed for [`kernels`](super::kernels).

use std::sync::Arc;

use amend_kernels::Packed;
use tch::Tensor;

use super::{int, kernels};

/// `y = x Wᵀ + b`.
pub(super) enum Linear {
    /// As it is stored and trained.
    Plain {
        weight: Tensor,       // (out, in)
        bias: Option<Tensor>, // (out)
    },
    /// As it is run.
    Packed(Arc<Packed>),
}

impl Linear {
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Linear::Plain { weight, bias } => x.linear(weight, bias.as_ref()),
            Linear::Packed(packed) => kernels::product(packed, x),
        }
    }

    /// The same, to be run without gradients: packed where there are kernels for it, and else in
    /// one piece of memory, which some families do not store it in.
    pub(super) fn ready(&self) -> Linear {
        match self {
            Linear::Plain { weight, bias } if kernels::are_for(weight.kind(), weight.device()) => {
                Linear::Packed(Arc::new(kernels::pack(weight, bias.as_ref())))
            }
            Linear::Plain { weight, bias } => Linear::Plain {
                weight: weight.contiguous(),
                bias: bias.as_ref().map(Tensor::shallow_clone),
            },
            Linear::Packed(packed) => Linear::Packed(Arc::clone(packed)),
        }
    }

    fn outputs(&self) -> i64 {
        match self {
            Linear::Plain { weight, .. } => weight.size()[0],
            Linear::Packed(packed) => int(packed.outputs()),
        }
    }

    /// Several over the same input as one.
    fn stacked(linears: &[Linear]) -> Linear {
        let plain = linears.iter().map(|linear| match linear {
            Linear::Plain { weight, bias } => (weight, bias.as_ref()),
            Linear::Packed(_) => unreachable!("what is packed was stacked before"),
        });
        let (weights, biases): (Vec<&Tensor>, Vec<Option<&Tensor>>) = plain.unzip();
        let biases: Option<Vec<&Tensor>> = biases.into_iter().collect();
        Linear::Plain {
            weight: Tensor::cat(&weights, 0),
            bias: biases.map(|biases| Tensor::cat(&biases, 0)),
        }
    }
}

/// Several linears over the same input: apart where each is trained, as one where they are run or
/// are stored so.
pub(super) enum Linears {
    Apart(Vec<Linear>),
    /// One after the other, of these sizes.
    Stacked(Linear, Vec<i64>),
    /// Queries, keys and values head by head, of these numbers of heads and dimensions.
    ByHead(Linear, i64, i64),
}

impl Linears {
    /// The same as one, to be run without gradients.
    pub(super) fn stack(&self) -> Linears {
        match self {
            Linears::Apart(linears) => {
                let sizes = linears.iter().map(Linear::outputs).collect();
                Linears::Stacked(Linear::stacked(linears).ready(), sizes)
            }
            Linears::Stacked(linear, sizes) => Linears::Stacked(linear.ready(), sizes.clone()),
            Linears::ByHead(linear, heads, dim) => Linears::ByHead(linear.ready(), *heads, *dim),
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Vec<Tensor> {
        match self {
            Linears::Apart(linears) => linears.iter().map(|linear| linear.forward(x)).collect(),
            Linears::Stacked(linear, sizes) => {
                linear.forward(x).split_with_sizes(sizes.as_slice(), -1)
            }
            Linears::ByHead(linear, heads, dim) => {
                let mut shape = x.size();
                shape.pop();
                shape.extend([*heads, 3, *dim]);
                linear.forward(x).view(shape.as_slice()).unbind(-2) // 3 × (…, H, D)
            }
        }
    }

    /// Two of the same size one after the other, where they are packed so.
    pub(super) fn packed_pair(&self) -> Option<&Linear> {
        match self {
            Linears::Stacked(linear @ Linear::Packed(_), sizes) if sizes.len() == 2 => Some(linear),
            _ => None,
        }
    }
}

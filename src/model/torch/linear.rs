//! Linear layers: a weight and perhaps a bias, alone or several over the same input.
//!
//! Where a model is trained its weights are tensors that gradients flow into, and large ones are
//! multiplied by oneDNN. Where it is only run, on a processor, they are packed for
//! [`kernels`](super::kernels).

use std::sync::Arc;

use amend_autograd::{differentiable, product};
use amend_kernels::Packed;
use tch::{Device, Kind, Tensor};

use super::{int, kernels};

/// From how many numbers a weight is multiplied by oneDNN, which makes a program for each number of
/// rows: in half a millisecond, and of a megabyte.
const NUMBERS_BY_ONEDNN: usize = 1 << 18;

/// So that there are few programs, it is given multiples of so many rows, and at most so many.
const ROWS_BY_ONEDNN: i64 = 512;
const ROWS_BY_ONEDNN_MAX: i64 = 4_096;

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
            Linear::Plain { weight, bias } if is_by_onednn(x, weight) => {
                let y = multiplied(x, weight);
                match bias {
                    Some(bias) => y + bias,
                    None => y,
                }
            }
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

fn is_by_onednn(x: &Tensor, weight: &Tensor) -> bool {
    let is_for = |tensor: &Tensor| (tensor.kind(), tensor.device()) == (Kind::Float, Device::Cpu);
    let rows = x.size().split_last().map_or(0, |(_, rows)| rows.iter().product());
    is_for(x) && is_for(weight) && weight.numel() >= NUMBERS_BY_ONEDNN && rows >= ROWS_BY_ONEDNN
}

/// `x Wᵀ` by oneDNN, forward and in the gradient of x. On processors that are not Intel's libtorch's
/// own product leaves a tenth of their speed; in the gradient of W it is as fast as oneDNN's.
fn multiplied(x: &Tensor, weight: &Tensor) -> Tensor {
    let (outputs, inputs) = weight.size2().expect("a weight is a matrix");
    let mut shape = x.size();
    *shape.last_mut().expect("rows have numbers") = outputs;
    let x = x.reshape([-1, inputs]).contiguous(); // (N, in)
    // Each is kept for the gradient of the other.
    let of_x = weight.requires_grad().then(|| x.shallow_clone());
    let of_weight = x.requires_grad().then(|| weight.shallow_clone());
    // A gradient lies in memory as its weight does.
    let is_transposed = !weight.is_contiguous();
    let backward = move |gradient: &Tensor, [x_wanted, weight_wanted]: [bool; 2]| {
        let gradient = gradient.contiguous(); // (N, out)
        let of_weight = of_weight.as_ref().filter(|_| x_wanted);
        let of_x = of_x.as_ref().filter(|_| weight_wanted);
        [
            of_weight.map(|weight| product_in_pieces(&gradient, &weight.tr())), // (N, in)
            of_x.map(|x| match is_transposed {
                true => x.tr().mm(&gradient).tr(),
                false => gradient.tr().mm(x), // (out, in)
            }),
        ]
    };
    differentiable([&x, weight], || product_in_pieces(&x, weight), backward).reshape(shape)
}

/// `x Wᵀ` of (N, in), by oneDNN but for the last rows. Nothing is recorded.
fn product_in_pieces(x: &Tensor, weight: &Tensor) -> Tensor {
    let rows = x.size()[0];
    let mut pieces = Vec::new();
    let mut first = 0;
    while first < rows {
        let left = rows - first;
        let whole = left / ROWS_BY_ONEDNN * ROWS_BY_ONEDNN;
        let count = if whole == 0 { left } else { whole.min(ROWS_BY_ONEDNN_MAX) };
        let piece = x.narrow(0, first, count);
        pieces.push(if whole == 0 { piece.mm(&weight.tr()) } else { product(&piece, weight) });
        first += count;
    }
    match pieces.len() {
        1 => pieces.remove(0),
        _ => Tensor::cat(&pieces, 0), // (N, out)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer of 512 to 600, and an input of it.
    fn layer() -> (Tensor, Tensor, Tensor) {
        let numbers = |shape: &[i64], step: f64| {
            let count = shape.iter().product::<i64>();
            let all = Tensor::arange(count, (Kind::Float, Device::Cpu)) * step;
            all.sin().reshape(shape).set_requires_grad(true)
        };
        // Two pieces of oneDNN's, and 4 rows more.
        (numbers(&[4, 1153, 512], 0.37), numbers(&[600, 512], 0.11), numbers(&[600], 0.7))
    }

    /// What a layer makes of its input, and the gradients that then flow into all three.
    fn told(forward: impl Fn(&Tensor, &Tensor, &Tensor) -> Tensor) -> [Tensor; 4] {
        let (x, weight, bias) = layer();
        let y = forward(&x, &weight, &bias);
        // Not in one piece: a gradient may be any view.
        (y.transpose(0, 1).cos() * 0.1).sum(Kind::Float).backward();
        [y, x.grad(), weight.grad(), bias.grad()]
    }

    #[test]
    fn a_large_product_and_its_gradients_are_those_of_libtorch() {
        check(Tensor::shallow_clone);
        // As some families store it.
        check(|weight| weight.tr().contiguous().tr());
    }

    fn check(stored: impl Fn(&Tensor) -> Tensor) {
        let found = told(|x, weight, bias| {
            assert!(is_by_onednn(x, weight));
            let (weight, bias) = (stored(weight), Some(bias.shallow_clone()));
            Linear::Plain { weight, bias }.forward(x)
        });
        let expected = told(|x, weight, bias| x.linear(weight, Some(bias)));
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.size(), expected.size());
            let difference = (found - expected).abs().max().double_value(&[]);
            assert!(
                difference < 1e-4 && expected.abs().max().double_value(&[]) > 0.1,
                "{difference}"
            );
        }
    }

    #[test]
    fn gradients_flow_only_where_they_are_gathered() {
        let (x, weight, _) = layer();
        let frozen = x.detach();
        multiplied(&frozen, &weight).sum(Kind::Float).backward();
        assert!(weight.grad().defined() && !frozen.grad().defined());
        assert!(!tch::no_grad(|| multiplied(&x, &weight)).requires_grad());
        assert!(!multiplied(&frozen, &weight.detach()).requires_grad());
    }

    #[test]
    fn what_a_gradient_holds_is_let_go_when_it_was_carried_or_nobody_asks_for_it() {
        let held = Arc::new(());
        let function = |x: &Tensor| {
            let held = Arc::clone(&held);
            let double = move |gradient: &Tensor, _: [bool; 1]| {
                assert!(Arc::strong_count(&held) > 1, "it is held until then");
                [Some(gradient * 2.0)]
            };
            differentiable([x], || x * 2.0, double)
        };
        let x = Tensor::from_slice(&[3.0_f32]).set_requires_grad(true);
        let y = function(&x);
        assert_eq!(Arc::strong_count(&held), 2);
        y.backward();
        assert!((x.grad().double_value(&[0]) - 2.0).abs() < 1e-9);
        assert_eq!(Arc::strong_count(&held), 1, "it was carried");
        drop(function(&x));
        assert_eq!(Arc::strong_count(&held), 1, "the graph is gone");
        let _ = function(&x.detach());
        assert_eq!(Arc::strong_count(&held), 1, "nobody asks for it");
        let refused = y.f_backward();
        assert!(refused.is_err(), "gradients flow back once");
    }

    #[test]
    fn a_gradient_that_panics_is_an_error_of_the_pass() {
        let x = Tensor::from_slice(&[3.0_f32]).set_requires_grad(true);
        let y = differentiable([&x], || &x * 2.0, |_, _: [bool; 1]| panic!("on purpose"));
        let error = y.f_backward().unwrap_err().to_string();
        assert!(error.contains("panicked"), "{error}");
    }
}

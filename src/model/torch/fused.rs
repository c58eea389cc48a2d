//! Norms, gates and rotations of a training on a processor: one pass over memory each, and one for
//! the gradients.
//!
//! libtorch has each as several operations, every one of which reads all numbers, writes them and keeps
//! what its own gradient needs. Here what is read is kept, and nothing else.

use amend_autograd::differentiable;
use amend_kernels::Turn;
use tch::Tensor;

use super::kernels;

/// The norm of (…, C) by its root mean square.
pub(super) fn norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    let kept = (x.detach(), weight.detach());
    let backward = move |gradient: &Tensor, wanted: [bool; 2]| {
        only(wanted, kernels::normalise_gradients(&kept.0, &kept.1, eps, gradient))
    };
    differentiable([x, weight], || kernels::normalise(x, weight, eps), backward)
}

/// `silu(gate) · up`.
pub(super) fn gated(gate: &Tensor, up: &Tensor) -> Tensor {
    let kept = (gate.detach(), up.detach());
    let backward = move |gradient: &Tensor, wanted: [bool; 2]| {
        only(wanted, kernels::gate_gradients(&kept.0, &kept.1, gradient))
    };
    differentiable([gate, up], || kernels::gate_apart(gate, up), backward)
}

/// Heads (…, H, D) rotated by the cosines and sines (…, 1, R) of their tokens.
pub(super) fn rotated(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let kept = (cos.shallow_clone(), sin.shallow_clone());
    let backward = move |gradient: &Tensor, _: [bool; 1]| {
        [Some(kernels::rotate(gradient, &kept.0, &kept.1, Turn::Back))]
    };
    differentiable([x], || kernels::rotate(x, cos, sin, Turn::Forward), backward)
}

fn only<const N: usize>(wanted: [bool; N], gradients: [Tensor; N]) -> [Option<Tensor>; N] {
    let mut wanted = wanted.into_iter();
    gradients.map(|gradient| wanted.next().unwrap_or(false).then_some(gradient))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    /// Numbers of a shape, in a kind; the seed makes them others.
    fn numbers(shape: &[i64], seed: f64, kind: Kind) -> Tensor {
        let count = shape.iter().product::<i64>();
        let all = Tensor::arange(count, (Kind::Float, Device::Cpu)) * seed;
        (all.sin() * 2.0).reshape(shape).to_kind(kind).set_requires_grad(true)
    }

    /// A function and its gradients are those of libtorch's operations, in f32 and in bf16.
    fn check(
        shapes: &[&[i64]],
        fused: impl Fn(&[Tensor]) -> Tensor,
        apart: impl Fn(&[Tensor]) -> Tensor,
    ) {
        for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 3e-2)] {
            let told = |of: &dyn Fn(&[Tensor]) -> Tensor| -> Vec<Tensor> {
                let seeds = [0.37, 0.11, 0.73];
                let inputs: Vec<Tensor> = (shapes.iter().zip(seeds))
                    .map(|(shape, seed)| numbers(shape, seed, kind))
                    .collect();
                let y = of(&inputs);
                // Not in one piece, and not the same everywhere.
                (y.transpose(0, 1) * numbers(&y.transpose(0, 1).size(), 0.29, kind).detach())
                    .sum(Kind::Float)
                    .backward();
                let gradients = inputs.iter().map(Tensor::grad);
                std::iter::once(y.detach()).chain(gradients).collect()
            };
            let (found, expected) = (told(&fused), told(&apart));
            assert_eq!(found.len(), shapes.len() + 1);
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!((found.size(), found.kind()), (expected.size(), expected.kind()));
                let float = |x: &Tensor| x.to_kind(Kind::Float);
                let largest = float(expected).abs().max().double_value(&[]);
                let difference = (float(found) - float(expected)).abs().max().double_value(&[]);
                assert!(
                    difference < tolerance * largest && largest > 0.1,
                    "{kind:?}: {difference} of {largest}"
                );
            }
        }
    }

    #[test]
    fn a_norm_and_its_gradients_are_those_of_libtorch() {
        let apart = |inputs: &[Tensor]| {
            let x = inputs[0].to_kind(Kind::Float);
            let squares = x.square().mean_dim([-1i64].as_slice(), true, Kind::Float);
            (x * (squares + 1e-5).rsqrt()).to_kind(inputs[1].kind()) * &inputs[1]
        };
        check(&[&[3, 5, 40], &[40]], |inputs| norm(&inputs[0], &inputs[1], 1e-5), apart);
    }

    #[test]
    fn a_gate_and_its_gradients_are_those_of_libtorch() {
        let shape: &[i64] = &[3, 5, 40];
        let apart = |inputs: &[Tensor]| inputs[0].silu() * &inputs[1];
        check(&[shape, shape], |inputs| gated(&inputs[0], &inputs[1]), apart);
    }

    #[test]
    fn a_rotation_and_its_gradient_are_those_of_libtorch() {
        // Of each head of 10 numbers 8 are rotated; two sequences have their angles in common.
        let tables = |kind: Kind| {
            let angles = Tensor::arange(5 * 4, (Kind::Float, Device::Cpu)).view([5, 1, 4]) * 0.3;
            let cos = Tensor::cat(&[angles.cos(), angles.cos()], -1).to_kind(kind);
            (cos, Tensor::cat(&[-angles.sin(), angles.sin()], -1).to_kind(kind)) // (5, 1, 8)
        };
        let fused = |inputs: &[Tensor]| {
            let (cos, sin) = tables(inputs[0].kind());
            rotated(&inputs[0], &cos, &sin)
        };
        let apart = |inputs: &[Tensor]| {
            let (cos, sin) = tables(inputs[0].kind());
            let (x, rest) = (inputs[0].narrow(-1, 0, 8), inputs[0].narrow(-1, 8, 2));
            Tensor::cat(&[&x * cos + x.roll([4], [-1]) * sin, rest], -1)
        };
        check(&[&[2, 5, 3, 10]], fused, apart);
    }

    #[test]
    fn gradients_are_made_where_they_are_wanted() {
        let (x, weight) = (numbers(&[2, 8], 0.3, Kind::Float), numbers(&[8], 0.7, Kind::Float));
        norm(&x.detach(), &weight, 1e-5).sum(Kind::Float).backward();
        assert!(weight.grad().defined() && !x.grad().defined());
        gated(&x, &x.detach()).sum(Kind::Float).backward();
        assert!(x.grad().defined());
        assert!(!tch::no_grad(|| norm(&x, &weight, 1e-5)).requires_grad());
    }
}

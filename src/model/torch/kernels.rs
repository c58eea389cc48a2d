//! The kernels of `amend_kernels` over tensors: what a model is run by on a processor, with weights
//! in f32 or bf16. Everything else is f32.
//!
//! `unsafe` is here because libtorch gives the numbers of a tensor as a pointer, and a copy of all that
//! goes through a model would cost as much as a norm of it. A tensor is read only while it is
//! borrowed, and written only before anything else knows it, or, by an optimizer, while nothing else
//! computes.

#![allow(unsafe_code, reason = "libtorch gives the numbers of a tensor as a pointer")]

use amend_kernels::{AdamW, Packed};
use tch::{Device, Kind, Tensor};

use super::int;

/// Whether weights like this one are what the kernels take.
pub(super) fn are_for(kind: Kind, device: Device) -> bool {
    matches!(kind, Kind::Float | Kind::BFloat16) && device == Device::Cpu
}

/// How many threads may compute.
pub(super) fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1)
}

/// A matrix (out, in) with its bias, made ready.
pub(super) fn pack(weight: &Tensor, bias: Option<&Tensor>) -> Packed {
    let (outputs, _) = weight.size2().expect("a weight is a matrix");
    let bias = bias.map(|bias| bias.to_kind(Kind::Float).contiguous());
    let (weight, bias) = (weight.contiguous(), bias.as_ref().map(floats));
    match weight.kind() {
        Kind::BFloat16 => Packed::of_bf16(numbers(&weight, Kind::BFloat16), outputs as usize, bias),
        _ => Packed::new(floats(&weight), outputs as usize, bias),
    }
}

/// `x Wᵀ + b` of (…, in).
pub(super) fn product(packed: &Packed, x: &Tensor) -> Tensor {
    let x = x.contiguous();
    let mut shape = x.size();
    *shape.last_mut().expect("rows have numbers") = int(packed.outputs());
    filled(&shape, |y| packed.product(floats(&x), y, threads())) // (…, out)
}

/// The norm of (…, C) by its root mean square.
pub(super) fn normalise(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    let x = x.contiguous();
    filled(&x.size(), |y| {
        amend_kernels::normalise(floats(&x), floats(weight), eps as f32, y, threads());
    })
}

/// Heads (…, H, D) rotated by the cosines and sines (…, 1, R) of their tokens.
pub(super) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let (x, cos, sin) = (x.contiguous(), cos.contiguous(), sin.contiguous());
    let [.., heads, dim] = x.size()[..] else { unreachable!("heads have a last dimension") };
    let tokens = x.numel() / (heads * dim) as usize;
    filled(&x.size(), |y| {
        amend_kernels::rotate(floats(&x), floats(&cos), floats(&sin), tokens, dim as usize, y);
    })
}

/// `silu(gate) · up` of (…, gate and up).
pub(super) fn gate(x: &Tensor) -> Tensor {
    let x = x.contiguous();
    let mut shape = x.size();
    let width = shape.last_mut().expect("rows have numbers");
    *width /= 2;
    let inner = *width as usize;
    filled(&shape, |y| amend_kernels::gate(floats(&x), inner, y, threads()))
}

/// One step of an optimizer with a weight and both its moments, by its gradient.
///
/// # Panics
/// When they are not of one size, f32, and in one piece on the processor each; or one of them twice.
pub(super) fn step(adamw: &AdamW, tensors: [&mut Tensor; 3], gradient: &Tensor) {
    let gradient = floats(gradient);
    let numbers = tensors.map(|tensor| {
        let len = floats(tensor).len();
        (tensor.data_ptr().cast::<f32>(), len)
    });
    let len = gradient.len();
    assert!(numbers.iter().all(|&(_, other)| other == len), "four of one size");
    let [weight, first, second] = numbers.map(|(place, _)| place);
    let places = [weight, first, second, gradient.as_ptr().cast_mut()];
    let is_apart = |a: *mut f32, b: *mut f32| a.addr().abs_diff(b.addr()) >= size_of_val(gradient);
    let pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)];
    assert!(len == 0 || pairs.iter().all(|&(a, b)| is_apart(places[a], places[b])), "four tensors");
    if len == 0 {
        return;
    }
    // SAFETY: each is so many f32 in one piece, which no other of the four overlaps, and which lives
    // as long as its borrow; the last is not written. Other tensors may share their numbers (the
    // model's the weight's), but nothing computes with them meanwhile: an optimizer's step stands
    // between two passes.
    let numbers = [weight, first, second];
    let numbers = numbers.map(|place| unsafe { std::slice::from_raw_parts_mut(place, len) });
    adamw.step(numbers, gradient, threads());
}

/// The numbers of a tensor.
///
/// # Panics
/// When they are not f32 in one piece on the processor.
pub(super) fn floats(tensor: &Tensor) -> &[f32] {
    numbers(tensor, Kind::Float)
}

/// What can be read out of memory that holds any bits: f32, and bf16 as its bits.
trait Bits: Copy {}
impl Bits for f32 {}
impl Bits for u16 {}

/// The numbers of a tensor of a kind, or their bits.
fn numbers<T: Bits>(tensor: &Tensor, kind: Kind) -> &[T] {
    assert_eq!((tensor.kind(), tensor.device()), (kind, Device::Cpu), "what kernels read");
    assert_eq!(size_of::<T>(), kind.elt_size_in_bytes(), "a number is as long as its bits");
    assert!(tensor.is_contiguous(), "kernels read what is in one piece");
    let numbers = tensor.data_ptr().cast::<T>().cast_const();
    if tensor.numel() == 0 {
        return &[];
    }
    // SAFETY: a contiguous tensor is so many numbers of this length, and any bits are one; it lives
    // as long as the borrow, and nothing here writes into a tensor that was given out.
    unsafe { std::slice::from_raw_parts(numbers, tensor.numel()) }
}

/// A new tensor, which is to be filled whole.
pub(super) fn filled(shape: &[i64], fill: impl FnOnce(&mut [f32])) -> Tensor {
    let tensor = Tensor::empty(shape, (Kind::Float, Device::Cpu));
    if tensor.numel() > 0 {
        // SAFETY: as above, and nothing else knows the tensor. Kernels write all of it and read
        // none.
        fill(unsafe {
            std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel())
        });
    }
    tensor
}

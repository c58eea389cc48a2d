//! The kernels of `amend_kernels` over tensors: what a model is run by on a processor, with weights
//! in f32 or bf16, and what a training does number by number. All sums are f32.
//!
//! `unsafe` is here because libtorch gives the numbers of a tensor as a pointer, and a copy of all that
//! goes through a model would cost as much as a norm of it. A tensor is read only while it is
//! borrowed, and written only before anything else knows it, or, by an optimizer, while nothing else
//! computes.

#![allow(unsafe_code, reason = "libtorch gives the numbers of a tensor as a pointer")]

use amend_kernels::{AdamW, Angles, Bf16, Elementwise, Packed, Turn};
use tch::{Device, Kind, Tensor};

use super::int;

/// What is done with numbers of a kind, f32 or bf16, whose type has that name there.
macro_rules! by_kind {
    ($kind:expr, $number:ident => $done:expr) => {
        match $kind {
            Kind::BFloat16 => {
                type $number = Bf16;
                $done
            }
            _ => {
                type $number = f32;
                $done
            }
        }
    };
}

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
        Kind::BFloat16 => Packed::of_bf16(numbers(&weight), outputs as usize, bias),
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
    by_kind!(x.kind(), T => filled(&x.size(), |y| {
        T::normalise(numbers(&x), numbers(weight), eps as f32, y, threads());
    }))
}

/// The gradients of x and of the weight, by that of the norm.
pub(super) fn normalise_gradients(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    gradient: &Tensor,
) -> [Tensor; 2] {
    let (x, gradient) = (x.contiguous(), gradient.contiguous());
    by_kind!(x.kind(), T => filled_both([&x, weight], |gradients| {
        let read = [numbers::<T>(&x), numbers(weight)];
        let eps = eps as f32;
        T::normalise_gradients(read, eps, numbers(&gradient), gradients, threads());
    }))
}

/// Heads (…, H, D) rotated by the cosines and sines (…, 1, R) of their tokens, or back. Sequences may
/// have them in common.
pub(super) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor, turn: Turn) -> Tensor {
    let (x, cos, sin) = (x.contiguous(), cos.contiguous(), sin.contiguous());
    let [.., heads, dim] = x.size()[..] else { unreachable!("heads have a last dimension") };
    let rotated = cos.size().last().copied().unwrap_or(0) as usize;
    let token = [(heads * dim) as usize, dim as usize];
    by_kind!(x.kind(), T => filled(&x.size(), |y| {
        let angles = Angles::<T> { cos: numbers(&cos), sin: numbers(&sin), rotated };
        T::rotate(numbers(&x), token, angles, turn, y, threads());
    }))
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

/// `silu(gate) · up` of two tensors.
pub(super) fn gate_apart(gate: &Tensor, up: &Tensor) -> Tensor {
    let (gate, up) = (gate.contiguous(), up.contiguous());
    by_kind!(gate.kind(), T => filled(&gate.size(), |y| {
        T::gate_apart(numbers(&gate), numbers(&up), y, threads());
    }))
}

/// The gradients of the gate and of what it lets through, by that of both.
pub(super) fn gate_gradients(gate: &Tensor, up: &Tensor, gradient: &Tensor) -> [Tensor; 2] {
    let (gate, up, gradient) = (gate.contiguous(), up.contiguous(), gradient.contiguous());
    by_kind!(gate.kind(), T => filled_both([&gate, &up], |gradients| {
        let read = [numbers::<T>(&gate), numbers(&up)];
        T::gate_gradients(read, numbers(&gradient), gradients, threads());
    }))
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
    numbers(tensor)
}

/// A number as it lies in memory, which can be read out of any bits.
pub(super) trait Bits: Copy {
    /// The kind of a tensor of them.
    const KIND: Kind;
}

impl Bits for f32 {
    const KIND: Kind = Kind::Float;
}

impl Bits for Bf16 {
    const KIND: Kind = Kind::BFloat16;
}

/// The numbers of a tensor of that kind.
fn numbers<T: Bits>(tensor: &Tensor) -> &[T] {
    assert_eq!((tensor.kind(), tensor.device()), (T::KIND, Device::Cpu), "what kernels read");
    assert_eq!(size_of::<T>(), T::KIND.elt_size_in_bytes(), "a number is as long as its bits");
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
pub(super) fn filled<T: Bits>(shape: &[i64], fill: impl FnOnce(&mut [T])) -> Tensor {
    let mut tensor = Tensor::empty(shape, (T::KIND, Device::Cpu));
    if tensor.numel() > 0 {
        fill(new_numbers(&mut tensor));
    }
    tensor
}

/// Two new tensors of the shapes of two others, which are to be filled whole.
fn filled_both<T: Bits>(like: [&Tensor; 2], fill: impl FnOnce([&mut [T]; 2])) -> [Tensor; 2] {
    let mut tensors = like.map(|like| Tensor::empty(like.size(), (T::KIND, Device::Cpu)));
    fill(tensors.each_mut().map(new_numbers));
    tensors
}

/// The numbers of a tensor that was just made, which are to be written whole.
fn new_numbers<T: Bits>(tensor: &mut Tensor) -> &mut [T] {
    if tensor.numel() == 0 {
        return &mut [];
    }
    // SAFETY: as above, and nothing else knows the tensor. Kernels write all of it and read none.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<T>(), tensor.numel()) }
}

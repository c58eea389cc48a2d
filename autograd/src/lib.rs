//! What libtorch has and tch does not bind: functions of tensors whose gradients are written in Rust,
//! and the products of oneDNN.
//!
//! In libtorch a function with a gradient of its own is a class, so here is the smallest one in C++
//! (`node.cpp`), which calls a closure. oneDNN's products of plain tensors are reached by the C
//! interface of AOTInductor.

#![allow(unsafe_code, reason = "functions of another language")]

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

/// A closure that carries gradients back, as C++ knows it.
#[repr(C)]
struct Closure {
    data: *mut c_void,
    carry: unsafe extern "C" fn(
        *const c_void,
        *const C_tensor,
        *const bool,
        *mut *mut C_tensor,
    ) -> bool,
    drop: unsafe extern "C" fn(*mut c_void),
}

unsafe extern "C" {
    fn amend_carry_by(
        output: *const C_tensor,
        inputs: *const *const C_tensor,
        count: usize,
        closure: Closure,
    ) -> bool;

    fn amend_product(x: *const C_tensor, weight: *const C_tensor) -> *mut C_tensor;
}

/// A function of some tensors with a gradient of its own.
///
/// `forward` computes it, and nothing that it does is recorded. `backward` is given the gradient of
/// the result and which inputs' gradients are wanted, and makes those; it is called when gradients
/// flow back, which they do once, maybe in another thread, and dropped then. Where none are gathered
/// it is dropped at once.
///
/// What `backward` holds is not to be changed in between: nothing would notice. There is no second
/// derivative: carrying gradients back with `create_graph` is an error.
///
/// # Panics
/// When `forward` gives back one of the inputs, or what is no tensor of floats.
pub fn differentiable<const N: usize, B>(
    inputs: [&Tensor; N],
    forward: impl FnOnce() -> Tensor,
    backward: B,
) -> Tensor
where
    B: Fn(&Tensor, [bool; N]) -> [Option<Tensor>; N] + Send + 'static,
{
    let output = {
        let _guard = tch::no_grad_guard();
        forward()
    };
    let inputs = inputs.map(Tensor::as_ptr);
    let closure = Closure {
        data: Box::into_raw(Box::new(backward)).cast(),
        carry: carry::<N, B>,
        drop: release::<B>,
    };
    // SAFETY: the tensors live through the call, which keeps what it needs of them; it takes the
    // closure, whose functions are those of its type, and gives it back once.
    let is_done = unsafe { amend_carry_by(output.as_ptr(), inputs.as_ptr(), N, closure) };
    assert!(is_done, "a function makes a new tensor of floats");
    output
}

/// Called by libtorch with a closure of this type, a gradient, and room for N answers.
unsafe extern "C" fn carry<const N: usize, B>(
    closure: *const c_void,
    gradient: *const C_tensor,
    wanted: *const bool,
    gradients: *mut *mut C_tensor,
) -> bool
where
    B: Fn(&Tensor, [bool; N]) -> [Option<Tensor>; N] + Send + 'static,
{
    // SAFETY: the data is what `differentiable` boxed, which is borrowed until this returns; there
    // are N of the others; and libtorch takes the tensors that are written, each whose memory is its own.
    let (backward, wanted) = unsafe { (&*closure.cast::<B>(), *wanted.cast::<[bool; N]>()) };
    let made = catch_unwind(AssertUnwindSafe(|| {
        let gradient = unsafe { Tensor::clone_from_ptr(gradient.cast_mut()) };
        backward(&gradient, wanted)
    }));
    let Ok(made) = made else { return false };
    for (place, made) in made.into_iter().enumerate() {
        if let Some(mut made) = made {
            unsafe { *gradients.add(place) = made.as_mut_ptr() };
            std::mem::forget(made);
        }
    }
    true
}

unsafe extern "C" fn release<B>(closure: *mut c_void) {
    // SAFETY: the data is what `differentiable` boxed, given back once. What it holds are tensors,
    // which do not panic when they are dropped.
    drop(unsafe { Box::from_raw(closure.cast::<B>()) });
}

/// `x Wᵀ` of (…, in) and (out, in) in f32 on a processor, by oneDNN. Nothing is recorded, and a result
/// of three dimensions or more is a view.
///
/// # Panics
/// When they are of another kind or elsewhere, or their shapes do not belong together.
pub fn product(x: &Tensor, weight: &Tensor) -> Tensor {
    for tensor in [x, weight] {
        assert_eq!((tensor.kind(), tensor.device()), (Kind::Float, Device::Cpu), "what it takes");
    }
    let _guard = tch::no_grad_guard();
    // SAFETY: both live through the call.
    let y = unsafe { amend_product(x.as_ptr(), weight.as_ptr()) };
    assert!(!y.is_null(), "oneDNN multiplies what belongs together: see the line above");
    // SAFETY: it is a new tensor, which nobody else knows.
    unsafe { Tensor::from_ptr(y) }
}

//! The `amend` binary.

#![cfg_attr(
    all(target_os = "linux", feature = "torch"),
    allow(unsafe_code, reason = "what runs before the C library has started: see `EARLY`")
)]

use std::process::ExitCode;

#[cfg(all(target_os = "linux", feature = "torch"))]
use std::ffi::{c_char, c_int};

/// Rows are many small texts and hashes: a third of an edit's time was the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Run by the loader before the libraries that the binary is linked with start up.
///
/// libtorch takes 0.2 s and more to register its operators, whether a model is asked or not. What
/// needs no model is answered before that, and the process ends.
#[cfg(all(target_os = "linux", feature = "torch"))]
#[used]
#[unsafe(link_section = ".preinit_array")]
static EARLY: extern "C" fn(c_int, Strings, Strings) = early;

/// An array of C strings.
#[cfg(all(target_os = "linux", feature = "torch"))]
type Strings = *const *const c_char;

#[cfg(all(target_os = "linux", feature = "torch"))]
unsafe extern "C" {
    static mut environ: Strings;
}

#[cfg(all(target_os = "linux", feature = "torch"))]
#[expect(clippy::exit, reason = "there is no `main` to return from yet")]
extern "C" fn early(_count: c_int, _arguments: Strings, environment: Strings) {
    // SAFETY: the loader gives what the C library will set it to when it starts; this is the only
    // thread, and nobody has read it.
    unsafe { environ = environment };
    // A panic is met again where it can be shown whole.
    if let Ok(Some(code)) = std::panic::catch_unwind(amend::cli::early) {
        std::process::exit(i32::from(code));
    }
}

fn main() -> ExitCode {
    amend::cli::main()
}

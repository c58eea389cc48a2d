//! Tells the linker where libtorch lies, so that what cargo builds runs with no environment variable.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for name in ["LIBTORCH", "LIBTORCH_LIB", "AMEND_CHECKOUT"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if env::var_os("CARGO_FEATURE_TORCH").is_none() {
        return;
    }
    let Ok(home) = env::var("LIBTORCH_LIB").or_else(|_| env::var("LIBTORCH")) else {
        println!(
            "cargo::error=LIBTORCH is not set: run `make setup` once, or build with --no-default-features"
        );
        return;
    };
    let libraries = Path::new(&home).join("lib");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", libraries.display());
}

//! Compiles the node of libtorch's graph, which is a class of C++.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/node.cpp");
    // Checkouts share the artefacts, and none takes another's.
    println!("cargo::rerun-if-env-changed=AMEND_CHECKOUT");
    for name in ["LIBTORCH", "LIBTORCH_INCLUDE", "LIBTORCH_CXX11_ABI"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    // Where torch-sys looks, too.
    let home = env::var("LIBTORCH_INCLUDE").or_else(|_| env::var("LIBTORCH"));
    let include = match (home, env::var("DEP_TCH_LIBTORCH_LIB")) {
        (Ok(home), _) => Path::new(&home).join("include"),
        (Err(_), Ok(libraries)) => Path::new(&libraries).with_file_name("include"),
        (Err(_), Err(_)) => {
            println!("cargo::error=LIBTORCH is not set: run `make setup` once");
            return;
        }
    };
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .include(&include)
        .warnings(false)
        .file("src/node.cpp")
        .compile("amend_autograd");
}

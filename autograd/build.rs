//! Compiles the node of libtorch's graph, which is a class of C++.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/node.cpp");
    // Checkouts share the artefacts, and none takes another's.
    println!("cargo::rerun-if-env-changed=AMEND_CHECKOUT");
    for name in ["LIBTORCH_INCLUDE", "LIBTORCH_CXX11_ABI"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let Ok(libraries) = env::var("DEP_TCH_LIBTORCH_LIB") else {
        println!("cargo::error=torch-sys does not say where libtorch lies");
        return;
    };
    let include = match env::var("LIBTORCH_INCLUDE") {
        Ok(home) => Path::new(&home).join("include"),
        Err(_) => Path::new(&libraries).with_file_name("include"),
    };
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        // As system headers: what they are warned of is not ours.
        .flag("-isystem")
        .flag(&include)
        .file("src/node.cpp")
        .compile("amend_autograd");
}

//! Watches the checkout that is built: checkouts share the artefacts, and none takes another's.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=AMEND_CHECKOUT");
}

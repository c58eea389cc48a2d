//! The `amend` binary.
fn main() {}

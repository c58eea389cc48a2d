//! What `make setup` leaves behind is enough to build, link and run.

/// libtorch is found through the rpath that `build.rs` gives, with no environment variable.
#[cfg(feature = "torch")]
#[test]
fn libtorch_is_found_and_multiplies() {
    let a = tch::Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]).view([2, 2]);
    let product = Vec::<f32>::try_from(a.matmul(&a).view([4])).expect("it is a vector of f32");
    assert_eq!(product, [7.0, 10.0, 15.0, 22.0]);
}

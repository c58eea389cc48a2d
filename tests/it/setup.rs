//! What `make setup` leaves behind is enough to build, link and run.

/// libtorch is found through the rpath that `build.rs` gives, with no environment variable.
#[cfg(feature = "torch")]
#[test]
fn libtorch_is_found_and_multiplies() {
    let a = tch::Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]).view([2, 2]);
    assert_eq!(Vec::<f32>::try_from(a.matmul(&a).view([4])), Ok(vec![7.0, 10.0, 15.0, 22.0]));
}

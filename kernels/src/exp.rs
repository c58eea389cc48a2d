//! The exponential of numbers that are not positive, in a form that compilers vectorise.

/// eˣ for x ≤ 0, within two units in the last place; 0 where the result would not be normal.
///
/// The polynomial of Cephes (`expf`, S. Moshier).
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "as published")]
pub(crate) fn exp(x: f32) -> f32 {
    let within = if x > -87.0 { x } else { -87.0 };
    // Adding 1.5 · 2²³ leaves the nearest integer in the last bits.
    let shifted = within.mul_add(std::f32::consts::LOG2_E, 12_582_912.0);
    let powers = shifted - 12_582_912.0;
    // ln 2 in two parts: the first is exact, times a power.
    let rest = powers.mul_add(-0.693_359_375, within);
    let rest = powers.mul_add(2.121_944_40e-4, rest);
    let mut sum = 1.987_569_150_0e-4;
    for coefficient in [
        1.398_199_950_7e-3,
        8.333_451_907_3e-3,
        4.166_579_589_4e-2,
        1.666_666_545_9e-1,
        5.000_000_120_1e-1,
    ] {
        sum = rest.mul_add(sum, coefficient);
    }
    let fraction = (rest * rest).mul_add(sum, rest) + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { fraction * power }
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn it_is_the_exponential() {
        for step in 0..870_000 {
            let x = -(step as f32) * 1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.4e-7, "{x}: {error:e}");
        }
        let ends = [exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY)];
        assert_eq!(ends.map(f32::to_bits), [1.0f32, 0.0, 0.0].map(f32::to_bits));
    }
}

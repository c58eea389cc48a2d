//! Numbers as they lie in memory, in f32 or in bf16. All are computed with in f32.

/// A number in memory.
pub trait Number: Copy + Send + Sync {
    /// The number.
    fn wide(self) -> f32;

    /// The nearest that can be written; of two that are as near, the even one.
    fn nearest(wide: f32) -> Self;
}

impl Number for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn nearest(wide: f32) -> f32 {
        wide
    }
}

/// A number in bf16: the bits of the upper half of an f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

impl Number for Bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    #[inline(always)]
    fn nearest(wide: f32) -> Bf16 {
        let bits = wide.to_bits();
        // Half of the last place, less a bit where what stays is even.
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        // What is not a number stays none: its bits may be those of the largest f32.
        let kept = if wide.is_nan() { bits >> 16 | 0x40 } else { rounded };
        Bf16(kept as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_is_written_and_of_two_the_even_one() {
        for (wide, bits) in [
            (1.0, 0x3f80),
            (1.0 + 1.0 / 256.0, 0x3f80), // half way, to the even one below
            (1.0 + 3.0 / 256.0, 0x3f82), // half way, to the even one above
            (1.0 + 1.1 / 256.0, 0x3f81),
            (-1.0 - 1.1 / 256.0, 0xbf81),
            (f32::MAX, 0x7f80),
            (f32::NEG_INFINITY, 0xff80),
            (0.0, 0),
        ] {
            assert_eq!(Bf16::nearest(wide), Bf16(bits), "{wide}");
        }
        let unwritable = f32::from_bits(0x7f80_0001);
        assert!(unwritable.is_nan() && Bf16::nearest(unwritable).wide().is_nan());
        for bits in (0..=u16::MAX).filter(|&bits| !Bf16(bits).wide().is_nan()) {
            assert_eq!(Bf16::nearest(Bf16(bits).wide()), Bf16(bits), "what is there stays");
        }
    }
}

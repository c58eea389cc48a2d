//! Sixteen numbers at a time, in three ways: AVX-512, AVX2 with FMA, and plain Rust.
//!
//! All three round alike: a product and a sum is always fused, and nothing is added across lanes.
//! So a kernel written over [`Lanes`] gives the same bits on every processor.
//!
//! `unsafe` is sound here because a value of [`Avx512`] or [`Avx2`] is only made where the processor
//! was asked, and because memory is reached through references to arrays of the right length.

#![allow(unsafe_code, reason = "instructions that not every processor has")]

/// How a processor computes with sixteen numbers.
pub(crate) trait Lanes: Copy {
    /// Sixteen numbers.
    type Sixteen: Copy;

    /// How many rows a tile of a product has at most: its sums have to fit into registers.
    const ROWS: usize;

    /// Whether there are registers for two times sixteen sums a row.
    const IS_WIDE: bool;

    /// One number sixteen times.
    fn splat(self, number: f32) -> Self::Sixteen;

    /// Reads sixteen numbers.
    fn load(self, from: &[f32; 16]) -> Self::Sixteen;

    /// Reads two times sixteen numbers in bf16: the low halves, and the high ones.
    fn widen(self, from: &[u32; 16]) -> [Self::Sixteen; 2];

    /// Writes sixteen numbers.
    fn store(self, numbers: Self::Sixteen, to: &mut [f32; 16]);

    /// `a · b + c`, rounded once.
    fn mul_add(self, a: Self::Sixteen, b: Self::Sixteen, c: Self::Sixteen) -> Self::Sixteen;
}

/// Something to be computed, whichever way the processor has.
pub(crate) trait Work {
    /// Computes it. To be inlined, so that it is compiled for the processor.
    fn run<L: Lanes>(self, lanes: L);
}

/// Computes something the best way that the processor has.
pub(crate) fn dispatch(work: impl Work) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
        {
            // SAFETY: the processor has what the function is compiled for.
            return unsafe { x86::avx512(work) };
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
        {
            // SAFETY: as above.
            return unsafe { x86::avx2(work) };
        }
    }
    work.run(Plain);
}

/// The half of two numbers in bf16 that is one with 16 more digits, which are 0.
const HIGH: u32 = 0xffff_0000;

/// Plain Rust; where a fused product is no instruction it is a slow function.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Lanes for Plain {
    type Sixteen = [f32; 16];

    const ROWS: usize = 4;
    const IS_WIDE: bool = false;

    #[inline(always)]
    fn splat(self, number: f32) -> [f32; 16] {
        [number; 16]
    }

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> [f32; 16] {
        *from
    }

    #[inline(always)]
    fn widen(self, from: &[u32; 16]) -> [[f32; 16]; 2] {
        [from.map(|pair| f32::from_bits(pair << 16)), from.map(|pair| f32::from_bits(pair & HIGH))]
    }

    #[inline(always)]
    fn store(self, numbers: [f32; 16], to: &mut [f32; 16]) {
        *to = numbers;
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _mm256_and_si256, _mm256_castsi256_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
        _mm256_loadu_si256, _mm256_set1_epi32, _mm256_set1_ps, _mm256_slli_epi32, _mm256_storeu_ps,
        _mm512_and_si512, _mm512_castsi512_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
        _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_slli_epi32, _mm512_storeu_ps,
    };

    use super::{HIGH, Lanes, Work};

    #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
    pub(super) fn avx512(work: impl Work) {
        work.run(Avx512(()));
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(work: impl Work) {
        work.run(Avx2(()));
    }

    /// The processor has AVX-512.
    #[derive(Clone, Copy)]
    pub(super) struct Avx512(());

    /// The processor has AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2(());

    // SAFETY of both: a value of the type says that the processor has the instructions, and a
    // reference to an array says that sixteen numbers are there.

    impl Lanes for Avx512 {
        type Sixteen = __m512;

        const ROWS: usize = 8;
        const IS_WIDE: bool = true;

        #[inline(always)]
        fn splat(self, number: f32) -> __m512 {
            unsafe { _mm512_set1_ps(number) }
        }

        #[inline(always)]
        fn load(self, from: &[f32; 16]) -> __m512 {
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }

        #[inline(always)]
        fn widen(self, from: &[u32; 16]) -> [__m512; 2] {
            unsafe {
                let pairs = _mm512_loadu_si512(from.as_ptr().cast());
                let high = _mm512_and_si512(pairs, _mm512_set1_epi32(HIGH.cast_signed()));
                [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(high)]
            }
        }

        #[inline(always)]
        fn store(self, numbers: __m512, to: &mut [f32; 16]) {
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), numbers) }
        }

        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
    }

    impl Lanes for Avx2 {
        type Sixteen = [__m256; 2];

        const ROWS: usize = 6;
        const IS_WIDE: bool = false;

        #[inline(always)]
        fn splat(self, number: f32) -> [__m256; 2] {
            [unsafe { _mm256_set1_ps(number) }; 2]
        }

        #[inline(always)]
        fn load(self, from: &[f32; 16]) -> [__m256; 2] {
            let from = from.as_ptr();
            unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
        }

        #[inline(always)]
        fn widen(self, from: &[u32; 16]) -> [[__m256; 2]; 2] {
            let from = from.as_ptr();
            unsafe {
                let first = _mm256_loadu_si256(from.cast());
                let last = _mm256_loadu_si256(from.add(8).cast());
                let high = _mm256_set1_epi32(HIGH.cast_signed());
                let low_of = [_mm256_slli_epi32::<16>(first), _mm256_slli_epi32::<16>(last)];
                let high_of = [_mm256_and_si256(first, high), _mm256_and_si256(last, high)];
                [
                    [_mm256_castsi256_ps(low_of[0]), _mm256_castsi256_ps(low_of[1])],
                    [_mm256_castsi256_ps(high_of[0]), _mm256_castsi256_ps(high_of[1])],
                ]
            }
        }

        #[inline(always)]
        fn store(self, numbers: [__m256; 2], to: &mut [f32; 16]) {
            let to = to.as_mut_ptr();
            unsafe {
                _mm256_storeu_ps(to, numbers[0]);
                _mm256_storeu_ps(to.add(8), numbers[1]);
            }
        }

        #[inline(always)]
        fn mul_add(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Plain, Work};

    /// Computes something in every way that this processor has.
    pub(crate) fn every_way<W: Work>(mut work: impl FnMut() -> W) {
        work().run(Plain);
        #[cfg(target_arch = "x86_64")]
        {
            let has_fma = std::arch::is_x86_feature_detected!("fma");
            if has_fma && std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has what the function is compiled for.
                unsafe { super::x86::avx2(work()) };
            }
        }
        super::dispatch(work());
    }
}

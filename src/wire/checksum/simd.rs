//! The sum in vector registers, for data that is long enough to fill some of them.
//!
//! A value of [`Simd`] is the proof that the machine has the instructions: there is no other way
//! to get one than [`Simd::detect`]. AVX2 is asked for once and then a flag in memory; NEON is
//! part of every aarch64; other machines have no value of the type. What is left for `unsafe` is
//! the step into functions that need the instructions, and the loads.
//!
//! Both add 32-bit words to 64-bit lanes, which overflow with slices of 16 GiB at the earliest.

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Simd;
#[cfg(target_arch = "aarch64")]
pub(super) use neon::Simd;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) use none::Simd;

#[cfg(target_arch = "x86_64")]
mod avx2 {
    #![expect(unsafe_code, reason = "a function for AVX2 may be called only where AVX2 is")]

    use std::arch::x86_64::__m256i;
    use std::arch::x86_64::_mm256_add_epi64;
    use std::arch::x86_64::_mm256_extract_epi64;
    use std::arch::x86_64::_mm256_loadu_si256;
    use std::arch::x86_64::_mm256_setzero_si256;
    use std::arch::x86_64::_mm256_slli_epi64;
    use std::arch::x86_64::_mm256_srli_epi64;
    use std::arch::x86_64::_mm256_sub_epi64;

    use super::super::Implementation;
    use super::super::scalar;

    const VECTOR_BYTES: usize = 32;

    /// Vectors per turn of the loop.
    const UNROLL: usize = 4;

    /// AVX2, which this machine has.
    #[derive(Clone, Copy, Debug)]
    pub(in super::super) struct Simd(());

    impl Simd {
        pub(in super::super) const IMPLEMENTATION: Implementation = Implementation::Avx2;

        #[inline]
        pub(in super::super) fn detect() -> Option<Self> {
            // The standard library keeps the answer: a relaxed load and the test of a bit.
            is_x86_feature_detected!("avx2").then_some(Self(()))
        }

        /// See [`scalar::words`].
        #[expect(clippy::unused_self, reason = "who has it has the instructions")]
        #[inline]
        pub(in super::super) fn words(self, bytes: &[u8]) -> u64 {
            // SAFETY: self exists, so detect() found AVX2.
            unsafe { words(bytes) }
        }
    }

    #[target_feature(enable = "avx2")]
    fn words(bytes: &[u8]) -> u64 {
        let mut lanes = Lanes::new();
        let (blocks, rest) = bytes.as_chunks::<{ UNROLL * VECTOR_BYTES }>();
        for block in blocks {
            let (vectors, _) = block.as_chunks();
            for vector in vectors {
                lanes.add(vector);
            }
        }
        let (vectors, rest) = rest.as_chunks();
        for vector in vectors {
            lanes.add(vector);
        }
        scalar::add(lanes.total(), scalar::rest_words(bytes, rest))
    }

    /// Sums of 64-bit words, lane by lane. To add their upper and lower halves by themselves takes
    /// two additions and two instructions that part them. The lower one follows from the sum of
    /// the whole words, though that overflows: `lower = whole - (upper << 32)` modulo 2⁶⁴, below
    /// which `lower` stays. That saves one instruction in four.
    struct Lanes {
        whole: __m256i,
        upper: __m256i,
    }

    impl Lanes {
        #[inline]
        #[target_feature(enable = "avx2")]
        fn new() -> Self {
            Self { whole: _mm256_setzero_si256(), upper: _mm256_setzero_si256() }
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        fn add(&mut self, bytes: &[u8; VECTOR_BYTES]) {
            // SAFETY: bytes are as many as are read, and no alignment is asked for.
            let vector = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
            self.whole = _mm256_add_epi64(self.whole, vector);
            self.upper = _mm256_add_epi64(self.upper, _mm256_srli_epi64::<32>(vector));
        }

        /// The sum of all 32-bit words.
        #[inline]
        #[target_feature(enable = "avx2")]
        fn total(self) -> u64 {
            let lower = _mm256_sub_epi64(self.whole, _mm256_slli_epi64::<32>(self.upper));
            let both = _mm256_add_epi64(lower, self.upper);
            [
                _mm256_extract_epi64::<0>(both),
                _mm256_extract_epi64::<1>(both),
                _mm256_extract_epi64::<2>(both),
                _mm256_extract_epi64::<3>(both),
            ]
            .into_iter()
            .map(i64::cast_unsigned)
            .sum()
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    #![expect(unsafe_code, reason = "a function for NEON may be called only where NEON is")]

    use std::arch::aarch64::uint64x2_t;
    use std::arch::aarch64::vaddq_u64;
    use std::arch::aarch64::vaddvq_u64;
    use std::arch::aarch64::vdupq_n_u64;
    use std::arch::aarch64::vld1q_u8;
    use std::arch::aarch64::vpadalq_u32;
    use std::arch::aarch64::vreinterpretq_u32_u8;

    use super::super::Implementation;
    use super::super::scalar;

    const VECTOR_BYTES: usize = 16;

    /// Vectors per turn of the loop, each with a sum of its own: none waits for another.
    const UNROLL: usize = 4;

    /// NEON, which this machine has.
    #[derive(Clone, Copy, Debug)]
    pub(in super::super) struct Simd(());

    impl Simd {
        pub(in super::super) const IMPLEMENTATION: Implementation = Implementation::Neon;

        #[inline]
        pub(in super::super) fn detect() -> Option<Self> {
            // A constant for every target of Linux.
            std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
        }

        /// See [`scalar::words`].
        #[expect(clippy::unused_self, reason = "who has it has the instructions")]
        #[inline]
        pub(in super::super) fn words(self, bytes: &[u8]) -> u64 {
            // SAFETY: self exists, so detect() found NEON.
            unsafe { words(bytes) }
        }
    }

    #[target_feature(enable = "neon")]
    fn words(bytes: &[u8]) -> u64 {
        let mut lanes = [vdupq_n_u64(0); UNROLL];
        let (blocks, rest) = bytes.as_chunks::<{ UNROLL * VECTOR_BYTES }>();
        for block in blocks {
            let (vectors, _) = block.as_chunks();
            for (lane, vector) in lanes.iter_mut().zip(vectors) {
                *lane = accumulate(*lane, vector);
            }
        }
        let (vectors, rest) = rest.as_chunks();
        for (lane, vector) in lanes.iter_mut().zip(vectors) {
            *lane = accumulate(*lane, vector);
        }
        let [a, b, c, d] = lanes;
        let total = vaddvq_u64(vaddq_u64(vaddq_u64(a, b), vaddq_u64(c, d)));
        scalar::add(total, scalar::rest_words(bytes, rest))
    }

    /// Adds the first two 32-bit words to the first lane and the others to the second.
    #[inline]
    #[target_feature(enable = "neon")]
    fn accumulate(lanes: uint64x2_t, bytes: &[u8; VECTOR_BYTES]) -> uint64x2_t {
        // SAFETY: bytes are as many as are read, and no alignment is asked for.
        let vector = unsafe { vld1q_u8(bytes.as_ptr()) };
        vpadalq_u32(lanes, vreinterpretq_u32_u8(vector))
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod none {
    use std::convert::Infallible;

    use super::super::Implementation;

    /// No vector instructions that this program knows.
    #[derive(Clone, Copy, Debug)]
    pub(in super::super) struct Simd(Infallible);

    impl Simd {
        pub(in super::super) const IMPLEMENTATION: Implementation = Implementation::Scalar;

        pub(in super::super) fn detect() -> Option<Self> {
            None
        }

        pub(in super::super) fn words(self, _: &[u8]) -> u64 {
            match self.0 {}
        }
    }
}

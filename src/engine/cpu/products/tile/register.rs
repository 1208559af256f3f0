//! Registers of 32-bit floats.

use std::arch::x86_64::*;

/// A vector register of AVX-512 or AVX2. Its functions are inlined into a caller that has the target features.
///
/// # Safety
/// For all functions: the processor has the instructions, and the pointers are valid for the elements that are read or
/// written.
pub(in super::super) trait Register: Copy {
    /// The number of elements in a register.
    const LANES: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// Loads the first `count` elements; the others are zeros.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Writes the first `count` elements.
    unsafe fn store_first(self, to: *mut f32, count: usize);
    unsafe fn plus(self, other: Self) -> Self;
    /// `self + a b`, rounded once.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
}

impl Register for __m512 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        _mm512_set1_ps(value)
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        _mm512_loadu_ps(from)
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        _mm512_maskz_loadu_ps(first_16(count), from)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        _mm512_storeu_ps(to, self)
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        _mm512_mask_storeu_ps(to, first_16(count), self)
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        _mm512_add_ps(self, other)
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        _mm512_fmadd_ps(a, b, self)
    }
}

impl Register for __m256 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        _mm256_set1_ps(value)
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        _mm256_loadu_ps(from)
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        _mm256_maskload_ps(from, first_8(count))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        _mm256_storeu_ps(to, self)
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        _mm256_maskstore_ps(to, first_8(count), self)
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        _mm256_add_ps(self, other)
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        _mm256_fmadd_ps(a, b, self)
    }
}

#[inline(always)]
fn first_16(count: usize) -> __mmask16 {
    ((1u32 << count.min(16)) - 1) as __mmask16
}

#[inline(always)]
unsafe fn first_8(count: usize) -> __m256i {
    let numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_cmpgt_epi32(_mm256_set1_epi32(count.min(8) as i32), numbers)
}

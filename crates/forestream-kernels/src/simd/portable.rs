//! Sixteen lanes in plain Rust: the reference, and what runs where no vector kernel exists.

use half::f16;

use super::{LANES, Simd};

/// Arrays of 16; loops that a compiler vectorizes by itself.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn map(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

impl Simd for Portable {
    type F32 = [f32; LANES];

    const MAX_ROWS: usize = 4;
    const READS_F16: bool = false;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::F32 {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F32 {
        // SAFETY: the caller points to 16 elements, here and below.
        unsafe { from.cast::<[f32; LANES]>().read() }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self::F32 {
        // SAFETY: as above.
        unsafe { from.cast::<[f16; LANES]>().read() }.map(f16::to_f32)
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::F32 {
        // SAFETY: as above.
        unsafe { from.cast::<[u16; LANES]>().read() }.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }
    #[inline(always)]
    unsafe fn store(value: Self::F32, to: *mut f32) {
        // SAFETY: as above.
        unsafe { to.cast::<[f32; LANES]>().write(value) };
    }
    #[inline(always)]
    unsafe fn add(a: Self::F32, b: Self::F32) -> Self::F32 {
        map(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F32, b: Self::F32) -> Self::F32 {
        map(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F32, b: Self::F32) -> Self::F32 {
        map(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::F32, b: Self::F32) -> Self::F32 {
        map(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::F32, b: Self::F32) -> Self::F32 {
        map(|i| if a[i] > b[i] { a[i] } else { b[i] }) // as `maxps`: the second operand on ties and NaN
    }
    #[inline(always)]
    unsafe fn min(a: Self::F32, b: Self::F32) -> Self::F32 {
        map(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        map(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn round(a: Self::F32) -> Self::F32 {
        map(|i| a[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn exp2_of_integer(a: Self::F32) -> Self::F32 {
        map(|i| f32::from_bits(((a[i] as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    unsafe fn store_i8(value: Self::F32, to: &mut [i8]) -> i32 {
        let mut sum = 0;
        for (to, value) in to[..LANES].iter_mut().zip(value) {
            *to = value.round_ties_even() as i8;
            sum += i32::from(*to);
        }
        sum
    }
}

//! Sixteen `f32` lanes and the instruction sets that carry them.
//!
//! Every floating-point kernel is written once over [`Simd`] and compiled once per instruction set by [`dispatch!`].
//! Inside, plain loops over indices and pointers: iterator adaptors and closures are functions without the features of
//! the set, and the compiler does not inline those reliably.
//! The lane count is 16 everywhere, and reductions fold lanes in one fixed order, so that all sets agree bit for bit.

mod avx2;
mod avx512;
mod portable;

pub(crate) use avx2::Avx2;
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;

use half::f16;

/// Lanes of a vector; part of the canonical order of every reduction.
pub const LANES: usize = 16;

/// Operations on sixteen lanes.
///
/// # Safety
/// Methods may be called only where the implementor's instruction set is available: inside a function that
/// [`dispatch!`] made, which is why everything here is inlined.
pub(crate) trait Simd: Copy {
    /// Sixteen lanes.
    type F32: Copy;

    /// Rows of activations that a matrix product takes at once: their sums must fit into the registers.
    const MAX_ROWS: usize;

    /// Whether an instruction widens half precision, so that [`Simd::load_f16`] costs hardly more than [`Simd::load`].
    const READS_F16: bool;

    unsafe fn splat(value: f32) -> Self::F32;
    /// Reads 16 elements at `from`.
    unsafe fn load(from: *const f32) -> Self::F32;
    /// Reads 16 half-precision elements at `from`.
    unsafe fn load_f16(from: *const f16) -> Self::F32;
    /// Reads the bits of 16 bfloat16 elements at `from`.
    unsafe fn load_bf16(from: *const u16) -> Self::F32;
    /// Writes 16 elements at `to`.
    unsafe fn store(value: Self::F32, to: *mut f32);
    unsafe fn add(a: Self::F32, b: Self::F32) -> Self::F32;
    unsafe fn sub(a: Self::F32, b: Self::F32) -> Self::F32;
    unsafe fn mul(a: Self::F32, b: Self::F32) -> Self::F32;
    unsafe fn div(a: Self::F32, b: Self::F32) -> Self::F32;
    /// The larger of each pair; of a pair with NaN the second.
    unsafe fn max(a: Self::F32, b: Self::F32) -> Self::F32;
    /// The smaller of each pair; of a pair with NaN the second.
    unsafe fn min(a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// Nearest integers, ties to even; inputs within the range of `i32`.
    unsafe fn round(a: Self::F32) -> Self::F32;
    /// Two to the power of integer-valued lanes in -126..=127.
    unsafe fn exp2_of_integer(a: Self::F32) -> Self::F32;
    /// Rounds to the nearest `i8` (ties to even; inputs within -127..=127), writes 16 and returns their sum.
    unsafe fn store_i8(value: Self::F32, to: &mut [i8]) -> i32;
    /// The lanes as an array.
    #[inline(always)]
    unsafe fn to_array(value: Self::F32) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the caller vouches for the instruction set; the array has 16 elements.
        unsafe { Self::store(value, lanes.as_mut_ptr()) };
        lanes
    }
}

/// A number as it is stored, which is computed with in `f32`.
pub(crate) trait Element: Copy {
    /// Reads 16 of them.
    ///
    /// # Safety
    /// As for [`Simd`]; 16 elements at `from`.
    unsafe fn load<S: Simd>(from: *const Self) -> S::F32;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::F32 {
        // SAFETY: as the caller's.
        unsafe { S::load(from) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::F32 {
        // SAFETY: as the caller's.
        unsafe { S::load_f16(from) }
    }
}

/// Sums lanes in the canonical order: 16 to 8 to 4 to 2 to 1, low half plus high half.
#[inline(always)]
pub(crate) fn fold_sum(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// An instruction set that this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Portable,
    Avx2,
    Avx512,
}

impl Isa {
    /// The portable kernels: plain Rust, available everywhere, the reference for the others.
    pub const PORTABLE: Self = Self(Kind::Portable);

    /// Every set that this machine has, the portable one first and the fastest last.
    pub fn available() -> Vec<Self> {
        let mut sets = vec![Self::PORTABLE];
        if avx2::is_available() {
            sets.push(Self(Kind::Avx2));
        }
        if avx512::is_available() {
            sets.push(Self(Kind::Avx512));
        }
        sets
    }

    /// The fastest set that this machine has.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::PORTABLE)
    }

    /// The set of that name (`generic`, `avx2`, `avx512`); `None` where this machine lacks it.
    pub fn named(name: &str) -> Option<Self> {
        Self::available().into_iter().find(|isa| isa.name() == name)
    }

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "generic",
            Kind::Avx2 => "avx2",
            Kind::Avx512 => "avx512",
        }
    }

    /// [`Simd::MAX_ROWS`] of the set.
    pub(crate) fn max_rows(self) -> usize {
        match self.0 {
            Kind::Portable => Portable::MAX_ROWS,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => Avx2::MAX_ROWS,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => Avx512::MAX_ROWS,
            #[cfg(not(target_arch = "x86_64"))]
            Kind::Avx2 | Kind::Avx512 => unreachable!("sets of another processor"),
        }
    }

    pub(crate) fn kind(self) -> Kind {
        self.0
    }
}

/// Compiles `body::<S>` for each instruction set and calls the one that `$isa` names:
/// `dispatch!(isa, body(name: Type = value, ...) -> Out)`. Further generic parameters of the body are declared and then
/// named: `dispatch!(isa, body [T: Bound, const N: usize] [T, N] (...))`.
macro_rules! dispatch {
    (
        $isa:expr, $body:ident $([$($generics:tt)+] [$($names:tt)+])?
        ($($arg:ident : $ty:ty = $value:expr),* $(,)?) $(-> $out:ty)?
    ) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2 $(<$($generics)+>)? ($($arg: $ty),*) $(-> $out)? {
            // SAFETY: this function enables the features of the set.
            unsafe { $body::<$crate::simd::Avx2 $(, $($names)+)?>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        unsafe fn avx512 $(<$($generics)+>)? ($($arg: $ty),*) $(-> $out)? {
            // SAFETY: this function enables the features of the set.
            unsafe { $body::<$crate::simd::Avx512 $(, $($names)+)?>($($arg),*) }
        }
        match $isa.kind() {
            // SAFETY: an `Isa` value exists only for a set that this machine has.
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Kind::Avx2 => unsafe { avx2 $(::<$($names)+>)? ($($value),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Kind::Avx512 => unsafe { avx512 $(::<$($names)+>)? ($($value),*) },
            // SAFETY: the portable set needs no features.
            _ => unsafe { $body::<$crate::simd::Portable $(, $($names)+)?>($($value),*) },
        }
    }};
}
pub(crate) use dispatch;

//! The smallest program that tells whether the emulated machine has AVX-512 with VNNI: features, and one instruction.

use std::arch::x86_64::{__m512i, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi8, _mm512_set1_epi32};

/// 1 plus the product of 255 with four signed bytes, in each of 16 lanes.
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot(bytes: &[i8; 64]) -> [i32; 16] {
    // SAFETY: both types are 64 bytes of plain numbers.
    unsafe {
        let bytes = _mm512_loadu_si512(bytes.as_ptr().cast());
        let lanes = _mm512_dpbusd_epi32(_mm512_set1_epi32(1), _mm512_set1_epi8(-1), bytes);
        std::mem::transmute::<__m512i, [i32; 16]>(lanes)
    }
}

fn main() {
    macro_rules! print_features {
        ($($name:tt)+) => { $( println!("{} {}", $name, is_x86_feature_detected!($name)); )+ };
    }
    print_features!("avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vnni");
    assert!(is_x86_feature_detected!("avx512vnni"), "no AVX-512 VNNI here");
    let bytes: [i8; 64] = std::array::from_fn(|i| i as i8 - 32);
    // SAFETY: the feature was just found.
    let got = unsafe { dot(&bytes) };
    let want: [i32; 16] =
        std::array::from_fn(|lane| 1 + bytes[lane * 4..][..4].iter().map(|&x| 255 * i32::from(x)).sum::<i32>());
    println!("vpdpbusd {got:?}");
    assert_eq!(got, want);
}

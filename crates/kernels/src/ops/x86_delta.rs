//! The gated delta rule with AVX2: two rows of the state at a time, so that eight sums run side by side and each load of a key or a
//! query serves both. Same order, same roundings as the portable loop.

use std::arch::x86_64::*;

use super::delta::DeltaTokens;
use super::x86::reduce;

/// See [`delta_rows`](super::delta_rows), which checked the lengths; the width is a multiple of sixteen.
#[target_feature(enable = "avx2,fma")]
pub(super) fn delta_rows(
    tokens: &DeltaTokens<'_>,
    width: usize,
    state: &mut [f32],
    values: &mut [f32],
    pitch: usize,
) {
    let rows = state.len() / width;
    for j in (0..rows).step_by(2) {
        // SAFETY: rows j.. of the state and elements j.. of each token's values are inside their slices.
        unsafe {
            let (state, values) = (state.as_mut_ptr().add(j * width), values.as_mut_ptr().add(j));
            match rows - j {
                1 => tile::<1>(tokens, width, state, values, pitch),
                _ => tile::<2>(tokens, width, state, values, pitch),
            }
        }
    }
}

/// # Safety
/// AVX2 and FMA; `R` rows of `width` floats, a multiple of sixteen, at `state`; `R` values of each token at `values`, tokens `pitch` apart.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const R: usize>(
    tokens: &DeltaTokens<'_>,
    width: usize,
    state: *mut f32,
    values: *mut f32,
    pitch: usize,
) {
    for (t, pair) in tokens.pairs.chunks_exact(2 * width).enumerate() {
        let (key, query) = (pair.as_ptr(), pair[width..].as_ptr());
        let decay = tokens.decays[t];
        let mut updates = [_mm256_setzero_ps(); R];
        // SAFETY: all reads and writes are of the rows, the pair and the values named in the contract.
        unsafe {
            let mut held = [[_mm256_setzero_ps(); 2]; R];
            let mut asked = [[_mm256_setzero_ps(); 2]; R];
            for i in (0..width).step_by(16) {
                for half in 0..2 {
                    let k = _mm256_loadu_ps(key.add(i + 8 * half));
                    let q = _mm256_loadu_ps(query.add(i + 8 * half));
                    for r in 0..R {
                        let s = _mm256_loadu_ps(state.add(r * width + i + 8 * half));
                        held[r][half] = _mm256_fmadd_ps(s, k, held[r][half]);
                        asked[r][half] = _mm256_fmadd_ps(s, q, asked[r][half]);
                    }
                }
            }
            for (r, update) in updates.iter_mut().enumerate() {
                let value = values.add(t * pitch + r);
                let u = tokens.betas[t] * (*value - decay * reduce(held[r][0], held[r][1]));
                *value = tokens.overlaps[t].mul_add(u, decay * reduce(asked[r][0], asked[r][1]));
                *update = _mm256_set1_ps(u);
            }
            let decay = _mm256_set1_ps(decay);
            for i in (0..width).step_by(8) {
                let k = _mm256_loadu_ps(key.add(i));
                for (r, &update) in updates.iter().enumerate() {
                    let s = state.add(r * width + i);
                    _mm256_storeu_ps(s, _mm256_fmadd_ps(k, update, _mm256_mul_ps(decay, _mm256_loadu_ps(s))));
                }
            }
        }
    }
}

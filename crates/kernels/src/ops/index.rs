//! Scores of the lightning indexer, a panel of keys at a time.
//!
//! A panel holds its keys transposed, so that each key has a lane of its own: no sums across lanes, and a panel is read once for all
//! heads and several tokens. Canonical order of a key's score: dots over ascending elements, fused, one sum; then the heads in
//! order, fused. It depends on the key and the query alone.

/// Keys of a panel: two AVX2 registers.
pub const INDEX_PANEL: usize = 16;

/// Transposes `rows` (`[INDEX_PANEL, dim]`) into `panel` (`[dim, INDEX_PANEL]`).
///
/// # Panics
/// A length is not `INDEX_PANEL · dim`.
pub fn index_panel(rows: &[f32], dim: usize, panel: &mut [f32]) {
    assert!(rows.len() == INDEX_PANEL * dim && panel.len() == rows.len(), "lengths of a panel");
    for at in (0..INDEX_PANEL).step_by(8) {
        let rows = &rows[at * dim..][..8 * dim];
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "only AVX2 does a part"))]
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if matches!(crate::Isa::current(), crate::Isa::Avx2 | crate::Isa::Avx512) {
            // SAFETY: Isa::current only names an instruction set that this processor has.
            done = unsafe { super::x86_attention::transpose8(rows, dim, panel, at) };
        }
        for (i, row) in rows.chunks_exact(dim.max(1)).enumerate() {
            for d in done..dim {
                panel[d * INDEX_PANEL + at + i] = row[d];
            }
        }
    }
}

/// `scores[j] = Σ over heads of weights[h] · max(0, queries[h] · key j)` for the keys of a panel; `queries` are `[heads, dim]`.
///
/// # Panics
/// The lengths do not fit each other.
pub fn index_scores(
    queries: &[f32],
    dim: usize,
    weights: &[f32],
    panel: &[f32],
    scores: &mut [f32; INDEX_PANEL],
) {
    assert!(queries.len() == weights.len() * dim && panel.len() == dim * INDEX_PANEL, "lengths of an index");
    #[cfg(target_arch = "x86_64")]
    if matches!(crate::Isa::current(), crate::Isa::Avx2 | crate::Isa::Avx512) {
        // SAFETY: Isa::current only names an instruction set that this processor has.
        return unsafe { super::x86_attention::index_scores(queries, dim, weights, panel, scores) };
    }
    scalar(queries, dim, weights, panel, scores);
}

fused! {
    fn scalar(queries: &[f32], dim: usize, weights: &[f32], panel: &[f32], scores: &mut [f32; INDEX_PANEL]) {
        *scores = [0.0; INDEX_PANEL];
        for (query, weight) in queries.chunks_exact(dim.max(1)).zip(weights) {
            let mut sums = [0.0f32; INDEX_PANEL];
            for (q, keys) in query.iter().zip(panel.as_chunks::<INDEX_PANEL>().0) {
                for j in 0..INDEX_PANEL {
                    sums[j] = q.mul_add(keys[j], sums[j]);
                }
            }
            for j in 0..INDEX_PANEL {
                let relevance = if sums[j] > 0.0 { sums[j] } else { 0.0 };
                scores[j] = weight.mul_add(relevance, scores[j]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, floats};
    use super::*;

    #[test]
    fn matches_f64_and_the_scalar_loop() {
        for (heads, dim) in [(1, 1), (2, 16), (5, 20), (32, 128)] {
            let (queries, weights) = (floats(heads * dim, 1, 1.0), floats(heads, 2, 1.0));
            let keys = floats(INDEX_PANEL * dim, 3, 1.0);
            let mut panel = vec![f32::NAN; keys.len()];
            index_panel(&keys, dim, &mut panel);
            for (j, key) in keys.chunks(dim).enumerate() {
                assert!((0..dim).all(|d| panel[d * INDEX_PANEL + j] == key[d]));
            }
            let mut got = [f32::NAN; INDEX_PANEL];
            index_scores(&queries, dim, &weights, &panel, &mut got);
            let want = keys.chunks(dim).map(|key| {
                let relevance = |q: &[f32]| -> f64 {
                    q.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>().max(0.0)
                };
                queries.chunks(dim).zip(&weights).map(|(q, w)| f64::from(*w) * relevance(q)).sum()
            });
            assert_close(&got, &want.collect::<Vec<f64>>(), 1e-5);
            let mut plain = [f32::NAN; INDEX_PANEL];
            scalar(&queries, dim, &weights, &panel, &mut plain);
            assert_eq!(got, plain);
        }
    }

    #[test]
    fn a_key_of_nan_is_irrelevant() {
        let mut keys = vec![1.0; INDEX_PANEL * 8];
        keys[3 * 8] = f32::NAN;
        let (mut panel, mut scores) = (vec![0.0; keys.len()], [f32::NAN; INDEX_PANEL]);
        index_panel(&keys, 8, &mut panel);
        index_scores(&[1.0; 8], 8, &[2.0], &panel, &mut scores);
        assert!(scores.iter().enumerate().all(|(j, s)| *s == if j == 3 { 0.0 } else { 16.0 }));
    }
}

//! The `k` largest scores: experts of a router, positions of an indexer.
//!
//! Order: the larger score first, equal scores by the lower index; −0 equals 0, and NaN comes after everything else. The order is
//! total, so the choice is unique: it depends neither on the algorithm nor on how many scores there are beside it.

/// A key that sorts scores ascending as integers, NaN lowest, with the index breaking ties in favour of the lower one.
#[inline(always)]
fn key(index: usize, score: f32) -> u64 {
    let bits = (score + 0.0).to_bits(); // −0 becomes 0
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    let ordered = if score.is_nan() { 0 } else { ordered };
    u64::from(ordered) << 32 | u64::from(!(index as u32))
}

fn index(key: u64) -> u32 {
    !(key as u32)
}

/// Writes the indices of the `out.len()` largest scores, the largest first.
///
/// `scratch` needs room for as many entries as there are scores; its contents do not matter.
///
/// # Panics
/// There are fewer scores than asked for, or more than `scratch` holds (or than `u32` counts).
pub fn top_k_ranked(scores: &[f32], scratch: &mut [u64], out: &mut [u32]) {
    let chosen = select(scores, scratch, out.len());
    chosen.sort_unstable_by(|a, b| b.cmp(a));
    out.iter_mut().zip(chosen).for_each(|(out, key)| *out = index(*key));
}

/// Writes the indices of the `out.len()` largest scores in ascending order of the index.
///
/// # Panics
/// Like [`top_k_ranked`].
pub fn top_k_ascending(scores: &[f32], scratch: &mut [u64], out: &mut [u32]) {
    if out.len() == scores.len() {
        return out.iter_mut().zip(0..).for_each(|(out, i)| *out = i);
    }
    let chosen = select(scores, scratch, out.len());
    out.iter_mut().zip(chosen).for_each(|(out, key)| *out = index(*key));
    out.sort_unstable();
}

/// The keys of the `k` largest scores, in no particular order.
fn select<'a>(scores: &[f32], scratch: &'a mut [u64], k: usize) -> &'a mut [u64] {
    let n = scores.len();
    assert!(k <= n, "the {k} largest of {n} scores");
    assert!(
        n <= scratch.len() && n <= u32::MAX as usize,
        "top-k scratch of {} for {n} scores",
        scratch.len()
    );
    let keys = &mut scratch[..n];
    keys.iter_mut().zip(scores.iter().enumerate()).for_each(|(out, (i, s))| *out = key(i, *s));
    if 0 < k && k < n {
        keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
    }
    &mut keys[..k]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive(scores: &[f32], k: usize) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..scores.len() as u32).collect();
        // A stable sort keeps lower indices first among equals.
        ids.sort_by(|&a, &b| {
            let (a, b) = (scores[a as usize], scores[b as usize]);
            a.is_nan().cmp(&b.is_nan()).then(b.partial_cmp(&a).unwrap_or(std::cmp::Ordering::Equal))
        });
        ids.truncate(k);
        ids
    }

    fn check(scores: &[f32], k: usize) {
        let (mut scratch, mut out) = (vec![7; scores.len() + 3], vec![0; k]);
        let mut want = naive(scores, k);
        top_k_ranked(scores, &mut scratch, &mut out);
        assert_eq!(out, want);
        top_k_ascending(scores, &mut scratch, &mut out);
        want.sort_unstable();
        assert_eq!(out, want);
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        let mut out = [0; 3];
        top_k_ranked(&[1.0, 2.0, 1.0, 2.0, 1.0], &mut [0; 5], &mut out);
        assert_eq!(out, [1, 3, 0]);
        top_k_ranked(&[0.0, -0.0, 0.0, -0.0], &mut [0; 4], &mut out);
        assert_eq!(out, [0, 1, 2]);
    }

    #[test]
    fn nan_comes_last_whatever_its_sign() {
        let mut out = [0; 4];
        top_k_ranked(&[f32::NAN, f32::NEG_INFINITY, -f32::NAN, 1.0], &mut [0; 4], &mut out);
        assert_eq!(out, [3, 1, 0, 2]);
    }

    proptest! {
        #[test]
        fn equals_a_stable_sort(
            (scores, k) in proptest::collection::vec(
                prop_oneof![
                    8 => any::<f32>(),
                    8 => (-3i8..3).prop_map(f32::from),
                    1 => Just(f32::NAN),
                    1 => Just(f32::NEG_INFINITY),
                    1 => Just(-0.0f32),
                ],
                0..300,
            ).prop_flat_map(|s| { let n = s.len(); (Just(s), 0..=n) })
        ) {
            check(&scores, k);
        }
    }
}

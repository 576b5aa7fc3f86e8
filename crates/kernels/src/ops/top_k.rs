//! The `k` largest scores: experts of a router, positions of an indexer.
//!
//! Order: the larger score first, equal scores by the lower index; −0 equals 0, and NaN comes after everything else. The order is
//! total, so the choice is unique: it depends neither on the algorithm nor on how many scores there are beside it.

/// Sorts scores ascending as integers, NaN lowest.
#[inline(always)]
fn ordered(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits(); // −0 becomes 0
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    if score.is_nan() { 0 } else { ordered }
}

/// The same with the index breaking ties in favour of the lower one.
#[inline(always)]
fn key(index: usize, score: f32) -> u64 {
    u64::from(ordered(score)) << 32 | u64::from(!(index as u32))
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

/// Writes the indices of the `out.len()` largest scores in ascending order of the index: what [`top_k_counted`] must find.
#[cfg(test)]
fn top_k_ascending(scores: &[f32], scratch: &mut [u64], out: &mut [u32]) {
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

/// Counters of [`top_k_count`]: one per value of a key's leading bits.
pub const TOP_K_BINS: usize = 1 << LEADING;

/// Keys are chosen by eleven, eleven and ten bits.
const LEADING: u32 = 11;
const MIDDLE_SHIFT: u32 = 10;

/// The first half of a selection whose scores come in parts, on any thread: turns a part into keys, and counts their leading bits.
///
/// # Panics
/// The lengths differ, or there are not [`TOP_K_BINS`] counters.
pub fn top_k_count(scores: &[f32], keys: &mut [u32], counts: &mut [u32]) {
    assert_eq!(scores.len(), keys.len(), "lengths of keys");
    let counts: &mut [u32; TOP_K_BINS] = counts.try_into().expect("a counter per bin");
    for (score, key) in scores.iter().zip(keys) {
        *key = ordered(*score);
        counts[(*key >> (32 - LEADING)) as usize] += 1;
    }
}

/// The second half: the positions of the `out.len()` largest scores in ascending order. `counts` are the sums over all
/// parts.
///
/// # Panics
/// There are fewer keys than asked for, or the counts are not those of the keys.
pub fn top_k_counted(keys: &[u32], counts: &[u32], out: &mut [u32]) {
    assert!(out.len() <= keys.len(), "the {} largest of {} keys", out.len(), keys.len());
    if out.is_empty() {
        return;
    }
    let (leading, left) = bin_of(counts, out.len());
    let mut finer = [0u32; 1 << LEADING];
    count_under(keys, 32 - LEADING, leading, MIDDLE_SHIFT, &mut finer);
    let (middle, left) = bin_of(&finer, left);
    let mut finest = [0u32; 1 << MIDDLE_SHIFT];
    let prefix = leading << LEADING | middle;
    count_under(keys, MIDDLE_SHIFT, prefix, 0, &mut finest);
    let (last, ties) = bin_of(&finest, left);
    emit(keys, prefix << MIDDLE_SHIFT | last, ties, out);
}

/// The bin of the `k`-th largest, and how many of the `k` lie in it.
fn bin_of(counts: &[u32], k: usize) -> (u32, usize) {
    let mut left = k;
    for (bin, &count) in counts.iter().enumerate().rev() {
        if left <= count as usize {
            return (bin as u32, left);
        }
        left -= count as usize;
    }
    panic!("counts that are not those of the keys");
}

vectorized! {
    /// Counts the bits from `to` upwards of the keys whose bits from `shift` upwards are `prefix`.
    fn count_under(keys: &[u32], shift: u32, prefix: u32, to: u32, counts: &mut [u32]) {
        let mask = counts.len() as u32 - 1;
        let mut count = |key: u32| {
            if key >> shift == prefix {
                counts[(key >> to & mask) as usize] += 1;
            }
        };
        let (blocks, tail) = keys.as_chunks::<16>();
        for block in blocks {
            // Most blocks hold none, which vectors see at once.
            if block.iter().fold(false, |any, key| any | (key >> shift == prefix)) {
                block.iter().for_each(|key| count(*key));
            }
        }
        tail.iter().for_each(|key| count(*key));
    }
}

vectorized! {
    /// Positions of the keys above `threshold`, and of the first `ties` equal to it.
    fn emit(keys: &[u32], threshold: u32, ties: usize, out: &mut [u32]) {
        let (mut ties, mut n) = (ties, 0);
        let mut take = |at: usize, key: u32| {
            let tie = key == threshold && ties > 0;
            ties -= usize::from(tie);
            if key > threshold || tie {
                out[n] = at as u32;
                n += 1;
            }
        };
        let (blocks, tail) = keys.as_chunks::<16>();
        for (b, block) in blocks.iter().enumerate() {
            if block.iter().fold(false, |any, key| any | (*key >= threshold)) {
                block.iter().enumerate().for_each(|(i, key)| take(16 * b + i, *key));
            }
        }
        tail.iter().enumerate().for_each(|(i, key)| take(16 * blocks.len() + i, *key));
        assert_eq!(n, out.len(), "counts that are not those of the keys");
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::floats;
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
        // In parts, counted separately.
        let (mut keys, mut counts) = (vec![7; scores.len()], vec![0; TOP_K_BINS]);
        for (scores, keys) in scores.chunks(17).zip(keys.chunks_mut(17)) {
            let mut part = vec![0; TOP_K_BINS];
            top_k_count(scores, keys, &mut part);
            counts.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        out.fill(u32::MAX);
        top_k_counted(&keys, &counts, &mut out);
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

    /// Scores with many ties and every kind of float, all lengths and counts.
    #[test]
    fn equals_a_stable_sort() {
        for n in 0usize..160 {
            for k in [0, 1, n / 3, n.saturating_sub(1), n] {
                let seed = (n * 163 + k) as u64;
                let kinds = floats(n, 1000 + seed, 1.0);
                let mut scores = floats(n, seed, 1e30);
                for (x, kind) in scores.iter_mut().zip(kinds) {
                    *x = match ((kind + 1.0) * 10.0) as u32 {
                        0 => f32::NAN,
                        1 => f32::NEG_INFINITY,
                        2 => -0.0,
                        3..11 => (*x / 3e29).trunc(),
                        11..15 => *x * 1e-42,
                        _ => *x,
                    };
                }
                check(&scores, k.min(n));
            }
        }
    }
}

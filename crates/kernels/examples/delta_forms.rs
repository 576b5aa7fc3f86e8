//! What the chunked form of the gated delta rule would cost beside the recurrence that `ops::delta_rows` runs, on one thread: time per
//! token and head, and how far the results are apart.
//!
//! ```sh
//! cargo run --release -p slotbank-kernels --example delta_forms
//! ```
//!
//! The chunked form here works on 64 tokens at a time: products of keys with keys and queries, one triangular system for the values that
//! are written, and products with the state. Its matrix products run in tiles of 4 by 16.

use std::time::Instant;

use slotbank_kernels::ops;

const WIDTH: usize = 128;
const TOKENS: usize = 512;
const HEADS: usize = 32;
const CHUNK: usize = 64;
/// As the engine cuts tokens for the recurrence, and rows of a state.
const BLOCK: usize = 16;
const ROWS: usize = 16;
const ROUNDS: usize = 7;

/// One head's tokens.
struct Head {
    keys: Vec<f32>,    // [tokens, width]
    queries: Vec<f32>, // [tokens, width]
    values: Vec<f32>,  // [tokens, width]
    logs: Vec<f32>,    // [tokens], of the decays
    betas: Vec<f32>,   // [tokens]
}

fn floats(n: usize, seed: &mut u64, low: f32, high: f32) -> Vec<f32> {
    let mut next = || {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        (*seed >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..n).map(|_| low + (high - low) * next()).collect()
}

impl Head {
    fn new(seed: &mut u64) -> Self {
        let mut unit = |scale| {
            let mut x = floats(TOKENS * WIDTH, seed, -1.0, 1.0);
            x.chunks_exact_mut(WIDTH).for_each(|x| ops::l2_norm(x, 1e-6, scale));
            x
        };
        let (keys, queries) = (unit(1.0), unit((WIDTH as f32).powf(-0.5)));
        Self {
            keys,
            queries,
            values: floats(TOKENS * WIDTH, seed, -1.0, 1.0),
            logs: floats(TOKENS, seed, -0.3, 0.0),
            betas: floats(TOKENS, seed, 0.0, 1.0),
        }
    }
}

/// Token by token, in the engine's blocks. `state` is `[value, key]`.
fn recurrence(head: &Head, state: &mut [f32], out: &mut [f32]) {
    let mut pairs = [0.0; 2 * BLOCK * WIDTH];
    let (mut overlaps, mut decays) = ([0.0; BLOCK], [0.0; BLOCK]);
    for first in (0..TOKENS).step_by(BLOCK) {
        for (t, pair) in pairs.chunks_exact_mut(2 * WIDTH).enumerate() {
            let row = (first + t) * WIDTH..(first + t + 1) * WIDTH;
            pair[..WIDTH].copy_from_slice(&head.keys[row.clone()]);
            pair[WIDTH..].copy_from_slice(&head.queries[row]);
            overlaps[t] = ops::dot(&pair[..WIDTH], &pair[WIDTH..]);
            decays[t] = ops::exp(head.logs[first + t]);
        }
        let betas = &head.betas[first..first + BLOCK];
        let tokens = ops::DeltaTokens { pairs: &pairs, overlaps: &overlaps, decays: &decays, betas };
        let values = &mut out[first * WIDTH..(first + BLOCK) * WIDTH];
        values.copy_from_slice(&head.values[first * WIDTH..(first + BLOCK) * WIDTH]);
        for row in (0..WIDTH).step_by(ROWS) {
            ops::delta_rows(
                &tokens,
                &mut state[row * WIDTH..(row + ROWS) * WIDTH],
                &mut values[row..],
                WIDTH,
            );
        }
    }
}

/// Scratch of the chunked form.
struct Chunked {
    turned: Vec<f32>,   // [width, chunk]: keys, later weighted
    overlaps: Vec<f32>, // [chunk, chunk]: keys with keys
    weights: Vec<f32>,  // [chunk, chunk]: queries with keys
    read: Vec<f32>,     // [chunk, width]
    written: Vec<f32>,  // [chunk, width]
}

impl Chunked {
    fn new() -> Self {
        let zeros = |n: usize| vec![0.0; n];
        Self {
            turned: zeros(WIDTH * CHUNK),
            overlaps: zeros(CHUNK * CHUNK),
            weights: zeros(CHUNK * CHUNK),
            read: zeros(CHUNK * WIDTH),
            written: zeros(CHUNK * WIDTH),
        }
    }

    /// Chunk by chunk. `state` is `[key, value]`.
    fn run(&mut self, head: &Head, state: &mut [f32], out: &mut [f32]) {
        for first in (0..TOKENS).step_by(CHUNK) {
            let rows = first * WIDTH..(first + CHUNK) * WIDTH;
            let out = &mut out[rows.clone()];
            let (keys, queries) = (&head.keys[rows.clone()], &head.queries[rows.clone()]);
            let mut sums = [0.0; CHUNK];
            let mut sum = 0.0;
            for (s, log) in sums.iter_mut().zip(&head.logs[first..]) {
                sum += log;
                *s = sum;
            }
            for (i, key) in keys.chunks_exact(WIDTH).enumerate() {
                key.iter().enumerate().for_each(|(d, k)| self.turned[d * CHUNK + i] = *k);
            }
            product([CHUNK, CHUNK, WIDTH], keys, &self.turned, &mut self.overlaps, false);
            product([CHUNK, CHUNK, WIDTH], queries, &self.turned, &mut self.weights, false);
            for i in 0..CHUNK {
                let row = i * CHUNK..(i + 1) * CHUNK;
                fade(&sums, i, &mut self.overlaps[row.clone()], i);
                fade(&sums, i, &mut self.weights[row], i + 1);
            }
            // What is written: values, less what the state and earlier tokens of the chunk already say.
            product([CHUNK, WIDTH, WIDTH], keys, state, &mut self.read, false);
            for (i, s) in sums.iter().enumerate() {
                let (done, rest) = self.written.split_at_mut(i * WIDTH);
                let (row, decay, beta) = (&mut rest[..WIDTH], ops::exp(*s), head.betas[first + i]);
                row.fill(0.0);
                product([1, WIDTH, i], &self.overlaps[i * CHUNK..i * CHUNK + i], done, row, true);
                let values = &head.values[(first + i) * WIDTH..];
                for (j, u) in row.iter_mut().enumerate() {
                    *u = beta * (values[j] - decay * self.read[i * WIDTH + j] - *u);
                }
            }
            product([CHUNK, WIDTH, WIDTH], queries, state, out, false);
            for (out, s) in out.chunks_exact_mut(WIDTH).zip(&sums) {
                let decay = ops::exp(*s);
                out.iter_mut().for_each(|o| *o *= decay);
            }
            product([CHUNK, WIDTH, CHUNK], &self.weights, &self.written, out, true);
            // The state: faded by the whole chunk, and each key by what comes after it.
            let left = ops::exp(sum);
            state.iter_mut().for_each(|s| *s *= left);
            for row in self.turned.chunks_exact_mut(CHUNK) {
                row.iter_mut().zip(&sums).for_each(|(k, s)| *k *= ops::exp(sum - s));
            }
            product([WIDTH, WIDTH, CHUNK], &self.turned, &self.written, state, true);
        }
    }
}

/// `row[j] *= e^(sums[i] - sums[j])` for the first `n`, and 0 for the others.
fn fade(sums: &[f32; CHUNK], i: usize, row: &mut [f32], n: usize) {
    row[..n].iter_mut().zip(sums).for_each(|(x, s)| *x *= ops::exp(sums[i] - s));
    row[n..].fill(0.0);
}

/// `c = a b` or `c += a b`, rows of `a` being `k` long and those of `b` and `c` `n`.
fn product(shape: [usize; 3], a: &[f32], b: &[f32], c: &mut [f32], add: bool) {
    #[cfg(target_arch = "x86_64")]
    if ops_are_wide() {
        #[target_feature(enable = "avx2,fma")]
        fn wide(shape: [usize; 3], a: &[f32], b: &[f32], c: &mut [f32], add: bool) {
            tiles(shape, a, b, c, add);
        }
        // SAFETY: just checked.
        return unsafe { wide(shape, a, b, c, add) };
    }
    tiles(shape, a, b, c, add);
}

#[cfg(target_arch = "x86_64")]
fn ops_are_wide() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[inline(always)]
fn tiles([m, n, k]: [usize; 3], a: &[f32], b: &[f32], c: &mut [f32], add: bool) {
    let mut row = 0;
    while row < m {
        let rows = if m - row >= 4 { 4 } else { 1 };
        for column in (0..n).step_by(16) {
            match rows {
                4 => tile::<4>([row, column], n, k, a, b, c, add),
                _ => tile::<1>([row, column], n, k, a, b, c, add),
            }
        }
        row += rows;
    }
}

#[inline(always)]
fn tile<const R: usize>(
    [row, column]: [usize; 2],
    n: usize,
    k: usize,
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    add: bool,
) {
    let mut acc = [[0.0f32; 16]; R];
    let a: [&[f32]; R] = std::array::from_fn(|r| &a[(row + r) * k..(row + r) * k + k]);
    for (d, b) in b.chunks_exact(n).take(k).enumerate() {
        let b: &[f32; 16] = b[column..column + 16].try_into().expect("sixteen columns");
        for r in 0..R {
            let x = a[r][d];
            for i in 0..16 {
                acc[r][i] = x.mul_add(b[i], acc[r][i]);
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        let c = &mut c[(row + r) * n + column..][..16];
        for (c, x) in c.iter_mut().zip(acc) {
            *c = if add { *c + x } else { *x };
        }
    }
}

#[expect(clippy::print_stdout, reason = "a program for people")]
fn main() {
    let mut seed = 0x1234_5678_9abc_def1;
    let heads: Vec<Head> = (0..HEADS).map(|_| Head::new(&mut seed)).collect();
    let zeros = || vec![vec![0.0f32; WIDTH * WIDTH]; HEADS];
    let (mut out, mut other) = (vec![0.0f32; TOKENS * WIDTH], vec![0.0f32; TOKENS * WIDTH]);
    let mut chunked = Chunked::new();

    let (mut states, mut turned) = (zeros(), zeros());
    let (mut apart, mut largest) = (0.0f32, 0.0f32);
    for (head, (state, turned)) in heads.iter().zip(states.iter_mut().zip(&mut turned)) {
        recurrence(head, state, &mut out);
        chunked.run(head, turned, &mut other);
        for (a, b) in out.iter().zip(&other) {
            (apart, largest) = (apart.max((a - b).abs()), largest.max(a.abs()));
        }
    }
    println!("outputs apart by {:.1e} of the largest", apart / largest);

    let mut times = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for form in order {
            let begun = Instant::now();
            for (i, head) in heads.iter().enumerate() {
                match form {
                    0 => recurrence(head, &mut states[i], &mut out),
                    _ => chunked.run(head, &mut turned[i], &mut other),
                }
            }
            times[form].push(begun.elapsed().as_secs_f64() * 1e9 / (HEADS * TOKENS) as f64);
        }
    }
    for (name, times) in ["recurrence", "chunks of 64"].iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        let (low, mid, high) = (times[0], times[ROUNDS / 2], times[ROUNDS - 1]);
        println!("{name}: {mid:.0} ns per token and head ({low:.0} to {high:.0})");
    }
}

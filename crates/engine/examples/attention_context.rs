//! What attention and the indexer cost per token and layer at the dimensions of GLM-5.2, against the length of the context.
//!
//! `cargo run --release -p slotbank-engine --example attention_context -- TYPES CONTEXTS TOKENS`, each a list with commas: cache types,
//! positions cached, tokens per step. Prints one JSON line per combination: CPU nanoseconds of one token in one layer, on one
//! thread. Cache contents are random, which is as scattered as a selection can be.
#![allow(clippy::print_stdout, reason = "its output")]

use rustix::time::{ClockId, clock_gettime};
use slotbank_engine::CacheType;
use slotbank_engine::backend::cpu::CpuBackend;
use slotbank_engine::backend::{
    Backend, CacheId, Index, LatentAttention, ScratchSpec, View, WeightId, WeightSpec,
};

const HEADS: usize = 64;
const LATENT: usize = 512;
const ROPE: usize = 64;
const INDEX_HEADS: usize = 32;
const INDEX_DIM: usize = 128;
const TOP_K: usize = 2048;

/// Measured at least this long, so that the clock and the first pass over cold caches do not show.
const MEASURED_NS: u64 = 150_000_000;

struct Random(u64);

impl Random {
    /// Uniform in −1..1.
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

fn cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Nanoseconds per call.
fn measured(mut call: impl FnMut()) -> u64 {
    call();
    let (start, mut calls) = (cpu_ns(), 0);
    loop {
        call();
        calls += 1;
        let ns = cpu_ns() - start;
        if ns >= MEASURED_NS {
            return ns / calls;
        }
    }
}

/// Random rows, which reach a buffer as an embedding does.
fn table(b: &mut CpuBackend, width: usize, rows: usize, random: &mut Random) -> WeightId {
    let spec = WeightSpec { name: "random".into(), format: 0, n_in: width, n_out: rows, count: 1 };
    let weight = b.weight(&spec, &mut |bytes| {
        for value in bytes.as_chunks_mut::<4>().0 {
            *value = random.next().to_le_bytes();
        }
        Ok(())
    });
    weight.expect("f32 weights load")
}

fn fill(b: &mut CpuBackend, view: View, width: usize, rows: usize, random: &mut Random) {
    let table = table(b, width, rows, random);
    b.embed(table, &(0..rows as u32).collect::<Vec<_>>(), view);
}

/// Every position gets the sum of two of `PARTS` random rows, no two positions the same.
fn fill_caches(b: &mut CpuBackend, latents: CacheId, keys: CacheId, context: usize, random: &mut Random) {
    const PARTS: usize = 1024;
    let width = LATENT + ROPE;
    let table = table(b, width, PARTS, random);
    let (row, other) = (View::rows(b.buffer(width), width), View::rows(b.buffer(width), width));
    for position in 0..context {
        let (i, lap) = (position % PARTS, position / PARTS + 1);
        b.embed(table, &[i as u32], row);
        b.embed(table, &[((i + lap) % PARTS) as u32], other);
        b.add(row, other, width, 1);
        b.append(latents, row, position, 1);
        b.append(keys, row, position, 1);
    }
}

fn case(ty: CacheType, context: usize, tokens: usize) -> (u64, u64) {
    let mut b = CpuBackend::new(1, 1).expect("SLOTBANK_ISA names what this machine has");
    let width = LATENT + ROPE;
    let queries = View::rows(b.buffer(tokens * HEADS * width), HEADS * width);
    let out = View::rows(b.buffer(tokens * HEADS * LATENT), HEADS * LATENT);
    let index_queries = View::rows(b.buffer(tokens * INDEX_HEADS * INDEX_DIM), INDEX_HEADS * INDEX_DIM);
    let index_weights = View::rows(b.buffer(tokens * INDEX_HEADS), INDEX_HEADS);
    let latents = b.cache(context, width, LATENT, ty);
    let keys = b.cache(context, INDEX_DIM, 0, ty);
    let selection = b.selection(tokens, TOP_K, context);
    b.scratch(&ScratchSpec {
        rows: tokens,
        row: HEADS * width,
        heads: HEADS,
        cache_width: width,
        index_heads: INDEX_HEADS,
        index_head_dim: INDEX_DIM,
        ..ScratchSpec::default()
    });
    let random = &mut Random(0x9e37_79b9_7f4a_7c15);
    fill(&mut b, queries, HEADS * width, tokens, random);
    fill(&mut b, index_queries, INDEX_HEADS * INDEX_DIM, tokens, random);
    fill(&mut b, index_weights, INDEX_HEADS, tokens, random);
    fill_caches(&mut b, latents, keys, context, random);
    let start = context - tokens;
    let (n_heads, head_dim) = (INDEX_HEADS, INDEX_DIM);
    let index =
        Index { queries: index_queries, weights: index_weights, keys, n_heads, head_dim, top_k: TOP_K };
    let attention = LatentAttention {
        queries,
        cache: latents,
        n_heads: HEADS,
        latent: LATENT,
        rope: ROPE,
        scale: 1.0 / 16.0,
        selection,
        out,
    };
    let index_ns = measured(|| b.sparse_index(selection, &index, start, 0..tokens));
    let attention_ns = measured(|| b.attention_latent(&attention, 0..tokens));
    (attention_ns / tokens as u64, index_ns / tokens as u64)
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut list = |what: &str| arguments.next().unwrap_or_else(|| panic!("which {what}?"));
    let (types, contexts, tokens) = (list("cache types"), list("contexts"), list("tokens per step"));
    let number = |text: &str| text.parse::<usize>().unwrap_or_else(|_| panic!("{text} is no number"));
    for ty in types.split(',') {
        let cache_type = match ty {
            "f32" => CacheType::F32,
            "f16" => CacheType::F16,
            "q8" => CacheType::Q8,
            other => panic!("no cache type {other}"),
        };
        for context in contexts.split(',').map(number) {
            for tokens in tokens.split(',').map(number) {
                assert!(tokens > 0 && tokens <= context, "{tokens} tokens in a context of {context}");
                let (attention_ns, index_ns) = case(cache_type, context, tokens);
                println!(
                    "{{\"cache_type\": \"{ty}\", \"context\": {context}, \"tokens\": {tokens}, \
                     \"attention_ns\": {attention_ns}, \"index_ns\": {index_ns}}}"
                );
            }
        }
    }
}

//! The CPU backend's memory: activation buffers, caches, selections and scratch, all allocated at load.

use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use kernels::{Activation, AlignedBuf, SharedMut, ops};

use super::super::{Buf, RopeSpec, ScratchSpec, View};
use super::delta::delta_floats;
use crate::options::CacheType;

/// The buffer as f32; it is page-aligned.
pub(super) fn floats(bytes: &AlignedBuf) -> &[f32] {
    cast_slice(bytes)
}

/// The same, writable.
pub(super) fn floats_mut(bytes: &mut AlignedBuf) -> &mut [f32] {
    cast_slice_mut(bytes)
}

/// Activation buffers.
#[derive(Default)]
pub(super) struct Buffers {
    all: Vec<AlignedBuf>,
}

impl Buffers {
    pub(super) fn add(&mut self, len: usize) -> Buf {
        self.all.push(AlignedBuf::zeroed(4 * len));
        Buf(self.all.len() as u32 - 1)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.all.iter().map(|b| b.len() as u64).sum()
    }

    /// `width` elements of row `r`.
    pub(super) fn row(&self, v: View, r: usize, width: usize) -> &[f32] {
        &floats(&self.all[v.buf.0 as usize])[v.offset + r * v.stride..][..width]
    }

    /// The same, writable.
    pub(super) fn row_mut(&mut self, v: View, r: usize, width: usize) -> &mut [f32] {
        &mut floats_mut(&mut self.all[v.buf.0 as usize])[v.offset + r * v.stride..][..width]
    }

    /// All elements from the view's start, writable.
    pub(super) fn starting_at(&mut self, v: View) -> &mut [f32] {
        &mut floats_mut(&mut self.all[v.buf.0 as usize])[v.offset..]
    }

    /// A whole buffer for the tasks of one dispatch.
    pub(super) fn shared(&mut self, v: View) -> SharedMut<'_, f32> {
        SharedMut::new(floats_mut(&mut self.all[v.buf.0 as usize]))
    }

    /// All elements from the start of each view, writable; they live in different buffers.
    pub(super) fn several<const N: usize>(&mut self, views: [View; N]) -> [&mut [f32]; N] {
        let all = self.all.get_disjoint_mut(views.map(|v| v.buf.0 as usize));
        let mut all = all.expect("an operation writes each buffer once").into_iter();
        views.map(|v| all.next().map_or(&mut [][..], |buffer| &mut floats_mut(buffer)[v.offset..]))
    }

    /// Two different buffers, whole: one to read, one to write.
    pub(super) fn two(&mut self, x: View, y: View) -> (&[f32], &mut [f32]) {
        let both = self.all.get_disjoint_mut([x.buf.0 as usize, y.buf.0 as usize]);
        let [source, target] = both.expect("an operation reads one buffer and writes another");
        (floats(source), floats_mut(target))
    }
}

/// Cached rows. A q8 row is `[scales f32][fine elements f16][coarse elements i8]`.
pub(super) struct Cache {
    width: usize,
    /// Leading elements that q8 rounds to eight bits.
    coarse: usize,
    row_bytes: usize,
    ty: CacheType,
    bytes: AlignedBuf,
}

impl Cache {
    pub(super) fn new(rows: usize, width: usize, coarse: usize, ty: CacheType) -> Self {
        let row_bytes = ty.row_bytes(width, coarse) as usize;
        Self { width, coarse, row_bytes, ty, bytes: AlignedBuf::zeroed(rows * row_bytes) }
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Bytes of a q8 row's scales, and of its scales and fine elements.
    fn parts(&self) -> (usize, usize) {
        let scales = 4 * self.coarse.div_ceil(ops::Q8_BLOCK);
        (scales, scales + 2 * (self.width - self.coarse))
    }

    pub(super) fn store(&mut self, position: usize, row: &[f32]) {
        let (scales, fine) = self.parts();
        let bytes = &mut self.bytes[position * self.row_bytes..][..self.row_bytes];
        match self.ty {
            CacheType::F32 => cast_slice_mut(bytes).copy_from_slice(row),
            CacheType::F16 => ops::f32_to_f16(row, cast_slice_mut(bytes)),
            CacheType::Q8 => {
                let (scale_bytes, rest) = bytes.split_at_mut(scales);
                let (fine_bytes, rest) = rest.split_at_mut(fine - scales);
                let (coarse, exact) = row.split_at(self.coarse);
                let quants = cast_slice_mut(&mut rest[..self.coarse]);
                ops::q8_encode(coarse, cast_slice_mut(scale_bytes), quants);
                ops::f32_to_f16(exact, cast_slice_mut(fine_bytes));
            }
        }
    }

    /// The row as floats.
    pub(super) fn decode(&self, position: usize, row: &mut [f32]) {
        self.decode_part(position, 0..self.width, row);
    }

    /// Elements `part` of the row as floats.
    pub(super) fn decode_part(&self, position: usize, part: Range<usize>, out: &mut [f32]) {
        let bytes = &self.bytes[position * self.row_bytes..][..self.row_bytes];
        match self.ty {
            CacheType::F32 => out.copy_from_slice(&cast_slice::<u8, f32>(bytes)[part]),
            CacheType::F16 => ops::f16_to_f32(&cast_slice::<u8, u16>(bytes)[part], out),
            CacheType::Q8 => {
                let (scales, fine) = self.parts();
                let coarse = part.start.min(self.coarse)..part.end.min(self.coarse);
                let (eights, halves) = out.split_at_mut(coarse.len());
                // A part may begin inside a block, and then its first piece is the rest of that block.
                let whole = coarse.start.next_multiple_of(ops::Q8_BLOCK).min(coarse.end);
                let (first, rest) = eights.split_at_mut(whole - coarse.start);
                let (all_scales, quants) =
                    (cast_slice::<u8, f32>(&bytes[..scales]), cast_slice::<u8, i8>(&bytes[fine..]));
                for (range, out) in [(coarse.start..whole, first), (whole..coarse.end, rest)] {
                    let blocks = range.start / ops::Q8_BLOCK..range.end.div_ceil(ops::Q8_BLOCK);
                    if !range.is_empty() {
                        ops::q8_decode(&quants[range], &all_scales[blocks], out);
                    }
                }
                let part = part.start.max(self.coarse) - self.coarse..part.end.max(self.coarse) - self.coarse;
                ops::f16_to_f32(&cast_slice::<u8, u16>(&bytes[scales..fine])[part], halves);
            }
        }
    }
}

/// The positions one token attends to, ascending.
#[derive(Clone, Copy)]
pub(super) enum Selected<'a> {
    Range(u32, u32),
    List(&'a [u32]),
}

impl Selected<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Range(from, to) => (to - from) as usize,
            Self::List(list) => list.len(),
        }
    }

    pub(super) fn at(&self, i: usize) -> usize {
        match self {
            Self::Range(from, _) => *from as usize + i,
            Self::List(list) => list[i] as usize,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.len()).map(|i| self.at(i) as u32)
    }
}

/// Selections of a step's tokens.
pub(super) struct Selection {
    /// Per token: a range, or (`u32::MAX`, length) of its list.
    spans: Vec<(u32, u32)>,
    /// `[tokens, top_k]`.
    lists: Vec<u32>,
    top_k: usize,
    /// Scores of the tokens that are scored together, as sortable integers: `[SCAN_TOKENS at most, context]`.
    keys: Vec<u32>,
    context: usize,
}

const LIST: u32 = u32::MAX;

/// Tokens that are scored together, so that a panel of keys is decoded once for all of them.
pub(super) const SCAN_TOKENS: usize = 4;

/// Bytes of [`Selection::new`].
pub(crate) fn selection_bytes(tokens: usize, top_k: usize, context: usize) -> u64 {
    let lists = tokens * top_k.min(context);
    (4 * (2 * tokens + lists + tokens.min(SCAN_TOKENS) * context)) as u64
}

/// What the second half of a selection works on: scored keys to read, lists to write.
pub(super) struct Choosing<'a> {
    pub(super) keys: &'a [u32],
    pub(super) lists: SharedMut<'a, u32>,
    pub(super) top_k: usize,
}

impl Selection {
    pub(super) fn new(tokens: usize, top_k: usize, context: usize) -> Self {
        let top_k = top_k.min(context);
        Self {
            spans: vec![(0, 0); tokens],
            lists: vec![0; tokens * top_k],
            top_k,
            keys: vec![0; tokens.min(SCAN_TOKENS) * context],
            context,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        (4 * (2 * self.spans.len() + self.lists.len() + self.keys.len())) as u64
    }

    /// Keys to write, and how many of one token lie before the next one's.
    pub(super) fn scoring(&mut self) -> (SharedMut<'_, u32>, usize) {
        (SharedMut::new(&mut self.keys), self.context)
    }

    /// Positions there is room for.
    pub(super) fn context(&self) -> usize {
        self.context
    }

    /// Marks the `n` tokens from `token` on as having lists, and hands out what fills them.
    pub(super) fn choosing(&mut self, token: usize, n: usize) -> Choosing<'_> {
        self.spans[token..token + n].fill((LIST, self.top_k as u32));
        let lists = SharedMut::new(&mut self.lists[token * self.top_k..][..n * self.top_k]);
        Choosing { keys: &self.keys, lists, top_k: self.top_k }
    }

    pub(super) fn set_range(&mut self, token: usize, from: usize, to: usize) {
        self.spans[token] = (from as u32, to as u32);
    }

    pub(super) fn get(&self, token: usize) -> Selected<'_> {
        match self.spans[token] {
            (LIST, len) => Selected::List(&self.lists[token * self.top_k..][..len as usize]),
            (from, to) => Selected::Range(from, to),
        }
    }
}

/// A rotary embedding and the angles of the current step.
pub(super) struct RopeState {
    rope: ops::Rope,
    pub(super) pairing: ops::Pairing,
    cos: Vec<f32>, // [rows, pairs]
    sin: Vec<f32>, // [rows, pairs]
    start: usize,
    rows: usize,
}

/// Bytes of [`RopeState::new`]'s tables.
pub(crate) fn rope_bytes(spec: &RopeSpec) -> u64 {
    4 * (spec.dim * spec.rows) as u64
}

impl RopeState {
    pub(super) fn new(spec: &RopeSpec) -> Self {
        let rope = ops::Rope::new(spec.dim, spec.theta, spec.yarn.as_ref());
        let rope = match &spec.factors {
            Some(factors) => rope.divided(factors),
            None => rope,
        };
        let len = spec.rows * rope.pairs();
        Self { rope, pairing: spec.pairing, cos: vec![0.0; len], sin: vec![0.0; len], start: 0, rows: 0 }
    }

    pub(super) fn bytes(&self) -> u64 {
        4 * (self.cos.len() + self.sin.len()) as u64
    }

    /// Angles of positions `start..start + rows`, unless they are there already.
    pub(super) fn prepare(&mut self, start: usize, rows: usize) {
        if (self.start, self.rows) == (start, rows) {
            return;
        }
        let pairs = self.rope.pairs();
        let tables = self.cos.chunks_exact_mut(pairs).zip(self.sin.chunks_exact_mut(pairs));
        for (t, (cos, sin)) in tables.take(rows).enumerate() {
            self.rope.row((start + t) as u32, cos, sin);
        }
        (self.start, self.rows) = (start, rows);
    }

    /// Cosines and sines of row `t`.
    pub(super) fn at(&self, t: usize) -> (&[f32], &[f32]) {
        let pairs = self.rope.pairs();
        (&self.cos[t * pairs..][..pairs], &self.sin[t * pairs..][..pairs])
    }
}

/// Buffers that every operation may use while it runs.
pub(super) struct Scratch {
    /// Activation rows in the form a kernel wants.
    pub(super) activations: AlignedBuf,
    /// Floats per task of attention or of the indexer that may run at once.
    pub(super) tasks: AlignedBuf,
    /// Elements of `tasks` per task.
    pub(super) per_task: usize,
    /// Counters of the selection: `[tasks, scan tokens, TOP_K_BINS]`.
    pub(super) counts: Vec<u32>,
}

/// Attention tasks that may run at once, per thread.
pub(super) const TASKS_PER_THREAD: usize = 4;

/// Floats of an attention task: a chunk of decoded rows, and scores, maxima and sums of the heads.
pub(super) fn attention_floats(heads: usize, width: usize) -> usize {
    ops::ATTENTION_CHUNK * ops::padded(width) + heads * (ops::ATTENTION_CHUNK + 2)
}

/// Tokens whose heads a task of [`Backend::attention_kv`](crate::backend::Backend::attention_kv) takes over the same decoded rows
/// at most.
pub(super) const KV_TOKENS: usize = 8;

/// Floats of such a task, for `heads` heads of each token: a chunk of keys and one of values, scores, and the maxima and sums of all
/// heads.
pub(super) fn kv_floats([heads, key, value]: [usize; 3]) -> usize {
    ops::ATTENTION_CHUNK * (ops::padded(key) + ops::padded(value) + heads) + 2 * KV_TOKENS * heads
}

/// Floats of a task of the indexer: keys as rows and as a panel, and the heads' scaled weights of each token.
pub(super) fn index_floats(heads: usize, dim: usize) -> usize {
    2 * ops::INDEX_PANEL * dim + SCAN_TOKENS * heads
}

/// Elements of [`Scratch`]'s `activations`, `per_task` and `counts`.
fn scratch_lens(threads: usize, s: &ScratchSpec) -> (usize, usize, usize) {
    // All forms at once: gate and up of an expert may want different ones.
    let all_forms = |row: usize| {
        let forms = [Activation::F32, Activation::Q8_0, Activation::Q8K].into_iter();
        forms.map(|a| a.row_bytes(row.next_multiple_of(256))).sum::<usize>()
    };
    let activations = (s.rows * all_forms(s.row)).max(s.routed[0] * all_forms(s.routed[1]));
    let indexed = s.index_heads > 0;
    let index = if indexed { index_floats(s.index_heads, s.index_head_dim) } else { 0 };
    // Each task starts on a cache line of its own.
    let attention = attention_floats(s.heads, s.cache_width).max(kv_floats(s.kv));
    let per_task = attention.max(index).max(delta_floats(s.delta)).next_multiple_of(16);
    let counters = if indexed { s.rows.min(SCAN_TOKENS) * ops::TOP_K_BINS } else { 0 };
    (activations, per_task, threads * TASKS_PER_THREAD * counters)
}

/// Bytes of [`Scratch::new`].
pub(crate) fn scratch_bytes(threads: usize, spec: &ScratchSpec) -> u64 {
    let (activations, per_task, counts) = scratch_lens(threads, spec);
    (activations + 4 * (threads * TASKS_PER_THREAD * per_task + counts)) as u64
}

impl Scratch {
    pub(super) fn new(threads: usize, spec: &ScratchSpec) -> Self {
        let (activations, per_task, counts) = scratch_lens(threads, spec);
        Self {
            activations: AlignedBuf::zeroed(activations),
            tasks: AlignedBuf::zeroed(4 * threads * TASKS_PER_THREAD * per_task),
            per_task,
            counts: vec![0; counts],
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.activations.len() + 4 * self.counts.len() + self.tasks.len()) as u64
    }
}

//! The CPU backend's memory: activation buffers, caches, selections and scratch, all allocated at load.

use bytemuck::{cast_slice, cast_slice_mut};
use kernels::{Activation, AlignedBuf, SharedMut, ops};

use super::super::{Buf, RopeSpec, View};
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

    /// Row `r` of `x` to read and of `y` to write; they live in different buffers.
    pub(super) fn pair(&mut self, x: View, y: View, r: usize, width: usize) -> (&[f32], &mut [f32]) {
        self.pair_rows((x, r), (y, r), width)
    }

    /// As [`Buffers::pair`] with a row number each.
    pub(super) fn pair_rows(
        &mut self,
        x: (View, usize),
        y: (View, usize),
        width: usize,
    ) -> (&[f32], &mut [f32]) {
        let at = |(v, r): (View, usize)| v.offset + r * v.stride..v.offset + r * v.stride + width;
        let (source, target) = self.two(x.0, y.0);
        (&source[at(x)], &mut target[at(y)])
    }

    /// Two different buffers, whole: one to read, one to write.
    pub(super) fn two(&mut self, x: View, y: View) -> (&[f32], &mut [f32]) {
        let both = self.all.get_disjoint_mut([x.buf.0 as usize, y.buf.0 as usize]);
        let [source, target] = both.expect("an operation reads one buffer and writes another");
        (floats(source), floats_mut(target))
    }
}

/// Cached rows, f32 or f16.
pub(super) struct Cache {
    width: usize,
    ty: CacheType,
    bytes: AlignedBuf,
}

impl Cache {
    pub(super) fn new(rows: usize, width: usize, ty: CacheType) -> Self {
        Self { width, ty, bytes: AlignedBuf::zeroed(rows * width * ty.bytes() as usize) }
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(super) fn store(&mut self, position: usize, row: &[f32]) {
        let range = position * self.width..(position + 1) * self.width;
        match self.ty {
            CacheType::F32 => floats_mut(&mut self.bytes)[range].copy_from_slice(row),
            CacheType::F16 => {
                ops::f32_to_f16(row, &mut cast_slice_mut::<u8, u16>(&mut self.bytes)[range]);
            }
        }
    }

    /// `x · row[..x.len()]`.
    pub(super) fn dot(&self, position: usize, x: &[f32]) -> f32 {
        let start = position * self.width;
        match self.ty {
            CacheType::F32 => ops::dot(x, &floats(&self.bytes)[start..start + x.len()]),
            CacheType::F16 => ops::dot_f16(x, &cast_slice::<u8, u16>(&self.bytes)[start..start + x.len()]),
        }
    }

    /// `y += a * row[..y.len()]`.
    pub(super) fn axpy(&self, a: f32, position: usize, y: &mut [f32]) {
        let start = position * self.width;
        match self.ty {
            CacheType::F32 => ops::axpy(a, &floats(&self.bytes)[start..start + y.len()], y),
            CacheType::F16 => {
                ops::axpy_f16(a, &cast_slice::<u8, u16>(&self.bytes)[start..start + y.len()], y)
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
    /// Scores of one token against every position.
    pub(super) scores: Vec<f32>,
    /// Scratch of the selection.
    pub(super) order: Vec<u64>,
}

const LIST: u32 = u32::MAX;

/// Bytes of [`Selection::new`].
pub(crate) fn selection_bytes(tokens: usize, top_k: usize, context: usize) -> u64 {
    let lists = tokens * top_k.min(context);
    (4 * (2 * tokens + lists + context) + 8 * context) as u64
}

impl Selection {
    pub(super) fn new(tokens: usize, top_k: usize, context: usize) -> Self {
        let top_k = top_k.min(context);
        Self {
            spans: vec![(0, 0); tokens],
            lists: vec![0; tokens * top_k],
            top_k,
            scores: vec![0.0; context],
            order: vec![0; context],
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        (4 * (2 * self.spans.len() + self.lists.len() + self.scores.len()) + 8 * self.order.len()) as u64
    }

    pub(super) fn set_range(&mut self, token: usize, from: usize, to: usize) {
        self.spans[token] = (from as u32, to as u32);
    }

    /// Keeps the `k` largest of `scores[..len]`, ties to the lower position.
    pub(super) fn set_top(&mut self, token: usize, len: usize, k: usize) {
        let k = k.min(self.top_k);
        let list = &mut self.lists[token * self.top_k..][..k];
        ops::top_k_ascending(&self.scores[..len], &mut self.order[..len], list);
        self.spans[token] = (LIST, k as u32);
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
        let len = spec.rows * rope.pairs();
        Self { rope, cos: vec![0.0; len], sin: vec![0.0; len], start: 0, rows: 0 }
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
    /// One activation row of f32.
    pub(super) row: Vec<f32>,
    /// A row of attention probabilities per task that may run at once.
    pub(super) probabilities: AlignedBuf,
    /// Elements of one row of `probabilities`.
    pub(super) context: usize,
}

/// Attention tasks that may run at once, per thread.
pub(super) const TASKS_PER_THREAD: usize = 4;

fn activation_bytes(rows: usize, row: usize) -> usize {
    // All forms at once: gate and up of an expert may want different ones.
    let widest = [Activation::F32, Activation::Q8_0, Activation::Q8K].into_iter();
    rows * widest.map(|a| a.row_bytes(row.next_multiple_of(256))).sum::<usize>()
}

/// Bytes of [`Scratch::new`].
pub(crate) fn scratch_bytes(threads: usize, rows: usize, row: usize, context: usize) -> u64 {
    (activation_bytes(rows, row) + 4 * row + 4 * threads * TASKS_PER_THREAD * context) as u64
}

impl Scratch {
    pub(super) fn new(threads: usize, rows: usize, row: usize, context: usize) -> Self {
        Self {
            activations: AlignedBuf::zeroed(activation_bytes(rows, row)),
            row: vec![0.0; row],
            probabilities: AlignedBuf::zeroed(4 * threads * TASKS_PER_THREAD * context),
            context,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.activations.len() + 4 * self.row.len() + self.probabilities.len()) as u64
    }
}

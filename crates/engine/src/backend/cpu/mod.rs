//! The CPU backend: every call executes at once, heavy ones on a pool of threads.
//!
//! Results never depend on the number of threads: work is split over rows, heads or positions, and each of those is
//! summed by one thread in one order.

mod arena;
mod attention;
mod delta;
mod index;
mod kv_attention;
mod matmul;
mod memory;
mod promote;
mod routed;
mod rows;

pub use arena::HostArena;

use std::ops::Range;

use experts::{Bank, Resident};
use kernels::ops::{self, Glu};
use kernels::{AlignedBuf, Isa, Kernel, Pool};

use super::parts::{Part, PartClock, PartTimes};
use super::{
    Backend, Buf, CacheId, GatedDelta, Heads, Index, KvAttention, LatentAttention, RopeId, RopeSpec, Routed,
    RoutedSpec, ScratchSpec, Select, SelectionId, StateChange, StateId, View, WeightId, WeightSpec,
};
use crate::Error;
use crate::options::CacheType;
use delta::State;
use memory::{Buffers, Cache, RopeState, Scratch, Selection, floats};
use routed::RoutedScratch;
use rows::Zip;

pub(crate) use delta::state_bytes;
pub(crate) use memory::{rope_bytes, scratch_bytes, selection_bytes};
pub(crate) use routed::routed_bytes;

/// A weight and the kernel picked for it when it was loaded.
struct Weight {
    kernel: Kernel,
    n_in: usize,
    n_out: usize,
    count: usize,
    bytes: AlignedBuf,
}

/// State of the backend; see the module documentation.
pub struct CpuBackend {
    isa: Isa,
    pool: Pool,
    weights: Vec<Weight>,
    buffers: Buffers,
    caches: Vec<Cache>,
    states: Vec<State>,
    selections: Vec<Selection>,
    ropes: Vec<RopeState>,
    scratch: Scratch,
    routed: RoutedScratch,
    /// One expert in packed form, on its way back to its slot.
    packing: AlignedBuf,
    /// Threads that work on one token, and on several.
    threads: [usize; 2],
    clock: PartClock,
}

impl CpuBackend {
    /// Starts compute threads (the caller's counts as one): `threads` work on a step of one token, `threads_batch` on a
    /// longer one.
    pub fn new(threads: usize, threads_batch: usize) -> Result<Self, Error> {
        let isa = Isa::detect().map_err(|e| Error::Option { option: "SLOTBANK_ISA", why: e.to_string() })?;
        Ok(Self {
            isa,
            pool: Pool::new(threads.max(threads_batch)),
            weights: Vec::new(),
            buffers: Buffers::default(),
            caches: Vec::new(),
            states: Vec::new(),
            selections: Vec::new(),
            ropes: Vec::new(),
            scratch: Scratch::new(0, &ScratchSpec::default()),
            routed: RoutedScratch::new(&RoutedSpec::default()),
            packing: AlignedBuf::zeroed(0),
            threads: [threads, threads_batch],
            clock: PartClock::default(),
        })
    }

    /// Runs an operation on the clock of its kind.
    fn timed(&mut self, part: Part, operation: impl FnOnce(&mut Self)) {
        let start = self.clock.start();
        operation(self);
        self.clock.stop(part, start);
    }

    /// A weight stored as f32 and used element by element (norms): its values.
    fn vector(&self, id: WeightId) -> &[f32] {
        let weight = &self.weights[id.0 as usize];
        assert_eq!(weight.kernel.format().name, "F32", "a norm weight is f32");
        floats(&weight.bytes)
    }
}

impl Backend for CpuBackend {
    fn describe(&self) -> String {
        let [threads, batch] = self.threads;
        let batch = if batch == threads { String::new() } else { format!(" ({batch} for prompts)") };
        format!("cpu, {}, {threads} threads{batch}", self.isa.name())
    }

    fn time_parts(&mut self, on: bool) {
        self.clock.on = on;
    }

    fn parts(&self) -> PartTimes {
        self.clock.times
    }

    fn weight(
        &mut self,
        spec: &WeightSpec,
        read: &mut dyn FnMut(&mut [u8]) -> Result<(), Error>,
    ) -> Result<WeightId, Error> {
        let unsupported = || Error::TensorType { tensor: spec.name.clone(), ty: "an unknown type" };
        let format = kernels::format(spec.format).ok_or_else(unsupported)?;
        let len = spec.bytes().ok_or_else(unsupported)? as usize;
        let mut bytes = AlignedBuf::zeroed(len);
        read(bytes.as_mut_slice())?;
        self.weights.push(Weight {
            kernel: format.kernel(self.isa),
            n_in: spec.n_in,
            n_out: spec.n_out,
            count: spec.count,
            bytes,
        });
        Ok(WeightId(self.weights.len() as u32 - 1))
    }

    fn lock_weights(&mut self) -> bool {
        let all = self.weights.iter_mut().all(|weight| weight.bytes.lock());
        if !all {
            self.weights.iter_mut().for_each(|weight| weight.bytes.unlock());
        }
        all
    }

    fn buffer(&mut self, len: usize) -> Buf {
        self.buffers.add(len)
    }

    fn cache(&mut self, rows: usize, width: usize, coarse: usize, ty: CacheType) -> CacheId {
        self.caches.push(Cache::new(rows, width, coarse, ty));
        CacheId(self.caches.len() as u32 - 1)
    }

    fn state(&mut self, len: usize, places: usize) -> StateId {
        self.states.push(State::new(len, places));
        StateId(self.states.len() as u32 - 1)
    }

    fn selection(&mut self, tokens: usize, top_k: usize, context: usize) -> SelectionId {
        self.selections.push(Selection::new(tokens, top_k, context));
        SelectionId(self.selections.len() as u32 - 1)
    }

    fn rope_table(&mut self, spec: &RopeSpec) -> RopeId {
        self.ropes.push(RopeState::new(spec));
        RopeId(self.ropes.len() as u32 - 1)
    }

    fn scratch(&mut self, spec: &ScratchSpec) {
        self.scratch = Scratch::new(self.pool.threads(), spec);
    }

    fn routed_scratch(&mut self, spec: &RoutedSpec) {
        self.routed = RoutedScratch::new(spec);
    }

    fn packing_scratch(&mut self, bytes: usize) {
        self.packing = AlignedBuf::zeroed(bytes);
    }

    fn allocated_bytes(&self) -> u64 {
        self.weights.iter().map(|w| w.bytes.len() as u64).sum::<u64>()
            + self.buffers.bytes()
            + self.caches.iter().map(Cache::bytes).sum::<u64>()
            + self.states.iter().map(State::bytes).sum::<u64>()
            + self.selections.iter().map(Selection::bytes).sum::<u64>()
            + self.ropes.iter().map(RopeState::bytes).sum::<u64>()
            + self.scratch.bytes()
            + self.routed.bytes()
            + self.packing.len() as u64
    }

    fn begin(&mut self, rows: usize) {
        self.pool.limit(self.threads[usize::from(rows > 1)]);
    }

    fn embed(&mut self, table: WeightId, tokens: &[u32], out: View) {
        let weight = &self.weights[table.0 as usize];
        let row_bytes = weight.kernel.row_bytes(weight.n_in);
        for (t, &token) in tokens.iter().enumerate() {
            let row = &weight.bytes.as_slice()[token as usize * row_bytes..][..row_bytes];
            (weight.kernel.format().dequantize)(row, self.buffers.row_mut(out, t, weight.n_in));
        }
    }

    fn rms_norm(&mut self, x: View, weight: WeightId, eps: f32, rows: usize, out: View) {
        self.timed(Part::Rows, |b| b.rms_norm_rows(x, weight, eps, rows, out));
    }

    fn layer_norm(&mut self, x: View, weight: WeightId, bias: WeightId, eps: f32, rows: usize) {
        self.timed(Part::Rows, |b| b.layer_norm_rows(x, weight, bias, eps, rows));
    }

    fn matmul(&mut self, x: View, rows: usize, outs: &[(WeightId, View)]) {
        self.timed(Part::Dense, |b| b.matmul_shared(x, rows, outs));
    }

    fn matmul_heads(&mut self, weight: WeightId, x: Heads, rows: usize, out: View) {
        self.timed(Part::Dense, |b| b.matmul_stack(weight, x, rows, out));
    }

    fn rope(&mut self, table: RopeId, x: Heads, start: usize, rows: usize) {
        self.timed(Part::Rows, |b| b.rope_rows(table, x, start, rows));
    }

    fn hadamard(&mut self, x: Heads, width: usize, rows: usize) {
        self.timed(Part::Rows, |b| b.hadamard_rows(x, width, rows));
    }

    fn copy(&mut self, from: Heads, to: Heads, width: usize, rows: usize) {
        self.timed(Part::Rows, |b| b.copy_rows(from, to, width, rows));
    }

    fn add(&mut self, x: View, y: View, width: usize, rows: usize) {
        self.timed(Part::Rows, |b| b.zip_rows(x, y, width, rows, Zip::Add));
    }

    fn add_bias(&mut self, x: View, bias: WeightId, rows: usize) {
        self.timed(Part::Rows, |b| b.add_bias_rows(x, bias, rows));
    }

    fn zero(&mut self, x: View, width: usize, rows: usize) {
        for t in 0..rows {
            self.buffers.row_mut(x, t, width).fill(0.0);
        }
    }

    fn scale(&mut self, x: View, factor: f32, width: usize, rows: usize) {
        let scale = |x: &mut [f32]| x.iter_mut().for_each(|x| *x *= factor);
        self.timed(Part::Rows, |b| b.change_rows(x, width, rows, &scale));
    }

    fn soft_cap(&mut self, x: View, cap: f32, width: usize, rows: usize) {
        self.timed(Part::Rows, |b| b.change_rows(x, width, rows, &|x| ops::soft_cap(x, cap)));
    }

    fn glu(&mut self, activation: Glu, gate: View, up: View, width: usize, rows: usize) {
        self.timed(Part::Rows, |b| b.zip_rows(gate, up, width, rows, Zip::Glu(activation)));
    }

    fn sigmoid_mul(&mut self, x: View, width: usize, gate: View, gate_width: usize, rows: usize) {
        self.timed(Part::Rows, |b| b.sigmoid_rows(x, width, gate, gate_width, rows));
    }

    fn change_state(&mut self, state: StateId, change: StateChange) {
        self.timed(Part::Rows, |b| b.states[state.0 as usize].change(change));
    }

    fn conv_silu(&mut self, state: StateId, taps: WeightId, x: View, rows: usize, out: View) {
        self.timed(Part::Rows, |b| b.conv_rows(state, taps, x, rows, out));
    }

    fn gated_delta(&mut self, delta: &GatedDelta, rows: usize) {
        self.timed(Part::Attention, |b| b.delta(delta, rows));
    }

    fn append(&mut self, cache: CacheId, x: View, start: usize, rows: usize) {
        self.timed(Part::Rows, |b| {
            let cache = &mut b.caches[cache.0 as usize];
            (0..rows).for_each(|t| cache.store(start + t, b.buffers.row(x, t, cache.width())));
        });
    }

    fn select(&mut self, selection: SelectionId, how: Select, start: usize, rows: usize) {
        let selection = &mut self.selections[selection.0 as usize];
        for t in 0..rows {
            let len = start + t + 1;
            match how {
                Select::All => selection.set_range(t, 0, len),
                Select::Recent(n) => selection.set_range(t, len.saturating_sub(n), len),
            }
        }
    }

    fn sparse_index(&mut self, selection: SelectionId, index: &Index, start: usize, rows: Range<usize>) {
        self.timed(Part::Indexer, |b| b.select_by_index(selection, index, start, rows));
    }

    fn attention_latent(&mut self, attention: &LatentAttention, rows: Range<usize>) {
        self.timed(Part::Attention, |b| b.attend(attention, rows));
    }

    fn attention_kv(&mut self, attention: &KvAttention, rows: Range<usize>) {
        self.timed(Part::Attention, |b| b.attend_kv(attention, rows));
    }

    fn selected(&self, selection: SelectionId, row: usize, out: &mut Vec<u32>) {
        out.extend(self.selections[selection.0 as usize].get(row).iter());
    }

    fn routed_input(&mut self, call: &Routed<'_>) {
        self.timed(Part::Experts, |b| b.routed_tokens(call));
    }

    fn promote(&mut self, bank: &mut Bank, call: &Routed<'_>) {
        self.timed(Part::Packing, |b| b.pack_hot_experts(bank, call));
    }

    fn routed_ffn(&mut self, bank: &Bank, wave: &[Resident], call: &Routed<'_>) {
        self.timed(Part::Experts, |b| b.routed(bank, wave, call));
    }

    fn combine(&mut self, x: View, weights: &[f32], k: usize, width: usize, rows: usize, y: View) {
        self.timed(Part::Experts, |b| b.sum_pairs(x, weights, k, width, rows, y));
    }

    fn read(&mut self, x: View, row: usize, len: usize) -> &[f32] {
        self.buffers.row(x, row, len)
    }
}

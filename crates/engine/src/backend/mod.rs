//! The operations a model is written in: handles, not tensors.
//!
//! The CPU backend executes each call at once; a GPU backend may record and submit. The host waits in two places only:
//! [`Backend::read`] (the router's choice, the logits) and the bank's waves (bytes of missed experts).
//!
//! All activations are f32. A [`View`] names rows inside a buffer: row `r` starts at `offset + r * stride`.
//! Shapes below are `[rows, width]` with the last number contiguous.

pub mod cpu;
mod parts;

use std::ops::Range;

use experts::{Bank, Resident};
use kernels::ops::Glu;

pub use parts::{Part, PartTimes};

use crate::Error;
use crate::options::CacheType;

/// A resident weight (matrix, stack of matrices, or vector).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightId(pub u32);

/// An f32 activation buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buf(pub u32);

/// Rows of cached state that outlive a step: one per sequence and layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheId(pub u32);

/// Numbers that a layer carries from token to token: one per sequence, layer and kind. Other than cached rows they cannot be cut back
/// to an earlier position, hence [`StateChange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateId(pub u32);

/// The positions each token of the step attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelectionId(pub u32);

/// One kind of rope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RopeId(pub u32);

/// Rows inside a buffer.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// The buffer.
    pub buf: Buf,
    /// First element of row 0.
    pub offset: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl View {
    /// Dense rows of `width` from the start of `buf`.
    pub fn rows(buf: Buf, width: usize) -> Self {
        Self { buf, offset: 0, stride: width }
    }
    /// The same rows, starting `by` elements later.
    pub fn shifted(self, by: usize) -> Self {
        Self { offset: self.offset + by, ..self }
    }
    /// The rows from `row` on.
    pub fn from_row(self, row: usize) -> Self {
        self.shifted(row * self.stride)
    }
}

/// Equal parts inside each row: part `h` of row `r` starts at `rows.offset + r * rows.stride + h * stride`.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Where the rows are; part 0 starts with the row.
    pub rows: View,
    /// Parts per row.
    pub count: usize,
    /// Elements from one part to the next.
    pub stride: usize,
}

impl Heads {
    /// `count` parts of `width` elements, one after the other from the row's start.
    pub fn dense(rows: View, count: usize, width: usize) -> Self {
        Self { rows, count, stride: width }
    }
    /// One part: the row itself.
    pub fn one(rows: View) -> Self {
        Self { rows, count: 1, stride: 0 }
    }
    /// The same parts, each starting `by` elements later.
    pub fn shifted(self, by: usize) -> Self {
        Self { rows: self.rows.shifted(by), ..self }
    }
    /// The rows from `row` on.
    pub fn from_row(self, row: usize) -> Self {
        Self { rows: self.rows.from_row(row), ..self }
    }
    /// Part `h` of every row.
    pub fn part(&self, h: usize) -> View {
        self.rows.shifted(h * self.stride)
    }
}

/// What a weight is, before its bytes are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightSpec {
    /// Tensor name, for messages.
    pub name: String,
    /// ggml type id; the backend has a kernel for it.
    pub format: u32,
    /// Elements per row, contiguous.
    pub n_in: usize,
    /// Rows per matrix.
    pub n_out: usize,
    /// Stacked matrices (heads); 1 otherwise.
    pub count: usize,
}

impl WeightSpec {
    /// Bytes of all matrices.
    pub fn bytes(&self) -> Option<u64> {
        let format = kernels::format(self.format)?;
        if !self.n_in.is_multiple_of(format.block_elements) {
            return None;
        }
        let row = self.n_in / format.block_elements * format.block_bytes;
        Some(row as u64 * self.n_out as u64 * self.count as u64)
    }
}

/// A rotary embedding: see `kernels::ops::Rope`.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Rotated elements per head, from its start; what lies behind them stays.
    pub dim: usize,
    /// Which elements turn together.
    pub pairing: kernels::ops::Pairing,
    /// Tokens of one step at most; the angles of a step are computed once for all layers.
    pub rows: usize,
    /// Base frequency.
    pub theta: f32,
    /// YaRN, where the model asks for it.
    pub yarn: Option<kernels::ops::Yarn>,
    /// A divisor for the frequency of each pair `[dim / 2]`, where the model has them.
    pub factors: Option<Vec<f32>>,
}

/// What scratch is sized for: the largest operation of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScratchSpec {
    /// Tokens that one operation takes at most, routed experts aside.
    pub rows: usize,
    /// Elements of the longest activation row.
    pub row: usize,
    /// Attention heads.
    pub heads: usize,
    /// Elements of a cached latent row.
    pub cache_width: usize,
    /// Heads that share keys in [`Backend::attention_kv`], and elements of a key and of a value; zeros where it does not run.
    pub kv: [usize; 3],
    /// Elements of a head of the delta rule; 0 where it does not run.
    pub delta: usize,
    /// Heads of the indexer; 0 where it does not run.
    pub index_heads: usize,
    /// Elements of an index key.
    pub index_head_dim: usize,
    /// Tokens that the routed experts take at most, and elements of each.
    pub routed: [usize; 2],
}

impl ScratchSpec {
    /// Enough for either.
    pub fn max(self, other: Self) -> Self {
        Self {
            rows: self.rows.max(other.rows),
            row: self.row.max(other.row),
            heads: self.heads.max(other.heads),
            cache_width: self.cache_width.max(other.cache_width),
            kv: std::array::from_fn(|i| self.kv[i].max(other.kv[i])),
            delta: self.delta.max(other.delta),
            index_heads: self.index_heads.max(other.index_heads),
            index_head_dim: self.index_head_dim.max(other.index_head_dim),
            routed: std::array::from_fn(|i| self.routed[i].max(other.routed[i])),
        }
    }
}

/// How each token's positions are chosen in one layer.
#[derive(Debug, Clone, Copy)]
pub enum Select {
    /// All positions up to the token's own.
    All,
    /// The last `n`, the token's own among them.
    Recent(usize),
}

/// The lightning indexer's operands for one full layer.
#[derive(Debug, Clone, Copy)]
pub struct Index {
    /// Queries `[tokens, n_heads, head_dim]`.
    pub queries: View,
    /// Head weights `[tokens, n_heads]`, unscaled.
    pub weights: View,
    /// Keys of every cached position `[positions, head_dim]`.
    pub keys: CacheId,
    /// Index heads.
    pub n_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Positions to keep.
    pub top_k: usize,
}

/// Operands of attention in the latent space (absorbed MLA).
#[derive(Debug, Clone, Copy)]
pub struct LatentAttention {
    /// `[tokens, n_heads, latent + rope]`: absorbed queries, then rotated parts.
    pub queries: View,
    /// `[positions, latent + rope]`: normed latents, then the shared rotated key.
    pub cache: CacheId,
    /// Heads.
    pub n_heads: usize,
    /// Latent elements, which are also the values.
    pub latent: usize,
    /// Rotated elements.
    pub rope: usize,
    /// Softmax scale.
    pub scale: f32,
    /// Which positions.
    pub selection: SelectionId,
    /// `[tokens, n_heads, latent]`.
    pub out: View,
}

/// Operands of attention over cached keys and values, each shared by a group of consecutive heads.
#[derive(Debug, Clone, Copy)]
pub struct KvAttention {
    /// `[tokens, n_heads, head_dim]`.
    pub queries: View,
    /// `[positions, n_kv_heads * head_dim]`.
    pub keys: CacheId,
    /// `[positions, n_kv_heads * value_dim]`.
    pub values: CacheId,
    /// Heads; head `h` reads keys and values number `h / (n_heads / n_kv_heads)`.
    pub n_heads: usize,
    /// Keys and values per position; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Elements of a query and of a key.
    pub head_dim: usize,
    /// Elements of a value.
    pub value_dim: usize,
    /// Softmax scale.
    pub scale: f32,
    /// `[n_heads]`: a score per head that takes its share of the softmax and has no value.
    pub sinks: Option<WeightId>,
    /// Which positions; made by [`Backend::select`].
    pub selection: SelectionId,
    /// `[tokens, n_heads, value_dim]`.
    pub out: View,
}

/// What happens to a [`StateId`] between operations. A step works on a copy, so that one that ends half way has changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateChange {
    /// Zeros: a sequence begins.
    Clear,
    /// A step begins, where the last finished one ended.
    Begin,
    /// The step is through all layers: what it left is the state now.
    Finish,
    /// Copies the state to one of its places.
    Save(usize),
    /// Copies it back.
    Restore(usize),
}

/// Which key head a value head of [`GatedDelta`] goes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyHead {
    /// Value head `j` with key head `j mod k_heads`.
    Tiled,
    /// Value head `j` with key head `j / (v_heads / k_heads)`.
    Grouped,
}

impl KeyHead {
    /// The key head of value head `j`.
    pub fn of(self, j: usize, [k_heads, v_heads]: [usize; 2]) -> usize {
        match self {
            Self::Tiled => j % k_heads,
            Self::Grouped => j / (v_heads / k_heads),
        }
    }
}

/// Taps of a convolution at most: see [`Backend::conv_silu`].
pub(crate) const CONV_MAX: usize = 8;

/// Operands of the gated delta rule: see `kernels::ops::delta_rows`.
#[derive(Debug, Clone, Copy)]
pub struct GatedDelta {
    /// `[v_heads, head_dim, head_dim]`, per value head a row for each element of the values.
    pub state: StateId,
    /// `[tokens, (2 k_heads + v_heads) * head_dim]`: queries, keys and values. Queries and keys are normed here.
    pub qkv: View,
    /// `[tokens, v_heads]`: its sigmoid is how much of the error is corrected.
    pub beta: View,
    /// `[tokens, v_heads]`: `e^(rate * softplus(alpha + bias))` is what is left of the state.
    pub alpha: View,
    /// `[v_heads]`; see `alpha`.
    pub bias: WeightId,
    /// `[v_heads]`, negative; see `alpha`.
    pub rate: WeightId,
    /// Heads of queries and keys; divides `v_heads`.
    pub k_heads: usize,
    /// Heads of values.
    pub v_heads: usize,
    /// Elements of every head.
    pub head_dim: usize,
    /// Which key goes with a value.
    pub key_head: KeyHead,
    /// `[tokens, v_heads * head_dim]`.
    pub out: View,
}

/// What is added to each expert's rows, resident: expert `e` has its values at `offset + e * stride`. By the expert's id, never by the
/// slot that it happens to be in.
#[derive(Debug, Clone, Copy)]
pub struct ExpertBias {
    /// All experts' values, f32.
    pub values: WeightId,
    /// First value of expert 0.
    pub offset: usize,
    /// Values from one expert to the next.
    pub stride: usize,
}

/// The routed experts of one layer call. Pair `p = token * k + j` is the token's `j`-th choice.
#[derive(Debug, Clone, Copy)]
pub struct Routed<'a> {
    /// Layer, for the bank.
    pub layer: u32,
    /// Formats of gate, up and down.
    pub formats: [u32; 3],
    /// True where gate and up are one tensor (gate rows first).
    pub fused: bool,
    /// Onto the rows of gate, up and down, where the model has them.
    pub biases: [Option<ExpertBias>; 3],
    /// What gate and up become.
    pub activation: Glu,
    /// Model width.
    pub n_embd: usize,
    /// Expert width.
    pub n_ff: usize,
    /// Experts per token.
    pub k: usize,
    /// Tokens of the call.
    pub n_tokens: usize,
    /// Pairs sorted by expert: `pairs[starts[e]..starts[e + 1]]`.
    pub starts: &'a [u32],
    /// See `starts`.
    pub pairs: &'a [u32],
    /// Normed input `[tokens, n_embd]`.
    pub x: View,
    /// Each pair's own output `[tokens * k, n_embd]`.
    pub out: View,
}

/// What the routed experts' own scratch is sized for: the widest layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoutedSpec {
    /// (token, choice) pairs of one step at most.
    pub pairs: usize,
    /// Expert width.
    pub n_ff: usize,
}

/// Everything a model needs from the machine it runs on.
pub trait Backend: Send {
    /// Name and instruction set, for receipts.
    fn describe(&self) -> String;
    /// Starts or stops the clocks of [`Backend::parts`].
    fn time_parts(&mut self, on: bool);
    /// What operations took while the clocks ran, by kind.
    fn parts(&self) -> PartTimes;

    // ---- at load: the only calls that allocate --------------------------------------------------------------------

    /// Makes room for a weight and fills it through `read`, which is given exactly `spec.bytes()` bytes.
    fn weight(
        &mut self,
        spec: &WeightSpec,
        read: &mut dyn FnMut(&mut [u8]) -> Result<(), Error>,
    ) -> Result<WeightId, Error>;
    /// Asks the system never to write the weights to swap. False, and nothing is different, where it refuses that for one of them.
    fn lock_weights(&mut self) -> bool {
        false
    }
    /// An activation buffer of `len` f32.
    fn buffer(&mut self, len: usize) -> Buf;
    /// `rows` cached rows of `width` elements, of which the first `coarse` may be rounded to 8 bits.
    fn cache(&mut self, rows: usize, width: usize, coarse: usize, ty: CacheType) -> CacheId;
    /// A state of `len` zeros, with room for `places` copies of it.
    fn state(&mut self, len: usize, places: usize) -> StateId;
    /// Room for the selections of `tokens` tokens of up to `top_k` positions; `context` bounds the scores.
    fn selection(&mut self, tokens: usize, top_k: usize, context: usize) -> SelectionId;
    /// A rotary embedding and room for the angles of a step.
    fn rope_table(&mut self, spec: &RopeSpec) -> RopeId;
    /// Scratch shared by all operations.
    fn scratch(&mut self, spec: &ScratchSpec);
    /// Scratch of the routed experts.
    fn routed_scratch(&mut self, spec: &RoutedSpec);
    /// Room for one expert of the bank in packed form.
    fn packing_scratch(&mut self, bytes: usize);
    /// Bytes allocated so far, all kinds.
    fn allocated_bytes(&self) -> u64;

    // ---- per step -------------------------------------------------------------------------------------------------

    /// A step of `rows` tokens begins.
    fn begin(&mut self, rows: usize);
    /// `out[t] = table[tokens[t]]`.
    fn embed(&mut self, table: WeightId, tokens: &[u32], out: View);
    /// `out[t] = rms_norm(x[t]) * weight`, `width` = the weight's length.
    fn rms_norm(&mut self, x: View, weight: WeightId, eps: f32, rows: usize, out: View);
    /// Mean and variance norm with weight and bias, in place.
    fn layer_norm(&mut self, x: View, weight: WeightId, bias: WeightId, eps: f32, rows: usize);
    /// Several matrices over the same rows: `out[t] = W x[t]`. The rows are quantised once for all of them.
    fn matmul(&mut self, x: View, rows: usize, outs: &[(WeightId, View)]);
    /// A stack of matrices, one per head: `out[t, h] = W[h] x[t, h]`, with `out` dense `[rows, heads, n_out]`.
    fn matmul_heads(&mut self, weight: WeightId, x: Heads, rows: usize, out: View);
    /// Rotates pairs at the start of every head in place; row `t` is at position `start + t`.
    fn rope(&mut self, table: RopeId, x: Heads, start: usize, rows: usize);
    /// Orthonormal Walsh-Hadamard transform of the first `width` elements of every head, in place.
    fn hadamard(&mut self, x: Heads, width: usize, rows: usize);
    /// Copies the first `width` elements of every head.
    fn copy(&mut self, from: Heads, to: Heads, width: usize, rows: usize);
    /// `x[t] += y[t]`.
    fn add(&mut self, x: View, y: View, width: usize, rows: usize);
    /// `x[t] += bias`, `width` = the bias's length.
    fn add_bias(&mut self, x: View, bias: WeightId, rows: usize);
    /// `x[t] = 0`.
    fn zero(&mut self, x: View, width: usize, rows: usize);
    /// `x[t] *= factor`.
    fn scale(&mut self, x: View, factor: f32, width: usize, rows: usize);
    /// `x[t] = cap * tanh(x[t] / cap)`.
    fn soft_cap(&mut self, x: View, cap: f32, width: usize, rows: usize);
    /// `gate[t] = act(gate[t]) * up[t]`.
    fn glu(&mut self, activation: Glu, gate: View, up: View, width: usize, rows: usize);

    /// `x[t] *= sigmoid(gate[t])`, rows of `width`; a gate row is as wide, or one element for all (`gate_width`).
    fn sigmoid_mul(&mut self, x: View, width: usize, gate: View, gate_width: usize, rows: usize);

    /// See [`StateChange`].
    fn change_state(&mut self, state: StateId, change: StateChange);
    /// Causal convolution of every channel over the rows and the ones before them, which `state` holds, then SiLU; `taps` is
    /// `[kernel, channels]`, the newest row's last.
    fn conv_silu(&mut self, state: StateId, taps: WeightId, x: View, rows: usize, out: View);
    /// The gated delta rule over the rows, in order, from what `state` holds.
    fn gated_delta(&mut self, delta: &GatedDelta, rows: usize);

    /// Stores rows at positions `start..start + rows`.
    fn append(&mut self, cache: CacheId, x: View, start: usize, rows: usize);
    /// Selects by rule; row `t` is at position `start + t`.
    fn select(&mut self, selection: SelectionId, how: Select, start: usize, rows: usize);
    /// Selects for some rows of the step by the indexer: `top_k` largest scores, ties to the lower position. Row `t` is at
    /// position `start + t`; keys up to `start + rows.end` are cached.
    fn sparse_index(&mut self, selection: SelectionId, index: &Index, start: usize, rows: Range<usize>);
    /// Softmax attention of some rows of the step over the latents selected for them.
    fn attention_latent(&mut self, attention: &LatentAttention, rows: Range<usize>);
    /// Softmax attention of some rows of the step over the keys and values selected for them.
    fn attention_kv(&mut self, attention: &KvAttention, rows: Range<usize>);
    /// The positions selected for row `t`, ascending (diagnostics; a host wait).
    fn selected(&self, selection: SelectionId, row: usize, out: &mut Vec<u32>);

    /// Prepares the input of a routed call, once for all its waves. No other operation may come between this and the last
    /// [`Backend::routed_ffn`] of the call.
    fn routed_input(&mut self, call: &Routed<'_>);
    /// Rewrites the experts of the bank's current wave that are worth it in packed form, where the plan has room for that.
    fn promote(&mut self, bank: &mut Bank, call: &Routed<'_>);
    /// Runs experts of the bank's current wave on their pairs.
    fn routed_ffn(&mut self, bank: &Bank, wave: &[Resident], call: &Routed<'_>);
    /// `y[t] += sum over j, in router order, of weights[t * k + j] * x[t * k + j]`.
    fn combine(&mut self, x: View, weights: &[f32], k: usize, width: usize, rows: usize, y: View);

    /// Waits, then shows `len` elements from the start of row `row`.
    fn read(&mut self, x: View, row: usize, len: usize) -> &[f32];
}

//! Gated DeltaNet: attention with a memory of fixed size. What a layer carries from token to token is the last rows of its projection
//! (for a short convolution) and one matrix per value head (for the gated delta rule); nothing grows with the context.
//!
//! All rows of a step pass through the memory, wanted or not.

use kernels::ops::Glu;

use crate::Error;
use crate::backend::{Backend, Buf, CONV_MAX, GatedDelta, KeyHead, StateId, View, WeightId};
use crate::keys::Keys;
use crate::load::Loader;
use crate::models::Rows;

/// Sizes, Hugging Face names where there are any.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeltaNetConfig {
    pub(crate) hidden_size: usize,
    pub(crate) linear_num_key_heads: usize,
    pub(crate) linear_num_value_heads: usize,
    /// Of keys and of values.
    pub(crate) head_dim: usize,
    pub(crate) linear_conv_kernel_dim: usize,
    pub(crate) rms_norm_eps: f32,
    /// Which key head a value head goes with: converters order the value heads of some architectures anew.
    pub(crate) key_head: KeyHead,
}

impl DeltaNetConfig {
    pub(crate) fn read(keys: &Keys<'_>, key_head: KeyHead) -> Result<Self, Error> {
        let c = Self {
            hidden_size: keys.size("embedding_length")?,
            linear_num_key_heads: keys.size("ssm.group_count")?,
            linear_num_value_heads: keys.size("ssm.time_step_rank")?,
            head_dim: keys.size("ssm.state_size")?,
            linear_conv_kernel_dim: keys.size("ssm.conv_kernel")?,
            rms_norm_eps: keys.f32("attention.layer_norm_rms_epsilon")?,
            key_head,
        };
        let (k, v, inner) = (c.linear_num_key_heads, c.linear_num_value_heads, keys.size("ssm.inner_size")?);
        if !v.is_multiple_of(k) {
            return Err(keys.wrong(format!("ssm.time_step_rank {v} is no multiple of ssm.group_count {k}")));
        }
        if inner != v * c.head_dim {
            let why =
                format!("ssm.inner_size {inner} is not {v} value heads of ssm.state_size {}", c.head_dim);
            return Err(keys.wrong(why));
        }
        if c.linear_conv_kernel_dim > CONV_MAX {
            let kernel = c.linear_conv_kernel_dim;
            return Err(keys.wrong(format!("ssm.conv_kernel {kernel} is above {CONV_MAX}")));
        }
        Ok(c)
    }

    fn key_dim(&self) -> usize {
        self.linear_num_key_heads * self.head_dim
    }

    /// Elements of all value heads.
    pub(crate) fn value_dim(&self) -> usize {
        self.linear_num_value_heads * self.head_dim
    }

    fn conv_dim(&self) -> usize {
        2 * self.key_dim() + self.value_dim()
    }
}

/// Weights of one layer. Heads of queries and keys come in the order of the file, heads of values too.
pub(crate) struct DeltaNet {
    qkv: WeightId,    // [(2 k_heads + v_heads) * head_dim, hidden]
    z: WeightId,      // [v_heads * head_dim, hidden]
    beta: WeightId,   // [v_heads, hidden]
    alpha: WeightId,  // [v_heads, hidden]
    taps: WeightId,   // [conv_kernel, (2 k_heads + v_heads) * head_dim]
    dt: WeightId,     // [v_heads]
    a: WeightId,      // [v_heads], -exp(A_log)
    norm: WeightId,   // [head_dim]
    output: WeightId, // [hidden, v_heads * head_dim]
}

/// What one sequence carries in one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeltaNetCache {
    /// `[conv_kernel - 1, (2 k_heads + v_heads) * head_dim]`: the projections of the last positions.
    pub(crate) conv: StateId,
    /// `[v_heads, head_dim, head_dim]`.
    pub(crate) memory: StateId,
}

impl DeltaNetCache {
    /// With room for `places` snapshots.
    pub(crate) fn new(loader: &mut Loader<'_>, c: &DeltaNetConfig, places: usize) -> Self {
        Self {
            conv: loader.state((c.linear_conv_kernel_dim - 1) * c.conv_dim(), places),
            memory: loader.state(c.value_dim() * c.head_dim, places),
        }
    }
}

/// Scratch of a pass, shared by all layers.
pub(crate) struct DeltaNetState {
    qkv: Buf,   // [ubatch, (2 k_heads + v_heads) * head_dim]
    mixed: Buf, // the same, after the convolution
    z: Buf,     // [ubatch, v_heads * head_dim]
    beta: Buf,  // [ubatch, v_heads]
    alpha: Buf, // [ubatch, v_heads]
    o: Buf,     // [ubatch, v_heads * head_dim]
}

impl DeltaNetState {
    pub(crate) fn new(loader: &mut Loader<'_>, c: &DeltaNetConfig, ubatch: usize) -> Self {
        let heads = c.linear_num_value_heads;
        Self {
            qkv: loader.buffer(ubatch * c.conv_dim()),
            mixed: loader.buffer(ubatch * c.conv_dim()),
            z: loader.buffer(ubatch * c.value_dim()),
            beta: loader.buffer(ubatch * heads),
            alpha: loader.buffer(ubatch * heads),
            o: loader.buffer(ubatch * c.value_dim()),
        }
    }
}

impl DeltaNet {
    pub(crate) fn load(loader: &mut Loader<'_>, layer: u32, c: &DeltaNetConfig) -> Result<Self, Error> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (hidden, heads) = (c.hidden_size, c.linear_num_value_heads);
        let [qkv, z] = projections(loader, layer, c)?;
        let [beta, alpha] = gates(loader, layer, c)?;
        Ok(Self {
            qkv,
            z,
            beta,
            alpha,
            taps: loader.columns(&name("ssm_conv1d.weight"), c.linear_conv_kernel_dim, c.conv_dim())?,
            dt: loader.vector(&name("ssm_dt.bias"), heads)?,
            a: loader.vector(&name("ssm_a"), heads)?,
            norm: loader.vector(&name("ssm_norm.weight"), c.head_dim)?,
            output: loader.matrix(&name("ssm_out.weight"), c.value_dim(), hidden)?,
        })
    }

    /// `out = delta_net(x)` of the wanted rows, after all rows have gone through the layer's memory; `x` is the normed layer input, rows
    /// of `hidden_size`.
    #[expect(
        clippy::too_many_arguments,
        reason = "operands of one formula; a struct would be built and torn apart"
    )]
    pub(crate) fn forward(
        &self,
        b: &mut dyn Backend,
        c: &DeltaNetConfig,
        s: &DeltaNetState,
        cache: DeltaNetCache,
        x: View,
        rows: Rows,
        out: View,
    ) {
        let heads = c.linear_num_value_heads;
        let [qkv, mixed] = [s.qkv, s.mixed].map(|buf| View::rows(buf, c.conv_dim()));
        let [z, o] = [s.z, s.o].map(|buf| View::rows(buf, c.value_dim()));
        let [beta, alpha] = [s.beta, s.alpha].map(|buf| View::rows(buf, heads));
        let (first, n) = (rows.first_wanted, rows.wanted().len());

        let all = [(self.qkv, qkv), (self.beta, beta), (self.alpha, alpha), (self.z, z)];
        if first == 0 {
            b.matmul(x, rows.count, &all);
        } else {
            b.matmul(x, rows.count, &all[..3]);
        }
        b.conv_silu(cache.conv, self.taps, qkv, rows.count, mixed);
        let delta = GatedDelta {
            state: cache.memory,
            qkv: mixed,
            beta,
            alpha,
            bias: self.dt,
            rate: self.a,
            k_heads: c.linear_num_key_heads,
            v_heads: heads,
            head_dim: c.head_dim,
            key_head: c.key_head,
            out: o,
        };
        b.gated_delta(&delta, rows.count);
        if n == 0 {
            return;
        }
        // From here on the wanted rows only.
        let [z, o] = [z, o].map(|view| view.from_row(first));
        if first > 0 {
            b.matmul(x.from_row(first), n, &[(self.z, z)]);
        }
        let each_head = View { stride: c.head_dim, ..o };
        b.rms_norm(each_head, self.norm, c.rms_norm_eps, n * heads, each_head); // the norm comes before the gate
        b.glu(Glu::Silu, z, o, c.value_dim(), n);
        b.matmul(z, n, &[(self.output, out.from_row(first))]);
    }
}

/// The projection to queries, keys and values, and the one to the output's gate. Older files have both in one tensor, by key head: its
/// query, its key, its values, and their gates.
fn projections(loader: &mut Loader<'_>, layer: u32, c: &DeltaNetConfig) -> Result<[WeightId; 2], Error> {
    let [both, qkv, z] = ["ssm_in", "attn_qkv", "attn_gate"].map(|part| format!("blk.{layer}.{part}.weight"));
    if c.key_head == KeyHead::Tiled || !loader.has(&both) {
        return Ok([
            loader.matrix(&qkv, c.hidden_size, c.conv_dim())?,
            loader.matrix(&z, c.hidden_size, c.value_dim())?,
        ]);
    }
    let groups = c.linear_num_key_heads;
    let values = c.value_dim() / groups;
    let (each, shape) = (2 * (c.head_dim + values), [c.hidden_size, c.conv_dim() + c.value_dim()]);
    let part = |from: usize, len: usize| (0..groups).map(move |g| g * each + from..g * each + from + len);
    let dim = c.head_dim;
    let in_order = part(0, dim).chain(part(dim, dim)).chain(part(2 * dim, values));
    Ok([
        loader.gather(&both, "queries, keys and values", shape, in_order)?,
        loader.gather(&both, "gates", shape, part(2 * dim + values, values))?,
    ])
}

/// The projections to beta and alpha: apart, or in one tensor, by key head: the betas of its value heads, then their alphas.
fn gates(loader: &mut Loader<'_>, layer: u32, c: &DeltaNetConfig) -> Result<[WeightId; 2], Error> {
    let [both, beta, alpha] =
        ["ssm_ba", "ssm_beta", "ssm_alpha"].map(|part| format!("blk.{layer}.{part}.weight"));
    let (hidden, heads) = (c.hidden_size, c.linear_num_value_heads);
    if c.key_head == KeyHead::Tiled || !loader.has(&both) {
        return Ok([loader.matrix(&beta, hidden, heads)?, loader.matrix(&alpha, hidden, heads)?]);
    }
    let group = heads / c.linear_num_key_heads;
    let part = |from: usize| {
        (0..c.linear_num_key_heads).map(move |g| (2 * g + from) * group..(2 * g + from + 1) * group)
    };
    Ok([
        loader.gather(&both, "beta", [hidden, 2 * heads], part(0))?,
        loader.gather(&both, "alpha", [hidden, 2 * heads], part(1))?,
    ])
}

#[cfg(test)]
mod tests;

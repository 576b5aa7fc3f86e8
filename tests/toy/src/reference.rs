//! The `glm-dsa` and `deepseek2` forward passes written straight from its formulas, in f64, one token after another, nothing cached, nothing
//! clever; and able to make each of the known mistakes on purpose.
//!
//! It is the second opinion behind the golden numbers: tests of this crate hold it to what transformers computed, and tests
//! of the engine use it where no fixture reaches — options, exact ties, stale tensors — and to show that a test would
//! notice the mistake that it is about.

use std::collections::BTreeMap;

use crate::config::{Family, Indexer, Scoring, ToyConfig};
use crate::model::Toy;

/// A way to get the architecture wrong that has happened, or nearly, in some implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// The indexer rotates (x[j], x[j + d/2]) instead of (x[2j], x[2j + 1]).
    IndexerRopeHalfSplit,
    /// The indexer rotates the last dimensions of a head, as MLA does.
    IndexerRopeLast,
    /// MLA takes the first dimensions of a query head for the rotary ones, as the indexer does.
    MlaRopeFirst,
    /// MLA rotates halves instead of pairs. (Queries and keys alike, so only relative phases tell.)
    MlaRopeHalfSplit,
    /// The layer norm of index keys has its weight but not its bias.
    KNormWithoutBias,
    /// The indexer reads the residual stream instead of the normed layer input.
    IndexerReadsRawHidden,
    /// The indexer reads the query latent before its norm.
    IndexerReadsRawQueryLatent,
    /// Negative products of an index head count.
    IndexerWithoutRelu,
    /// Keys of tokens that arrived while everything was still selected were never cached.
    IndexKeysLate,
    /// Shared layers run the indexer whose tensors the file happens to hold.
    StaleIndexers,
    /// Shared layers reuse the first layer's selection instead of the nearest full one's.
    SelectionOfLayerZero,
    /// Equal scores: the higher position first.
    TiesToHigherPosition,
    /// Equal choices: the higher expert first.
    TiesToHigherExpert,
    /// The rotary key goes through the latent norm's statistics.
    NormedRopeKey,
    /// `attention.key_length` (latent plus rotary width) taken for the head size.
    HeadSizeFromKeyLength,
    /// `head_dim` of the configuration (the rotary width) taken for the head size.
    HeadSizeFromHeadDim,
    /// `attn_k_b` read as if it were stored like kv_b_proj.
    KeyUpNotTransposed,
    /// YaRN's mscale left out of the softmax scale.
    NoMscale,
    /// Expert weights from the biased choice instead of the probability.
    WeightFromChoice,
    /// Scaled first and normalised afterwards, which undoes the scale.
    ScaleBeforeNormalising,
    /// Every group stays in the running.
    NoGroupLimit,
    /// YaRN's ramp between 32 and 1 rotations whatever the file says.
    DefaultBetas,
    /// YaRN's own factor on cosines and sines although both mscales are given.
    AttentionFactorOnAngles,
    /// YaRN's mscale once instead of squared.
    MscaleNotSquared,
    /// Sigmoid where the router is a softmax, or the other way round.
    OtherGating,
    /// The best of a group speaks for it where its two best do, or the other way round.
    OtherGroupScore,
    /// Weights normalised that are to stay as they are, or the other way round.
    OtherNormalising,
    /// The routed experts' factor left out.
    NoScale,
    /// The shared expert weighed by the routed experts' factor, too.
    ScaledSharedExpert,
}

/// Which positions attention may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Those that the indexer picks.
    Sparse,
    /// All.
    Dense,
    /// The last `index_topk`.
    Recent,
}

/// What the engine offers as options.
#[derive(Clone, Debug)]
pub struct Options {
    /// Epsilon of the two latent norms.
    pub latent_eps: f64,
    /// Positions seen.
    pub attention: Attention,
    /// Experts per token, when fewer than the model's.
    pub moe_topk: Option<u32>,
    /// Leave the routed experts out.
    pub shared_only: bool,
    /// What to get wrong.
    pub mistake: Option<Mistake>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            latent_eps: 1e-6,
            attention: Attention::Sparse,
            moe_topk: None,
            shared_only: false,
            mistake: None,
        }
    }
}

impl From<Mistake> for Options {
    fn from(mistake: Mistake) -> Self {
        Self { mistake: Some(mistake), ..Self::default() }
    }
}

/// Everything that can be compared.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// `[token][vocab]`.
    pub logits: Vec<Vec<f64>>,
    /// `[0 = embedding, i = after layer i, the last one after the final norm][token]`.
    pub hidden_norms: Vec<Vec<f64>>,
    /// Full layer → per token, selected positions, ascending.
    pub selections: BTreeMap<u32, Vec<Vec<u32>>>,
    /// MoE layer → per token, expert ids, best choice first.
    pub experts: BTreeMap<u32, Vec<Vec<u32>>>,
    /// Their weights.
    pub expert_weights: BTreeMap<u32, Vec<Vec<f64>>>,
}

impl Outcome {
    /// The largest logit in absolute value.
    pub fn max_abs_logit(&self) -> f64 {
        self.logits.iter().flatten().fold(0.0, |m, x| m.max(x.abs()))
    }
}

/// Runs `tokens` through the model that the files of `toy` hold (quantised weights dequantised).
pub fn forward(toy: &Toy, tokens: &[u32], options: impl Into<Options>) -> Outcome {
    let mut weights = BTreeMap::new();
    for spec in toy.tensors() {
        let last_block = format!("blk.{}.", toy.config.num_hidden_layers);
        if !spec.name.starts_with(&last_block) {
            let values = toy.values(&spec);
            weights.insert(spec.name, Tensor { n_in: spec.shape[0] as usize, values });
        }
    }
    Model { c: &toy.config, weights, o: options.into() }.forward(tokens)
}

type Row = Vec<f64>;

struct Tensor {
    n_in: usize,
    values: Vec<f32>,
}

impl Tensor {
    fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.n_in..(i + 1) * self.n_in]
    }

    /// Rows `from..to` of the matrix times `x`.
    fn part(&self, from: usize, to: usize, x: &[f64]) -> Row {
        assert_eq!(x.len(), self.n_in);
        (from..to).map(|i| self.row(i).iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
    }

    fn apply(&self, x: &[f64]) -> Row {
        self.part(0, self.values.len() / self.n_in, x)
    }
}

struct Model<'a> {
    c: &'a ToyConfig,
    weights: BTreeMap<String, Tensor>,
    o: Options,
}

impl Model<'_> {
    fn w(&self, name: &str) -> &Tensor {
        self.weights.get(name).unwrap_or_else(|| panic!("no tensor `{name}`"))
    }

    fn wrong(&self, mistake: Mistake) -> bool {
        self.o.mistake == Some(mistake)
    }

    fn forward(&self, tokens: &[u32]) -> Outcome {
        let mut out = Outcome::default();
        let embd = self.w("token_embd.weight");
        let mut h: Vec<Row> =
            tokens.iter().map(|&t| embd.row(t as usize).iter().map(|x| f64::from(*x)).collect()).collect();
        out.hidden_norms.push(h.iter().map(|x| norm(x)).collect());
        let mut selection: Vec<Vec<u32>> = Vec::new();
        for i in 0..self.c.num_hidden_layers {
            let attended = self.attention(i, &h, &mut selection, &mut out);
            add(&mut h, &attended);
            let x: Vec<Row> = h
                .iter()
                .map(|x| self.rms(x, &format!("blk.{i}.ffn_norm.weight"), self.c.rms_norm_eps))
                .collect();
            let y = if i < self.c.first_k_dense_replace {
                x.iter().map(|x| self.ffn(&format!("blk.{i}.ffn_{{}}.weight"), 0, 1, x)).collect()
            } else {
                self.moe(i, &x, &mut out)
            };
            add(&mut h, &y);
            out.hidden_norms.push(h.iter().map(|x| norm(x)).collect());
        }
        let last: Vec<Row> =
            h.iter().map(|x| self.rms(x, "output_norm.weight", self.c.rms_norm_eps)).collect();
        // transformers reports the state after the final norm in the last layer's place.
        *out.hidden_norms.last_mut().expect("a layer") = last.iter().map(|x| norm(x)).collect();
        out.logits = last.iter().map(|x| self.w("output.weight").apply(x)).collect();
        out
    }

    fn rms(&self, x: &[f64], weight: &str, eps: f64) -> Row {
        let scale = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + eps).sqrt();
        let w = &self.w(weight).values;
        x.iter().zip(w).map(|(x, w)| x * scale * f64::from(*w)).collect()
    }

    fn attention(&self, i: u32, h: &[Row], selection: &mut Vec<Vec<u32>>, out: &mut Outcome) -> Vec<Row> {
        let c = self.c;
        let b = |name: &str| format!("blk.{i}.{name}.weight");
        let (heads, n, r) =
            (c.num_attention_heads as usize, c.qk_nope_head_dim as usize, c.qk_rope_head_dim as usize);
        let l = c.kv_lora_rank as usize;
        let a: Vec<Row> = h.iter().map(|x| self.rms(x, &b("attn_norm"), c.rms_norm_eps)).collect();
        let apply = |name: &str, rows: &[Row]| -> Vec<Row> {
            rows.iter().map(|x| self.w(&b(name)).apply(x)).collect()
        };
        let (mut raw_q, mut q_latent) = (Vec::new(), Vec::new());
        let mut queries = if c.q_lora_rank == 0 {
            apply("attn_q", &a)
        } else {
            raw_q = apply("attn_q_a", &a);
            q_latent = raw_q.iter().map(|x| self.rms(x, &b("attn_q_a_norm"), self.o.latent_eps)).collect();
            apply("attn_q_b", &q_latent)
        };
        for (t, q) in queries.iter_mut().enumerate() {
            for head in q.chunks_exact_mut(n + r) {
                if self.wrong(Mistake::MlaRopeFirst) {
                    head.rotate_left(r); // [first r | rest] becomes [rest | first r]
                }
                self.rope(&mut head[n..], t, self.wrong(Mistake::MlaRopeHalfSplit));
            }
        }
        let (mut latents, mut rope_keys) = (Vec::new(), Vec::new());
        for (t, x) in a.iter().enumerate() {
            let kv = self.w(&b("attn_kv_a_mqa")).apply(x);
            latents.push(self.rms(&kv[..l], &b("attn_kv_a_norm"), self.o.latent_eps));
            let mut key = kv[l..].to_vec();
            if self.wrong(Mistake::NormedRopeKey) {
                let scale = norm(&key) / (key.len() as f64).sqrt();
                key.iter_mut().for_each(|k| *k /= scale);
            }
            self.rope(&mut key, t, self.wrong(Mistake::MlaRopeHalfSplit));
            rope_keys.push(key);
        }
        let indexer_input = if self.wrong(Mistake::IndexerReadsRawQueryLatent) { &raw_q } else { &q_latent };
        let hidden_input = if self.wrong(Mistake::IndexerReadsRawHidden) { h } else { &a };
        self.select(i, hidden_input, indexer_input, selection, out);

        let (keys, values) = self.expand(i, &latents);
        let scale = self.softmax_scale();
        let v = c.v_head_dim as usize;
        queries
            .iter()
            .zip(selection.iter())
            .map(|(q, seen)| {
                let mut context = Vec::with_capacity(heads * v);
                for head in 0..heads {
                    let q = &q[head * (n + r)..(head + 1) * (n + r)];
                    let mut p: Row = seen
                        .iter()
                        .map(|&s| s as usize)
                        .map(|s| (dot(&q[..n], &keys[s][head]) + dot(&q[n..], &rope_keys[s])) * scale)
                        .collect();
                    softmax(&mut p);
                    let weighted = |j: usize| -> f64 {
                        seen.iter().zip(&p).map(|(&s, p)| p * values[s as usize][head][j]).sum()
                    };
                    context.extend((0..v).map(weighted));
                }
                self.w(&b("attn_output")).apply(&context)
            })
            .collect()
    }

    /// Per position and head, the key (without its rotary part) and the value.
    fn expand(&self, i: u32, latents: &[Row]) -> (Vec<Vec<Row>>, Vec<Vec<Row>>) {
        let c = self.c;
        let (heads, n, l) =
            (c.num_attention_heads as usize, c.qk_nope_head_dim as usize, c.kv_lora_rank as usize);
        let v = c.v_head_dim as usize;
        let k_b = &self.w(&format!("blk.{i}.attn_k_b.weight")).values;
        let v_b = self.w(&format!("blk.{i}.attn_v_b.weight"));
        let key = |latent: &Row, head: usize| -> Row {
            let element = |j: usize, k: usize| match self.wrong(Mistake::KeyUpNotTransposed) {
                false => k_b[(head * l + k) * n + j],
                true => k_b[(head * n + j) * l + k],
            };
            (0..n).map(|j| (0..l).map(|k| f64::from(element(j, k)) * latent[k]).sum()).collect()
        };
        let keys = latents.iter().map(|x| (0..heads).map(|head| key(x, head)).collect()).collect();
        let values = latents
            .iter()
            .map(|x| (0..heads).map(|head| v_b.part(head * v, (head + 1) * v, x)).collect())
            .collect();
        (keys, values)
    }

    /// Leaves in `selection` the positions that layer `i` sees, per token.
    fn select(&self, i: u32, x: &[Row], q: &[Row], selection: &mut Vec<Vec<u32>>, out: &mut Outcome) {
        let top_k = self.c.index_topk as usize;
        let attention = match self.c.family {
            Family::GlmDsa => self.o.attention,
            Family::Deepseek2 => Attention::Dense,
        };
        match attention {
            Attention::Dense => *selection = (0..x.len() as u32).map(|t| (0..=t).collect()).collect(),
            Attention::Recent => {
                *selection = (0..x.len() as u32)
                    .map(|t| ((t + 1).saturating_sub(top_k as u32)..=t).collect())
                    .collect();
            }
            Attention::Sparse => {
                let full = self.c.indexer_types[i as usize] == Indexer::Full;
                let own = full || self.wrong(Mistake::StaleIndexers);
                if own {
                    *selection = self.indexer(i, x, q);
                    out.selections.insert(i, selection.clone());
                } else if self.wrong(Mistake::SelectionOfLayerZero) {
                    selection.clone_from(&out.selections[&0]);
                }
            }
        }
    }

    fn indexer(&self, i: u32, x: &[Row], q: &[Row]) -> Vec<Vec<u32>> {
        let c = self.c;
        let b = |name: &str| format!("blk.{i}.indexer.{name}");
        let (heads, dim) = (c.index_n_heads as usize, c.index_head_dim as usize);
        let bias = &self.w(&b("k_norm.bias")).values;
        let weight = &self.w(&b("k_norm.weight")).values;
        let late = |s: usize| self.wrong(Mistake::IndexKeysLate) && s < c.index_topk as usize;
        let keys: Vec<Row> = x
            .iter()
            .enumerate()
            .map(|(s, x)| {
                let mut k = self.w(&b("attn_k.weight")).apply(x);
                let mean = k.iter().sum::<f64>() / dim as f64;
                let variance = k.iter().map(|k| (k - mean).powi(2)).sum::<f64>() / dim as f64;
                for (j, k) in k.iter_mut().enumerate() {
                    *k = (*k - mean) / (variance + 1e-6).sqrt() * f64::from(weight[j]);
                    if !self.wrong(Mistake::KNormWithoutBias) {
                        *k += f64::from(bias[j]);
                    }
                }
                self.index_rope(&mut k, s);
                if late(s) { vec![0.0; dim] } else { k }
            })
            .collect();
        (0..x.len())
            .map(|t| {
                let mut iq = self.w(&b("attn_q_b.weight")).apply(&q[t]);
                iq.chunks_exact_mut(dim).for_each(|head| self.index_rope(head, t));
                let w = self.w(&b("proj.weight")).apply(&x[t]);
                let scale = 1.0 / ((heads * dim) as f64).sqrt();
                let score = |s: usize| -> f64 {
                    let terms = iq.chunks_exact(dim).zip(&w).map(|(head, w)| {
                        let d = dot(head, &keys[s]);
                        w * if self.wrong(Mistake::IndexerWithoutRelu) { d } else { d.max(0.0) }
                    });
                    terms.sum::<f64>() * scale
                };
                let scores: Row = (0..=t).map(score).collect();
                let mut best =
                    largest(&scores, c.index_topk as usize, self.wrong(Mistake::TiesToHigherPosition));
                best.sort_unstable();
                best
            })
            .collect()
    }

    fn index_rope(&self, head: &mut [f64], position: usize) {
        let r = self.c.qk_rope_head_dim as usize;
        let half = self.wrong(Mistake::IndexerRopeHalfSplit);
        if self.wrong(Mistake::IndexerRopeLast) {
            let pass = head.len() - r;
            self.rope(&mut head[pass..], position, half);
        } else {
            self.rope(&mut head[..r], position, half);
        }
    }

    fn rope(&self, x: &mut [f64], position: usize, half_split: bool) {
        let half = x.len() / 2;
        for j in 0..half {
            // The angle in f32, as every implementation compared with has it.
            let angle = f64::from(position as f32 * self.frequency(j) as f32);
            let (sin, cos) = angle.sin_cos();
            let (p, q) = if half_split { (j, j + half) } else { (2 * j, 2 * j + 1) };
            let (sin, cos) = (sin * self.attention_factor(), cos * self.attention_factor());
            (x[p], x[q]) = (x[p] * cos - x[q] * sin, x[q] * cos + x[p] * sin);
        }
    }

    fn frequency(&self, j: usize) -> f64 {
        let rope = &self.c.rope_parameters;
        let d = f64::from(self.c.qk_rope_head_dim);
        let plain = rope.rope_theta.powf(-2.0 * j as f64 / d);
        let Some(yarn) = &rope.yarn else { return plain };
        // The dimension at which a full context makes `rotations` turns.
        let dimension = |rotations: f64| {
            let context = f64::from(yarn.original_max_position_embeddings);
            d * (context / (rotations * std::f64::consts::TAU)).ln() / (2.0 * rope.rope_theta.ln())
        };
        let [fast, slow] = match self.wrong(Mistake::DefaultBetas) {
            true => [32.0, 1.0],
            false => [yarn.beta_fast, yarn.beta_slow],
        };
        let low = dimension(fast).floor().max(0.0);
        let high = dimension(slow).ceil().min(d - 1.0);
        let ramp = ((j as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        plain / yarn.factor * ramp + plain * (1.0 - ramp)
    }

    /// On cosines and sines: 1 where both mscales are given, since they are equal.
    fn attention_factor(&self) -> f64 {
        match &self.c.rope_parameters.yarn {
            Some(yarn) if yarn.mscale_all_dim == 0.0 || self.wrong(Mistake::AttentionFactorOnAngles) => {
                0.1 * yarn.factor.ln() + 1.0
            }
            _ => 1.0,
        }
    }

    fn softmax_scale(&self) -> f64 {
        let c = self.c;
        let size = if self.wrong(Mistake::HeadSizeFromKeyLength) {
            c.kv_lora_rank + c.qk_rope_head_dim
        } else if self.wrong(Mistake::HeadSizeFromHeadDim) {
            c.qk_rope_head_dim
        } else {
            c.qk_nope_head_dim + c.qk_rope_head_dim
        };
        let mscale = match &c.rope_parameters.yarn {
            Some(yarn) if !self.wrong(Mistake::NoMscale) => {
                0.1 * yarn.mscale_all_dim * yarn.factor.ln() + 1.0
            }
            _ => 1.0,
        };
        let squared = if self.wrong(Mistake::MscaleNotSquared) { mscale } else { mscale * mscale };
        squared / f64::from(size).sqrt()
    }

    /// SwiGLU with rows `expert` of `count` stacked ones; `pattern` holds `{}` for gate, up and down.
    fn ffn(&self, pattern: &str, expert: usize, count: usize, x: &[f64]) -> Row {
        let part = |which: &str, x: &[f64]| {
            let tensor = self.w(&pattern.replace("{}", which));
            let rows = tensor.values.len() / tensor.n_in / count;
            tensor.part(expert * rows, (expert + 1) * rows, x)
        };
        let (gate, up) = (part("gate", x), part("up", x));
        let inner: Row = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        part("down", &inner)
    }

    fn moe(&self, i: u32, x: &[Row], out: &mut Outcome) -> Vec<Row> {
        let count = self.c.n_routed_experts as usize;
        x.iter()
            .map(|x| {
                let mut y = match self.c.n_shared_experts {
                    0 => vec![0.0; x.len()],
                    _ => self.ffn(&format!("blk.{i}.ffn_{{}}_shexp.weight"), 0, 1, x),
                };
                if self.wrong(Mistake::ScaledSharedExpert) {
                    y.iter_mut().for_each(|y| *y *= self.c.routed_scaling_factor);
                }
                if self.o.shared_only {
                    return y;
                }
                let (ids, weights) = self.route(i, x);
                for (&e, w) in ids.iter().zip(&weights) {
                    let routed = self.ffn(&format!("blk.{i}.ffn_{{}}_exps.weight"), e as usize, count, x);
                    y.iter_mut().zip(routed).for_each(|(y, r)| *y += w * r);
                }
                out.experts.entry(i).or_default().push(ids);
                out.expert_weights.entry(i).or_default().push(weights);
                y
            })
            .collect()
    }

    fn route(&self, i: u32, x: &[f64]) -> (Vec<u32>, Row) {
        let c = self.c;
        let logits = self.w(&format!("blk.{i}.ffn_gate_inp.weight")).apply(x);
        let softly = (c.scoring_func == Scoring::Softmax) != self.wrong(Mistake::OtherGating);
        let mut prob: Row = logits.iter().map(|l| 1.0 / (1.0 + (-l).exp())).collect();
        if softly {
            prob.clone_from(&logits);
            softmax(&mut prob);
        }
        let mut choice = prob.clone();
        if let Some(bias) = self.weights.get(&format!("blk.{i}.exp_probs_b.bias")) {
            choice.iter_mut().zip(&bias.values).for_each(|(choice, bias)| *choice += f64::from(*bias));
        }
        let mut open = choice.clone();
        if c.n_group > 1 && !self.wrong(Mistake::NoGroupLimit) {
            let size = open.len() / c.n_group as usize;
            let one = (c.scoring_func == Scoring::Softmax) != self.wrong(Mistake::OtherGroupScore);
            let sums: Row = open
                .chunks_exact(size)
                .map(|group| {
                    largest(group, if one { 1 } else { 2 }, false).iter().map(|&e| group[e as usize]).sum()
                })
                .collect();
            let kept = largest(&sums, c.topk_group as usize, false);
            for (g, group) in open.chunks_exact_mut(size).enumerate() {
                if !kept.contains(&(g as u32)) {
                    group.fill(f64::NEG_INFINITY);
                }
            }
        }
        let k = self.o.moe_topk.unwrap_or(c.num_experts_per_tok) as usize;
        let ids = largest(&open, k, self.wrong(Mistake::TiesToHigherExpert));
        let source = if self.wrong(Mistake::WeightFromChoice) { &choice } else { &prob };
        let mut weights: Row = ids.iter().map(|&e| source[e as usize]).collect();
        let mut scale = if self.wrong(Mistake::NoScale) { 1.0 } else { c.routed_scaling_factor };
        if c.norm_topk_prob != self.wrong(Mistake::OtherNormalising) {
            let sum: f64 = weights.iter().sum();
            weights.iter_mut().for_each(|w| *w /= sum);
            if self.wrong(Mistake::ScaleBeforeNormalising) {
                scale = 1.0;
            }
        }
        weights.iter_mut().for_each(|w| *w *= scale);
        (ids, weights)
    }
}

/// Indices of the `k` largest, best first; among equals the lower index first, or the higher one.
fn largest(scores: &[f64], k: usize, higher_first: bool) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    if higher_first {
        order.reverse();
    }
    // Not `total_cmp`: the two zeros are equal scores.
    order.sort_by(|&a, &b| scores[b as usize].partial_cmp(&scores[a as usize]).expect("no NaN"));
    order.truncate(k);
    order
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

fn add(h: &mut [Row], y: &[Row]) {
    for (h, y) in h.iter_mut().zip(y) {
        h.iter_mut().zip(y).for_each(|(h, y)| *h += y);
    }
}

fn softmax(p: &mut [f64]) {
    let max = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    p.iter_mut().for_each(|p| *p = (*p - max).exp());
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
}

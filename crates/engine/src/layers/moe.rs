//! The routed experts: the one place that asks the bank.
//!
//! Router, then all misses requested at once; while they fly, what needs no routing (the shared expert) and the hits; then each wave as
//! it lands. Every (token, choice) pair has its own output row and the rows are summed in router order at the end, so
//! neither arrival order nor grouping can change the result.

use std::sync::Arc;

use experts::Bank;
use files::Family;
use kernels::ops::Glu;

use crate::backend::{Backend, Buf, ExpertBias, Routed, RoutedSpec, View, WeightId};
use crate::keys::Keys;
use crate::layers::ffn::{Ffn, FfnState};
use crate::layers::lookahead::Lookahead;
use crate::layers::oracle::Oracle;
use crate::layers::router::{Gating, Router, RouterConfig, RouterState, route, weigh};
use crate::load::Loader;
use crate::models::{ModelInfo, Rows, Step};
use crate::options::{Prefetch, Routing};
use crate::packed;
use crate::{EngineOptions, Error};

/// Sizes shared by all routed layers.
#[derive(Debug, Clone)]
pub(crate) struct MoeConfig {
    pub(crate) router: RouterConfig,
    pub(crate) hidden_size: usize,
    pub(crate) moe_intermediate_size: usize,
    pub(crate) n_shared_experts: usize,
    /// Of routed and shared experts and of dense layers; SwiGLU unless the model says otherwise.
    pub(crate) activation: Glu,
}

/// Bound of what a file may claim: far above any model.
const EXPERTS_MAX: u64 = 1 << 16;

/// What an architecture means where its files say nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MoeDefaults {
    pub(crate) gating: Gating,
    pub(crate) norm_topk_prob: bool,
}

impl MoeConfig {
    pub(crate) fn read(
        keys: &Keys<'_>,
        options: &EngineOptions,
        default: MoeDefaults,
    ) -> Result<Self, Error> {
        let n_experts = keys.size_up_to("expert_count", EXPERTS_MAX)?;
        let scale = keys.f32_if_any("expert_weights_scale")?.unwrap_or(1.0);
        let router = RouterConfig {
            n_experts,
            gating: match keys.size_or("expert_gating_func", 0)? {
                0 => default.gating,
                1 => Gating::Softmax,
                2 => Gating::Sigmoid,
                3 => Gating::Chosen,
                other => {
                    let why = format!(
                        "expert_gating_func {other} is neither softmax (1), sigmoid (2) nor softmax over the chosen experts (3)"
                    );
                    return Err(keys.wrong(why));
                }
            },
            top_k: top_k(keys, options, n_experts)?,
            n_group: keys.size_or("expert_group_count", 1)?.max(1),
            topk_group: keys.size_or("expert_group_used_count", 1)?.max(1),
            norm_topk_prob: keys.bool_or("expert_weights_norm", default.norm_topk_prob)?,
            // Converters write 0 for "none".
            routed_scaling_factor: if scale == 0.0 { 1.0 } else { scale },
            norm_eps: None,
        };
        let (groups, used) = (router.n_group, router.topk_group);
        if groups > 1 && router.gating == Gating::Chosen {
            let why = format!("{groups} groups of experts whose scores are logits (expert_gating_func 3)");
            return Err(keys.wrong(why));
        }
        if !n_experts.is_multiple_of(groups) || used > groups {
            return Err(keys.wrong(format!("{n_experts} experts in {groups} groups, {used} used")));
        }
        let size = n_experts / groups;
        if router.top_k > size * used {
            let why = format!("{} experts per token from {used} groups of {size}", router.top_k);
            return Err(keys.wrong(why));
        }
        Ok(Self {
            router,
            hidden_size: keys.size("embedding_length")?,
            moe_intermediate_size: keys.uniform_size("expert_feed_forward_length")?,
            n_shared_experts: keys.size_or("expert_shared_count", 0)?,
            activation: Glu::Silu,
        })
    }

    /// What a model says of its experts, the layers aside.
    pub(crate) fn describe(&self, info: &mut ModelInfo) {
        info.n_experts = self.router.n_experts as u32;
        info.top_k = self.router.top_k as u32;
    }

    /// Width of the shared experts together.
    pub(crate) fn shared_width(&self) -> usize {
        self.n_shared_experts * self.moe_intermediate_size
    }
}

/// Experts per token: the model's, or what the options ask for.
fn top_k(keys: &Keys<'_>, options: &EngineOptions, n_experts: usize) -> Result<usize, Error> {
    let used = keys.uniform_size("expert_used_count")?;
    let top_k = match options.moe_topk {
        None => used,
        Some(n) if n == 0 || n as usize > used => {
            return Err(Error::Option {
                option: "--moe-topk",
                why: format!("{n} experts per token asked, the model was made for 1 to {used}"),
            });
        }
        Some(n) => n as usize,
    };
    match options.routing {
        Routing::Force(expert) if expert as usize >= n_experts => Err(Error::Option {
            option: "--moe-force-expert",
            why: format!("expert {expert} asked, the model has 0 to {}", n_experts - 1),
        }),
        Routing::Force(_) => Ok(1),
        _ => Ok(top_k),
    }
}

/// Weights of one routed layer, except the experts themselves.
pub(crate) struct Moe {
    layer: u32,
    router: Router,
    shared: Option<Ffn>,
    formats: [u32; 3],
    fused: bool,
    biases: [Option<ExpertBias>; 3],
    /// Factor on each expert's output.
    scale: Option<Arc<[f32]>>, // [n_experts]
    slot8: bool,
}

/// Scratch of a pass, shared by all layers.
pub(crate) struct MoeState {
    logits: Buf, // [ubatch, n_experts]
    normed: Buf, // [ubatch, hidden], where routers norm their input
    ubatch: usize,
    out: Buf, // [batch * k, hidden]: every pair's own row, until all waves have come
    router: RouterState,
    ids: Vec<u32>,     // [batch * k], token-major, router order
    weights: Vec<f32>, // [batch * k]
    starts: Vec<u32>,  // [n_experts + 1]
    pairs: Vec<u32>,   // [batch * k], sorted by expert
    lookahead: Lookahead,
    routing: Routing,
    /// Only where it routes.
    oracle: Option<Oracle>,
}

impl MoeState {
    pub(crate) fn new(
        loader: &mut Loader<'_>,
        c: &MoeConfig,
        [batch, ubatch]: [usize; 2],
    ) -> Result<Self, Error> {
        let pairs = batch * c.router.top_k;
        loader.routed_scratch(&RoutedSpec { pairs, n_ff: c.moe_intermediate_size });
        Ok(Self {
            logits: loader.buffer(ubatch * c.router.n_experts),
            normed: loader.buffer(c.router.norm_eps.map_or(0, |_| ubatch * c.hidden_size)),
            ubatch,
            out: loader.buffer(pairs * c.hidden_size),
            router: RouterState::new(&c.router),
            ids: vec![0; pairs],
            weights: vec![0.0; pairs],
            starts: vec![0; c.router.n_experts + 1],
            pairs: vec![0; pairs],
            lookahead: Lookahead::new(loader, &c.router, c.hidden_size)?,
            routing: loader.options.routing,
            oracle: oracle_of(loader.options)?,
        })
    }

    /// Called before the FFN of a dense layer, which sees the one row `x`: the routed layer after it is guessed early, too.
    pub(crate) fn lead(
        &mut self,
        step: &mut Step<'_>,
        c: &MoeConfig,
        layer: u32,
        x: View,
    ) -> Result<(), Error> {
        match step.bank.as_deref_mut() {
            Some(bank) if self.routing != Routing::RouterOnly => {
                self.lookahead.lead(step.backend, bank, &c.router, layer, x)
            }
            _ => Ok(()),
        }
    }

    /// As [`Lookahead::set_mode`].
    pub(crate) fn set_prefetch(&mut self, prefetch: Prefetch) {
        self.lookahead.set_mode(prefetch);
    }

    /// Sorts the pairs by expert, keeping token order inside an expert.
    fn group(&mut self, n: usize) {
        self.starts.fill(0);
        for &id in &self.ids[..n] {
            self.starts[id as usize + 1] += 1;
        }
        for e in 1..self.starts.len() {
            self.starts[e] += self.starts[e - 1];
        }
        // `starts[e]` walks through its expert's range and ends at the next one's start: shift back afterwards.
        for (pair, &id) in self.ids[..n].iter().enumerate() {
            let place = &mut self.starts[id as usize];
            self.pairs[*place as usize] = pair as u32;
            *place += 1;
        }
        self.starts.rotate_right(1);
        self.starts[0] = 0;
    }
}

impl Moe {
    pub(crate) fn load(loader: &mut Loader<'_>, layer: u32, c: &MoeConfig) -> Result<Self, Error> {
        let (formats, fused) = expert_formats(loader, layer, c)?;
        let biases = expert_biases(loader, layer, c)?;
        let scale = expert_scale(loader, layer, c, biases[2].is_some())?;
        let router = Router::load(loader, layer, &c.router, c.hidden_size)?;
        loader.routers.push(router.clone());
        Ok(Self {
            layer,
            router,
            shared: match c.shared_width() {
                0 => None,
                width => Some(Ffn::load(loader, layer, "_shexp", [c.hidden_size, width], c.activation)?),
            },
            formats,
            fused,
            biases,
            scale,
            slot8: loader.options.slot8,
        })
    }

    /// `y = shared(x) + routed(x)`; `x` and `y` are rows of `hidden_size` and begin with the first wanted one.
    #[expect(
        clippy::too_many_arguments,
        reason = "operands of one formula; a struct would be built and torn apart"
    )]
    pub(crate) fn forward(
        &self,
        step: &mut Step<'_>,
        c: &MoeConfig,
        s: &mut MoeState,
        ffn: &FfnState,
        x: View,
        rows: Rows,
        y: View,
    ) -> Result<(), Error> {
        let n = rows.wanted().len();
        self.forward_beside(step, c, s, [x, x], rows, y, &mut |b| self.shared_expert(b, ffn, x, n, y, c))
    }

    /// `y += routed(x)`, where the router sees the first of the two inputs and the experts the second. `meanwhile` is computed while
    /// experts are read; it needs no routing, and leaves in `y` what their sum is added to.
    #[expect(clippy::too_many_arguments, reason = "as above")]
    pub(crate) fn forward_beside(
        &self,
        step: &mut Step<'_>,
        c: &MoeConfig,
        s: &mut MoeState,
        [router_x, x]: [View; 2],
        rows: Rows,
        y: View,
        meanwhile: &mut dyn FnMut(&mut dyn Backend),
    ) -> Result<(), Error> {
        let (start, rows) = (rows.start + rows.first_wanted, rows.wanted().len());
        let Some(bank) = step.bank.as_deref_mut() else {
            meanwhile(step.backend);
            return Ok(());
        };
        self.route(step.backend, c, s, router_x, rows)?;
        let (k, n) = (c.router.top_k, rows * c.router.top_k);
        if let Some(dump) = step.dump.as_deref_mut() {
            dump.experts(self.layer, start, k, &s.ids[..n], &s.weights[..n]);
        }
        if s.routing == Routing::RouterOnly {
            meanwhile(step.backend);
            return Ok(());
        }
        s.group(n);
        bank.request(self.layer, &s.ids[..n], k as u32)?;
        if rows == 1 {
            let guess = s.lookahead.guess(step.backend, bank, &c.router, self.layer, router_x, &s.ids[..n]);
            guess.inspect_err(|_| bank.abandon())?;
        } else {
            s.lookahead.pause(self.layer, k, rows).inspect_err(|_| bank.abandon())?;
        }
        meanwhile(step.backend);
        let call = Routed {
            layer: self.layer,
            formats: self.formats,
            fused: self.fused,
            biases: self.biases,
            activation: c.activation,
            n_embd: c.hidden_size,
            n_ff: c.moe_intermediate_size,
            k,
            n_tokens: rows,
            starts: &s.starts,
            pairs: &s.pairs[..n],
            x,
            out: View::rows(s.out, c.hidden_size),
        };
        step.backend.routed_input(&call);
        run_waves(step.backend, bank, &call, self.slot8)?;
        step.backend.combine(call.out, &s.weights[..n], k, c.hidden_size, rows, y);
        Ok(())
    }

    fn route(
        &self,
        b: &mut dyn Backend,
        c: &MoeConfig,
        s: &mut MoeState,
        x: View,
        rows: usize,
    ) -> Result<(), Error> {
        let (n_experts, k) = (c.router.n_experts, c.router.top_k);
        let (logits, normed) = (View::rows(s.logits, n_experts), View::rows(s.normed, c.hidden_size));
        let replayed = match &mut s.oracle {
            Some(oracle) => Some(oracle.take(self.layer, k, rows)?),
            None => None,
        };
        for t in 0..rows {
            let pairs = t * k..(t + 1) * k;
            if t.is_multiple_of(s.ubatch) {
                self.router.logits(b, x.from_row(t), s.ubatch.min(rows - t), normed, logits);
            }
            route(
                &c.router,
                &mut s.router,
                b.read(logits, t % s.ubatch, n_experts),
                &self.router.biases,
                &mut s.ids[pairs.clone()],
                &mut s.weights[pairs.clone()],
            );
            if let Some(replayed) = replayed {
                s.ids[pairs.clone()].copy_from_slice(&replayed[pairs.clone()]);
                weigh(&c.router, &s.router, &replayed[pairs.clone()], &mut s.weights[pairs.clone()]);
            } else if let Routing::Force(expert) = s.routing {
                s.ids[pairs.clone()].fill(expert);
                s.weights[pairs.clone()].fill(1.0);
            }
            if let Some(scale) = &self.scale {
                let pairs = s.weights[pairs.clone()].iter_mut().zip(&s.ids[pairs]);
                pairs.for_each(|(weight, &id)| *weight *= scale[id as usize]);
            }
        }
        Ok(())
    }

    /// The part of `y` that needs no routing; zero where the model has no shared expert.
    fn shared_expert(
        &self,
        b: &mut dyn Backend,
        ffn: &FfnState,
        x: View,
        rows: usize,
        y: View,
        c: &MoeConfig,
    ) {
        match &self.shared {
            Some(shared) => shared.forward(b, ffn, x, rows, y),
            None => b.zero(y, c.hidden_size, rows),
        }
    }
}

/// The trace that routes, where one does.
pub(crate) fn oracle_of(options: &EngineOptions) -> Result<Option<Oracle>, Error> {
    match (&options.oracle, options.routing) {
        (Some(path), Routing::Replay) => Oracle::open(path).map(Some),
        (None, Routing::Replay) => {
            Err(Error::Option { option: "routing", why: "a replay needs a trace".into() })
        }
        _ => Ok(None),
    }
}

/// Hits first, then each wave of misses as it lands: all experts of a wave together, or one by one, which is the reference
/// for the former. On an error the bank is left consistent.
fn run_waves(
    backend: &mut dyn Backend,
    bank: &mut Bank,
    call: &Routed<'_>,
    slot8: bool,
) -> Result<(), Error> {
    loop {
        match bank.next_wave() {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                bank.abandon();
                return Err(error.into());
            }
        }
        if bank.plan().packs() {
            backend.promote(bank, call);
        }
        let together = if slot8 { bank.wave().len() } else { 1 };
        for experts in bank.wave().chunks(together.max(1)) {
            backend.routed_ffn(bank, experts, call);
        }
        bank.finish_wave();
    }
}

/// Checks the layer's expert tensors against the metadata; returns the formats of gate, up and down.
fn expert_formats(loader: &Loader<'_>, layer: u32, c: &MoeConfig) -> Result<([u32; 3], bool), Error> {
    if loader.options.shared_only {
        return Ok(([0; 3], false));
    }
    let (hidden, width) = (c.hidden_size as u64, c.moe_intermediate_size as u64);
    let n = c.router.n_experts as u64;
    let format = |family: Family, shape: [u64; 3]| -> Result<u32, Error> {
        let tensor = loader.checkpoint.expert(layer, family).ok_or_else(|| Error::MissingTensor {
            tensor: format!("blk.{layer}.{}.weight", family.name()),
            path: loader.checkpoint.root().to_owned(),
        })?;
        if tensor.shape != shape {
            return Err(Error::Shape {
                tensor: tensor.name.clone(),
                found: tensor.shape.to_vec(),
                expected: shape.to_vec(),
            });
        }
        if family != Family::Down {
            loader.check_factor(&tensor.name)?; // that of down is in `expert_scale`
        }
        packed::format_of(tensor).map(|format| format.id)
    };
    let down = format(Family::Down, [width, hidden, n])?;
    if loader.checkpoint.expert(layer, Family::GateUp).is_some() {
        let both = format(Family::GateUp, [hidden, 2 * width, n])?;
        return Ok(([both, both, down], true));
    }
    Ok(([format(Family::Gate, [hidden, width, n])?, format(Family::Up, [hidden, width, n])?, down], false))
}

/// What the layer adds to the rows of gate, up and down: `[n, n_experts]` each, or gate and up in one, gate's rows first.
fn expert_biases(
    loader: &mut Loader<'_>,
    layer: u32,
    c: &MoeConfig,
) -> Result<[Option<ExpertBias>; 3], Error> {
    if loader.options.shared_only {
        return Ok([None; 3]);
    }
    let (hidden, width, n) = (c.hidden_size, c.moe_intermediate_size, c.router.n_experts);
    let mut table = |family: Family, stride: usize| -> Result<Option<WeightId>, Error> {
        let name = format!("blk.{layer}.{}.bias", family.name());
        if loader.has(&name) { loader.table(&name, stride, n).map(Some) } else { Ok(None) }
    };
    let all = |values| ExpertBias { values, offset: 0, stride: width };
    let [gate, up] = match table(Family::GateUp, 2 * width)? {
        Some(values) => [0, width].map(|offset| Some(ExpertBias { values, offset, stride: 2 * width })),
        None => [table(Family::Gate, width)?.map(all), table(Family::Up, width)?.map(all)],
    };
    let down = table(Family::Down, hidden)?;
    Ok([gate, up, down.map(|values| ExpertBias { values, offset: 0, stride: hidden })])
}

/// Factors on the experts' outputs, one per expert: they go into the routing weights. A bias would have to be left out of that, and a
/// factor of another shape means something else.
fn expert_scale(
    loader: &mut Loader<'_>,
    layer: u32,
    c: &MoeConfig,
    biased: bool,
) -> Result<Option<Arc<[f32]>>, Error> {
    let (name, n) = (Family::Down.tensor_name(layer), c.router.n_experts);
    let factor = format!("blk.{layer}.{}.scale", Family::Down.name());
    if loader.options.shared_only || !loader.has(&factor) {
        return Ok(None);
    }
    if biased || !loader.has_heads(&factor, n, 1, 1) {
        loader.check_factor(&name)?;
    }
    Ok(Some(loader.host_vector(&factor, n)?.into()))
}

#[cfg(test)]
mod tests;

//! The tensors and metadata of a model, and how each tensor's bytes come about.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use files::gguf::Writer;
use files::{GgmlType, Metadata};

use super::blocks::{Blocks, Unit};
use super::random::Stream;
use super::ring::{self, Ring};
use super::shape::{Knobs, Shape};
use super::vocabulary;

/// Everything that decides the bytes of a file.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) shape: Shape,
    pub(super) knobs: Knobs,
    pub(super) seed: u64,
    /// Gate, up, down of the routed experts.
    pub(super) experts: [GgmlType; 3],
    /// One type for all dense matrices instead of the usual mix.
    pub(super) dense: Option<GgmlType>,
}

/// Deviation of what layers add outside their slice, relative to what they add inside.
const LEAK: f32 = 0.05;
/// Deviation of what attention adds to the work half, per unit of context.
const ATTENTION: f32 = 0.2;
/// `silu(a)·b` of two independent normal deviates has this deviation.
const SWIGLU: f32 = 0.596;
/// `expert_weights_scale` of GLM-5.x.
const ROUTED_SCALE: f32 = 2.5;
/// What generation and its thread hand to the file at a time.
const CHUNK_BYTES: usize = 4 << 20;

/// One tensor of the file.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) ty: GgmlType,
    /// Contiguous dimension first.
    pub(super) shape: Vec<u64>,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    /// Norms and their biases.
    Constant(f32),
    /// A matrix (or a stack): output channels `loud` have deviation `std`, the others `quiet` of it.
    Random {
        std: f32,
        loud: Range<u64>,
        quiet: f32,
    },
    Embedding,
    Head,
    Router(u64),
    Bias(u64),
}

impl Model {
    /// All tensors in file order, or the matrix that its format cannot hold, as (what, what to do).
    pub(super) fn tensors(&self) -> Result<Vec<Tensor>, (String, String)> {
        let s = &self.shape;
        let mut list = List { model: self, tensors: Vec::new(), misfit: None };
        let table = match self.dense {
            Some(ty) if matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16) => ty,
            _ => GgmlType::Q8_0,
        };
        list.push("token_embd.weight".into(), table, &[s.n_embd, s.vocab], Content::Embedding);
        for layer in 0..s.layers {
            list.attention(layer);
            if s.is_dense(layer) {
                list.feed_forward(layer, "", s.n_ff_dense, 1.0 / SWIGLU);
            } else {
                list.routed(layer);
            }
        }
        list.push("output_norm.weight".into(), GgmlType::F32, &[s.n_embd], Content::Constant(1.0));
        list.push("output.weight".into(), table, &[s.n_embd, s.vocab], Content::Head);
        match list.misfit {
            Some(misfit) => Err(misfit),
            None => Ok(list.tensors),
        }
    }

    /// Bytes of all tensors.
    pub(super) fn bytes(tensors: &[Tensor]) -> u64 {
        tensors.iter().filter_map(|t| t.ty.tensor_bytes(&t.shape)).sum()
    }

    /// The metadata that a converter would write, and from what the file was made.
    pub(super) fn metadata(&self) -> Metadata {
        let s = &self.shape;
        let mut m = Metadata::new();
        m.insert("general.architecture", "glm-dsa");
        m.insert("general.type", "model");
        m.insert("general.name", "slotbank synthetic");
        m.insert("general.quantization_version", 2u32);
        let sizes = [
            ("block_count", s.layers),
            ("context_length", s.context),
            ("embedding_length", s.n_embd),
            ("feed_forward_length", s.n_ff_dense),
            ("attention.head_count", s.heads),
            // MLA as the one shared head that its absorbed form is: none of these three is a head size.
            ("attention.head_count_kv", 1),
            ("attention.key_length", s.kv_lora + s.rope),
            ("attention.value_length", s.kv_lora),
            ("attention.key_length_mla", s.nope + s.rope),
            ("attention.value_length_mla", s.v_head),
            ("attention.q_lora_rank", s.q_lora),
            ("attention.kv_lora_rank", s.kv_lora),
            ("attention.indexer.head_count", s.index_heads),
            ("attention.indexer.key_length", s.index_dim),
            ("attention.indexer.top_k", s.index_topk),
            ("rope.dimension_count", s.rope),
            ("expert_count", s.n_experts),
            ("expert_used_count", s.top_k),
            ("expert_shared_count", 1),
            ("expert_group_count", 1),
            ("expert_group_used_count", 1),
            ("expert_feed_forward_length", s.n_ff),
            ("expert_gating_func", 2),
            ("leading_dense_block_count", s.dense_layers),
            ("vocab_size", s.vocab),
        ];
        for (key, value) in sizes {
            m.insert(format!("glm-dsa.{key}"), u32::try_from(value).expect("sizes are checked"));
        }
        m.insert("glm-dsa.attention.layer_norm_rms_epsilon", 1e-5f32);
        m.insert("glm-dsa.expert_weights_scale", ROUTED_SCALE);
        m.insert("glm-dsa.expert_weights_norm", true);
        m.insert("glm-dsa.rope.freq_base", 8e6f32);
        let full: Vec<bool> = (0..s.layers).map(Shape::is_full).collect();
        m.insert("glm-dsa.attention.indexer.types", full);
        let ring = vocabulary::ring_ids(s.vocab);
        m.insert("slotbank.synthetic.seed", self.seed);
        m.insert("slotbank.synthetic.skew", self.knobs.skew);
        m.insert("slotbank.synthetic.drift", self.knobs.drift);
        m.insert("slotbank.synthetic.noise", self.knobs.noise);
        m.insert("slotbank.synthetic.mixing", self.knobs.mixing);
        m.insert("slotbank.synthetic.ring_first", ring.start);
        m.insert("slotbank.synthetic.ring_length", ring.end - ring.start);
        vocabulary::insert(&mut m, s.vocab);
        m
    }

    /// Hands every tensor to `writer`. A raised `stop` ends the writing with an error.
    pub(super) fn add_to<'a>(
        &'a self,
        writer: &mut Writer<'a>,
        tensors: &'a [Tensor],
        stop: &'a AtomicBool,
        progress: &'a (dyn Fn(u64) + 'a),
    ) -> Result<(), files::Error> {
        for tensor in tensors {
            writer.tensor(tensor.name.clone(), tensor.ty, &tensor.shape, move |out| {
                self.write_tensor(tensor, stop, &mut Counted { out, progress, stop })
            })?;
        }
        Ok(())
    }

    fn write_tensor(&self, tensor: &Tensor, stop: &AtomicBool, out: &mut dyn Write) -> io::Result<()> {
        let ring = Ring::new(&self.shape, self.knobs, self.seed, vocabulary::ring_ids(self.shape.vocab));
        match tensor.content {
            Content::Constant(x) => {
                let n = tensor.shape.iter().product::<u64>() as usize;
                out.write_all(&x.to_le_bytes().repeat(n))
            }
            Content::Embedding | Content::Head => {
                let head = matches!(tensor.content, Content::Head);
                let format = kernels::format(tensor.ty.id()).expect("a float type or Q8_0");
                let quantize = format.quantize.expect("a float type or Q8_0");
                let row_bytes = tensor.ty.row_bytes(self.shape.n_embd).expect("whole blocks") as usize;
                ring.write_table(head, quantize, row_bytes, out)
            }
            Content::Router(layer) => ring.write_router(layer, out),
            Content::Bias(layer) => ring.bias(layer).iter().try_for_each(|x| out.write_all(&x.to_le_bytes())),
            Content::Random { std, ref loud, quiet } => {
                let blocks = Blocks::of(tensor.ty).expect("checked when the tensor was listed");
                let rows = Rows {
                    blocks,
                    stream: Stream::new(self.seed, &tensor.name),
                    units: [blocks.unit(std), blocks.unit(std * quiet)],
                    loud: loud.clone(),
                    n_out: tensor.shape[1],
                    row_bytes: blocks.row_bytes(tensor.shape[0]).expect("whole blocks"),
                    count: tensor.shape[1..].iter().product(),
                };
                rows.write(stop, out)
            }
        }
    }
}

struct List<'a> {
    model: &'a Model,
    tensors: Vec<Tensor>,
    misfit: Option<(String, String)>,
}

impl List<'_> {
    fn push(&mut self, name: String, ty: GgmlType, shape: &[u64], content: Content) {
        if ty.tensor_bytes(shape).is_none() {
            let hint = "choose another format for it, or make the size a multiple of its block";
            self.misfit.get_or_insert((
                format!(
                    "`{name}` has rows of {} weights, {ty} comes in blocks of {}",
                    shape[0],
                    ty.block_elements()
                ),
                hint.into(),
            ));
        }
        self.tensors.push(Tensor { name, ty, shape: shape.to_vec(), content });
    }

    fn norm(&mut self, name: String, n: u64) {
        self.push(name, GgmlType::F32, &[n], Content::Constant(1.0));
    }

    /// A dense matrix of `shape`: `usual` or the type asked for, Q8_0 (or F32) where rows are no whole blocks of it.
    fn dense(&mut self, name: String, usual: GgmlType, shape: &[u64], content: Content) {
        let wanted = self.model.dense.unwrap_or(usual);
        let fits = |ty: &GgmlType| ty.row_bytes(shape[0]).is_some();
        let ty = [wanted, GgmlType::Q8_0].into_iter().find(fits).unwrap_or(GgmlType::F32);
        self.push(name, ty, shape, content);
    }

    /// Into a space of unit deviation.
    fn even(n_in: u64) -> Content {
        Content::Random { std: 1.0 / (n_in as f32).sqrt(), loud: 0..u64::MAX, quiet: 1.0 }
    }

    fn attention(&mut self, layer: u64) {
        use GgmlType as T;
        let s = &self.model.shape;
        let b = |name: &str| format!("blk.{layer}.{name}");
        let (d, q, l, h) = (s.n_embd, s.q_lora, s.kv_lora, s.heads);
        self.norm(b("attn_norm.weight"), d);
        self.dense(b("attn_q_a.weight"), T::Q5_K, &[d, q], Self::even(d));
        self.norm(b("attn_q_a_norm.weight"), q);
        self.dense(b("attn_q_b.weight"), T::Q4_K, &[q, h * (s.nope + s.rope)], Self::even(q));
        self.dense(b("attn_kv_a_mqa.weight"), T::Q5_K, &[d, l + s.rope], Self::even(d));
        self.norm(b("attn_kv_a_norm.weight"), l);
        // Read along the 192 rows of a head's keys: from the latent it is a matrix of 512 inputs.
        let k_b = Content::Random { std: 1.0 / (l as f32).sqrt(), loud: 0..u64::MAX, quiet: 1.0 };
        self.dense(b("attn_k_b.weight"), T::Q6_K, &[s.nope, l, h], k_b);
        self.dense(b("attn_v_b.weight"), T::Q6_K, &[l, s.v_head, h], Self::even(l));
        let context = h * s.v_head;
        let output = Content::Random {
            std: ATTENTION / (context as f32).sqrt(),
            loud: ring::signal(d)..d,
            quiet: LEAK,
        };
        self.dense(b("attn_output.weight"), T::Q6_K, &[context, d], output);
        if Shape::is_full(layer) {
            let (heads, dim) = (s.index_heads, s.index_dim);
            self.dense(b("indexer.attn_q_b.weight"), T::Q8_0, &[q, heads * dim], Self::even(q));
            self.dense(b("indexer.attn_k.weight"), T::Q8_0, &[d, dim], Self::even(d));
            self.norm(b("indexer.k_norm.weight"), dim);
            self.push(b("indexer.k_norm.bias"), T::F32, &[dim], Content::Constant(0.0));
            self.dense(b("indexer.proj.weight"), T::Q8_0, &[d, heads], Self::even(d));
        }
        self.norm(b("ffn_norm.weight"), d);
    }

    /// Output into the layer's slice with deviation `gain · SWIGLU`, little elsewhere.
    fn down(&self, layer: u64, n_ff: u64, gain: f32) -> Content {
        Content::Random {
            std: gain / (n_ff as f32).sqrt(),
            loud: ring::slice(&self.model.shape, layer),
            quiet: LEAK,
        }
    }

    /// `suffix` is empty or `_shexp`.
    fn feed_forward(&mut self, layer: u64, suffix: &str, n_ff: u64, gain: f32) {
        use GgmlType as T;
        let d = self.model.shape.n_embd;
        let b = |name: &str| format!("blk.{layer}.ffn_{name}{suffix}.weight");
        self.dense(b("gate"), T::Q4_K, &[d, n_ff], Self::even(d));
        self.dense(b("up"), T::Q4_K, &[d, n_ff], Self::even(d));
        let down = self.down(layer, n_ff, gain);
        self.dense(b("down"), T::Q6_K, &[n_ff, d], down);
    }

    fn routed(&mut self, layer: u64) {
        let s = self.model.shape.clone();
        let (d, f, e) = (s.n_embd, s.n_ff, s.n_experts);
        let b = |name: &str| format!("blk.{layer}.{name}");
        self.push(b("ffn_gate_inp.weight"), GgmlType::F32, &[d, e], Content::Router(layer));
        self.push(b("exp_probs_b.bias"), GgmlType::F32, &[e], Content::Bias(layer));
        // About equal weights that sum to the scale, of independent experts; and the shared expert: unit deviation in all.
        let routed = ROUTED_SCALE / (s.top_k as f32).sqrt();
        let gain = 1.0 / (SWIGLU * (1.0 + routed * routed).sqrt());
        let [gate, up, down] = self.model.experts;
        self.push(b("ffn_gate_exps.weight"), gate, &[d, f, e], Self::even(d));
        self.push(b("ffn_up_exps.weight"), up, &[d, f, e], Self::even(d));
        let content = self.down(layer, f, gain);
        self.push(b("ffn_down_exps.weight"), down, &[f, d, e], content);
        self.feed_forward(layer, "_shexp", f, gain);
    }
}

/// The rows of a random tensor.
struct Rows {
    blocks: Blocks,
    stream: Stream,
    /// For loud rows and for quiet ones.
    units: [Unit; 2],
    loud: Range<u64>,
    n_out: u64,
    row_bytes: usize,
    count: u64,
}

impl Rows {
    /// Chunks of rows made by all cores, written in order.
    fn write(&self, stop: &AtomicBool, out: &mut dyn Write) -> io::Result<()> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let per_chunk = (CHUNK_BYTES / self.row_bytes).max(1) as u64;
        let mut buffers = vec![Vec::new(); threads];
        let mut row = 0;
        while row < self.count {
            if stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("stopped"));
            }
            let starts = (row..self.count).step_by(per_chunk as usize).take(threads);
            std::thread::scope(|scope| {
                for (start, buffer) in starts.zip(&mut buffers) {
                    scope.spawn(move || self.fill(start..(start + per_chunk).min(self.count), buffer));
                }
            });
            for buffer in &mut buffers {
                out.write_all(buffer)?;
                row += (buffer.len() / self.row_bytes) as u64;
                buffer.clear();
            }
        }
        Ok(())
    }

    fn fill(&self, rows: Range<u64>, out: &mut Vec<u8>) {
        out.resize((rows.end - rows.start) as usize * self.row_bytes, 0);
        let numbers = self.blocks.numbers_per_row(self.row_bytes);
        for (row, bytes) in rows.zip(out.chunks_exact_mut(self.row_bytes)) {
            let unit = self.units[usize::from(!self.loud.contains(&(row % self.n_out)))];
            self.blocks.fill_row(unit, self.stream, row * numbers, bytes);
        }
    }
}

/// Passes bytes on, reports them, and fails once `stop` is raised.
struct Counted<'a> {
    out: &'a mut dyn Write,
    progress: &'a dyn Fn(u64),
    stop: &'a AtomicBool,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            // Not `Interrupted`, which `write_all` would try again.
            return Err(io::Error::other("stopped"));
        }
        let n = self.out.write(bytes)?;
        (self.progress)(n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use engine::{Engine, EngineOptions, Want};
    use files::Checkpoint;

    use super::*;

    fn model(experts: GgmlType) -> Model {
        let shape = Shape { layers: 2, n_experts: 4, vocab: 512, ..Shape::tiny() };
        let knobs = Knobs { skew: 0.2, drift: 8.0, noise: 0.5, mixing: 0.3 };
        Model { shape, knobs, seed: 7, experts: [experts; 3], dense: None }
    }

    fn write(model: &Model, path: &std::path::Path) {
        let stop = AtomicBool::new(false);
        let tensors = model.tensors().expect("a possible model");
        let mut writer = Writer::new(model.metadata()).expect("sound metadata");
        model.add_to(&mut writer, &tensors, &stop, &|_| ()).expect("sound tensors");
        writer.write_file(path).expect("a temporary folder");
    }

    /// Experts in every format that has a kernel: the engine computes with them, and what they say is finite.
    #[test]
    fn every_format_runs() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for format in kernels::FORMATS {
            let path = folder.path().join(format!("{}.gguf", format.name));
            let model = model(GgmlType::from_id(format.id).expect("a type of the table"));
            write(&model, &path);
            let checkpoint = Checkpoint::open(&path).expect("it opens");
            let options = EngineOptions { threads: Some(1), ..EngineOptions::default() };
            let mut engine = Engine::load(&checkpoint, options).expect("it loads");
            let mut sequence = engine.new_sequence().expect("a sequence");
            let mut rows = 0;
            engine
                .forward(&mut sequence, &[256, 257, 300], Want::All, &mut |_, row| {
                    assert!(row.iter().all(|x| x.is_finite()), "{}", format.name);
                    assert!(row.iter().any(|x| x.abs() > 0.5), "{}", format.name);
                    rows += 1;
                })
                .expect("it runs");
            assert_eq!(rows, 3);
        }
    }

    #[test]
    fn a_raised_flag_ends_the_writing_and_leaves_no_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("m.gguf");
        let model = model(GgmlType::Q4_K);
        let tensors = model.tensors().expect("a possible model");
        let stop = AtomicBool::new(true);
        let mut writer = Writer::new(model.metadata()).expect("sound metadata");
        model.add_to(&mut writer, &tensors, &stop, &|_| ()).expect("sound tensors");
        assert!(writer.write_file(&path).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }

    /// The real shape's tensors: names and shapes that only the file format's reader could refuse, and the published sizes.
    #[test]
    fn full_width_has_the_published_sizes() {
        let model = Model {
            shape: Shape::glm52(),
            experts: [GgmlType::IQ1_M, GgmlType::IQ1_M, GgmlType::IQ2_XXS],
            ..model(GgmlType::Q4_K)
        };
        let tensors = model.tensors().expect("a possible model");
        let named = |name: &str| tensors.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("{name}"));
        let gate = named("blk.1.ffn_gate_exps.weight");
        assert_eq!(gate.ty.tensor_bytes(&gate.shape), Some(256 * 2_752_512));
        assert_eq!(named("blk.0.attn_k_b.weight").ty, GgmlType::Q8_0);
        assert_eq!(named("blk.0.attn_k_b.weight").shape, [192, 512, 64]);
        // Layers 0, 1, 2 and 6 run an indexer.
        assert_eq!(tensors.iter().filter(|t| t.name.contains("indexer.proj")).count(), 4);
        let layer = |i: u64| tensors.iter().filter(move |t| t.name.starts_with(&format!("blk.{i}.")));
        let weights = |i| layer(i).map(|t| t.shape.iter().product::<u64>()).sum::<u64>();
        // Attention, indexer, router, 256 experts and the shared one, two norms.
        assert_eq!(weights(1), 165_022_208 + 9_371_904 + 1_573_120 + 257 * 37_748_736 + 2 * 6144);
    }
}

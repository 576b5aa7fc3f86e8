//! A toy as a file: configuration, storage types and peculiarities, written as one GGUF or as a split set.

use std::path::{Path, PathBuf};

use files::gguf::Writer;
use files::{GgmlType, Metadata};

use crate::blocks;
use crate::config::{Family, Indexer, Role, Scoring, TensorSpec, ToyConfig, Types};
use crate::fixture::Fixture;
use crate::vocabulary::{self, Vocabulary};
use crate::weights;

/// A model that can be written in every form in which checkpoints come.
#[derive(Clone, Debug)]
pub struct Toy {
    /// Shape.
    pub config: ToyConfig,
    /// Seed of the weights.
    pub seed: u64,
    /// Storage types.
    pub types: Types,
    /// Whether the file has `attention.indexer.types`; without it a reader must apply the default rule.
    pub schedule_in_file: bool,
    /// Indexer tensors on shared layers too, with values of their own that nobody may use.
    pub stale_indexers: bool,
    /// A block after the trunk that predicts further tokens; decoding never runs it.
    pub mtp: bool,
    /// One `attn_kv_b` per layer instead of `attn_k_b` and `attn_v_b`, and the metadata that goes with it, as files of DeepSeek-V3
    /// had them until the spring of 2025.
    pub legacy_kv_b: bool,
    /// Tokenizer.
    pub vocabulary: Vocabulary,
    /// Tensors that hold one constant instead of their hash values.
    pub constants: Vec<(String, f32)>,
}

impl Toy {
    /// A toy with every weight in `ty` and nothing peculiar.
    pub fn new(config: ToyConfig, seed: u64, ty: GgmlType) -> Self {
        Self {
            config,
            seed,
            types: Types::all(ty),
            schedule_in_file: true,
            stale_indexers: false,
            mtp: false,
            legacy_kv_b: false,
            vocabulary: Vocabulary::None,
            constants: Vec::new(),
        }
    }

    /// The model of a golden fixture, in F32.
    pub fn from_fixture(fixture: &Fixture) -> Self {
        Self {
            schedule_in_file: fixture.schedule_in_file,
            ..Self::new(fixture.config.clone(), fixture.seed, GgmlType::F32)
        }
    }

    /// A model whose rows are long enough for 256-element blocks, stored as `types`: three MoE layers after a dense one,
    /// twelve experts, three used.
    pub fn wide(types: Types) -> Self {
        let mut config = Fixture::named("share").config.with_pattern("FFSF");
        config.hidden_size = 256;
        config.moe_intermediate_size = 256;
        config.intermediate_size = 256;
        config.first_k_dense_replace = 1;
        config.n_routed_experts = 12;
        config.num_experts_per_tok = 3;
        Self { types, ..Self::new(config, 11, GgmlType::F32) }
    }

    /// The same shape in the other family: what `share` is without its indexer.
    pub fn wide_deepseek2(types: Types) -> Self {
        let mut toy = Self::wide(types);
        toy.config.family = Family::Deepseek2;
        toy.config.indexer_types.clear();
        toy
    }

    /// Every tensor of the file.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let c = &self.config;
        let mut tensors = c.tensors(self.stale_indexers, self.mtp);
        if self.legacy_kv_b {
            tensors.retain(|spec| !spec.name.contains("attn_v_b"));
            for spec in tensors.iter_mut().filter(|spec| spec.name.contains("attn_k_b")) {
                spec.name = spec.name.replace("attn_k_b", "attn_kv_b");
                let rows = c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim);
                spec.shape = vec![u64::from(c.kv_lora_rank), u64::from(rows)];
            }
        }
        tensors
    }

    /// `attn_kv_b` of a legacy file, from the two tensors that newer ones have: per head the key's rows, then the value's.
    fn fused_kv_b(&self, name: &str) -> Vec<f32> {
        let c = &self.config;
        let [h, n, l, v] = [c.num_attention_heads, c.qk_nope_head_dim, c.kv_lora_rank, c.v_head_dim]
            .map(|size| size as usize);
        let k = weights::values(self.seed, &name.replace("attn_kv_b", "attn_k_b"), n * l * h);
        let v_b = weights::values(self.seed, &name.replace("attn_kv_b", "attn_v_b"), l * v * h);
        let mut out = Vec::with_capacity(h * (n + v) * l);
        for head in 0..h {
            for row in 0..n {
                out.extend((0..l).map(|column| k[(head * l + column) * n + row]));
            }
            out.extend(&v_b[head * v * l..(head + 1) * v * l]);
        }
        out
    }

    /// Storage type of a tensor.
    pub fn type_of(&self, spec: &TensorSpec) -> GgmlType {
        self.types.of(spec, self.config.first_k_dense_replace)
    }

    /// Stored bytes of a tensor.
    pub fn bytes(&self, spec: &TensorSpec) -> Vec<u8> {
        let ty = self.type_of(spec);
        if spec.name.contains("attn_kv_b.") {
            return blocks::quantise(ty, &|| self.fused_kv_b(&spec.name))
                .unwrap_or_else(|| panic!("{} cannot be encoded as {ty}", spec.name));
        }
        match self.constants.iter().find(|(name, _)| *name == spec.name) {
            Some((_, constant)) => blocks::quantise(ty, &|| vec![*constant; spec.len()])
                .unwrap_or_else(|| panic!("{} cannot hold a constant as {ty}", spec.name)),
            None => blocks::encode(ty, self.seed, &spec.name, spec.len()),
        }
    }

    /// Values of a tensor as a reader sees them.
    pub fn values(&self, spec: &TensorSpec) -> Vec<f32> {
        let ty = self.type_of(spec);
        let derived = spec.name.contains("attn_kv_b.");
        if ty == GgmlType::F32 && !derived && !self.constants.iter().any(|(name, _)| *name == spec.name) {
            return weights::values(self.seed, &spec.name, spec.len());
        }
        let format = kernels::format(ty.id()).unwrap_or_else(|| panic!("no kernel for {ty}"));
        let mut out = vec![0.0; spec.len()];
        (format.dequantize)(&self.bytes(spec), &mut out);
        out
    }

    /// The metadata that a converter would write.
    pub fn metadata(&self) -> Metadata {
        let c = &self.config;
        let mut m = Metadata::new();
        let arch = c.family.name();
        m.insert("general.architecture", arch);
        m.insert("general.type", "model");
        m.insert("general.name", "Toy");
        m.insert("general.quantization_version", 2u32);
        let blocks = c.num_hidden_layers + u32::from(self.mtp);
        let mut numbers = vec![
            ("block_count", blocks),
            ("context_length", c.max_position_embeddings),
            ("embedding_length", c.hidden_size),
            ("feed_forward_length", c.intermediate_size),
            ("attention.head_count", c.num_attention_heads),
            ("attention.kv_lora_rank", c.kv_lora_rank),
            ("rope.dimension_count", c.qk_rope_head_dim),
            ("expert_count", c.n_routed_experts),
            ("expert_used_count", c.num_experts_per_tok),
            ("expert_shared_count", c.n_shared_experts),
            ("expert_group_count", c.n_group),
            ("expert_group_used_count", c.topk_group),
            ("expert_feed_forward_length", c.moe_intermediate_size),
            ("expert_gating_func", if c.scoring_func == Scoring::Sigmoid { 2 } else { 1 }),
            ("leading_dense_block_count", c.first_k_dense_replace),
            ("vocab_size", c.vocab_size),
        ];
        let head = c.qk_nope_head_dim + c.qk_rope_head_dim;
        if self.legacy_kv_b {
            numbers.extend([
                ("attention.head_count_kv", c.num_attention_heads),
                ("attention.key_length", head),
                ("attention.value_length", c.v_head_dim),
            ]);
        } else {
            numbers.extend([
                // The absorbed, multi-query view of MLA: neither of these three is a head size.
                ("attention.head_count_kv", 1),
                ("attention.key_length", c.kv_lora_rank + c.qk_rope_head_dim),
                ("attention.value_length", c.kv_lora_rank),
                ("attention.key_length_mla", head),
                ("attention.value_length_mla", c.v_head_dim),
            ]);
        }
        if c.q_lora_rank > 0 {
            numbers.push(("attention.q_lora_rank", c.q_lora_rank));
        }
        if c.family == Family::GlmDsa {
            numbers.extend([
                ("attention.indexer.head_count", c.index_n_heads),
                ("attention.indexer.key_length", c.index_head_dim),
                ("attention.indexer.top_k", c.index_topk),
            ]);
        }
        for (key, value) in numbers {
            m.insert(format!("{arch}.{key}"), value);
        }
        if self.mtp {
            m.insert(format!("{arch}.nextn_predict_layers"), 1u32);
        }
        m.insert(format!("{arch}.attention.layer_norm_rms_epsilon"), c.rms_norm_eps as f32);
        m.insert(format!("{arch}.expert_weights_scale"), c.routed_scaling_factor as f32);
        m.insert(format!("{arch}.expert_weights_norm"), c.norm_topk_prob);
        m.insert(format!("{arch}.rope.freq_base"), c.rope_parameters.rope_theta as f32);
        if let Some(y) = &c.rope_parameters.yarn {
            // As deepseek2's converter: the multiplier carries 0.1 * mscale_all_dim, and the mscales are equal.
            m.insert(format!("{arch}.rope.scaling.type"), "yarn");
            m.insert(format!("{arch}.rope.scaling.factor"), y.factor as f32);
            m.insert(
                format!("{arch}.rope.scaling.original_context_length"),
                y.original_max_position_embeddings,
            );
            if y.mscale_all_dim != 0.0 {
                m.insert(format!("{arch}.rope.scaling.yarn_log_multiplier"), (0.1 * y.mscale_all_dim) as f32);
            }
            m.insert(format!("{arch}.rope.scaling.yarn_beta_fast"), y.beta_fast as f32);
            m.insert(format!("{arch}.rope.scaling.yarn_beta_slow"), y.beta_slow as f32);
        }
        if self.schedule_in_file && c.family == Family::GlmDsa {
            let full: Vec<bool> = c.indexer_types.iter().map(|t| *t == Indexer::Full).collect();
            m.insert(format!("{arch}.attention.indexer.types"), full);
        }
        vocabulary::insert(&mut m, self.vocabulary, c.vocab_size);
        m
    }

    /// One GGUF.
    pub fn write(&self, path: &Path) {
        self.write_tensors(path, self.metadata(), self.tensors());
    }

    /// One GGUF without the routed experts.
    pub fn write_dense(&self, path: &Path) {
        let dense = self.tensors().into_iter().filter(|t| !matches!(t.role, Role::Expert(..))).collect();
        self.write_tensors(path, self.metadata(), dense);
    }

    /// A split set of `n` shards named after `stem`, tensors dealt out in order; returns the first shard's path. Only the
    /// first shard has the metadata, as llama.cpp's splitter leaves it.
    pub fn write_split(&self, dir: &Path, stem: &str, n: u16) -> PathBuf {
        let tensors = self.tensors();
        let path = |i: u16| dir.join(format!("{stem}-{:05}-of-{n:05}.gguf", i + 1));
        let per_shard = tensors.len().div_ceil(usize::from(n));
        let mut chunks = tensors.chunks(per_shard);
        for i in 0..n {
            let mut metadata = if i == 0 { self.metadata() } else { Metadata::new() };
            metadata.insert("split.no", i);
            metadata.insert("split.count", n);
            metadata.insert("split.tensors.count", tensors.len() as i32);
            self.write_tensors(&path(i), metadata, chunks.next().unwrap_or_default().to_vec());
        }
        path(0)
    }

    fn write_tensors(&self, path: &Path, metadata: Metadata, tensors: Vec<TensorSpec>) {
        let mut writer = Writer::new(metadata).expect("toy metadata is sound");
        for spec in tensors {
            let (name, ty, shape) = (spec.name.clone(), self.type_of(&spec), spec.shape.clone());
            writer
                .tensor(name, ty, &shape, move |out| out.write_all(&self.bytes(&spec)))
                .expect("toy tensors are sound");
        }
        writer.write_file(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

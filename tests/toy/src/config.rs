//! The shape of a toy: the family, the configuration (Hugging Face names), the tensors it implies (GGUF names and orientation), and
//! the metadata that a converter would write for it.

use files::GgmlType;
use serde::Deserialize;

/// Runs its own indexer, or reuses the selection of the nearest full layer before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Indexer {
    /// Runs its own.
    Full,
    /// Reuses.
    Shared,
}

/// Which architecture a toy is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// `glm_moe_dsa`.
    #[default]
    GlmDsa,
    /// `deepseek_v2`, `deepseek_v3`, `glm4_moe_lite`: no indexer.
    Deepseek2,
}

impl Family {
    /// `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Self::GlmDsa => "glm-dsa",
            Self::Deepseek2 => "deepseek2",
        }
    }
}

/// How the router scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scoring {
    /// Each expert for itself, with a correction bias; the two best of a group speak for it.
    #[default]
    Sigmoid,
    /// Against all others, without a bias; the best of a group speaks for it.
    Softmax,
}

/// `rope_parameters` of a Hugging Face configuration.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Rope {
    /// `default` or `yarn`.
    pub rope_type: String,
    /// Base.
    pub rope_theta: f64,
    /// YaRN: the rest.
    #[serde(flatten)]
    pub yarn: Option<Yarn>,
}

/// YaRN's own parameters.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Yarn {
    /// Context is stretched by this.
    pub factor: f64,
    /// Context of the first training.
    pub original_max_position_embeddings: u32,
    /// Rotations above which a dimension is left alone.
    pub beta_fast: f64,
    /// Rotations below which a dimension is interpolated.
    pub beta_slow: f64,
    /// Both mscales are always equal here, so that they cancel on cos and sin.
    #[serde(default)]
    pub mscale: f64,
    /// Its square, through `0.1 m ln(factor) + 1`, scales the softmax. 0 = not given: cos and sin take that factor for m = 1.
    #[serde(default)]
    pub mscale_all_dim: f64,
}

/// A configuration; field names are Hugging Face's, except the first.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[allow(missing_docs, reason = "Hugging Face's names, documented there")]
pub struct ToyConfig {
    #[serde(default)]
    pub family: Family,
    pub vocab_size: u32,
    pub hidden_size: u32,
    pub intermediate_size: u32,
    pub moe_intermediate_size: u32,
    pub num_hidden_layers: u32,
    pub first_k_dense_replace: u32,
    pub num_attention_heads: u32,
    /// 0 = none: queries straight from the input.
    pub q_lora_rank: u32,
    pub kv_lora_rank: u32,
    pub qk_nope_head_dim: u32,
    pub qk_rope_head_dim: u32,
    pub v_head_dim: u32,
    pub n_routed_experts: u32,
    pub num_experts_per_tok: u32,
    pub n_shared_experts: u32,
    pub routed_scaling_factor: f64,
    pub norm_topk_prob: bool,
    pub n_group: u32,
    pub topk_group: u32,
    #[serde(default)]
    pub scoring_func: Scoring,
    #[serde(default)]
    pub index_topk: u32,
    #[serde(default)]
    pub index_n_heads: u32,
    #[serde(default)]
    pub index_head_dim: u32,
    pub max_position_embeddings: u32,
    pub rms_norm_eps: f64,
    pub rope_parameters: Rope,
    #[serde(default)]
    pub indexer_types: Vec<Indexer>,
}

/// Which storage type a tensor takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Norms, router, biases: F32 in every file.
    Exact,
    /// Resident matrices.
    Dense,
    /// Stacked routed experts of (layer, 0 = gate, 1 = up, 2 = down).
    Expert(u32, usize),
}

/// One tensor of a toy.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// GGUF name.
    pub name: String,
    /// Contiguous dimension first.
    pub shape: Vec<u64>,
    /// What it is for.
    pub role: Role,
}

impl TensorSpec {
    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product::<u64>() as usize
    }

    /// Whether it holds nothing; never true of a toy.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Names of the routed tensors, in family order.
pub const EXPERT_FAMILIES: [&str; 3] = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];

impl ToyConfig {
    /// The pattern of full and shared layers, as in "FFFSSSF".
    pub fn with_pattern(mut self, pattern: &str) -> Self {
        self.indexer_types =
            pattern.chars().map(|c| if c == 'F' { Indexer::Full } else { Indexer::Shared }).collect();
        self.num_hidden_layers = self.indexer_types.len() as u32;
        self
    }

    /// Layers with routed experts that a decoder runs.
    pub fn moe_layers(&self) -> std::ops::Range<u32> {
        self.first_k_dense_replace..self.num_hidden_layers
    }

    /// Every tensor of the trunk; indexers of shared layers too when `stale_indexers`, and the block after the trunk
    /// that predicts further tokens when `mtp`.
    pub fn tensors(&self, stale_indexers: bool, mtp: bool) -> Vec<TensorSpec> {
        let (d, vocab) = (self.hidden_size, self.vocab_size);
        let mut list = List(Vec::new());
        list.add(Role::Dense, "token_embd.weight", &[d, vocab]);
        for i in 0..self.num_hidden_layers {
            let full = self.indexer_types.get(i as usize) == Some(&Indexer::Full);
            self.attention(&mut list, i, full || stale_indexers);
            if i < self.first_k_dense_replace {
                let n = self.intermediate_size;
                list.add(Role::Dense, format!("blk.{i}.ffn_gate.weight"), &[d, n]);
                list.add(Role::Dense, format!("blk.{i}.ffn_up.weight"), &[d, n]);
                list.add(Role::Dense, format!("blk.{i}.ffn_down.weight"), &[n, d]);
            } else {
                self.experts(&mut list, i);
            }
        }
        if mtp {
            let i = self.num_hidden_layers;
            self.attention(&mut list, i, self.family == Family::GlmDsa);
            self.experts(&mut list, i);
            list.add(Role::Dense, format!("blk.{i}.nextn.eh_proj.weight"), &[2 * d, d]);
            for norm in ["enorm", "hnorm", "shared_head_norm"] {
                list.add(Role::Exact, format!("blk.{i}.nextn.{norm}.weight"), &[d]);
            }
        }
        list.add(Role::Exact, "output_norm.weight", &[d]);
        list.add(Role::Dense, "output.weight", &[d, vocab]);
        list.0
    }

    fn attention(&self, list: &mut List, i: u32, indexer: bool) {
        let (d, q, l, r) = (self.hidden_size, self.q_lora_rank, self.kv_lora_rank, self.qk_rope_head_dim);
        let (h, n, v) = (self.num_attention_heads, self.qk_nope_head_dim, self.v_head_dim);
        let b = |name: &str| format!("blk.{i}.{name}");
        list.add(Role::Exact, b("attn_norm.weight"), &[d]);
        if q == 0 {
            list.add(Role::Dense, b("attn_q.weight"), &[d, h * (n + r)]);
        } else {
            list.add(Role::Dense, b("attn_q_a.weight"), &[d, q]);
            list.add(Role::Exact, b("attn_q_a_norm.weight"), &[q]);
            list.add(Role::Dense, b("attn_q_b.weight"), &[q, h * (n + r)]);
        }
        list.add(Role::Dense, b("attn_kv_a_mqa.weight"), &[d, l + r]);
        list.add(Role::Exact, b("attn_kv_a_norm.weight"), &[l]);
        list.add(Role::Dense, b("attn_k_b.weight"), &[n, l, h]);
        list.add(Role::Dense, b("attn_v_b.weight"), &[l, v, h]);
        list.add(Role::Dense, b("attn_output.weight"), &[h * v, d]);
        if indexer {
            let (heads, dim) = (self.index_n_heads, self.index_head_dim);
            list.add(Role::Dense, b("indexer.attn_q_b.weight"), &[q, heads * dim]);
            list.add(Role::Dense, b("indexer.attn_k.weight"), &[d, dim]);
            list.add(Role::Exact, b("indexer.k_norm.weight"), &[dim]);
            list.add(Role::Exact, b("indexer.k_norm.bias"), &[dim]);
            list.add(Role::Dense, b("indexer.proj.weight"), &[d, heads]);
        }
        list.add(Role::Exact, b("ffn_norm.weight"), &[d]);
    }

    fn experts(&self, list: &mut List, i: u32) {
        let (d, f, e) = (self.hidden_size, self.moe_intermediate_size, self.n_routed_experts);
        let b = |name: &str| format!("blk.{i}.{name}");
        list.add(Role::Exact, b("ffn_gate_inp.weight"), &[d, e]);
        if self.scoring_func == Scoring::Sigmoid {
            list.add(Role::Exact, b("exp_probs_b.bias"), &[e]);
        }
        for (family, name) in EXPERT_FAMILIES.iter().enumerate() {
            let shape = if family == 2 { [f, d, e] } else { [d, f, e] };
            list.add(Role::Expert(i, family), b(&format!("{name}.weight")), &shape);
        }
        let s = f * self.n_shared_experts;
        if s == 0 {
            return;
        }
        list.add(Role::Dense, b("ffn_gate_shexp.weight"), &[d, s]);
        list.add(Role::Dense, b("ffn_up_shexp.weight"), &[d, s]);
        list.add(Role::Dense, b("ffn_down_shexp.weight"), &[s, d]);
    }
}

struct List(Vec<TensorSpec>);

impl List {
    fn add(&mut self, role: Role, name: impl Into<String>, shape: &[u32]) {
        self.0.push(TensorSpec {
            name: name.into(),
            shape: shape.iter().map(|&n| u64::from(n)).collect(),
            role,
        });
    }
}

/// Storage types of a toy.
#[derive(Clone, Debug)]
pub struct Types {
    /// Resident matrices; one whose rows are no whole number of blocks is stored as Q8_0, or F32 where that fails too,
    /// as converters do.
    pub dense: GgmlType,
    /// Gate, up and down of the first MoE layer, the second, …; starts over at the end of the list.
    pub experts: Vec<[GgmlType; 3]>,
}

impl Types {
    /// One type for everything.
    pub fn all(ty: GgmlType) -> Self {
        Self { dense: ty, experts: vec![[ty; 3]] }
    }

    /// Type of tensor `spec` in a model whose first MoE layer is `first_moe`.
    pub fn of(&self, spec: &TensorSpec, first_moe: u32) -> GgmlType {
        let fits = |ty: GgmlType| ty.row_bytes(spec.shape[0]).is_some();
        match spec.role {
            Role::Exact => GgmlType::F32,
            Role::Expert(layer, family) => {
                let ty = self.experts[(layer - first_moe) as usize % self.experts.len()][family];
                assert!(fits(ty), "{} cannot be {ty}", spec.name);
                ty
            }
            Role::Dense => {
                *[self.dense, GgmlType::Q8_0].iter().find(|ty| fits(**ty)).unwrap_or(&GgmlType::F32)
            }
        }
    }
}
